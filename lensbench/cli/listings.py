"""What `lensbench list` prints. Nothing in here imports torch."""

import re
from collections.abc import Callable, Sequence

from lensbench.baselines.spec import find_baselines
from lensbench.inspectors.catalog import find_inspectors
from lensbench.models.builtin import BUILTIN, model_state
from lensbench.tasks import find_tasks, load_task

Rows = tuple[Sequence[str], list[Sequence[str]]]


def models() -> Rows:
    """The built-in models."""
    rows = [(name, m.summary, m.licence, f"{m.megabytes} MB", model_state(name)) for name, m in BUILTIN.items()]
    return ("model", "what it is", "licence", "size", "state"), list(rows)


def tasks() -> Rows:
    """The shipped tasks and their relations."""
    rows: list[Sequence[str]] = []
    for name in find_tasks():
        task = load_task(name)
        rows.append((name, task.summary, f"{len(task.facts)} facts", ", ".join(task.sites)))
        for relation in task.relations.values():
            facts = sum(fact.relation == relation.name for fact in task.facts)
            chance = f"{len(relation.answers)} answers, {relation.kind}"
            rows.append((f"  {name}/{relation.name}", relation.summary, f"{facts} facts", chance))
    return ("task", "what it asks", "facts", "sites / answers"), rows


def inspectors() -> Rows:
    """The methods: ours and installed plug-ins."""
    rows = [
        (
            one.name,
            one.summary,
            ", ".join(one.reads),
            one.learns_from,
            one.tries,
            one.cost,
            ", ".join(f"{name}={default}" for name, default in one.parameters.items()) or "-",
        )
        for one in find_inspectors().values()
    ]
    return ("inspector", "what it does", "reads", "learns from", "attempts", "cost", "parameters"), list(rows)


def baselines() -> Rows:
    """The rival explanations."""
    every = {"nothing", "corpus", "labels"}
    rows = [
        (
            f"{one.name} (optional)" if one.optional else one.name,
            one.question,
            one.rules_out,
            "all" if set(one.learns_from) == every else ", ".join(sorted(one.learns_from)),
        )
        for one in find_baselines().values()
    ]
    return ("baseline", "question", "what it rules out", "for methods that learn from"), list(rows)


def as_objects(rows: Rows) -> list[dict[str, str]]:
    """Rows as objects for JSON; columns are keys, with `_` for anything but letters and digits."""
    keys = [re.sub(r"\W+", "_", name) for name in rows[0]]
    return [dict(zip(keys, (cell.strip() for cell in row), strict=True)) for row in rows[1]]


LISTINGS: dict[str, Callable[[], Rows]] = {
    "models": models,
    "tasks": tasks,
    "inspectors": inspectors,
    "baselines": baselines,
}
