"""Is what one measures with in order? `lensbench doctor` a model, `audit` a task, `knowledge` of one by the other."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from lensbench.cli.application import app, say_what_happens
from lensbench.cli.options import (
    Device,
    Dtype,
    Json,
    Model,
    ModulePaths,
    Offline,
    Quiet,
    Revision,
    print_json,
    read_module_paths,
)
from lensbench.errors import LensbenchError, UsageError

if TYPE_CHECKING:
    from lensbench.audit import Finding, Thresholds
    from lensbench.model.tokens import Tokens

# How many of a task's failed checks its one line names.
_NAMED = 8


@app.command()
def doctor(
    model: Annotated[str, typer.Argument(help="Built-in name, folder, GGUF file or Hub id.", show_default=False)],
    device: Device = "auto",
    dtype: Dtype = "auto",
    revision: Revision = None,
    offline: Offline = False,
    module_paths: ModulePaths = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Is this model read correctly? Each check with its figure and tolerance, and a verdict.

    Example: `lensbench doctor smollm2-135m`
    """
    from lensbench.model.sources import check_model_name, quiet_libraries

    check_model_name(model)
    paths = read_module_paths(module_paths)
    quiet_libraries()
    say_what_happens(quiet=quiet)
    from lensbench.doctor import examine
    from lensbench.model.architecture import ModulePaths
    from lensbench.model.loading import Loading, load_model
    from lensbench.report.rows import print_rows

    how = Loading(device, dtype, revision, offline, paths=ModulePaths(**paths) if paths else None)
    checks = examine(load_model(model, how))
    failed = [check.name for check in checks if not check.passed]
    if as_json:
        print_json({"model": model, "passed": not failed, "checks": [asdict(check) for check in checks]})
    else:
        rows = [(check.name, check.figure, check.tolerance, "ok" if check.passed else "FAILED") for check in checks]
        print_rows(("check", "figure", "tolerance", ""), rows)
    if failed:
        raise LensbenchError(f"{model} is not read correctly: {', '.join(failed)}; do not trust results on it")
    if not as_json:
        Console(soft_wrap=True).print(f"{model} is read correctly.", highlight=False)


@app.command()
def audit(
    task: Annotated[
        str, typer.Argument(help="Task name (also NAME/RELATION), or the path of a folder.", show_default=False)
    ],
    model: Annotated[
        str | None, typer.Option(help="Check read sites and first tokens under this model's tokenizer too.")
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table for the task's README.")] = False,
    propose: Annotated[
        bool, typer.Option("--propose", help="With --markdown: thresholds that the figures pass, with a margin.")
    ] = False,
    revision: Revision = None,
    offline: Offline = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """What does a task give away? Each check with its figure and threshold; no model is run.

    Thresholds are those of the table under "Leak audit" in the task's README, else the defaults.

    Examples: `lensbench audit attribute_extraction`; `lensbench audit ./my_task --markdown --propose`
    """
    if propose and not markdown:
        raise UsageError("--propose writes thresholds into the table of a README; add --markdown")
    if markdown and as_json:
        raise UsageError("--markdown and --json are two forms of one table; give one of them")
    from lensbench.model.sources import check_model_name
    from lensbench.tasks import load_tasks

    say_what_happens(quiet=quiet)
    (loaded,) = load_tasks([task], offline=offline)
    if model is not None:
        check_model_name(model)
    from lensbench.audit import audit_task, proposed, read_table, with_thresholds

    stated = None if propose else read_table(loaded)
    thresholds = {key: row.threshold for key, row in (stated or {}).items()}
    findings = audit_task(loaded, _tokens(model, revision, offline) if model is not None else None, thresholds)
    if propose:
        thresholds = proposed(findings)
        findings = with_thresholds(findings, thresholds)
    if as_json:
        passed = all(one.ok for one in findings)
        print_json({"task": task, "passed": passed, "findings": [{**asdict(one), "ok": one.ok} for one in findings]})
    else:
        _show(findings, thresholds, as_markdown=markdown)
    _judge(task, findings)
    if not (markdown or as_json):
        whose = "the README's" if stated is not None else "the default"
        Console(soft_wrap=True).print(f"{task} is within {whose} thresholds.", highlight=False, markup=False)


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
    """How much of a task does a model know? Two questions a fact, unlike any that methods or rivals are asked.

    Example: `lensbench knowledge attribute_extraction --model smollm2-135m`
    """
    from lensbench.model.sources import check_model_name, quiet_libraries
    from lensbench.tasks import load_tasks

    (loaded,) = load_tasks([task], offline=offline)
    check_model_name(model)
    quiet_libraries()
    say_what_happens(quiet=quiet)
    from lensbench.knowledge import Knowledge, knowledge_cache, shares
    from lensbench.model.loading import Loading, load_model
    from lensbench.report.rows import print_rows

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


def _tokens(model: str, revision: str | None, offline: bool) -> "Tokens":
    from lensbench.model.sources import quiet_libraries

    quiet_libraries()
    from lensbench.model.loading import load_tokens

    return load_tokens(model, revision=revision, offline=offline)


def _show(findings: "list[Finding]", thresholds: "Thresholds", *, as_markdown: bool) -> None:
    from lensbench.audit import markdown, table_rows
    from lensbench.report.rows import print_rows

    rows = table_rows(findings, thresholds)
    if as_markdown:
        typer.echo(markdown(rows))
        return
    shown = [(*row.cells[:4], "ok" if row.ok else "FAILED", row.cells[4]) for row in rows]
    print_rows(("relation", "check", "value", "threshold", "", "what was seen"), shown)


def _judge(task: str, findings: "list[Finding]") -> None:
    failed = [f"{one.relation} / {one.check} ({one.value:.3f} > {one.threshold:g})" for one in findings if not one.ok]
    if failed:
        more = f" and {len(failed) - _NAMED} more" if len(failed) > _NAMED else ""
        raise LensbenchError(
            f"{task} gives away more than its thresholds allow: {', '.join(failed[:_NAMED])}{more}; mend the task, or "
            "say in its README why more is allowed (docs/tasks.md)"
        )
