"""Logistic probe."""

import os
from collections import Counter
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from joblib import Parallel, delayed
from scipy.linalg import qr
from sklearn import config_context
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupShuffleSplit
from threadpoolctl import threadpool_limits

from lensbench.evidence import Evidence, Learns, NotApplicableError, Scores, Source, Target, Training
from lensbench.inspectors.base import Inspector
from lensbench.model.language_model import LanguageModel

MIN_SUBJECTS = 5
PARALLEL_LAYERS = 8
# The largest gradient at which a fit ends: scikit-learn's own for the fit that is used, a coarser one to compare C.
TOLERANCE = 1e-4
CHOOSING_TOLERANCE = 1e-3


class Probe(Inspector):
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
    cost: ClassVar[str] = "a regression a layer, relation and fold"

    def __init__(self, strengths: tuple[float, ...] = (0.001, 0.01, 0.1), seed: int = 0) -> None:
        self.strengths = tuple(strengths)
        self.seed = seed

    def fit(self, target: Target, verbalizer: LanguageModel, training: Training) -> "Probe":
        """Fit one regression a layer.

        Raises:
            NotApplicableError: an answer has fewer than 5 training subjects.
        """
        require_classes(training)
        assert training.residuals is not None
        labels = np.array(training.labels)
        split = GroupShuffleSplit(1, test_size=0.25, random_state=self.seed).split(labels, groups=training.groups)
        learn, choose = next(split)
        residuals = training.residuals
        self.layers_ = residuals.layers
        jobs = os.cpu_count() or 1
        self.probes_ = Parallel(n_jobs=jobs if len(residuals.layers) >= PARALLEL_LAYERS else 1)(
            delayed(_fit_layer)(values.float().cpu().numpy(), labels, learn, choose, self.strengths)
            for values in residuals.values
        )
        return self

    def inspect(self, evidence: Evidence) -> Scores:
        """Return the probes' log-probabilities; an answer that training never had gets -inf."""
        assert evidence.residuals is not None
        out = np.full((len(evidence.layers), 1, evidence.residuals.values.shape[1], len(evidence.answers)), -np.inf)
        for i, (layer, values) in enumerate(zip(evidence.layers, evidence.residuals.values, strict=True)):
            mean, scale, probe = self.probes_[self.layers_.index(layer)]
            columns = [evidence.answers.index(answer) for answer in probe.classes_]
            out[i, 0][:, columns] = probe.predict_log_proba((values.float().cpu().numpy() - mean) / scale)
        return Scores(("default",), torch.from_numpy(out).float())


def require_classes(training: Training) -> None:
    """Refuse relations where a class cannot be learned.

    Raises:
        NotApplicableError: an answer has fewer than 5 training subjects.
    """
    pairs = set(zip(training.labels or (), training.groups, strict=True))
    subjects = Counter(label for label, _ in pairs)
    few = [answer for answer in training.answers if subjects[answer] < MIN_SUBJECTS]
    if few:
        raise NotApplicableError(
            f"{len(few)} of {len(training.answers)} answers have fewer than {MIN_SUBJECTS} training subjects "
            f"({few[0]}: {subjects[few[0]]})"
        )


Fitted = tuple[np.ndarray, np.ndarray, LogisticRegression]


def _fit_layer(
    values: Float[np.ndarray, "item d_model"],
    labels: np.ndarray,
    learn: np.ndarray,
    choose: np.ndarray,
    strengths: tuple[float, ...],
) -> Fitted:
    """Choose C, then fit on all training items."""
    mean, scale = values.mean(0), values.std(0) + 1e-6
    order = np.concatenate([learn, choose])
    # Thousands of small problems: threads, and checks of the same arrays again and again, cost more than the fits.
    with threadpool_limits(1), config_context(skip_parameter_validation=True, assume_finite=True):
        coordinates, basis = reduced(((values - mean) / scale)[order], len(learn))
        probe = _chosen_fit(coordinates, labels[order], len(learn), strengths)
    probe.coef_ = probe.coef_ @ basis.T
    probe.n_features_in_ = len(basis)
    return mean, scale, probe


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


def reduced(
    values: Float[np.ndarray, "item d_model"], learn: int
) -> tuple[Float[np.ndarray, "item coordinate"], Float[np.ndarray, "d_model coordinate"]]:
    """Return coordinates in an orthonormal basis of the items' span, and the basis.

    With fewer items than coordinates an L2-penalised regression in such a basis is the same one, and smaller. This one
    is built up item by item: the first `learn` items have nothing beyond its first `learn` coordinates.
    """
    if learn >= values.shape[1]:
        return values, np.eye(values.shape[1], dtype=values.dtype)
    basis, triangle = qr(values.T, mode="economic", check_finite=False)
    return np.ascontiguousarray(triangle.T), basis


def _loss(probe: LogisticRegression, features: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean log-loss over labels that the probe has seen."""
    seen = np.isin(labels, probe.classes_)
    columns = np.searchsorted(probe.classes_, labels[seen])
    return (
        -float(probe.predict_log_proba(features[seen])[np.arange(len(columns)), columns].mean()) if seen.any() else 0.0
    )
