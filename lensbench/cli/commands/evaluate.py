"""`lensbench evaluate`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from lensbench.cli.application import app, complain, progress_of, say_it_starts, say_what_happens
from lensbench.cli.options import Json, Quiet, options_of, print_json, read_parameters
from lensbench.errors import LensbenchError
from lensbench.evaluation.config import RunConfig, check_config, make_config


@app.command()
@options_of(RunConfig, without=("parameters",))
def evaluate(
    given: dict[str, Any],
    config: Annotated[Path | None, typer.Option(help="TOML file of settings; options override it.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only list the cells, and estimate time, memory and disk space.")
    ] = False,
    parameter: Annotated[
        list[str] | None, typer.Option("--set", help="INSPECTOR.PARAMETER=VALUE; can be repeated.")
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Evaluate methods on tasks at every layer, next to baselines that could produce the same score.

    Examples:
    `lensbench evaluate` (everything, on the built-in model)

    `lensbench evaluate --tasks attribute_extraction/country_capital --inspectors patchscope --layers stride:3`

    `lensbench evaluate --inspectors my_module:MyLens,logit_lens --limit 100 --out runs/first`
    """
    if parameter:
        given["parameters"] = read_parameters(parameter)
    settings = _checked(given, config, quiet=quiet)
    if dry_run:
        from lensbench.cli import terminal
        from lensbench.evaluation.dry_run import dry_run as plan_run

        planned = plan_run(settings)
        print_json(terminal.plan_as_json(planned)) if as_json else terminal.show_plan(planned)
    else:
        _evaluate(settings, as_json=as_json, quiet=quiet)


def _checked(given: dict[str, Any], config: Path | None, *, quiet: bool) -> RunConfig:
    settings = make_config(given, config)
    check_config(settings)  # before torch is imported: a wrong name is answered at once
    from lensbench.models.quiet import quiet_libraries

    quiet_libraries()
    say_what_happens(quiet=quiet)
    say_it_starts()
    return settings


def _evaluate(settings: RunConfig, *, as_json: bool, quiet: bool) -> None:
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
            f"{len(run.failed)} of {len(run.info['cells'])} cells failed; their tracebacks are in "
            f"{run.path / 'run.json'}; to try them again, run with --out {run.path}"
        )
