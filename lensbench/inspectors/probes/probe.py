"""Logistic probe."""

import hashlib
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.special import log_softmax
from torch import Tensor

from lensbench.inspectors.evidence import Learns, Source
from lensbench.inspectors.probes.logistic import Components, Regressions, fit_regressions
from lensbench.inspectors.probes.probing import ClassProbe, Labelled, require_numbers
from lensbench.inspectors.target import Target
from lensbench.models.activations import Residuals
from lensbench.models.language_model import LanguageModel
from lensbench.models.memory import Memo

# The largest derivative at which a fit ends: finer for the fit that is used than for those that compare C.
TOLERANCE = 1e-5
CHOOSING_TOLERANCE = 1e-4
# So many layers are fitted at once that their items take no more than this.
BYTES_AT_ONCE = 2**26
# What is kept of earlier fits: other labels of the same activations need the same decompositions.
KEPT_BYTES = 2**28


class Probe(ClassProbe):
    """softmax(W z(h_l) + c): multinomial logistic regression on the standardised residual.

    Alain & Bengio 2016, arXiv 1610.01644; Belinkov 2022.

    One a layer, relation and fold. C is chosen at each layer on a quarter of the training subjects, by log-loss.

    Args:
        strengths: values of C, the inverse of the L2 penalty.
        seed: which training subjects choose C.
    """

    name: ClassVar[str] = "probe"
    reads: ClassVar[frozenset[Source]] = frozenset({"activation"})
    learns_from: ClassVar[Learns] = "labels"
    tries: ClassVar[str] = "one"
    cost: ClassVar[str] = "a regression a layer, relation and fold"

    def __init__(self, strengths: tuple[float, ...] = (0.001, 0.01, 0.1), seed: int = 0) -> None:
        self.strengths = tuple(strengths)
        self.seed = seed

    def check(self, target: Target, verbalizer: LanguageModel) -> None:
        """Check the parameters.

        Raises:
            UsageError: no strength, one that is not above 0, or a seed that is no whole number from 0 on.
        """
        require_numbers(self, "strengths", 0.0, beyond=True)
        require_numbers(self, "seed", 0.0, whole=True)

    def learn(self, residuals: Residuals, labelled: Labelled) -> list["Softmax"]:
        """Fit one regression a layer, many layers at once."""
        learn, choose = labelled.split(self.seed)
        values = residuals.values.float().cpu()
        at_once = max(1, BYTES_AT_ONCE // max(1, 8 * values[0].numel()))
        parts = [_fit_layers(part, labelled.labels, learn, choose, self.strengths) for part in values.split(at_once)]
        return [probe for part in parts for probe in part]


class Softmax(NamedTuple):
    """The regression of one layer.

    Attributes:
        classes_: the answers.
        mean: of the training items.
        scale: what each coordinate is divided by, after the mean is taken off.
        weight: W, transposed.
        bias: c.
        C: the inverse of the penalty that was chosen.
    """

    classes_: np.ndarray
    mean: Float[np.ndarray, " d_model"]
    scale: Float[np.ndarray, " d_model"]
    weight: Float[np.ndarray, "d_model class"]
    bias: Float[np.ndarray, " class"]
    C: float

    def predict_log_proba(self, values: Float[np.ndarray, "item d_model"]) -> Float[np.ndarray, "item class"]:
        """Return log-probabilities of the classes."""
        found: np.ndarray = log_softmax((values - self.mean) / self.scale @ self.weight + self.bias, axis=1)
        return found


@dataclass(frozen=True)
class _Decomposed:
    """Training items of several layers without their labels.

    Attributes:
        mean: of each coordinate.
        scale: the standard deviation of each coordinate, never quite zero.
        whole: the components of all items.
        learning: those of the items that are learned from while C is chosen.
        choosing: the items that choose, in the components of those that are learned from.
    """

    mean: Float[Tensor, "layer 1 d_model"]
    scale: Float[Tensor, "layer 1 d_model"]
    whole: Components
    learning: Components
    choosing: Float[Tensor, "layer choosing component"]

    @classmethod
    def of(
        cls,
        values: Float[Tensor, "layer item d_model"],
        learn: Int[np.ndarray, " learning"],
        choose: Int[np.ndarray, " choosing"],
    ) -> "_Decomposed":
        mean, scale = values.mean(1, keepdim=True), values.std(1, keepdim=True, unbiased=False) + 1e-6
        items = (values - mean) / scale
        learning = Components.of(items[:, learn])
        return cls(mean, scale, Components.of(items), learning, learning.coordinates(items[:, learn], items[:, choose]))

    @property
    def nbytes(self) -> int:
        """How much memory it takes."""
        parts = (self.mean, self.scale, self.choosing, self.whole.features, self.learning.features)
        return sum(part.nbytes for part in parts)


_kept = Memo()


def _decomposed(
    values: Float[Tensor, "layer item d_model"],
    learn: Int[np.ndarray, " learning"],
    choose: Int[np.ndarray, " choosing"],
) -> _Decomposed:
    """Decompose these items, or take it from memory: by their content, so that it is never that of others."""
    digest = hashlib.sha256(repr((tuple(values.shape), learn.tolist(), choose.tolist())).encode())
    digest.update(values.contiguous().numpy().data)
    found = _kept.get_or_compute(digest.hexdigest(), lambda: _Decomposed.of(values.double(), learn, choose))
    while len(_kept) > 1 and sum(one.nbytes for one in _kept.values()) > KEPT_BYTES:
        _kept.popitem(last=False)
    return found


def _fit_layers(
    values: Float[Tensor, "layer item d_model"],
    labels: np.ndarray,
    learn: Int[np.ndarray, " learning"],
    choose: Int[np.ndarray, " choosing"],
    strengths: tuple[float, ...],
) -> list[Softmax]:
    """Choose C at each layer, then fit on all training items."""
    items = _decomposed(values, learn, choose)
    best = _best_strengths(items, labels[learn], labels[choose], strengths)
    chosen = torch.tensor(strengths, dtype=torch.float64)[best]
    classes, place = np.unique(labels, return_inverse=True)
    start = Regressions.zeros(items.whole, len(classes))
    fitted = fit_regressions(items.whole, torch.from_numpy(place), chosen, start, TOLERANCE)
    weight = items.whole.directions((values.double() - items.mean) / items.scale, fitted.weight)
    parts = (one.numpy() for one in (items.mean[:, 0], items.scale[:, 0], weight, fitted.bias, chosen))
    return [Softmax(classes, *layer) for layer in zip(*parts, strict=True)]


def _best_strengths(
    items: _Decomposed, learned: np.ndarray, chosen: np.ndarray, strengths: tuple[float, ...]
) -> Int[Tensor, " layer"]:
    """Return for each layer which C gives the items that choose the smallest mean log-loss.

    An answer that no learning item has counts for nothing.
    """
    classes, place = np.unique(learned, return_inverse=True)
    seen = np.isin(chosen, classes)
    columns = torch.from_numpy(np.searchsorted(classes, chosen[seen]))
    fitted = Regressions.zeros(items.learning, len(classes))
    losses = []
    for strength in strengths:
        # Each C begins where the one before ended.
        every = torch.full((len(fitted.bias),), strength, dtype=torch.float64)
        fitted = fit_regressions(items.learning, torch.from_numpy(place), every, fitted, CHOOSING_TOLERANCE)
        log_probs = fitted.log_probs(items.choosing[:, seen])
        losses.append(-log_probs[:, torch.arange(len(columns)), columns].sum(-1))
    return torch.stack(losses).argmin(0)
