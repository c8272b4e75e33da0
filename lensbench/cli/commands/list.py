"""`lensbench list`: what models, tasks, inspectors and baselines there are."""

from enum import StrEnum
from typing import Annotated

import typer

from lensbench.cli.application import app
from lensbench.cli.options import Json, print_json


class ListedKind(StrEnum):
    """What can be listed."""

    models = "models"
    tasks = "tasks"
    inspectors = "inspectors"
    baselines = "baselines"


@app.command("list")
def list_(
    kind: Annotated[ListedKind | None, typer.Argument(help="What to list. [default: all]", show_default=False)] = None,
    as_json: Json = False,
) -> None:
    """List models, tasks, inspectors and baselines.

    Examples: `lensbench list inspectors`; `lensbench list models --json`
    """
    from lensbench.cli.listings import LISTINGS, as_objects
    from lensbench.report.tables import print_rows

    kinds = [kind] if kind else list(ListedKind)
    if as_json:
        print_json({one.value: as_objects(LISTINGS[one.value]()) for one in kinds})
        return
    for one in kinds:
        print_rows(*LISTINGS[one.value]())
