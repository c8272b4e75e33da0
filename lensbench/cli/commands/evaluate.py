"""`lensbench evaluate`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lensbench.cli.application import app, complain, progress_of, say_what_happens
from lensbench.cli.options import Json, ModulePaths, Quiet, Revision, print_json, read_module_paths, read_value
from lensbench.errors import LensbenchError, UsageError

if TYPE_CHECKING:
    from lensbench.evaluation.config import RunConfig


def _parameters(given: list[str]) -> dict[str, dict[str, Any]]:
    """Read `inspector.parameter=value`; the value as TOML, or as plain text."""
    parameters: dict[str, dict[str, Any]] = {}
    for entry in given:
        place, equals, value = entry.partition("=")
        # A module:Class may hold dots itself: the parameter is what follows the last one.
        inspector, dot, name = place.rpartition(".")
        if not (equals and dot):
            raise UsageError(f"--set {entry!r}: expected INSPECTOR.PARAMETER=VALUE, such as patchscope.placeholder=y")
        parameters.setdefault(inspector, {})[name] = read_value(value)
    return parameters


@app.command()
def evaluate(
    model: Annotated[
        str | None, typer.Option(help="Built-in name, folder, GGUF file or Hub id. [default: smollm2-135m]")
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(help="Task names (also NAME/RELATION), folders, or files such as lre:FILE.json; with commas."),
    ] = None,
    inspectors: Annotated[
        str | None, typer.Option(help="Inspector names or module:Class, with commas between.")
    ] = None,
    baselines: Annotated[
        str | None, typer.Option(help="Baseline names or .toml files, or none. [default: all]")
    ] = None,
    layers: Annotated[str | None, typer.Option(help="all; or 0,4,8; or stride:2. Layer 0 is the embeddings.")] = None,
    sites: Annotated[
        str | None, typer.Option(help="Read sites: subject, answer, t1, t2. [default: all that a task has]")
    ] = None,
    verbalizer: Annotated[
        str | None, typer.Option(help="The model that turns activations into words. [default: the target]")
    ] = None,
    unplanted: Annotated[
        str | None,
        typer.Option(help="The target without its facts, for rivals. [default: M where the target is M+DIR]"),
    ] = None,
    twin: Annotated[
        str | None,
        typer.Option(help="The target with other facts about the same names. [default: the implant's own twin]"),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(help="A reader of text without the facts. [default: M where the target is M+DIR]"),
    ] = None,
    subjects: Annotated[
        Path | None, typer.Option(help="Ask about these alone: a file with a name a line, or an edit's facts.json.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Draw this many test items a task and site.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Run folder; an existing run is gone on with. [default: reports/TIME-MODEL]")
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16, float16, float64.")] = None,
    device_map: Annotated[str | None, typer.Option(help="auto spreads a large model over all GPUs and memory.")] = None,
    memory: Annotated[str | None, typer.Option(help="What a batch may take, such as 4GB. [default: auto]")] = None,
    executor: Annotated[
        str | None, typer.Option(help="local: this process; ray: a Ray cluster or several processes. [default: local]")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="With ray: how many. [default: one a GPU, else a node]")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file of settings; options win over it.")] = None,
    revision: Revision = None,
    offline: Annotated[bool | None, typer.Option("--offline", help="Never ask the Hub.")] = None,
    chat_template: Annotated[
        bool | None, typer.Option("--chat-template", help="Put prompts at the beginning of the assistant's turn.")
    ] = None,
    module_paths: ModulePaths = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be done, and what it would take.")
    ] = False,
    parameter: Annotated[
        list[str] | None, typer.Option("--set", help="INSPECTOR.PARAMETER=VALUE; may be given again.")
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Evaluate methods on tasks at every layer, beside their rival explanations.

    Examples:
    `lensbench evaluate` (everything, on the built-in model)

    `lensbench evaluate --tasks attribute_extraction/country_capital --inspectors patchscope --layers stride:3`

    `lensbench evaluate --inspectors my_module:MyLens,logit_lens --limit 100 --out runs/first`
    """
    given: dict[str, Any] = {
        "model": model,
        "tasks": tasks,
        "inspectors": inspectors,
        "baselines": baselines,
        "layers": layers,
        "sites": sites,
        "verbalizer": verbalizer,
        "unplanted": unplanted,
        "twin": twin,
        "reference": reference,
        "subjects": subjects,
        "limit": limit,
        "seed": seed,
        "out": out,
        "device": device,
        "dtype": dtype,
        "device_map": device_map,
        "memory": memory,
        "executor": executor,
        "workers": workers,
        "revision": revision,
        "offline": offline,
        "chat_template": chat_template,
        "module_paths": read_module_paths(module_paths),
        "parameters": _parameters(parameter or []) or None,
    }
    settings = _checked({name: value for name, value in given.items() if value is not None}, config, quiet=quiet)
    if dry_run:
        from lensbench.cli import terminal
        from lensbench.evaluation.dry_run import dry_run as plan_run

        planned = plan_run(settings)
        print_json(terminal.plan_as_json(planned)) if as_json else terminal.show_plan(planned)
    else:
        _evaluate(settings, as_json=as_json, quiet=quiet)


def _checked(given: dict[str, Any], config: Path | None, *, quiet: bool) -> "RunConfig":
    from lensbench.evaluation.config import check_config, make_config

    sys.path.insert(0, "")  # a user's own module lies in the current folder
    settings = make_config(given, config)
    check_config(settings)  # before torch is imported: a wrong name is answered at once
    from lensbench.models.sources import quiet_libraries

    quiet_libraries()
    say_what_happens(quiet=quiet)
    return settings


def _evaluate(settings: "RunConfig", *, as_json: bool, quiet: bool) -> None:
    from lensbench.cli.terminal import run_as_json, show_run
    from lensbench.evaluation.evaluate import run_config

    run = run_config(settings, progress_of(quiet=quiet))
    if as_json:
        print_json(run_as_json(run))
    else:
        show_run(run)
    for file, error in run.failed.items():
        complain(f"failed: {file}: {error.splitlines()[0]}")
    if run.failed:
        raise LensbenchError(
            f"{len(run.failed)} of {len(run.info['cells'])} cells failed; tracebacks in {run.path / 'run.json'}; run "
            f"again with --out {run.path} to try them again"
        )
