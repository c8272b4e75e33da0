"""What `lensbench list` prints. Nothing in here imports torch."""

import re
from collections.abc import Callable, Mapping, Sequence

from lensbench.baselines.spec import find_baselines
from lensbench.errors import unknown_name
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
            one.name,
            one.rules_out,
            one.question + (", optional" if one.optional else ""),
            "all" if set(one.learns_from) == every else ", ".join(sorted(one.learns_from)),
        )
        for one in find_baselines().values()
    ]
    return ("baseline", "what it rules out", "question", "for methods that learn from"), list(rows)


LISTINGS: dict[str, Callable[[], Rows]] = {
    "models": models,
    "tasks": tasks,
    "inspectors": inspectors,
    "baselines": baselines,
}
SAME = {"methods": "inspectors", **{kind[:-1]: kind for kind in LISTINGS}, "method": "inspectors"}
"""Other words for a kind."""


def names() -> dict[str, list[str]]:
    """Names of each kind, those of a task's relations left out."""
    return {kind: [row[0] for row in make()[1] if not row[0].startswith(" ")] for kind, make in LISTINGS.items()}


def in_one_line(kind: str) -> Rows:
    """A kind's names, each with a sentence."""
    columns, rows = LISTINGS[kind]()
    return columns[:2], [row[:2] for row in rows if not row[0].startswith(" ")]


def details(name: str) -> dict[str, Rows]:
    """All that the listings have of a name, by kind: of a task its relations, too.

    Raises:
        UsageError: nothing has that name.
    """
    found: dict[str, Rows] = {}
    for kind, (columns, about) in _about(name).items():
        if len(about) > 1:
            found[kind] = (columns, about)
        else:
            pairs: list[Sequence[str]] = [(key, cell.strip()) for key, cell in zip(columns, about[0], strict=True)]
            found[kind] = (pairs[0], pairs[1:])
    return found


def _about(name: str) -> dict[str, Rows]:
    """The rows of a name, or of a task's relations, by kind."""
    listed = {kind: make() for kind, make in LISTINGS.items()}
    rows = {kind: [row for row in rows if _is_about(row[0].strip(), name)] for kind, (_, rows) in listed.items()}
    if not any(rows.values()):
        known = {row[0] for _, every in listed.values() for row in every if not row[0].startswith(" ")}
        raise unknown_name("name", name, {*LISTINGS, *known})
    return {kind: (listed[kind][0], about) for kind, about in rows.items() if about}


def _is_about(listed: str, name: str) -> bool:
    """Whether a listed name is this one, a relation of this task, or a relation of this name."""
    return listed == name or listed.startswith(f"{name}/") or listed.endswith(f"/{name}")


def as_objects(rows: Rows) -> list[dict[str, str]]:
    """Rows as objects for JSON; columns are keys, with `_` for anything but letters and digits."""
    keys = [re.sub(r"\W+", "_", name) for name in rows[0]]
    return [dict(zip(keys, (cell.strip() for cell in row), strict=True)) for row in rows[1]]


def objects(kinds: Sequence[str], name: str | None) -> Mapping[str, list[dict[str, str]]]:
    """The listings as objects for JSON, by kind; with a name, only what is about it.

    Raises:
        UsageError: nothing has that name.
    """
    found = {kind: LISTINGS[kind]() for kind in kinds} if name is None else _about(name)
    return {kind: as_objects(rows) for kind, rows in found.items()}
