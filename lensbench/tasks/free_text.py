"""Generated text, scored without a judge: its claims with their quotes, refusals, and which answer it names."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lensbench.tasks.names import find_name, name_key

Facets = Mapping[str, Sequence[str]]
"""What a description says, each facet with the spellings that count."""
_REFUSING = re.compile(
    r"\b(?:i (?:do not|don't|cannot|can't|could not|am unable|am not able)|unable to|no information|not sure|"
    r"as an ai|(?:cannot|can't) be (?:determined|identified))\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class StatedFacet:
    """What a text says of a facet.

    Attributes:
        facet: the facet.
        quote: the words of the text that say so.
        supported: whether it is so.
    """

    facet: str
    quote: str
    supported: bool


def find_claims(text: str, own: Facets, known: Facets) -> list[StatedFacet]:
    """Return the claims of a text: whatever it names of the values that a facet has for any item.

    A claim rests on its quote, words of the text itself, so that nothing has to be believed of a judge.

    Args:
        text: what was generated.
        own: the facets of the item.
        known: the values that each facet has for any of the items.
    """
    claims = []
    for facet, values in known.items():
        right = {name_key(value) for value in own.get(facet, ())}
        for value in sorted({*values, *own.get(facet, ())}):
            found = find_name(text, value)
            if found:
                claims.append(StatedFacet(facet, text[found.start : found.end], name_key(value) in right))
    return claims


def is_refusal(text: str) -> bool:
    """Return whether a text is empty, or says that nothing can be said."""
    return not re.search(r"\w", text) or bool(_REFUSING.search(text))


def first_answer(text: str, answers: Sequence[str]) -> int | None:
    """Return which of some answers a text names first, as whole words, the longest where several begin there."""
    found = [
        (span.start, -len(answer), place)
        for place, answer in enumerate(answers)
        if (span := find_name(text, answer)) is not None
    ]
    return min(found)[2] if found else None
