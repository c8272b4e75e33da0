"""What is there, and what came of a run: `lensbench list`, `lensbench cache`, `lensbench plot`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from lensbench.cli.application import app
from lensbench.errors import UsageError

Run = Annotated[Path, typer.Argument(help="A run folder, as `lensbench evaluate` wrote it.", show_default=False)]


class Kind(StrEnum):
    """What can be listed."""

    models = "models"
    tasks = "tasks"
    inspectors = "inspectors"
    baselines = "baselines"


@app.command("list")
def list_(kind: Annotated[Kind | None, typer.Argument(help="Only these.", show_default=False)] = None) -> None:
    """List models, tasks, inspectors and baselines.

    Example: `lensbench list inspectors`
    """
    from lensbench.listings import LISTINGS
    from lensbench.report.rows import print_rows

    for one in [kind] if kind else list(Kind):
        print_rows(*LISTINGS[one.value]())


class Kept(StrEnum):
    """What the cache holds, and can be cleared of."""

    models = "models"
    lenses = "lenses"
    residuals = "residuals"
    knowledge = "knowledge"
    everything = "all"


@app.command()
def cache(
    clear: Annotated[Kept | None, typer.Option(help="Remove these; they are made again when needed.")] = None,
) -> None:
    """Show what is kept between runs, and clear it: converted models, fitted lenses, captured residuals.

    `LENSBENCH_CACHE` names the folder, `LENSBENCH_CACHE_LIMIT` how much residuals may take (20GB).

    Example: `lensbench cache --clear residuals`
    """
    from lensbench import cache as store
    from lensbench.terminal import show_cache

    if clear is not None:
        freed = store.clear(store.KINDS if clear is Kept.everything else (clear.value,))
        Console(soft_wrap=True).print(f"freed {freed / 1e6:.0f} MB", highlight=False)
    show_cache()


@app.command()
def plot(
    run: Run,
    metric: Annotated[
        str,
        typer.Option(help="accuracy_corrected, accuracy, or gap:QUESTION, such as gap:beats_text."),
    ] = "accuracy_corrected",
    out: Annotated[
        Path | None, typer.Option(help="A .png, .svg or .pdf file, or a folder. [default: RUN/plots]")
    ] = None,
) -> None:
    """Draw per-layer curves with bands: PNG, SVG or PDF.

    Examples: `lensbench plot reports/RUN`; `lensbench plot reports/RUN --metric gap:beats_text --out gap.pdf`
    """
    from lensbench.report.plots import plot_run
    from lensbench.run import PLOTS, load_run

    loaded = load_run(run)
    try:
        written = plot_run(loaded.summary, out or run / PLOTS, metric=metric)
    except OSError as error:
        raise UsageError(f"--out {out} cannot be written to: {error.strerror}; choose another place") from None
    for path in written:
        Console(soft_wrap=True).print(str(path), highlight=False)
