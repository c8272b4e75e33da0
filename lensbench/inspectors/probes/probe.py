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
from lensbench.inspectors.probes.logistic import PrincipalComponents, Regressions, fit_regressions
from lensbench.inspectors.probes.probing import ClassProbe, Labelled, require_numbers
from lensbench.inspectors.target import Target
from lensbench.models.activations import Residuals
from lensbench.models.language_model import LanguageModel
from lensbench.models.memory import Memo

# The largest derivative at which a fit ends: finer for the fit that is used than for those that compare C.
TOLERANCE = 1e-5
CHOOSING_TOLERANCE = 1e-4
# So many layers are fitted at once that their components stay in a processor's cache.
BYTES_AT_ONCE = 2**22
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
        items = values.shape[1]
        at_once = max(1, BYTES_AT_ONCE // max(1, 4 * items * min(items, values.shape[2])))
        parts = [_fit_layers(part, labelled.labels, learn, choose, self.strengths) for part in values.split(at_once)]
        return [probe for part in parts for probe in part]


class Softmax(NamedTuple):
    """The regression of one layer.

    Attributes:
        classes_: the answers.
        mean: of the training items.
        scale: what each coordinate is divided by, after the mean is taken off.
        weight: W.
        bias: c.
        C: the inverse of the penalty that was chosen.
    """

    classes_: np.ndarray
    mean: Float[np.ndarray, " d_model"]
    scale: Float[np.ndarray, " d_model"]
    weight: Float[np.ndarray, "class d_model"]
    bias: Float[np.ndarray, " class"]
    C: float

    def predict_log_proba(self, values: Float[np.ndarray, "item d_model"]) -> Float[np.ndarray, "item class"]:
        """Return log-probabilities of the classes."""
        found: np.ndarray = log_softmax((values - self.mean) / self.scale @ self.weight.T + self.bias, axis=1)
        return found


@dataclass(frozen=True)
class _Decomposed:
    """Training items of several layers without their labels.

    Attributes:
        mean: of each coordinate.
        scale: the standard deviation of each coordinate, never quite zero.
        whole: their components.
    """

    mean: Float[Tensor, "layer 1 d_model"]
    scale: Float[Tensor, "layer 1 d_model"]
    whole: PrincipalComponents

    @classmethod
    def of(cls, values: Float[Tensor, "layer item d_model"]) -> "_Decomposed":
        mean, scale = values.mean(1, keepdim=True), values.std(1, keepdim=True, unbiased=False) + 1e-6
        return cls(mean, scale, PrincipalComponents.of((values - mean) / scale))

    @property
    def nbytes(self) -> int:
        """How much memory it takes."""
        return self.mean.nbytes + self.scale.nbytes + self.whole.features.nbytes


_kept = Memo()


def _decomposed(values: Float[Tensor, "layer item d_model"]) -> _Decomposed:
    """Decompose these items, or take it from memory: by their content, so that it is never that of others."""
    digest = hashlib.sha256(repr(tuple(values.shape)).encode())
    digest.update(values.contiguous().numpy().data)
    found = _kept.get_or_compute(digest.hexdigest(), lambda: _Decomposed.of(values.double()))
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
    items = _decomposed(values)
    rounded = items.whole.rounded()
    best = _best_strengths(rounded, labels, learn, choose, strengths)
    chosen = torch.tensor(strengths, dtype=torch.float64)[best]
    classes, place = np.unique(labels, return_inverse=True)
    gold = torch.from_numpy(place)
    near = fit_regressions(rounded, gold, chosen, Regressions.zeros(rounded, len(classes)), CHOOSING_TOLERANCE)
    fitted = fit_regressions(items.whole, gold, chosen, near, TOLERANCE)
    weight = items.whole.directions((values.double() - items.mean) / items.scale, fitted.weight)
    parts = (one.numpy() for one in (items.mean[:, 0], items.scale[:, 0], weight, fitted.bias, chosen))
    return [Softmax(classes, *layer) for layer in zip(*parts, strict=True)]


def _best_strengths(
    components: PrincipalComponents,
    labels: np.ndarray,
    learn: Int[np.ndarray, " learning"],
    choose: Int[np.ndarray, " choosing"],
    strengths: tuple[float, ...],
) -> Int[Tensor, " layer"]:
    """Return for each layer which C gives the items that choose the smallest mean log-loss.

    An answer that no learning item has counts for nothing.
    """
    classes, place = np.unique(labels[learn], return_inverse=True)
    seen = choose[np.isin(labels[choose], classes)]
    columns = torch.from_numpy(np.searchsorted(classes, labels[seen]))
    learning = components.at_items(torch.from_numpy(learn))
    fitted = Regressions.zeros(learning, len(classes))
    losses = []
    for strength in strengths:
        # Each C begins where the one before ended.
        every = torch.full((len(fitted.bias),), strength)
        fitted = fit_regressions(learning, torch.from_numpy(place), every, fitted, CHOOSING_TOLERANCE)
        log_probs = fitted.log_probs(components.features[:, seen])
        losses.append(-log_probs[:, columns, torch.arange(len(columns))].sum(-1))
    return torch.stack(losses).argmin(0)
