"""`lensbench tune`: search over a method's configurations, with the same search for every baseline."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from lensbench.cli.application import app, progress_of, say_what_happens
from lensbench.cli.completion import task as one_task
from lensbench.cli.options import Device, Dtype, Json, Layers, Model, Offline, Quiet, print_json, read_settings
from lensbench.errors import UsageError, unknown_name

# What may be searched.
SEARCHED = 'NAME=VALUE, such as placeholders=["x","it"]'


@app.command()
def tune(
    method: Annotated[str, typer.Argument(help="patchscope.", show_default=False)],
    task: Annotated[
        str,
        typer.Option(help="A task, or NAME/RELATION.", show_default=False, autocompletion=one_task),
    ],
    budget: Annotated[int, typer.Option(help="How many configurations to try.")] = 32,
    model: Model = "smollm2-135m",
    verbalizer: Annotated[
        str | None, typer.Option(help="The model that turns activations into words. [default: the target]")
    ] = None,
    layers: Layers = "stride:3",
    sites: Annotated[str | None, typer.Option(help="Read sites. [default: all that the task has]")] = None,
    limit: Annotated[int | None, typer.Option(help="Draw this many test items for each site.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the search, and of everything else random.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Run folder; an existing search is resumed. [default: reports/TIME-MODEL]")
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    offline: Offline = False,
    space: Annotated[
        list[str] | None, typer.Option("--set", help='What to search, such as placeholders=["x","it"].')
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Search inspection prompt, target layer, placeholder and amplifier of a Patchscope, and report on held-out folds.

    Every rival searches the same configurations, and chooses its own. The configuration is chosen on four folds of
    subjects and scored on the fifth, in turn; the best on all subjects is written to tuned.csv, for further use.

    Example: `lensbench tune patchscope --task attribute_extraction/country_capital --budget 20 --sites subject`
    """
    from lensbench.evaluation.config import check_config, make_config

    if method not in ("patchscope",):
        raise unknown_name("method to tune", method, ("patchscope",))
    if budget < 1:
        raise UsageError(f"--budget {budget}: expected 1 configuration or more")
    settings: dict[str, Any] = {"budget": budget, "seed": seed, **read_settings(space or [], SEARCHED)}
    given = {
        "model": model, "verbalizer": verbalizer, "tasks": task, "layers": layers, "sites": sites, "limit": limit,
        "seed": seed, "out": out, "device": device, "dtype": dtype, "offline": offline,
        "inspectors": f"{method}_search", "parameters": {f"{method}_search": settings},
    }  # fmt: skip
    config = make_config({name: value for name, value in given.items() if value is not None})
    check_config(config)  # before torch is imported: a wrong name is answered at once
    from lensbench.models.quiet import quiet_libraries

    quiet_libraries()
    say_what_happens(quiet=quiet)
    from lensbench.cli.terminal import show_tuned, tuned_as_json
    from lensbench.explore.tune import TUNED, tune

    found = tune(method, settings, config, progress_of(quiet=quiet))
    if as_json:
        print_json(tuned_as_json(found))
        return
    show_tuned(found)
    Console(soft_wrap=True).print(f"{found.run.path / TUNED}: the configurations to use", highlight=False)
