"""The command line. Each command checks what it was given and calls one public function."""

import logging
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from lensbench.errors import LensbenchError, UsageError

if TYPE_CHECKING:
    from lensbench.config import RunConfig

app = typer.Typer(
    name="lensbench",
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Which method reads what in a language model, at which layer, and is it reading the model or only the input?",
)

# What typer returns after Ctrl-C.
INTERRUPTED = 130
Run = Annotated[Path, typer.Argument(help="A run folder, as `lensbench evaluate` wrote it.", show_default=False)]


def _version(asked: bool) -> None:
    if asked:
        from lensbench import __version__

        Console(soft_wrap=True).print(f"lensbench {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def _options(
    _asked: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None: ...


def main() -> None:
    """Run the command line; errors are one line, and their exit status says whose they are."""
    try:
        status = app(sys.argv[1:] or ["--help"], standalone_mode=False)
    except LensbenchError as error:
        _complain(str(error))
        status = error.exit_status
    except Exception as error:
        # What the parser raises; its class has moved between versions of typer, its method has not.
        if not hasattr(error, "format_message"):
            raise
        _complain(f"{error.format_message().rstrip('.')}; see `lensbench --help`")
        status = 2
    if status == INTERRUPTED:
        _complain("interrupted; finished cells are kept: run the same command again with the same --out to go on")
        status = 1
    sys.exit(status)


def _complain(message: str) -> None:
    print(f"lensbench: {message}", file=sys.stderr)  # noqa: T201 - the one place where errors are shown


def _parameters(given: list[str]) -> dict[str, dict[str, Any]]:
    """Read `inspector.parameter=value`; the value as TOML, or as plain text."""
    import tomllib

    parameters: dict[str, dict[str, Any]] = {}
    for entry in given:
        place, equals, value = entry.partition("=")
        # A module:Class may hold dots itself: the parameter is what follows the last one.
        inspector, dot, name = place.rpartition(".")
        if not (equals and dot):
            raise UsageError(f"--set {entry!r}: expected INSPECTOR.PARAMETER=VALUE, such as patchscope.placeholder=y")
        try:
            parsed = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            parsed = value
        parameters.setdefault(inspector, {})[name] = parsed
    return parameters


def _module_paths(given: str | None) -> dict[str, str] | None:
    if given is None:
        return None
    pairs = [part.partition("=") for part in given.split(",")]
    if sorted(name for name, _, _ in pairs) != ["blocks", "norm"] or not all(path for _, _, path in pairs):
        raise UsageError(
            f"--module-paths {given!r}: expected blocks=PATH,norm=PATH, such as blocks=model.layers,norm=model.norm"
        )
    return {name: path for name, _, path in pairs}


@app.command()
def evaluate(
    model: Annotated[
        str | None, typer.Option(help="Built-in name, folder, GGUF file or Hub id. [default: smollm2-135m]")
    ] = None,
    tasks: Annotated[
        str | None, typer.Option(help="Task names (also NAME/RELATION) or folders, with commas between.")
    ] = None,
    inspectors: Annotated[
        str | None, typer.Option(help="Inspector names or module:Class, with commas between.")
    ] = None,
    baselines: Annotated[
        str | None, typer.Option(help="Baseline names or .toml files, or none. [default: all]")
    ] = None,
    layers: Annotated[str | None, typer.Option(help="all; or 0,4,8; or stride:2. Layer 0 is the embeddings.")] = None,
    sites: Annotated[str | None, typer.Option(help="Read sites: subject, answer. [default: both]")] = None,
    verbalizer: Annotated[
        str | None, typer.Option(help="The model that turns activations into words. [default: the target]")
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
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub model.")] = None,
    offline: Annotated[bool | None, typer.Option("--offline", help="Never ask the Hub.")] = None,
    chat_template: Annotated[
        bool | None, typer.Option("--chat-template", help="Put prompts at the beginning of the assistant's turn.")
    ] = None,
    module_paths: Annotated[
        str | None, typer.Option(help="blocks=PATH,norm=PATH, for a model whose structure is not found.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be done, and what it would take.")
    ] = False,
    parameter: Annotated[
        list[str] | None, typer.Option("--set", help="INSPECTOR.PARAMETER=VALUE; may be given again.")
    ] = None,
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
        "module_paths": _module_paths(module_paths),
        "parameters": _parameters(parameter or []) or None,
    }
    settings = _checked({name: value for name, value in given.items() if value is not None}, config)
    if dry_run:
        from lensbench import evaluation
        from lensbench.terminal import show_plan

        show_plan(evaluation.dry_run(settings))
    else:
        _evaluate(settings)


def _checked(given: dict[str, Any], config: Path | None) -> "RunConfig":
    from lensbench.config import check_config, make_config

    sys.path.insert(0, "")  # a user's own module lies in the current folder
    settings = make_config(given, config)
    check_config(settings)  # before torch is imported: a wrong name is answered at once
    from lensbench.model.sources import quiet_libraries

    quiet_libraries()
    _say_what_happens()
    return settings


def _evaluate(settings: "RunConfig") -> None:
    from lensbench import progress
    from lensbench.evaluation import run_config
    from lensbench.terminal import show_run

    run = run_config(settings, progress.bar)
    show_run(run)
    for file, error in run.failed.items():
        _complain(f"failed: {file}: {error.splitlines()[0]}")
    if run.failed:
        raise LensbenchError(
            f"{len(run.failed)} of {len(run.info['cells'])} cells failed; tracebacks in {run.path / 'run.json'}; run "
            f"again with --out {run.path} to try them again"
        )


def _say_what_happens() -> None:
    """Show on the error stream what takes time, and the terms of a model that has some."""
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)


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


@app.command()
def doctor(
    model: Annotated[str, typer.Argument(help="Built-in name, folder, GGUF file or Hub id.", show_default=False)],
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, ...")] = "auto",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub model.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Never ask the Hub.")] = False,
    module_paths: Annotated[
        str | None, typer.Option(help="blocks=PATH,norm=PATH, for a model whose structure is not found.")
    ] = None,
) -> None:
    """Is this model read correctly? Each check with its figure and tolerance, and a verdict.

    Example: `lensbench doctor smollm2-135m`
    """
    from lensbench.model.sources import check_model_name, quiet_libraries

    check_model_name(model)
    paths = _module_paths(module_paths)
    quiet_libraries()
    _say_what_happens()
    from lensbench.doctor import examine
    from lensbench.model.architecture import ModulePaths
    from lensbench.model.loading import Loading, load_model
    from lensbench.report.rows import print_rows

    how = Loading(device, dtype, revision, offline, paths=ModulePaths(**paths) if paths else None)
    checks = examine(load_model(model, how))
    rows = [(check.name, check.figure, check.tolerance, "ok" if check.passed else "FAILED") for check in checks]
    print_rows(("check", "figure", "tolerance", ""), rows)
    failed = [check.name for check in checks if not check.passed]
    if failed:
        raise LensbenchError(f"{model} is not read correctly: {', '.join(failed)}; do not trust results on it")
    Console(soft_wrap=True).print(f"{model} is read correctly.", highlight=False)
