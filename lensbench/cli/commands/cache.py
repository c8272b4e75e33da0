"""`lensbench cache`: what is kept between runs."""

from enum import StrEnum
from typing import Annotated

import typer
from rich.console import Console

from lensbench.cli.application import app
from lensbench.cli.options import Json, print_json


class Kept(StrEnum):
    """What the cache holds and can be cleared."""

    models = "models"
    lenses = "lenses"
    residuals = "residuals"
    knowledge = "knowledge"
    calibrations = "calibrations"
    proofs = "proofs"
    checks = "checks"
    everything = "all"


@app.command()
def cache(
    clear: Annotated[Kept | None, typer.Option(help="Remove these; they are made again when they are needed.")] = None,
    as_json: Json = False,
) -> None:
    """Show what is kept between runs, and clear it: converted models, fitted lenses, captured residuals.

    `LENSBENCH_CACHE` names the folder, `LENSBENCH_CACHE_LIMIT` how much residuals may take (20GB).

    Example: `lensbench cache --clear residuals`
    """
    from lensbench.cli.terminal import show_cache
    from lensbench.utils import cache as store

    freed = 0 if clear is None else store.clear(store.KINDS if clear is Kept.everything else (clear.value,))
    if as_json:
        kept = {kind: {"number": number, "bytes": size} for kind, (number, size) in store.contents().items()}
        print_json({"folder": str(store.cache_path()), "kept": kept, "freed": freed})
        return
    if clear is not None:
        Console(soft_wrap=True).print(f"freed {freed / 1e6:.0f} MB", highlight=False)
    show_cache()
