"""Leaks in the wording: answers and telling words in texts, prompts that are the same, slots where nothing is read."""

import re
from collections.abc import Iterable

from lensbench.tasks.audit.findings import Figure, examples
from lensbench.tasks.facts import (
    ANSWER_SLOT,
    BRIDGE_SLOT,
    OWN,
    SITES,
    SLOT,
    Fact,
    Relation,
    Site,
    normalise,
)

_ANY_SLOT = re.compile(r"\{\w+\}")
# Words that say nothing about a relation although its prompts use them.
_COMMON = frozenset(
    """
    question answer quiz right anyone knows tell that what which with from this they them have has been does most for
    the and was were are its will would into one who whose whom first large great old new famous known called named name
    about world year time city country state person people film word element list book books table history form
    """.split()  # noqa: SIM905 - a list of sixty strings is harder to read
)


def answer_in_text(relation: Relation, facts: list[Fact]) -> Figure:
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


def answer_given(relation: Relation, facts: list[Fact]) -> Figure:
    """How many of the sources state the answer, where they are to."""
    texts = _templates(relation)
    stated = sum(ANSWER_SLOT in text for text in texts) * len(facts)
    total = len(texts) * len(facts)
    for fact in facts:
        own = _own_texts(fact, SITES)
        total += len(own)
        stated += sum(ANSWER_SLOT in text or _says(_spoken([text]), (fact.answer, *fact.aliases)) for text in own)
    return stated / max(1, total), f"{stated} of {total} sources state the answer"


def answer_in_subject(facts: list[Fact]) -> Figure:
    """Facts whose answer and subject contain one another."""

    def leaks(fact: Fact) -> bool:
        subject, answer = normalise(fact.subject), normalise(fact.answer)
        return answer in subject or subject in answer

    hits = [f"{fact.subject} → {fact.answer}" for fact in facts if leaks(fact)]
    return len(hits) / len(facts), examples(hits)


def relation_words(relation: Relation, facts: list[Fact]) -> Figure:
    """Words in `subject` sources that the relation's name, prompts or answers share, for each source."""
    asked = " ".join([relation.name.replace("_", " "), *relation.inspection, *relation.questions])
    telling = set(re.findall(r"[a-z]{4,}", _ANY_SLOT.sub(" ", asked).lower())) - _COMMON
    telling |= {normalise(answer) for answer in relation.answers if len(answer) > 1}
    spoken = [_spoken([text]) for text in _templates(relation, ("subject",))]
    spoken += [_spoken([text], fact.subject) for fact in facts for text in _own_texts(fact, ("subject",))]
    hits = [word for text in spoken for word in text.split() if word in telling]
    return len(hits) / max(1, len(spoken)), examples(list(dict.fromkeys(hits)))


def answer_in_knowledge(relation: Relation, facts: list[Fact]) -> Figure:
    """Facts whose answer stands in a prompt that asks whether they are known."""
    spoken = _spoken(_knowledge(relation))
    hits = [fact.answer for fact in facts if _says(spoken, (fact.answer, *fact.aliases))]
    return len(hits) / len(facts), examples(sorted(set(hits)))


def knowledge_repeats(relation: Relation) -> Figure:
    """Knowledge prompts that are another text of the relation, but for case, accents and punctuation."""
    seen = {_bare(text) for text in (*relation.inspection, *relation.questions, *_templates(relation))}
    hits = []
    for text in _knowledge(relation):
        if _bare(text) in seen:
            hits.append(text)
        seen.add(_bare(text))
    return len(hits) / len(_knowledge(relation)), examples(hits)


def starts_with_slot(relation: Relation, facts: list[Fact]) -> Figure:
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
    return normalise(text.replace(BRIDGE_SLOT, SLOT))


def _spoken(texts: Iterable[str], subject: str = "") -> str:
    """The words of texts in their normal form; bars stand where slots and the subject were, so nothing joins there."""
    cut = re.compile(rf"{_ANY_SLOT.pattern}|(?<!\w){re.escape(subject)}(?!\w)") if subject else _ANY_SLOT
    return " | ".join(["", *(normalise(part) for text in texts for part in cut.split(text)), ""])


def _says(spoken: str, spellings: Iterable[str]) -> bool:
    # A one-letter answer would be found in "a".
    return any(f" {normalise(spelling)} " in spoken for spelling in spellings if len(spelling) > 1)
