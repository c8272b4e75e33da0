"""What the subjects' names give away: other folds' subjects in them, and the class in their characters."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer

from lensbench.tasks.audit.findings import Figure, examples
from lensbench.tasks.facts import Fact, normalise

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


def near_duplicates(facts: list[Fact]) -> Figure:
    """Subjects whose words are those of a subject in another fold, in any order or with one word more; also texts."""
    by_words: Mapping[tuple[str, ...], list[Fact]] = defaultdict(list)
    by_text: Mapping[str, list[Fact]] = defaultdict(list)
    for fact in facts:
        by_words[_words(fact.subject)].append(fact)
        for text in fact.texts.values():
            by_text[normalise(text)].append(fact)
    hits = []
    for fact in facts:
        words = _words(fact.subject)
        shorter = [words[:i] + words[i + 1 :] for i in range(len(words)) if len(words) > 1]
        # Of two with the same words, or the same text of their own, the one that comes later is the duplicate.
        alike = [*by_words[words], *(o for text in fact.texts.values() for o in by_text[normalise(text)])]
        same = [other for other in alike if other.line < fact.line]
        near = [*same, *(other for key in shorter if key in by_words for other in by_words[key])]
        other = next((other for other in near if other.fold != fact.fold), None)
        if other is not None:
            hits.append(f"{other.subject} / {fact.subject}")
    return len(hits) / len(facts), examples(hits)


def _words(name: str) -> tuple[str, ...]:
    return tuple(sorted(word for word in normalise(name).split() if word != "the"))


def subject_characters(facts: list[Fact]) -> Figure:
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
