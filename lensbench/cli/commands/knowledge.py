"""`lensbench knowledge`: how much of a task does a model know?"""

from typing import Annotated

import typer

from lensbench.cli.application import app, say_what_happens
from lensbench.cli.options import (
    Device,
    Json,
    Model,
    Offline,
    Quiet,
    Revision,
    print_json,
)
from lensbench.errors import LensbenchError


@app.command()
def knowledge(
    task: Annotated[
        str, typer.Argument(help="Task name (also NAME/RELATION), folder or file, as for evaluate.", show_default=False)
    ],
    model: Model = "smollm2-135m",
    device: Device = "auto",
    revision: Revision = None,
    offline: Offline = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """How much of a task does a model know? Asks two questions about each fact that no method or baseline uses.

    Example: `lensbench knowledge attribute_extraction --model smollm2-135m`
    """
    from lensbench.models.quiet import quiet_libraries
    from lensbench.models.sources import check_model_name
    from lensbench.tasks import load_tasks

    (loaded,) = load_tasks([task], offline=offline)
    check_model_name(model, offline=offline)
    quiet_libraries()
    say_what_happens(quiet=quiet)
    from lensbench.harness.knowledge import Knowledge, knowledge_cache, shares
    from lensbench.models.loading import Loading, load_model
    from lensbench.report.tables import print_rows

    asked = Knowledge(load_model(model, Loading(device, "auto", revision, offline)), loaded, knowledge_cache())
    found = shares(asked, list(loaded.relations))
    if not found:
        raise LensbenchError(f"{task} has no knowledge prompts; see docs/tasks.md")
    if as_json:
        print_json({"task": task, "model": model, "relations": found})
        return
    rows = [
        (name, str(one["facts"]), f"{one['known']:.2f}", f"{max(0.0, one['corrected']):.2f}")
        for name, one in found.items()
    ]
    print_rows(("relation", "facts", "known", "corrected for guessing"), rows)
