"""Answers that can be guessed without a model: by their frequency, their place in their set, or the subjects' names."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer

from lensbench.tasks.audit.findings import Measurement, examples
from lensbench.tasks.facts import N_FOLDS, Fact, Relation
from lensbench.tasks.names import plain_words

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


def too_few_classes(facts: list[Fact]) -> Measurement:
    """1 where all answers are the same."""
    classes = {fact.answer for fact in facts}
    return float(len(classes) < 2), f"{len(classes)} classes"


def best_constant(relation: Relation, facts: list[Fact]) -> Measurement:
    """Share of the most frequent answer, minus chance; in open relations that of its set, learned on other folds.

    Where an answer is that of a single fact, the most frequent one of the same facts would be right by itself.
    """
    if relation.kind == "open":
        return _constant_of_sets(relation, facts)
    answer, count = Counter(fact.answer for fact in facts).most_common(1)[0]
    share, chance = count / len(facts), 1 / len(relation.answers)
    return share - chance, f"{answer}: {share:.3f}, chance {chance:.3f}"


def _constant_of_sets(relation: Relation, facts: list[Fact]) -> Measurement:
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


def gold_at(place: Place, relation: Relation, facts: list[Fact]) -> Measurement:
    """How much more often than chance the gold answer stands at one place of its set, in alphabetical order."""
    sets = _sets(relation)
    ranked = [(sets[fact.answer].index(fact.answer),) * 2 + (len(sets[fact.answer]),) for fact in facts]
    return _rate_at(place, ranked)


def popularity_at(place: Place, relation: Relation, facts: list[Fact]) -> Measurement | None:
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


def _rate_at(place: Place, ranked: Sequence[tuple[int, int, int]]) -> Measurement:
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


def fold_imbalance(facts: list[Fact]) -> Measurement:
    """Largest total-variation distance between the answers of one fold and of all."""
    overall = Counter(fact.answer for fact in facts)
    distances = []
    for fold in range(N_FOLDS):
        own = Counter(fact.answer for fact in facts if fact.fold == fold)
        size = max(1, own.total())
        distances.append(sum(abs(own[a] / size - overall[a] / len(facts)) for a in overall) / 2)
    return max(distances), f"fold {int(np.argmax(distances))}"


def alias_collisions(relation: Relation, facts: list[Fact]) -> Measurement:
    """Facts with an alias that is, in its normal form, another choice of the relation or an alias of another answer."""
    owners: Mapping[str, set[str]] = defaultdict(set)
    for answer in relation.answers:
        owners[plain_words(answer)].add(answer)
    for fact in facts:
        for alias in fact.aliases:
            owners[plain_words(alias)].add(fact.answer)
    hits = [
        f"{alias} ({fact.answer} / {', '.join(sorted(owners[plain_words(alias)] - {fact.answer}))})"
        for fact in facts
        for alias in fact.aliases
        if owners[plain_words(alias)] != {fact.answer}
    ]
    share = sum(any(owners[plain_words(alias)] != {fact.answer} for alias in fact.aliases) for fact in facts)
    return share / len(facts), examples(list(dict.fromkeys(hits)))


def _sets(relation: Relation) -> dict[str, tuple[str, ...]]:
    return {answer: choices for choices in relation.choice_sets for answer in choices}


_N_PERMUTATIONS = 99


@dataclass(frozen=True)
class Guess:
    """How often the answer is guessed.

    Attributes:
        accuracy: with the true answers.
        low: the 2.5 % point of the accuracy with shuffled answers; NaN without shuffles.
        high: the 97.5 % point.
    """

    accuracy: float
    low: float
    high: float


def near_duplicates(facts: list[Fact]) -> Measurement:
    """Subjects whose words are those of a subject in another fold, in any order or with one word more; also texts."""
    by_words: Mapping[tuple[str, ...], list[Fact]] = defaultdict(list)
    by_text: Mapping[str, list[Fact]] = defaultdict(list)
    for fact in facts:
        by_words[_words(fact.subject)].append(fact)
        for text in fact.texts.values():
            by_text[plain_words(text)].append(fact)
    hits = []
    for fact in facts:
        words = _words(fact.subject)
        shorter = [words[:i] + words[i + 1 :] for i in range(len(words)) if len(words) > 1]
        # Of two with the same words, or the same text of their own, the one that comes later is the duplicate.
        alike = [*by_words[words], *(o for text in fact.texts.values() for o in by_text[plain_words(text)])]
        same = [other for other in alike if other.line < fact.line]
        near = [*same, *(other for key in shorter if key in by_words for other in by_words[key])]
        other = next((other for other in near if other.fold != fact.fold), None)
        if other is not None:
            hits.append(f"{other.subject} / {fact.subject}")
    return len(hits) / len(facts), examples(hits)


def _words(name: str) -> tuple[str, ...]:
    return tuple(sorted(word for word in plain_words(name).split() if word != "the"))


def subject_characters(facts: list[Fact]) -> Measurement:
    """How far a character n-gram classifier, cross-fitted by folds, is above the 97.5 % point of shuffled answers."""
    guess = guess_from_characters([f.subject for f in facts], [f.answer for f in facts], [f.fold for f in facts])
    seen = f"accuracy {guess.accuracy:.3f}, shuffled answers {guess.low:.3f} to {guess.high:.3f}"
    return guess.accuracy - guess.high, seen


def character_accuracy(
    subjects: Sequence[str], answers: Sequence[str], folds: Sequence[int], n_permutations: int = _N_PERMUTATIONS
) -> tuple[float, float]:
    """Return the accuracy of `guess_from_characters`, and its 97.5 % point with shuffled answers."""
    guess = guess_from_characters(subjects, answers, folds, n_permutations)
    return guess.accuracy, guess.high


def guess_from_characters(
    subjects: Sequence[str], answers: Sequence[str], folds: Sequence[int], n_permutations: int = _N_PERMUTATIONS
) -> Guess:
    """Predict the answer from the subject's characters (n-grams of 1 to 4, TF-IDF, ridge regression on the classes).

    Ridge regression rather than a logistic one: its weights are one matrix product for all shuffled answers together.

    Args:
        subjects: Names, one an item.
        answers: Gold answers.
        folds: Fold of each item; a fold is predicted from the others.
        n_permutations: How often the answers are shuffled for the interval.
    """
    classes, codes = np.unique(np.asarray(answers), return_inverse=True)
    rng = np.random.default_rng(0)
    labels = np.stack([codes, *(rng.permutation(codes) for _ in range(n_permutations))])
    where = np.asarray(folds)
    correct = np.zeros(len(labels))
    for fold in np.unique(where):
        test, train = where == fold, where != fold
        features = TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 4), sublinear_tf=True)
        known = features.fit_transform([s for s, t in zip(subjects, train, strict=True) if t])
        asked = features.transform([s for s, t in zip(subjects, test, strict=True) if t])
        weights = _ridge_weights((known @ known.T).toarray(), (asked @ known.T).toarray())
        targets = np.eye(len(classes))[labels[:, train]]
        centre = targets.mean(axis=1, keepdims=True)
        predicted = (weights @ (targets - centre) + centre).argmax(axis=2)
        correct += (predicted == labels[:, test]).sum(axis=1)
    accuracy = correct / len(codes)
    low, high = np.quantile(accuracy[1:], (0.025, 0.975)) if n_permutations else (math.nan, math.nan)
    return Guess(float(accuracy[0]), float(low), float(high))


def _ridge_weights(gram: NDArray[np.floating[Any]], cross: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    """What each training item counts for each test item in kernel ridge regression with penalty 1."""
    solved: NDArray[np.floating[Any]] = np.linalg.solve(gram + np.eye(len(gram)), cross.T)
    return solved.T
