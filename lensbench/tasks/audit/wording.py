"""Leaks in the wording of a task, with and without a model's tokenizer.

Torch is imported by whoever makes the tokenizer.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

from lensbench.errors import LensbenchError
from lensbench.tasks import Item, Task
from lensbench.tasks.audit.findings import Measurement, examples
from lensbench.tasks.facts import (
    ANSWER_SLOT,
    BRIDGE_SLOT,
    OWN,
    SITES,
    SLOT,
    Fact,
    Relation,
    Site,
)
from lensbench.tasks.names import plain_words

_ANY_SLOT = re.compile(r"\{\w+\}")
# Words that say nothing about a relation although its prompts use them.
_COMMON = frozenset(
    """
    question answer quiz right anyone knows tell that what which with from this they them have has been does most for
    the and was were are its will would into one who whose whom first large great old new famous known called named name
    about world year time city country state person people film word element list book books table history form
    """.split()  # noqa: SIM905 - a list of sixty strings is harder to read
)


def answer_in_text(relation: Relation, facts: list[Fact]) -> Measurement:
    """Facts whose answer stands in some text of their relation, the subject left out."""
    texts = [*relation.inspection, *relation.questions, *_templates(relation)]
    common = _spoken(texts)
    own = SITES if not relation.given else ()
    hits = [
        fact.answer
        for fact in facts
        if _says(common + _spoken(_own_texts(fact, own), fact.subject), (fact.answer, *fact.aliases))
    ]
    return len(hits) / len(facts), examples(sorted(set(hits)))


def answer_given(relation: Relation, facts: list[Fact]) -> Measurement:
    """How many of the sources state the answer, where they are to; and of knowledge prompts, if one does."""
    texts = _templates(relation)
    if any(ANSWER_SLOT in text for text in relation.knowledge):
        texts += relation.knowledge
    stated = sum(ANSWER_SLOT in text for text in texts) * len(facts)
    total = len(texts) * len(facts)
    for fact in facts:
        own = _own_texts(fact, SITES)
        total += len(own)
        stated += sum(ANSWER_SLOT in text or _says(_spoken([text]), (fact.answer, *fact.aliases)) for text in own)
    return stated / max(1, total), f"{stated} of {total} sources state the answer"


def answer_in_subject(facts: list[Fact]) -> Measurement:
    """Facts whose answer and subject contain one another."""

    def leaks(fact: Fact) -> bool:
        subject, answer = plain_words(fact.subject), plain_words(fact.answer)
        return answer in subject or subject in answer

    hits = [f"{fact.subject} → {fact.answer}" for fact in facts if leaks(fact)]
    return len(hits) / len(facts), examples(hits)


def relation_words(relation: Relation, facts: list[Fact]) -> Measurement:
    """Words in `subject` sources that the relation's name, prompts or answers share, for each source."""
    asked = " ".join([relation.name.replace("_", " "), *relation.inspection, *relation.questions])
    telling = set(re.findall(r"[a-z]{4,}", _ANY_SLOT.sub(" ", asked).lower())) - _COMMON
    telling |= {plain_words(answer) for answer in relation.answers if len(answer) > 1}
    spoken = [_spoken([text]) for text in _templates(relation, ("subject",))]
    spoken += [_spoken([text], fact.subject) for fact in facts for text in _own_texts(fact, ("subject",))]
    hits = [word for text in spoken for word in text.split() if word in telling]
    return len(hits) / max(1, len(spoken)), examples(list(dict.fromkeys(hits)))


def answer_in_knowledge(relation: Relation, facts: list[Fact]) -> Measurement:
    """Facts whose answer stands in a prompt that asks whether they are known."""
    spoken = _spoken(_knowledge(relation))
    hits = [fact.answer for fact in facts if _says(spoken, (fact.answer, *fact.aliases))]
    return len(hits) / len(facts), examples(sorted(set(hits)))


def knowledge_repeats(relation: Relation) -> Measurement:
    """Knowledge prompts that are another text of the relation, but for case, accents and punctuation."""
    seen = {_bare(text) for text in (*relation.inspection, *relation.questions, *_templates(relation))}
    hits = []
    for text in _knowledge(relation):
        if _bare(text) in seen:
            hits.append(text)
        seen.add(_bare(text))
    return len(hits) / len(_knowledge(relation)), examples(hits)


def starts_with_slot(relation: Relation, facts: list[Fact]) -> Measurement:
    """Texts that are read at their very beginning: nothing stands before the slot."""
    texts = [*relation.inspection, *_templates(relation, ("subject",))]
    hits = [text for text in texts if text.rfind(SLOT) == 0]
    for fact in facts:
        own = _own_texts(fact, ("subject",))
        texts += own
        hits += [text for text in own if text.rfind(SLOT) == 0]
    return len(hits) / max(1, len(texts)), examples(hits)


def _templates(relation: Relation, sites: Iterable[Site] = SITES) -> list[str]:
    """The source texts that all facts share."""
    return [text for site in sites for name, text in relation.sources.get(site, {}).items() if name != OWN]


def _own_texts(fact: Fact, sites: Iterable[Site]) -> list[str]:
    return [fact.texts[site] for site in sites if site in fact.texts]


def _knowledge(relation: Relation) -> tuple[str, ...]:
    return (*relation.knowledge, *(relation.hops.second if relation.hops else ()))


def has_knowledge(relation: Relation) -> bool:
    """Tell whether a relation has prompts of knowledge."""
    return bool(_knowledge(relation))


def _bare(text: str) -> str:
    return plain_words(text.replace(BRIDGE_SLOT, SLOT))


def _spoken(texts: Iterable[str], subject: str = "") -> str:
    """The words of texts in their normal form; bars stand where slots and the subject were, so nothing joins there."""
    cut = re.compile(rf"{_ANY_SLOT.pattern}|(?<!\w){re.escape(subject)}(?!\w)") if subject else _ANY_SLOT
    return " | ".join(["", *(plain_words(part) for text in texts for part in cut.split(text)), ""])


def _says(spoken: str, spellings: Iterable[str]) -> bool:
    # A one-letter answer would be found in "a".
    return any(f" {plain_words(spelling)} " in spoken for spelling in spellings if len(spelling) > 1)


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


def read_at_token_0(relation: Relation, items: Iterable[Item], tokens: Tokenizer) -> Measurement:
    """Source texts and inspection prompts whose read site or placeholder cannot be read, mostly as it is token 0."""
    total, hits = 0, []
    for item in items:
        total += 1
        span = item.subject_span if item.place == "subject" else None
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


def token_collisions(relation: Relation, facts: Sequence[Fact], tokens: Tokenizer) -> Measurement:
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


def alias_token_collisions(relation: Relation, facts: Sequence[Fact], tokens: Tokenizer) -> Measurement:
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
