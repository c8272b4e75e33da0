"""What the items of a task give away without reading any model: leaks, imbalance, and answers that names betray.

Nothing in here imports torch; with a tokenizer, what begins with the same token is found too.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace

from lensbench.tasks import Fact, Item, Relation, Task
from lensbench.tasks.audit import answers, wording
from lensbench.tasks.audit.answers import Guess, character_accuracy, guess_from_characters
from lensbench.tasks.audit.findings import (
    ALL,
    DEFAULT_THRESHOLDS,
    MODEL_CHECKS,
    AuditFinding,
    AuditRow,
    Measurement,
    Stated,
    Thresholds,
    markdown,
    proposed,
    read_table,
    table_rows,
    threshold_of,
    within,
)

__all__ = [
    "ALL",
    "DEFAULT_THRESHOLDS",
    "MODEL_CHECKS",
    "AuditFinding",
    "AuditRow",
    "Guess",
    "Stated",
    "Thresholds",
    "audit_task",
    "character_accuracy",
    "guess_from_characters",
    "markdown",
    "proposed",
    "read_table",
    "table_rows",
    "with_thresholds",
]


def audit_task(
    task: Task,
    tokens: wording.Tokenizer | None = None,
    thresholds: Thresholds | None = None,
) -> list[AuditFinding]:
    """Audit each relation of a task.

    Args:
        task: A loaded task.
        tokens: A model's tokenizer (`lensbench.models.tokens.Tokens`); with it, first tokens and sites are checked.
        thresholds: Thresholds by (relation, check) that differ from `DEFAULT_THRESHOLDS`; the relation may be `all`.

    Returns:
        The findings of all relations, in the task's order. The same task gives the same findings.
    """
    findings = []
    items = wording.all_items(task) if tokens is not None else {}
    for relation in task.relations.values():
        facts = [fact for fact in task.facts if fact.relation == relation.name]
        figures = list(_figures(relation, facts, read_before_tokens=tokens is None))
        if tokens is not None:
            figures += _under(tokens, relation, facts, items[relation.name])
        for check, (value, detail) in figures:
            findings.append(AuditFinding(relation.name, check, value, math.inf, True, detail))
    return with_thresholds(findings, thresholds or {})


def with_thresholds(findings: Iterable[AuditFinding], thresholds: Thresholds) -> list[AuditFinding]:
    """Return the same figures, judged by other thresholds."""
    judged = []
    for one in findings:
        limit = threshold_of(thresholds, one.relation, one.check)
        judged.append(replace(one, threshold=limit, ok=within(one.value, limit)))
    return judged


def _figures(relation: Relation, facts: list[Fact], *, read_before_tokens: bool) -> Iterator[tuple[str, Measurement]]:
    yield "near duplicates", answers.near_duplicates(facts)
    if relation.choice_sets:  # prose asks for nothing: its answer is the model's own
        yield from _wording(relation, facts, read_before_tokens=read_before_tokens)
        yield from _choosing(relation, facts)


def _wording(relation: Relation, facts: list[Fact], *, read_before_tokens: bool) -> Iterator[tuple[str, Measurement]]:
    yield "answer in text", wording.answer_in_text(relation, facts)
    yield "answer in subject", wording.answer_in_subject(facts)
    if relation.given:
        # Sources that state the answer name the relation too.
        yield "answer given", wording.answer_given(relation, facts)
    else:
        yield "relation words", wording.relation_words(relation, facts)
    if wording.has_knowledge(relation):
        yield "answer in knowledge", wording.answer_in_knowledge(relation, facts)
        yield "knowledge repeats", wording.knowledge_repeats(relation)
    if read_before_tokens:
        yield "read at token 0", wording.starts_with_slot(relation, facts)


def _choosing(relation: Relation, facts: list[Fact]) -> Iterator[tuple[str, Measurement]]:
    yield "too few classes", answers.too_few_classes(facts)
    yield "best constant", answers.best_constant(relation, facts)
    yield "gold is first", answers.gold_at(answers.first, relation, facts)
    yield "gold is in the middle", answers.gold_at(answers.middle, relation, facts)
    for check, place in (("median popularity", answers.middle), ("most popular", answers.last)):
        figure = answers.popularity_at(place, relation, facts)
        if figure is not None:
            yield check, figure
    yield "alias collisions", answers.alias_collisions(relation, facts)
    if relation.kind == "class":
        yield "fold imbalance", answers.fold_imbalance(facts)
        yield "subject characters", answers.subject_characters(facts)


def _under(
    tokens: wording.Tokenizer, relation: Relation, facts: list[Fact], items: Iterable[Item]
) -> Iterator[tuple[str, Measurement]]:
    yield "read at token 0", wording.read_at_token_0(relation, items, tokens)
    if relation.choice_sets:
        yield "token collisions", wording.token_collisions(relation, facts, tokens)
        yield "alias token collisions", wording.alias_token_collisions(relation, facts, tokens)
