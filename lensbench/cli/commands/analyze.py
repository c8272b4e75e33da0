"""`lensbench analyze`."""

import logging
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from lensbench.cli.application import app, say_what_happens
from lensbench.cli.options import (
    Device,
    Dtype,
    Json,
    Layers,
    Model,
    ModulePaths,
    Offline,
    Quiet,
    Revision,
    names_in,
    print_json,
    read_module_paths,
)
from lensbench.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd

# A table in the terminal names about so many layers; the files have all.
_SHOWN = 9
_COLUMNS = {
    "drift-layers": ("coordinates", "layer", "norm", "participation_ratio", "effective_rank", "top1", "top10"),
    "alignment": ("lens", "directions", "layer", "alignment", "low", "high", "response", "silent"),
    "updates": ("loss", "layer", "cosine", "low", "high", "control", "update"),
}


class What(StrEnum):
    """What can be analysed."""

    drift = "drift"
    alignment = "alignment"
    updates = "updates"
    everything = "all"


@app.command()
def analyze(
    what: Annotated[What, typer.Argument(help="Which analysis.")] = What.everything,
    model: Model = "smollm2-135m",
    inspectors: Annotated[
        str, typer.Option(help="Lenses for alignment: names, module:Class or file.py:Class, separated by commas.")
    ] = "logit_lens,tuned_lens",
    tokens: Annotated[int, typer.Option(min=256, help="Held-out prose for drift and principal directions.")] = 4096,
    texts: Annotated[int, typer.Option(min=4, help="Texts of 64 tokens, for alignment and updates.")] = 32,
    layers: Layers = "all",
    out: Annotated[Path | None, typer.Option(help="The folder to write to. [default: reports/analyses-MODEL]")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything random.")] = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    revision: Revision = None,
    offline: Offline = False,
    module_paths: ModulePaths = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """How does the residual stream drift, do lenses respond as the model does, and do updates follow the gradient?

    Writes tables (CSV) and figures (PNG, SVG, PDF); see docs/analyses.md.

    Examples: `lensbench analyze --model smollm2-135m`; `lensbench analyze drift --model gpt2 --layers stride:2`
    """
    from lensbench.inspectors.catalog import check_inspector
    from lensbench.models.quiet import quiet_libraries
    from lensbench.models.sources import check_model_name, resolve
    from lensbench.utils.layer_spec import parse_layers

    names = tuple(dict.fromkeys(names_in(inspectors)))
    if not names:
        raise UsageError(f"--inspectors {inspectors!r} is empty; name at least one lens, such as logit_lens")
    check_model_name(model, offline=offline)
    for name in names:
        check_inspector(name)
    parse_layers(layers, None)
    paths = read_module_paths(module_paths)
    folder = out or Path("reports") / f"analyses-{Path(model).name}"
    quiet_libraries()
    say_what_happens(quiet=quiet)
    logging.getLogger("fontTools").setLevel(logging.WARNING)  # it tells of every glyph of a PDF
    from lensbench.explore.analyze import ANALYSES, PER_TEXT, AnalysisSettings, check_settings
    from lensbench.explore.analyze import analyze as run
    from lensbench.models.architecture import ModulePaths
    from lensbench.models.loading import Loading, count_layers, load_source

    how = Loading(device, dtype, revision, offline, paths=ModulePaths(**paths) if paths else None)
    at = how.torch_device()
    how.torch_dtype(at)
    source = resolve(model, revision=revision, offline=offline)
    settings = AnalysisSettings(tokens, texts, layers, names, seed)
    check_settings(source.name, settings, folder, count_layers(source))
    loaded = load_source(source, how, at)
    tables = run(loaded, tuple(ANALYSES) if what is What.everything else (what.value,), settings, folder)
    if as_json:
        from lensbench.results.summary import rows_of

        print_json(
            {"folder": str(folder), "tables": {name: rows_of(tables[name]) for name in tables if name != PER_TEXT}}
        )
        return
    for name, columns in _COLUMNS.items():
        if name in tables:
            _show(tables[name][list(columns)])
    Console(soft_wrap=True).print(f"tables and figures in {folder}", highlight=False, markup=False)


def _show(table: "pd.DataFrame") -> None:
    """Print some of a table's layers."""
    from lensbench.report.tables import print_rows

    every = sorted(table["layer"].unique())
    shown = {every[round(i * (len(every) - 1) / max(1, _SHOWN - 1))] for i in range(_SHOWN)}
    cells = [
        [f"{value:.3g}" if isinstance(value, float) else str(value) for value in row]
        for row in table[table["layer"].isin(shown)].itertuples(index=False)
    ]
    print_rows([name.replace("_", " ") for name in table.columns], cells)
