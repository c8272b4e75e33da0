"""`lensbench audit`: what does a task give away?"""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from lensbench.cli.application import app, say_what_happens
from lensbench.cli.options import (
    Json,
    Offline,
    Quiet,
    Revision,
    print_json,
)
from lensbench.errors import LensbenchError, UsageError

if TYPE_CHECKING:
    from lensbench.models.tokens import Tokens
    from lensbench.tasks.audit import AuditFinding, Thresholds

# How many of a task's failed checks its one line names.
_NAMED = 8


@app.command()
def audit(
    task: Annotated[
        str, typer.Argument(help="Task name (also NAME/RELATION), or the path of a folder.", show_default=False)
    ],
    model: Annotated[
        str | None, typer.Option(help="Also check read sites and first tokens with the tokenizer of this model.")
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table for the task's README.")] = False,
    propose: Annotated[
        bool, typer.Option("--propose", help="With --markdown: propose thresholds that the values pass, with a margin.")
    ] = False,
    revision: Revision = None,
    offline: Offline = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """What does a task give away? Shows each check with its value and threshold; no model is run.

    Thresholds are those of the table under "Leak audit" in the task's README, or the defaults.

    Examples: `lensbench audit attribute_extraction`; `lensbench audit ./my_task --markdown --propose`
    """
    if propose and not markdown:
        raise UsageError("--propose writes thresholds into the table of a README; add --markdown")
    if markdown and as_json:
        raise UsageError("--markdown and --json print the same table; give only one of them")
    from lensbench.models.sources import check_model_name
    from lensbench.tasks import load_tasks

    say_what_happens(quiet=quiet)
    (loaded,) = load_tasks([task], offline=offline)
    if model is not None:
        check_model_name(model, offline=offline)
    from lensbench.tasks.audit import audit_task, proposed, read_table, with_thresholds

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


def _tokens(model: str, revision: str | None, offline: bool) -> "Tokens":
    from lensbench.models.quiet import quiet_libraries

    quiet_libraries()
    from lensbench.models.loading import load_tokens

    return load_tokens(model, revision=revision, offline=offline)


def _show(findings: "list[AuditFinding]", thresholds: "Thresholds", *, as_markdown: bool) -> None:
    from lensbench.report.tables import print_rows
    from lensbench.tasks.audit import markdown, table_rows

    rows = table_rows(findings, thresholds)
    if as_markdown:
        typer.echo(markdown(rows))
        return
    shown = [(*row.cells[:4], "ok" if row.ok else "FAILED", row.cells[4]) for row in rows]
    print_rows(("relation", "check", "value", "threshold", "", "what was seen"), shown)


def _judge(task: str, findings: "list[AuditFinding]") -> None:
    failed = [f"{one.relation} / {one.check} ({one.value:.3f} > {one.threshold:g})" for one in findings if not one.ok]
    if failed:
        more = f" and {len(failed) - _NAMED} more" if len(failed) > _NAMED else ""
        raise LensbenchError(
            f"{task} gives away more than its thresholds allow: {', '.join(failed[:_NAMED])}{more}; change the task, "
            "or say in its README why more is allowed (docs/tasks.md)"
        )
