"""`lensbench inspect`: look at one prompt."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from lensbench.cli.application import app, say_it_starts, say_what_happens
from lensbench.cli.options import (
    Device,
    Dtype,
    Json,
    Layers,
    Model,
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
from lensbench.errors import UsageError

if TYPE_CHECKING:
    from lensbench.explore.prompt_tables import Descriptions, LensTable
    from lensbench.inspectors.base import Inspector
    from lensbench.models.language_model import LanguageModel


@app.command()
def inspect(
    prompt: Annotated[str, typer.Argument(help="Any text.", show_default=False)],
    model: Model = "smollm2-135m",
    lens: Annotated[
        str, typer.Option(help="logit_lens, tuned_lens or another that predicts the next token.")
    ] = "logit_lens",
    layers: Layers = "all",
    rank: Annotated[
        bool, typer.Option("--rank", help="Colour by the rank of the model's prediction, not by probability.")
    ] = False,
    top: Annotated[int, typer.Option(help="How many of the likeliest tokens --html and --json include.")] = 10,
    patchscope: Annotated[
        bool, typer.Option("--patchscope", help="Describe one token in words, layer by layer.")
    ] = False,
    token: Annotated[
        str | None, typer.Option(help="With --patchscope: its number (-1 is the last), or a word of the prompt.")
    ] = None,
    parameter: Annotated[
        list[str] | None, typer.Option("--set", help="PARAMETER=VALUE of the lens or Patchscope; can be repeated.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Also write a page that needs no network.")] = None,
    png: Annotated[Path | None, typer.Option(help="Also draw it: .png, .svg or .pdf.")] = None,
    json: Json = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    revision: Revision = None,
    offline: Offline = False,
    module_paths: ModulePaths = None,
    model_args: ModelArgs = None,
    quiet: Quiet = False,
) -> None:
    """Look at one prompt: what does each layer predict at each token, or what does the model take one token to mean?

    Examples: `lensbench inspect "The capital of France is"`; `lensbench inspect "The capital of France is" --lens
    tuned_lens --html france.html`; `lensbench inspect "Diana, Princess of Wales" --patchscope --token Wales`
    """
    from lensbench.explore.prompt_terminal import PATCHSCOPE, check_prompt_text, check_table, check_token
    from lensbench.models.quiet import quiet_libraries
    from lensbench.models.sources import check_model_name

    if patchscope != (token is not None):
        raise UsageError("--patchscope describes one token: give --patchscope and --token together")
    if token is not None:
        check_prompt_text(prompt)
        check_token(prompt, token)
    else:
        check_table(prompt, lens, layers, top)
    _check_files(html, png)
    name = PATCHSCOPE if patchscope else lens
    given = read_settings(parameter or [], "PARAMETER=VALUE, such as steps=100")
    paths = read_module_paths(module_paths)
    args = read_model_args(model, model_args, dtype)
    check_model_name(model, offline=offline)
    quiet_libraries()
    say_what_happens(quiet=quiet)
    say_it_starts()
    method = _made(name, given)
    from lensbench.models.architecture import ModulePaths
    from lensbench.models.loading import Loading

    how = Loading(device, dtype, revision, offline, paths=ModulePaths(**paths) if paths else None, model_args=args)
    loaded = _loaded(model, how, layers)
    from lensbench.explore.prompt import describe_token, inspect

    found: LensTable | Descriptions
    if token is not None:
        found = describe_token(prompt, token, loaded, layers, method)  # type: ignore[arg-type]
    else:
        found = inspect(prompt, loaded, method, layers, top)  # type: ignore[arg-type]
    _show(found, rank=rank, top=top, json=json)
    _write(found, (html, png), rank=rank)


def _check_files(html: Path | None, png: Path | None) -> None:
    """Refuse what cannot be written, before a model is loaded."""
    from lensbench.report.style import FORMATS

    if png is not None and png.suffix.lower() not in FORMATS:
        raise UsageError(f"--png {png}: the suffix must be one of {', '.join(FORMATS)}")
    for option, path in (("--html", html), ("--png", png)):
        if path is not None and (path.is_dir() or not os.access(path.absolute().parent, os.W_OK | os.X_OK)):
            raise UsageError(f"{option} {path}: expected a file in an existing folder that can be written to")


def _made(name: str, parameters: dict[str, Any]) -> "Inspector":
    """Make the lens or Patchscope; a method that is neither is refused."""
    from lensbench.evaluation.config import make_config
    from lensbench.evaluation.plan import make_inspectors
    from lensbench.explore.prompt import load_lens
    from lensbench.explore.prompt_terminal import PATCHSCOPE

    if name != PATCHSCOPE:
        load_lens(name)
    else:
        parameters = {"prompt": "description", **parameters}
    (make,) = make_inspectors(make_config({"inspectors": (name,), "parameters": {name: parameters}})).values()
    return make()


def _loaded(model: str, how: Any, layers: str) -> "LanguageModel":
    """Load a model whose layers are those that were asked for."""
    from lensbench.models.loading import count_layers, load_source
    from lensbench.models.proofs import keep_proofs
    from lensbench.models.sources import resolve
    from lensbench.utils.layer_spec import parse_layers

    at = how.torch_device()
    how.torch_dtype(at)
    source = resolve(model, revision=how.revision, offline=how.offline)
    parse_layers(layers, count_layers(source))
    return keep_proofs(load_source(source, how, at))


def _show(found: "LensTable | Descriptions", *, rank: bool, top: int, json: bool) -> None:
    from lensbench.explore.prompt_tables import LensTable
    from lensbench.explore.prompt_terminal import terminal_descriptions, terminal_table
    from lensbench.report.tables import print_table

    if json:
        frame = found.to_frame(top) if isinstance(found, LensTable) else found.to_frame()
        print_json(frame.to_dict("records"))
        return
    console = Console(highlight=False)
    if isinstance(found, LensTable):
        print_table(terminal_table(found, "rank" if rank else "probability", console), console)
    else:
        print_table(terminal_descriptions(found), console)


def _write(found: "LensTable | Descriptions", files: Sequence[Path | None], *, rank: bool) -> None:
    """Write the page and the figure that were asked for."""
    from lensbench.explore.prompt_tables import LensTable
    from lensbench.report.style import save_figure

    html, png = files
    by: Any = {"by": "rank" if rank else "probability"} if isinstance(found, LensTable) else {}
    try:
        if html is not None:
            html.write_text(found.to_html(**by), encoding="utf-8")
        if png is not None:
            save_figure(found.plot(**by), [png])
    except OSError as error:
        raise UsageError(f"{error.filename} cannot be written: {error.strerror}; choose another place") from None
