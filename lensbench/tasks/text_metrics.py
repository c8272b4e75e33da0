"""How right a generated text is: the answer in it, the facets in it, the words it shares with a reference."""

import re
from collections.abc import Iterable, Mapping

from rapidfuzz.distance import LCSseq

from lensbench.tasks.facts import normalise


def says(text: str, spellings: Iterable[str]) -> bool:
    """Whether a text has one of the spellings as whole words, whatever the case, accents and punctuation."""
    words = f" {normalise(text)} "
    return any(f" {normalise(spelling)} " in words for spelling in spellings)


def facet_recall(text: str, facets: Mapping[str, Iterable[str]]) -> float:
    """Return the share of the facets of which the text has one of the spellings.

    Raises:
        ValueError: no facets.
    """
    if not facets:
        raise ValueError("facet_recall needs at least one facet")
    return sum(says(text, spellings) for spellings in facets.values()) / len(facets)


def rouge_l(text: str, reference: str) -> float:
    """Return ROUGE-L as an F-measure: the longest common subsequence of words (Lin 2004).

    Words are runs of letters and digits, without case.
    """
    said, wanted = _words(text), _words(reference)
    common = LCSseq.similarity(said, wanted)
    return 2 * common / (len(said) + len(wanted)) if common else 0.0


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())
