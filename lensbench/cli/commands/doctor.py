"""`lensbench doctor`: is a model read correctly, and a verbalizer asked as it was trained to be?"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from lensbench.cli.application import app, say_what_happens
from lensbench.cli.options import (
    Device,
    Dtype,
    Json,
    ModelArgs,
    ModulePaths,
    Offline,
    Quiet,
    Revision,
    print_json,
    read_model_args,
    read_module_paths,
    read_settings,
)
from lensbench.errors import LensbenchError, UsageError

if TYPE_CHECKING:
    from lensbench.explore.doctor import Check


@app.command()
def doctor(
    model: Annotated[str, typer.Argument(help="Built-in name, folder, GGUF file or Hub id.", show_default=False)],
    verbalizer: Annotated[
        str | None,
        typer.Option(
            help="Check instead how this trained verbalizer, or recipe such as activation_oracle, is asked.",
            metavar="TEXT",
        ),
    ] = None,
    parameter: Annotated[
        list[str] | None,
        typer.Option("--set", help="With --verbalizer: PARAMETER=VALUE of its method; can be repeated."),
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    revision: Revision = None,
    offline: Offline = False,
    module_paths: ModulePaths = None,
    model_args: ModelArgs = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Is this model read correctly? Shows each check with its value and tolerance, and a verdict.

    With `--verbalizer`, shows the prompt that a trained verbalizer gets, and whether it is asked as it was trained to
    be: each wrong way of asking should lower its scores.

    Examples:
    `lensbench doctor smollm2-135m`

    `lensbench doctor smollm2-135m --model-args attn_implementation=eager,dtype=bfloat16`

    `lensbench doctor smollm2-135m --verbalizer my-oracle`
    """
    from lensbench.models.quiet import quiet_libraries
    from lensbench.models.sources import check_model_name

    check_model_name(model, offline=offline)
    paths = read_module_paths(module_paths)
    args = read_model_args(model, model_args, dtype)
    settings = read_settings(parameter or [], "PARAMETER=VALUE, such as layer=2")
    if settings and verbalizer is None:
        raise UsageError("--set is about a verbalizer; give --verbalizer FOLDER, or leave it out")
    quiet_libraries()
    say_what_happens(quiet=quiet)
    from lensbench.models.architecture import ModulePaths
    from lensbench.models.loading import Loading, load_model

    how = Loading(device, dtype, revision, offline, paths=ModulePaths(**paths) if paths else None, model_args=args)
    if verbalizer is None:
        from lensbench.explore.doctor import examine_loading

        checks = examine_loading(lambda: load_model(model, how))
        _tell(model, checks, as_json=as_json, done="is read correctly", failure="is not read correctly")
        return
    from lensbench.explore.verbalizer import examine_verbalizer, find_verbalizer

    find_verbalizer(verbalizer, settings)  # refused before the model is loaded
    found = examine_verbalizer(load_model(model, how), verbalizer, settings)
    if not as_json:
        Console(soft_wrap=True).print(found.prompt, markup=False, highlight=False)
    _tell(
        verbalizer, found.checks, as_json=as_json, more={"prompt": found.prompt, "notes": found.notes},
        done="is asked as it was trained to be, as far as can be told",
        failure="is not asked as it was trained to be, or does not read activations",
    )  # fmt: skip


def _tell(
    name: str,
    checks: "Sequence[Check]",
    *,
    as_json: bool,
    done: str,
    failure: str,
    more: dict[str, object] | None = None,
) -> None:
    """Print checks, what figures mean that are not as expected, and the verdict; fail where one failed."""
    from lensbench.report.tables import print_rows

    failed, more = [check.name for check in checks if not check.passed], more or {}
    if as_json:
        print_json({"model": name, "passed": not failed, "checks": [asdict(check) for check in checks], **more})
    else:
        rows = [(check.name, check.figure, check.tolerance, "ok" if check.passed else "FAILED") for check in checks]
        print_rows(("check", "figure", "tolerance", ""), rows)
        for note in more.get("notes", ()):  # type: ignore[attr-defined]
            Console(soft_wrap=True).print(note, markup=False, highlight=False)
    if failed:
        raise LensbenchError(f"{name} {failure}: {', '.join(failed)}; do not trust results on it")
    if not as_json:
        Console(soft_wrap=True).print(f"{name} {done}.", highlight=False)
