"""Answers that could be chosen without an input: by how often, where in its set, how well known, in which fold."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from lensbench.tasks.audit.findings import Figure, examples
from lensbench.tasks.facts import N_FOLDS, Fact, Relation, normalise

Place = Callable[[int], float]
"""Where in a set of some size the gold answer is sought; between two places, both share."""


def first(_size: int) -> float:
    """Return the first place."""
    return 0.0


def middle(size: int) -> float:
    """Return the place in the middle, which is between two where the size is even."""
    return (size - 1) / 2


def last(size: int) -> float:
    """Return the last place."""
    return float(size - 1)


def too_few_classes(facts: list[Fact]) -> Figure:
    """1 where all answers are the same."""
    classes = {fact.answer for fact in facts}
    return float(len(classes) < 2), f"{len(classes)} classes"


def best_constant(relation: Relation, facts: list[Fact]) -> Figure:
    """Share of the most frequent answer, minus chance; in open relations that of its set, learned on other folds.

    Where an answer is that of a single fact, the most frequent one of the same facts would be right by itself.
    """
    if relation.kind == "open":
        return _constant_of_sets(relation, facts)
    answer, count = Counter(fact.answer for fact in facts).most_common(1)[0]
    share, chance = count / len(facts), 1 / len(relation.answers)
    return share - chance, f"{answer}: {share:.3f}, chance {chance:.3f}"


def _constant_of_sets(relation: Relation, facts: list[Fact]) -> Figure:
    sets = _sets(relation)
    every, by_fold = Counter(fact.answer for fact in facts), Counter((fact.fold, fact.answer) for fact in facts)
    rate = chance = 0.0
    for fact in facts:
        choices = sets[fact.answer]
        seen = {choice: every[choice] - by_fold[fact.fold, choice] for choice in choices}
        best = [choice for choice in choices if seen[choice] == max(seen.values())]
        rate += (fact.answer in best) / len(best) / len(facts)
        chance += 1 / len(choices) / len(facts)
    return rate - chance, f"{rate:.3f}, chance {chance:.3f}"


def gold_at(place: Place, relation: Relation, facts: list[Fact]) -> Figure:
    """How much more often than chance the gold answer stands at one place of its set, in alphabetical order."""
    sets = _sets(relation)
    ranked = [(sets[fact.answer].index(fact.answer),) * 2 + (len(sets[fact.answer]),) for fact in facts]
    return _rate_at(place, ranked)


def popularity_at(place: Place, relation: Relation, facts: list[Fact]) -> Figure | None:
    """How much more often than chance the gold answer has one rank of popularity in its set; answers that tie share.

    Returns:
        The figure over the facts whose answer's popularity is known, and that of another choice of its set at least;
        None where there is no such fact.
    """
    known = _popularity(facts)
    sets = _sets(relation)
    ranked = []
    for fact in facts:
        values = sorted(known[choice] for choice in sets[fact.answer] if choice in known)
        if fact.answer in known and len(values) > 1:
            own = known[fact.answer]
            ranked.append((values.index(own), values.index(own) + values.count(own) - 1, len(values)))
    return _rate_at(place, ranked) if ranked else None


def _rate_at(place: Place, ranked: Sequence[tuple[int, int, int]]) -> Figure:
    """Rate minus chance, of (first, last rank that the gold answer may have, size of its set)."""
    rate = chance = 0.0
    for low, high, size in ranked:
        wanted = place(size)
        places = {math.floor(wanted), math.ceil(wanted)}
        rate += sum(low <= one <= high for one in places) / len(places) / (high - low + 1) / len(ranked)
        chance += 1 / size / len(ranked)
    return rate - chance, f"{rate:.3f}, chance {chance:.3f}"


def _popularity(facts: list[Fact]) -> dict[str, float]:
    """The popularity of each answer, as far as facts tell it: the mean of what they say."""
    told: Mapping[str, list[float]] = defaultdict(list)
    for fact in facts:
        if fact.popularity is not None:
            told[fact.answer].append(float(fact.popularity))
    return {answer: float(np.mean(values)) for answer, values in told.items()}


def fold_imbalance(facts: list[Fact]) -> Figure:
    """Largest total-variation distance between the answers of one fold and of all."""
    overall = Counter(fact.answer for fact in facts)
    distances = []
    for fold in range(N_FOLDS):
        own = Counter(fact.answer for fact in facts if fact.fold == fold)
        size = max(1, own.total())
        distances.append(sum(abs(own[a] / size - overall[a] / len(facts)) for a in overall) / 2)
    return max(distances), f"fold {int(np.argmax(distances))}"


def alias_collisions(relation: Relation, facts: list[Fact]) -> Figure:
    """Facts with an alias that is, in its normal form, another choice of the relation or an alias of another answer."""
    owners: Mapping[str, set[str]] = defaultdict(set)
    for answer in relation.answers:
        owners[normalise(answer)].add(answer)
    for fact in facts:
        for alias in fact.aliases:
            owners[normalise(alias)].add(fact.answer)
    hits = [
        f"{alias} ({fact.answer} / {', '.join(sorted(owners[normalise(alias)] - {fact.answer}))})"
        for fact in facts
        for alias in fact.aliases
        if owners[normalise(alias)] != {fact.answer}
    ]
    share = sum(any(owners[normalise(alias)] != {fact.answer} for alias in fact.aliases) for fact in facts)
    return share / len(facts), examples(list(dict.fromkeys(hits)))


def _sets(relation: Relation) -> dict[str, tuple[str, ...]]:
    return {answer: choices for choices in relation.choice_sets for answer in choices}
