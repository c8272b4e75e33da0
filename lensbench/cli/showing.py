"""What is there: `lensbench list`, `lensbench cache`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from lensbench.cli.application import app
from lensbench.cli.options import Json, print_json

Run = Annotated[Path, typer.Argument(help="A run folder, as `lensbench evaluate` wrote it.", show_default=False)]


class Kind(StrEnum):
    """What can be listed."""

    models = "models"
    tasks = "tasks"
    inspectors = "inspectors"
    baselines = "baselines"


@app.command("list")
def list_(
    kind: Annotated[Kind | None, typer.Argument(help="Only these.", show_default=False)] = None, as_json: Json = False
) -> None:
    """List models, tasks, inspectors and baselines.

    Examples: `lensbench list inspectors`; `lensbench list models --json`
    """
    from lensbench.listings import LISTINGS, as_objects
    from lensbench.report.rows import print_rows

    kinds = [kind] if kind else list(Kind)
    if as_json:
        print_json({one.value: as_objects(LISTINGS[one.value]()) for one in kinds})
        return
    for one in kinds:
        print_rows(*LISTINGS[one.value]())


class Kept(StrEnum):
    """What the cache holds, and can be cleared of."""

    models = "models"
    lenses = "lenses"
    residuals = "residuals"
    knowledge = "knowledge"
    calibrations = "calibrations"
    everything = "all"


@app.command()
def cache(
    clear: Annotated[Kept | None, typer.Option(help="Remove these; they are made again when needed.")] = None,
    as_json: Json = False,
) -> None:
    """Show what is kept between runs, and clear it: converted models, fitted lenses, captured residuals.

    `LENSBENCH_CACHE` names the folder, `LENSBENCH_CACHE_LIMIT` how much residuals may take (20GB).

    Example: `lensbench cache --clear residuals`
    """
    from lensbench import cache as store
    from lensbench.terminal import show_cache

    freed = 0 if clear is None else store.clear(store.KINDS if clear is Kept.everything else (clear.value,))
    if as_json:
        kept = {kind: {"number": number, "bytes": size} for kind, (number, size) in store.contents().items()}
        print_json({"folder": str(store.cache_path()), "kept": kept, "freed": freed})
        return
    if clear is not None:
        Console(soft_wrap=True).print(f"freed {freed / 1e6:.0f} MB", highlight=False)
    show_cache()
