"""`lensbench push`: a run, a lens or an edit on the Hugging Face Hub."""

import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from lensbench.cli.application import app, say_what_happens
from lensbench.cli.options import Json, Quiet, print_files, print_json


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(help="A run, a fitted lens, an adapter or an implant.", show_default=False)],
    to: Annotated[str, typer.Option(help="ORG/NAME on the Hub.", show_default=False)],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Write the folder that would be uploaded, and upload nothing.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Where to write it; nothing is uploaded then. [default: push-NAME]")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Let everybody see it; otherwise only you do.")] = False,
    licence: Annotated[
        str | None, typer.Option(help="An identifier of the Hub, such as apache-2.0. [default: none is stated]")
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Upload a run as a data set, or a lens, adapter or implant as a model, with a card that explains it.

    Of a run's `run.json`, tracebacks and the folders of your machine are left out. Records name the model as you did.

    Examples: `lensbench push reports/RUN --to ORG/NAME --dry-run`; `lensbench push lenses/gpt2 --to ORG/NAME --public`
    """
    say_what_happens(quiet=quiet)
    from lensbench.runs.hub import pack, write

    parcel = pack(folder, to, licence)
    if dry_run or out is not None:
        place = out or Path(f"push-{to.rpartition('/')[2]}")
        print_files(write(parcel, place), as_json=as_json, kind=parcel.kind)
        return
    from lensbench.models.hub import upload

    with tempfile.TemporaryDirectory() as temporary:
        write(parcel, Path(temporary) / "parcel")
        commit = upload(Path(temporary) / "parcel", to, parcel.kind, public=public)
    load = parcel.load.replace("COMMIT", commit)
    if as_json:
        print_json({"repository": to, "kind": parcel.kind, "commit": commit, "load": load})
        return
    console = Console(soft_wrap=True)
    console.print(f"{to} ({parcel.kind}) is at commit {commit}", highlight=False, markup=False)
    console.print(f"to load it: {load}", highlight=False, markup=False)
