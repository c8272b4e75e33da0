"""What the items of a task give away without any model: leaks, imbalance, and answers that the characters betray."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer

from lensbench.tasks import Task
from lensbench.tasks.facts import N_FOLDS, SITES, SLOT, Fact, Relation, normalise

# What each check allows where a task does not say otherwise. A value passes when it is not above its threshold.
DEFAULT_THRESHOLDS: Mapping[str, float] = {
    "answer in text": 0.0,
    "answer in subject": 0.0,
    "relation words": 0.0,
    "too few classes": 0.0,
    "best constant": 0.10,
    "gold is first": 0.05,
    "gold is median": 0.05,
    "fold imbalance": 0.15,
    "near duplicates": 0.02,
    "token collisions": 0.0,
    "subject characters": 0.10,
}
_N_PERMUTATIONS = 99
# Words that say nothing about a relation although its prompts use them.
_COMMON = frozenset(
    """
    question answer quiz right anyone knows tell that what which with from this they them have has been does most for
    the and was were are its will would into one who whose whom first large great old new famous known called named name
    about world year time city country state person people film word element list book books table history form
    """.split()  # noqa: SIM905 - a list of sixty strings is harder to read
)


@dataclass(frozen=True)
class Finding:
    """One figure of the audit.

    Attributes:
        relation: Name of the relation.
        check: What was checked, one of the keys of `DEFAULT_THRESHOLDS`.
        value: The figure. Of a leak the share of facts; of a guess its accuracy minus what chance allows.
        threshold: The most that is allowed.
        ok: Whether the value is within the threshold.
        detail: The figure in words, with the first examples.
    """

    relation: str
    check: str
    value: float
    threshold: float
    ok: bool
    detail: str


def audit_task(
    task: Task,
    tokenizer: Callable[[str], Sequence[int]] | None = None,
    thresholds: Mapping[tuple[str, str], float] | None = None,
) -> list[Finding]:
    """Audit each relation of a task.

    Args:
        task: A loaded task.
        tokenizer: Token ids of a text; with it, answers of a set that begin with the same token are found.
        thresholds: Thresholds by (relation, check) that differ from `DEFAULT_THRESHOLDS`.

    Returns:
        The findings of all relations, in the task's order. The same task gives the same findings.
    """
    findings = []
    for relation in task.relations.values():
        facts = [fact for fact in task.facts if fact.relation == relation.name]
        for check, value, detail in _checks(relation, facts, tokenizer):
            limit = (thresholds or {}).get((relation.name, check), DEFAULT_THRESHOLDS[check])
            findings.append(Finding(relation.name, check, value, limit, value <= limit + 1e-9, detail))
    return findings


def _checks(
    relation: Relation, facts: list[Fact], tokenizer: Callable[[str], Sequence[int]] | None
) -> Iterable[tuple[str, float, str]]:
    yield "answer in text", *_answer_in_text(relation, facts)
    yield "answer in subject", *_answer_in_subject(facts)
    yield "relation words", *_relation_words(relation)
    yield "gold is first", *_position(relation, facts, lambda size: 0.0)
    yield "gold is median", *_position(relation, facts, lambda size: (size - 1) / 2)
    yield "near duplicates", *_near_duplicates(facts)
    if relation.kind == "class":
        yield "too few classes", *_too_few_classes(facts)
        yield "best constant", *_best_constant(relation, facts)
        yield "fold imbalance", *_fold_imbalance(facts)
        yield "subject characters", *_subject_characters(facts)
    if tokenizer is not None:
        yield "token collisions", *_token_collisions(relation, facts, tokenizer)


def _answer_in_text(relation: Relation, facts: list[Fact]) -> tuple[float, str]:
    """Facts whose answer stands in some text of their relation, the subject left out."""
    texts = [*relation.inspection, *relation.questions]
    texts += [text for site in SITES for text in relation.sources.get(site, {}).values()]
    words = " | ".join(f" {normalise(text.replace(SLOT, '|'))} " for text in texts)
    # A one-letter answer would be found in "a".
    hits = [fact.answer for fact in facts if len(fact.answer) > 1 and f" {normalise(fact.answer)} " in words]
    return len(hits) / len(facts), _examples(sorted(set(hits)))


def _answer_in_subject(facts: list[Fact]) -> tuple[float, str]:
    def leaks(fact: Fact) -> bool:
        subject, answer = normalise(fact.subject), normalise(fact.answer)
        return answer in subject or subject in answer

    hits = [f"{fact.subject} → {fact.answer}" for fact in facts if leaks(fact)]
    return len(hits) / len(facts), _examples(hits)


def _relation_words(relation: Relation) -> tuple[float, str]:
    """Subject sources that share a telling word with the relation's name, prompts or answers."""
    asked = " ".join([relation.name.replace("_", " "), *relation.inspection, *relation.questions])
    telling = set(re.findall(r"[a-z]{4,}", asked.lower())) - _COMMON
    telling |= {normalise(answer) for answer in relation.answers if len(answer) > 1}
    texts = relation.sources.get("subject", {}).values()
    hits = [word for text in texts for word in normalise(text.replace(SLOT, "")).split() if word in telling]
    return len(hits) / max(1, len(texts)), _examples(hits)


def _position(relation: Relation, facts: list[Fact], place: Callable[[int], float]) -> tuple[float, str]:
    """How much more often than chance the gold answer stands at one place of its set (halves share)."""
    sets = {answer: choices for choices in relation.choice_sets for answer in choices}
    rate = chance = 0.0
    for fact in facts:
        choices = sets[fact.answer]
        wanted = place(len(choices))
        places = {math.floor(wanted), math.ceil(wanted)}
        rate += (choices.index(fact.answer) in places) / len(places) / len(facts)
        chance += 1 / len(choices) / len(facts)
    return rate - chance, f"{rate:.3f}, chance {chance:.3f}"


def _near_duplicates(facts: list[Fact]) -> tuple[float, str]:
    """Subjects whose words are those of a subject in another fold, but for one word more."""
    by_words: dict[frozenset[str], Fact] = {frozenset(_words(fact.subject)): fact for fact in facts}
    hits = []
    for fact in facts:
        words = _words(fact.subject)
        shorter = (frozenset(words[:i] + words[i + 1 :]) for i in range(len(words)) if len(words) > 1)
        other = next((by_words[key] for key in shorter if key in by_words), None)
        if other is not None and other.fold != fact.fold:
            hits.append(f"{other.subject} / {fact.subject}")
    return len(hits) / len(facts), _examples(hits)


def _too_few_classes(facts: list[Fact]) -> tuple[float, str]:
    classes = {fact.answer for fact in facts}
    return float(len(classes) < 2), f"{len(classes)} classes"


def _best_constant(relation: Relation, facts: list[Fact]) -> tuple[float, str]:
    """Share of the most frequent answer, minus chance."""
    answer, count = Counter(fact.answer for fact in facts).most_common(1)[0]
    share, chance = count / len(facts), 1 / len(relation.answers)
    return share - chance, f"{answer}: {share:.3f}, chance {chance:.3f}"


def _fold_imbalance(facts: list[Fact]) -> tuple[float, str]:
    """Largest total-variation distance between the answers of one fold and of all."""
    overall = Counter(fact.answer for fact in facts)
    distances = []
    for fold in range(N_FOLDS):
        own = Counter(fact.answer for fact in facts if fact.fold == fold)
        size = max(1, own.total())
        distances.append(sum(abs(own[a] / size - overall[a] / len(facts)) for a in overall) / 2)
    return max(distances), f"fold {int(np.argmax(distances))}"


def _subject_characters(facts: list[Fact]) -> tuple[float, str]:
    """How far a character n-gram classifier, cross-fitted by folds, is above the 97.5 % point of shuffled answers."""
    accuracy, null = character_accuracy([f.subject for f in facts], [f.answer for f in facts], [f.fold for f in facts])
    return accuracy - null, f"accuracy {accuracy:.3f}, shuffled answers {null:.3f}"


def character_accuracy(
    subjects: Sequence[str], answers: Sequence[str], folds: Sequence[int], n_permutations: int = _N_PERMUTATIONS
) -> tuple[float, float]:
    """Predict the answer from the subject's characters (n-grams of 1 to 4, TF-IDF, ridge regression on the classes).

    Ridge regression rather than a logistic one: its weights are one matrix product for all shuffled answers together.

    Args:
        subjects: Names, one an item.
        answers: Gold answers.
        folds: Fold of each item; a fold is predicted from the others.
        n_permutations: How often the answers are shuffled for the null.

    Returns:
        The accuracy, and the 97.5 % point of the accuracy with shuffled answers.
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
    return float(accuracy[0]), float(np.quantile(accuracy[1:], 0.975)) if n_permutations else math.nan


def _ridge_weights(gram: NDArray[np.floating[Any]], cross: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    """What each training item counts for each test item in kernel ridge regression with penalty 1."""
    solved: NDArray[np.floating[Any]] = np.linalg.solve(gram + np.eye(len(gram)), cross.T)
    return solved.T


def _token_collisions(
    relation: Relation, facts: list[Fact], tokenizer: Callable[[str], Sequence[int]]
) -> tuple[float, str]:
    """Facts whose answer begins with the same token as another choice of its set."""
    colliding: list[str] = []
    for choices in relation.choice_sets:
        first: dict[int, list[str]] = defaultdict(list)
        for choice in choices:
            first[tokenizer(f" {choice}")[0]].append(choice)
        colliding += (choice for same in first.values() if len(same) > 1 for choice in same)
    hits = [fact for fact in facts if fact.answer in colliding]
    return len(hits) / len(facts), _examples(colliding)


def _words(name: str) -> list[str]:
    return [word for word in normalise(name).split() if word != "the"]


def _examples(hits: Sequence[str], most: int = 3) -> str:
    return ", ".join(hits[:most]) + (f" and {len(hits) - most} more" if len(hits) > most else "")
