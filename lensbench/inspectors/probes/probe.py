"""Logistic probe."""

from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int
from sklearn.linear_model import LogisticRegression

from lensbench.inspectors.evidence import Learns, Source
from lensbench.inspectors.probes.probing import (
    ClassProbe,
    Labelled,
    Standardised,
    at_each_layer,
    moments,
    reduced,
    require_numbers,
    unreduced,
)
from lensbench.inspectors.target import Target
from lensbench.models.activations import Residuals
from lensbench.models.language_model import LanguageModel

# The largest gradient at which a fit ends: scikit-learn's own for the fit that is used, a coarser one to compare C.
TOLERANCE = 1e-4
CHOOSING_TOLERANCE = 1e-3


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

    def learn(self, residuals: Residuals, labelled: Labelled) -> list[Standardised]:
        """Fit one regression a layer."""
        learn, choose = labelled.split(self.seed)
        return at_each_layer(_fit_layer, residuals, labelled.labels, learn, choose, self.strengths)


def _fit_layer(
    values: Float[np.ndarray, "item d_model"],
    labels: np.ndarray,
    learn: Int[np.ndarray, " learning"],
    choose: Int[np.ndarray, " choosing"],
    strengths: tuple[float, ...],
) -> Standardised:
    """Choose C, then fit on all training items."""
    mean, scale = moments(values)
    order = np.concatenate([learn, choose])
    coordinates, basis = reduced(((values - mean) / scale)[order], len(learn))
    probe = _chosen_fit(coordinates, labels[order], len(learn), strengths)
    return Standardised(mean, scale, unreduced(probe, basis))


def _chosen_fit(
    values: Float[np.ndarray, "item coordinate"], labels: np.ndarray, learn: int, strengths: tuple[float, ...]
) -> LogisticRegression:
    """Return the fit on all items at the C that does best on those after the first `learn`."""
    # Coordinates that the learning items lack would keep a weight of zero.
    features = np.ascontiguousarray(values[:learn, :learn])
    # Each C begins where the one before ended; Newton's steps get from there to the optimum in a few.
    path = LogisticRegression(solver="newton-cg", warm_start=True, tol=CHOOSING_TOLERANCE)
    losses = []
    for strength in strengths:
        path.set_params(C=strength).fit(features, labels[:learn])
        losses.append(_loss(path, values[learn:, :learn], labels[learn:]))
    best = LogisticRegression(C=strengths[int(np.argmin(losses))], solver="newton-cg", tol=TOLERANCE)
    return best.fit(values, labels)


def _loss(probe: LogisticRegression, features: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean log-loss over labels that the probe has seen."""
    seen = np.isin(labels, probe.classes_)
    columns = np.searchsorted(probe.classes_, labels[seen])
    return (
        -float(probe.predict_log_proba(features[seen])[np.arange(len(columns)), columns].mean()) if seen.any() else 0.0
    )
