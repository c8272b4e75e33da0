"""Linear probe into the unembedding."""

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.special import log_softmax
from sklearn.linear_model import Ridge
from torch import Tensor

from lensbench.errors import NotApplicableError
from lensbench.inspectors.base import Inspector
from lensbench.inspectors.evidence import Evidence, Learns, Source, Training
from lensbench.inspectors.probes.probing import MIN_SUBJECTS, ROUNDING, Labelled, at_each_layer, require_numbers
from lensbench.inspectors.scores import Scores
from lensbench.inspectors.target import Target
from lensbench.models.language_model import LanguageModel

SHARPNESS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
"""What cosines are multiplied by before the softmax; chosen with the penalty."""


class LinearProbe(Inspector):
    """cos(W h_l + b - m, u_a - m): a linear map from the residual to the direction u_a of the answer's first token.

    u_a is the row of the model's head (`Target.answer_directions`), W and b the ridge regression of the right answers'
    rows on h_l, and m the mean of these rows, which W h + b falls back to as the penalty grows. Log-scores are the
    log-softmax over the relation's answers of the cosine times a factor. An answer that training never had has a row
    too, so that relations whose test answers are all new can be asked.

    A dot product with u_a would favour answers with long rows, whatever is read: rows differ in length, and share a
    large part, m, that tells no answer from another. Penalty and factor are chosen at each layer on a quarter of the
    training subjects, by log-loss; then W and b are fitted to all.

    Args:
        penalties: values of the ridge penalty, relative to the mean variance of the residual's coordinates.
        seed: which training subjects choose.
    """

    name: ClassVar[str] = "linear_probe"
    reads: ClassVar[frozenset[Source]] = frozenset({"activation"})
    learns_from: ClassVar[Learns] = "labels"
    tries: ClassVar[str] = "one"
    cost: ClassVar[str] = "a ridge regression a layer, relation and fold"

    def __init__(self, penalties: tuple[float, ...] = (0.01, 0.1, 1.0, 10.0, 100.0), seed: int = 0) -> None:
        self.penalties = tuple(penalties)
        self.seed = seed

    def check(self, target: Target, verbalizer: LanguageModel) -> None:
        """Check the parameters.

        Raises:
            UsageError: no penalty, one that is not above 0, or a seed that is no whole number from 0 on.
        """
        require_numbers(self, "penalties", 0.0, beyond=True)
        require_numbers(self, "seed", 0.0, whole=True)

    def fit(self, target: Target, verbalizer: LanguageModel, training: Training) -> "LinearProbe":
        """Fit one map a layer.

        Raises:
            NotApplicableError: fewer than 5 training subjects.
        """
        labelled = Labelled.of(training)
        if (subjects := len(set(training.groups))) < MIN_SUBJECTS:
            raise NotApplicableError(f"there are {subjects} training subjects; a map needs {MIN_SUBJECTS}")
        self.target_ = target
        self.layers_ = training.residuals.layers
        seen = tuple(sorted(set(training.labels or ())))
        self.directions_: Float[np.ndarray, "class d_model"] = self._directions(seen)
        every = self._directions(training.answers)
        place = np.searchsorted(np.array(seen), labelled.labels)
        gold = np.array([training.answers.index(label) for label in labelled.labels])
        learn, choose = labelled.split(self.seed)
        task = _Task(self.directions_, every, place, gold, learn, choose)
        self.maps_: list[Map] = at_each_layer(_fit_layer, training.residuals, task, self.penalties)
        return self

    def _directions(self, answers: tuple[str, ...]) -> Float[np.ndarray, "answer d_model"]:
        return self.target_.answer_directions(answers).cpu().double().numpy()

    def affine(self, layer: int) -> tuple[Float[np.ndarray, "d_model d_model"], Float[np.ndarray, " d_model"]]:
        """Return W and b of a layer."""
        found = self.maps_[self.layers_.index(layer)]
        return self.directions_.T @ found.ridge.coef_, found.ridge.intercept_ @ self.directions_

    def directions(self, layer: int, answers: Sequence[str]) -> Float[Tensor, "answer d_model"]:
        """Return Wᵀ of each answer's row less m, at length 1: the cosine, the length of what is read frozen."""
        rows = _unit(self._directions(tuple(answers)) - self.maps_[self.layers_.index(layer)].mean)
        return torch.from_numpy(rows @ self.affine(layer)[0]).float()

    def inspect(self, evidence: Evidence) -> Scores:
        """Return the log-softmax of the cosines, over all answers of the relation."""
        answers = self._directions(evidence.answers)
        found = np.stack(
            [
                self.maps_[self.layers_.index(layer)].log_scores(
                    values.float().cpu().numpy(), self.directions_, answers
                )
                for layer, values in zip(evidence.layers, evidence.residuals.values, strict=True)
            ]
        )
        return Scores(("default",), torch.from_numpy(found)[:, None].float())


class Map(NamedTuple):
    """One layer's map.

    Attributes:
        ridge: the regression on which answer is right. That on the answers' rows is its product with them: smaller by
            the width of the model over the number of answers.
        mean: m, the mean of the right answers' rows.
        sharpness: the cosine's factor.
    """

    ridge: Ridge
    mean: Float[np.ndarray, " d_model"]
    sharpness: float

    def cosines(
        self,
        values: Float[np.ndarray, "item d_model"],
        seen: Float[np.ndarray, "class d_model"],
        answers: Float[np.ndarray, "answer d_model"],
    ) -> Float[np.ndarray, "item answer"]:
        """Return how close the predicted rows are to the answers' rows; 0 for a row that is only the mean."""
        read = self.ridge.predict(values.astype(np.float64)) @ seen - self.mean
        found: np.ndarray = _unit(read) @ _unit(answers - self.mean).T
        return found

    def log_scores(
        self,
        values: Float[np.ndarray, "item d_model"],
        seen: Float[np.ndarray, "class d_model"],
        answers: Float[np.ndarray, "answer d_model"],
    ) -> Float[np.ndarray, "item answer"]:
        """Return log-probabilities of the answers."""
        found: np.ndarray = log_softmax(self.sharpness * self.cosines(values, seen, answers), axis=1)
        return found


class _Task(NamedTuple):
    """What all layers are fitted to.

    Attributes:
        seen: the rows of the answers that training has.
        every: the rows of all answers of the relation.
        place: each training item's answer among those seen.
        gold: the same among all.
        learn: the items that are learned from while penalty and factor are chosen.
        choose: the items that choose.
    """

    seen: Float[np.ndarray, "class d_model"]
    every: Float[np.ndarray, "answer d_model"]
    place: Int[np.ndarray, " item"]
    gold: Int[np.ndarray, " item"]
    learn: Int[np.ndarray, " learning"]
    choose: Int[np.ndarray, " choosing"]


def _fit_layer(values: Float[np.ndarray, "item d_model"], task: _Task, penalties: tuple[float, ...]) -> Map:
    """Choose penalty and sharpness, then fit on all training items."""
    losses = np.zeros((len(penalties), len(SHARPNESS)))
    for i, penalty in enumerate(penalties):
        tried = _fitted(values[task.learn], task, task.learn, penalty)
        cosines = tried.cosines(values[task.choose], task.seen, task.every)
        for j, sharpness in enumerate(SHARPNESS):
            found = log_softmax(sharpness * cosines, axis=1)
            losses[i, j] = -found[np.arange(len(task.choose)), task.gold[task.choose]].mean()
    best, sharp = np.unravel_index(losses.argmin(), losses.shape)
    whole = _fitted(values, task, np.arange(len(values)), penalties[best])
    return whole._replace(sharpness=SHARPNESS[sharp])


def _fitted(
    values: Float[np.ndarray, "item d_model"], task: _Task, items: Int[np.ndarray, " item"], penalty: float
) -> Map:
    x = values.astype(np.float64)
    which = np.eye(len(task.seen))[task.place[items]]
    spread, square = float(x.var(0).mean()), float((x**2).mean())
    # Where activations are all alike, any penalty gives the mean.
    ridge = Ridge(alpha=penalty * len(x) * (spread if spread > ROUNDING * square else 1.0)).fit(x, which)
    return Map(ridge, which.mean(0) @ task.seen, 1.0)


def _unit(rows: Float[np.ndarray, "row d_model"]) -> Float[np.ndarray, "row d_model"]:
    """Return rows of length 1; rows of no length stay as they are."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > 1e-12, lengths, 1.0)
