"""From scores to predictions: choice sets, shared ties, prior correction. See docs/decisions/0003-scoring.md."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from lensbench.inspectors.scores import Scores
from lensbench.results.confidence import auroc, calibration_error
from lensbench.results.records import CONFIDENCE, FACET_RECALL, ROUGE_L, WHOLE_ANSWERS, Columns
from lensbench.tasks.facts import facet_recall, rouge_l
from lensbench.tasks.free_text import find_claims, is_refusal
from lensbench.tasks.items import Item
from lensbench.tasks.names import says

# Log-scores nearer than this are a tie: corrected scores that are equal by construction differ by rounding.
TIE = 1e-6


def prior_corrected(
    log_scores: Float[np.ndarray, "layer attempt item answer"],
    own: Bool[np.ndarray, "item answer"],
    folds: Sequence[int],
) -> Float[np.ndarray, "layer attempt item answer"]:
    """Subtract each answer's mean log-score over training items: those of the other folds, without labels.

    Where a relation has several choice sets, only items whose set does not contain the answer count, so that all
    answers of a set are treated alike. A fold without such items (a very small sample) stays as it is.

    Args:
        log_scores: raw scores of every answer.
        own: whether the answer is in the item's choice set.
        folds: each item's fold.
    """
    corrected = log_scores.astype(np.float64)
    fold_of = np.asarray(folds)
    for fold in np.unique(fold_of):
        test, training = fold_of == fold, fold_of != fold
        if not training.any():
            continue
        several = ~own[training].all(axis=0)
        finite = np.isfinite(log_scores[:, :, training])
        counted = finite & np.where(several, ~own[training], True)
        total = counted.sum(axis=2)
        mean = np.where(counted, log_scores[:, :, training], 0.0).sum(axis=2) / np.maximum(total, 1)
        corrected[:, :, test] -= mean[:, :, None]
    return corrected


def pick(
    log_scores: Float[np.ndarray, "layer attempt item answer"],
    own: Bool[np.ndarray, "item answer"],
    gold: Sequence[int],
) -> tuple[np.ndarray, np.ndarray]:
    """Return the answer picked from each item's own choice set, and its credit.

    Credit is 1 over the number of tied answers where the gold is among them, else 0: a constant scorer gets exactly
    1/k.
    """
    tied = _tied(np.where(own, log_scores, -np.inf), own)
    credit = np.take_along_axis(tied, np.asarray(gold)[None, None, :, None], axis=-1)[..., 0] / tied.sum(axis=-1)
    return tied.argmax(axis=-1), credit


def _tied(inside: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Whether each answer of the choice set is picked, alone or in a tie."""
    top = inside.max(axis=-1, keepdims=True)
    # A method that scores every answer -inf ties all of them.
    tied: np.ndarray = own & ((inside >= top - TIE) | np.isneginf(top))
    return tied


def _says_answer(text: str, item: Item) -> bool | None:
    """Whether a text has the answer or an alias; a description is measured by its facets instead."""
    return None if item.facets else says(text, (item.answer, *item.aliases))


def text_measures(items: Sequence[Item], scores: Scores) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return how good the texts are: of each [layer, attempt, item], and of all items at once, [layer, attempt].

    Of items that have facets: facet recall and ROUGE-L; whether a text is specific (it makes a claim about a facet),
    refuses, or is generic; and the precision of all claims.
    """
    if scores.texts is None or not all(item.facets for item in items):
        return {}, {}
    known: dict[str, list[str]] = {}
    for facet, spellings in (pair for item in items for pair in item.facets):
        known.setdefault(facet, []).extend(spellings)
    names = (FACET_RECALL, ROUGE_L, "specific", "generic", "refusal")
    found = {name: np.zeros(scores.texts.shape) for name in names}
    made, right = np.zeros(scores.texts.shape), np.zeros(scores.texts.shape)
    for place, text in np.ndenumerate(scores.texts):
        item = items[place[-1]]
        claims = find_claims(text, dict(item.facets), known)
        made[place], right[place] = len(claims), sum(claim.supported for claim in claims)
        found[FACET_RECALL][place] = facet_recall(text, dict(item.facets))
        found[ROUGE_L][place] = rouge_l(text, item.answer)
        kind = "specific" if claims else "refusal" if is_refusal(text) else "generic"
        found[kind][place] = 1.0
    with np.errstate(invalid="ignore"):
        precision = right.sum(-1) / made.sum(-1)
    return found, {"claim_precision": precision}


def whole_answer_measures(
    items: Sequence[Item], answers: Sequence[str], scores: Scores
) -> dict[str, Float[np.ndarray, "layer attempt item"]]:
    """Return the credit of each item's pick among whole answers, corrected for their prior; nothing for no scores.

    An attempt that does not score them has no number. Only what learns no labels scores whole answers, so that there is
    a prior to be corrected.
    """
    if scores.whole is None:
        return {}
    own, whole = _own_choices(items, answers), scores.whole.cpu().double().numpy()
    corrected = prior_corrected(np.nan_to_num(whole), own, [item.fold for item in items])
    credit = pick(corrected, own, [answers.index(item.answer) for item in items])[1]
    return {WHOLE_ANSWERS: np.where(np.isnan(whole).any(-1), np.nan, credit)}


def confidence_totals(items: Sequence[Item], answers: Sequence[str], scores: Scores) -> dict[str, np.ndarray]:
    """Return how well a method's confidence in its answers is calibrated, [layer, attempt]; not a number for none."""
    if CONFIDENCE not in scores.measures:
        return {}
    raw = scores.log_scores.cpu().double().numpy()
    _, credit = pick(raw, _own_choices(items, answers), [answers.index(item.answer) for item in items])
    confidence, right = scores.measures[CONFIDENCE], credit > 0.5  # a tie of two is no answer
    shape = confidence.shape[:2]
    error, above = np.empty(shape), np.empty(shape)
    for place in np.ndindex(shape):
        error[place] = calibration_error(confidence[place], right[place])
        ranked = auroc(confidence[place], right[place])
        above[place] = np.nan if ranked is None else ranked
    return {"calibration_error": error, "confidence_auroc": above}


def prediction_columns(
    items: Sequence[Item], answers: Sequence[str], scores: Scores, layers: Sequence[int | None], *, correct_prior: bool
) -> Columns:
    """Return the columns of the records that depend on the scores, in (layer, attempt, item) order.

    Args:
        items: the items scored.
        answers: every answer of their relation: the last axis of the scores.
        scores: from an inspector or a rival.
        layers: the layers of the scores' first axis; (None,) for what reads no layer.
        correct_prior: whether the scores learned no labels, and so carry a prior to be corrected.
    """
    raw = scores.log_scores.cpu().double().numpy()
    own = _own_choices(items, answers)
    gold = [answers.index(item.answer) for item in items]
    corrected = prior_corrected(raw, own, [item.fold for item in items]) if correct_prior else raw
    predicted, correct = pick(raw, own, gold)
    predicted_corrected, correct_corrected = pick(corrected, own, gold)
    shape = predicted.shape
    names = np.array(answers, dtype=object)
    at_gold = np.asarray(gold)[None, None, :, None]
    gold_log_prob = np.take_along_axis(raw, at_gold, axis=-1)[..., 0].ravel()

    def per_item(values: Sequence[Any]) -> np.ndarray:
        row = np.empty(len(values), dtype=object)
        row[:] = values
        return np.broadcast_to(row, shape).ravel()

    by_layer = np.empty(len(layers), dtype=object)
    by_layer[:] = layers
    columns: Columns = {
        "layer": np.broadcast_to(by_layer[:, None, None], shape).ravel().tolist(),
        "attempt": np.broadcast_to(np.array(scores.attempts, dtype=object)[None, :, None], shape).ravel(),
        "predicted": names[predicted].ravel(),
        "predicted_corrected": names[predicted_corrected].ravel(),
        "correct": correct.ravel(),
        "correct_corrected": correct_corrected.ravel(),
        "gold_log_prob": [value if np.isfinite(value) else None for value in gold_log_prob.tolist()],
        "gold_rank": None,
        "chance": per_item([1 / len(item.choices) for item in items]),
    }
    if scores.ranks is not None:
        ranks = scores.ranks.cpu().numpy()
        columns["gold_rank"] = np.take_along_axis(ranks, at_gold, axis=-1)[..., 0].ravel().tolist()
    for name in ("relation", "subject", "site", "template", "fold"):
        columns[name] = per_item([getattr(item, name) for item in items])
    if scores.texts is not None:
        columns["text"] = scores.texts.ravel()
        columns["open_correct"] = list(map(_says_answer, scores.texts.ravel(), per_item(items)))
    columns["item"] = per_item([item.id for item in items])
    columns["gold"] = per_item([item.answer for item in items])
    return columns


def crossed_credit(
    items: Sequence[Item], answers: Sequence[str], scores: Scores, *, correct_prior: bool
) -> tuple[Float[np.ndarray, "layer attempt item gold"], list[str]]:
    """Return what an item with each gold answer would earn under the activation of each item.

    Each activation keeps the prior of its own item's fold, so that it never contributes to its own prior.

    Args:
        items: the items scored.
        answers: every answer of their relation: the last axis of the scores.
        scores: from a method that reads nothing but the activation and the question.
        correct_prior: whether the corrected score decides, and there is a prior to be corrected.

    Returns:
        The credit, and the gold answers that its last axis stands for: those of the items.
    """
    decisive = scores.log_scores.cpu().double().numpy()
    if correct_prior:
        decisive = prior_corrected(decisive, _own_choices(items, answers), [item.fold for item in items])
    choices = {item.answer: item.choices for item in items}
    place = {answer: i for i, answer in enumerate(answers)}
    golds = sorted(choices)
    credit = np.empty((*decisive.shape[:3], len(golds)))
    for own in dict.fromkeys(choices.values()):
        inside = decisive[..., [place[choice] for choice in own]]
        tied = _tied(inside, np.ones(len(own), dtype=bool))
        for choice in set(own) & set(golds):
            credit[..., golds.index(choice)] = tied[..., own.index(choice)] / tied.sum(axis=-1)
    return credit, golds


def _own_choices(items: Sequence[Item], answers: Sequence[str]) -> Bool[np.ndarray, "item answer"]:
    """Whether each answer is in each item's choice set."""
    place = {answer: i for i, answer in enumerate(answers)}
    own = np.zeros((len(items), len(answers)), dtype=bool)
    for i, item in enumerate(items):
        own[i, [place[choice] for choice in item.choices]] = True
    return own


def credit_as_chance(columns: Columns, answers: Sequence[str]) -> None:
    """Give one wrong answer of each item the credit of a guess where it is picked, in place of none.

    Args:
        columns: from `prediction_columns`; their credit is changed.
        answers: for each item, the answer that is not the gold one and not held against the reader.
    """
    for kind in ("", "_corrected"):
        picked, credit = np.asarray(columns[f"predicted{kind}"]), np.asarray(columns[f"correct{kind}"], dtype=float)
        credited = picked == np.tile(np.array(answers, dtype=object), len(picked) // len(answers))
        # A pick that shares a tie with the gold answer has credit already.
        columns[f"correct{kind}"] = np.where(credited, np.maximum(credit, columns["chance"].astype(float)), credit)
