"""What a task gives away, or loses, under one model's tokenizer. Torch is imported by whoever makes the tokenizer."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

from lensbench.errors import LensbenchError
from lensbench.tasks import Item, Task
from lensbench.tasks.audit.findings import Figure, examples
from lensbench.tasks.facts import SLOT, Fact, Relation

PLACEHOLDER = "x"
"""What stands in the slot of an inspection prompt where an activation is put in its place."""


@runtime_checkable
class Tokenizer(Protocol):
    """What the audit asks of `lensbench.models.tokens.Tokens`; where it cannot answer it raises a LensbenchError."""

    def encode(self, text: str, /) -> Any:
        """Encode a text."""

    def locate(self, encoding: Any, span: tuple[int, int], /) -> int:
        """Return the token that holds the last character of a span, which is not token 0."""

    def last(self, encoding: Any, /) -> int:
        """Return the last token, which is not token 0."""

    def answer_token(self, answer: str, /) -> int:
        """Return the first token of an answer."""


def all_items(task: Task) -> dict[str, list[Item]]:
    """Every item that an evaluation may run, for training and for test, by relation."""
    items: dict[str, list[Item]] = defaultdict(list)
    for site in task.sites:
        for item in (*task.items(site, "train"), *task.items(site, "test")):
            items[item.relation].append(item)
    return items


def read_at_token_0(relation: Relation, items: Iterable[Item], tokens: Tokenizer) -> Figure:
    """Source texts and inspection prompts whose read site or placeholder cannot be read, mostly as it is token 0."""
    total, hits = 0, []
    for item in items:
        total += 1
        span = item.subject_span if item.site == "subject" else None
        hits += _problem(tokens, item.source, span)
    for prompt in relation.inspection:
        total += 1
        start = prompt.rfind(SLOT)
        hits += _problem(tokens, prompt.replace(SLOT, PLACEHOLDER), (start, start + len(PLACEHOLDER)))
    return len(hits) / max(1, total), examples(hits, 1)


def _problem(tokens: Tokenizer, text: str, span: tuple[int, int] | None) -> list[str]:
    try:
        encoding = tokens.encode(text)
        if span is None:
            tokens.last(encoding)
        else:
            tokens.locate(encoding, span)
    except LensbenchError as error:
        return [str(error)]
    return []


def token_collisions(relation: Relation, facts: Sequence[Fact], tokens: Tokenizer) -> Figure:
    """Facts whose answer begins with the same token as another choice of its set, or has no token of its own."""
    colliding: list[str] = []
    for choices in relation.choice_sets:
        first: dict[int | None, list[str]] = defaultdict(list)
        for choice in choices:
            first[_first(tokens, choice)].append(choice)
        colliding += first.pop(None, [])
        colliding += (choice for same in first.values() if len(same) > 1 for choice in same)
    hits = [fact for fact in facts if fact.answer in set(colliding)]
    return len(hits) / len(facts), examples(colliding)


def alias_token_collisions(relation: Relation, facts: Sequence[Fact], tokens: Tokenizer) -> Figure:
    """Facts with an alias that begins with the first token of another choice of the set, or of another's alias."""
    spellings = {answer: {answer} for answer in relation.answers}
    for fact in facts:
        spellings[fact.answer].update(fact.aliases)
    first = {answer: {_first(tokens, text) for text in texts} - {None} for answer, texts in spellings.items()}
    hits, colliding = [], 0
    for fact in facts:
        others = [choice for choice in relation.choices_of(fact.answer) if choice != fact.answer]
        own = [
            f"{alias} ({fact.answer} / {other})"
            for alias in fact.aliases
            for other in others
            if _first(tokens, alias) in first[other]
        ]
        hits += own
        colliding += bool(own)
    return colliding / len(facts), examples(list(dict.fromkeys(hits)))


def _first(tokens: Tokenizer, answer: str) -> int | None:
    try:
        return tokens.answer_token(answer)
    except LensbenchError:
        return None
