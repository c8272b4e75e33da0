"""From answers to closed sets of choices."""

import random
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Literal

from lensbench.tasks.facts import normalise

LARGEST_CLASS = 24
SET_SIZE = 8
_SUBJECTS_AN_ANSWER = 3
Sets = tuple[tuple[str, ...], ...]


def spellings(answers: Iterable[str]) -> dict[str, str]:
    """For each answer the one spelling that stands for it: the first that is the same without case and accents."""
    first: dict[str, str] = {}
    return {answer: first.setdefault(normalise(answer), answer) for answer in answers}


def make_sets(count: Mapping[str, int], relation: str) -> tuple[Literal["class", "open"], Sets]:
    """Choose kind and choice sets of a relation.

    A relation of at most 24 answers with three subjects each, on average, is a class relation: one set. Others are
    dealt once, by a fixed seed, into sets of equal size, at most 8.

    Args:
        count: how many subjects have each answer.
        relation: the relation's name, the seed of the deal.
    """
    answers = sorted(count)
    if len(answers) <= LARGEST_CLASS and sum(count.values()) >= _SUBJECTS_AN_ANSWER * len(answers):
        return "class", (tuple(answers),)
    return "open", _deal(answers, random.Random(f"readers/{relation}"))


def _deal(answers: list[str], rng: random.Random) -> Sets:
    """Deal answers evenly, those that begin alike into different sets: a model cannot tell them apart in one."""
    starts = {answer: _start(answer) for answer in answers}
    first_word = Counter(word for word, _ in starts.values())
    order = rng.sample(answers, len(answers))
    # Those with the most like them first, while all sets are still open to them.
    order.sort(key=lambda answer: -first_word[starts[answer][0]])
    sets: list[list[str]] = [[] for _ in range(-(-len(answers) // SET_SIZE))]
    # How often each set has a first word, and first letters.
    used: list[tuple[Counter[str], Counter[str]]] = [(Counter(), Counter()) for _ in sets]
    largest = -(-len(answers) // len(sets))
    at_largest = len(answers) - (largest - 1) * len(sets)
    for answer in order:
        is_full = sum(len(one) == largest for one in sets) == at_largest
        fitting = [i for i, one in enumerate(sets) if len(one) < largest - is_full]
        word, letters = starts[answer]
        alike = {i: (used[i][0][word], used[i][1][letters]) for i in fitting}
        fewest = min(alike.values())
        chosen = rng.choice([i for i in fitting if alike[i] == fewest])
        sets[chosen].append(answer)
        used[chosen][0][word] += 1
        used[chosen][1][letters] += 1
    return tuple(sorted(tuple(sorted(one)) for one in sets))


def _start(answer: str) -> tuple[str, str]:
    """First word and first two letters."""
    bare = normalise(answer)
    return bare.split(" ")[0], bare[:2]
