"""Logistic probe."""

import os
from collections import Counter
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from joblib import Parallel, delayed
from sklearn import config_context
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupShuffleSplit
from threadpoolctl import threadpool_limits

from lensbench.evidence import Evidence, Learns, NotApplicableError, Scores, Source, Target, Training
from lensbench.inspectors.base import Inspector
from lensbench.model.language_model import LanguageModel

MIN_SUBJECTS = 5
PARALLEL_LAYERS = 8


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
    """Choose C, then fit on all training items.

    With fewer items than coordinates the items span a subspace; an L2-penalised regression in an orthonormal basis of
    it is the same one, and smaller.
    """
    mean, scale = values.mean(0), values.std(0) + 1e-6
    # Thousands of small problems: threads, and checks of the same arrays again and again, cost more than the fits.
    with threadpool_limits(1), config_context(skip_parameter_validation=True, assume_finite=True):
        probe, basis = _chosen_fit(((values - mean) / scale).astype(np.float64), labels, learn, choose, strengths)
    probe.coef_ = probe.coef_ @ basis
    probe.n_features_in_ = basis.shape[1]
    return mean, scale, probe


def _chosen_fit(
    values: Float[np.ndarray, "item d_model"],
    labels: np.ndarray,
    learn: np.ndarray,
    choose: np.ndarray,
    strengths: tuple[float, ...],
) -> tuple[LogisticRegression, Float[np.ndarray, "rank d_model"]]:
    """Return the fit at the best C, in the basis that is returned beside it."""
    rotated, basis = span(values)
    # A rough path is enough to choose C; only the last fit is used.
    probe = LogisticRegression(warm_start=True, max_iter=300, tol=1e-2)
    losses = []
    for strength in strengths:
        probe.set_params(C=strength).fit(rotated[learn], labels[learn])
        losses.append(_loss(probe, rotated[choose], labels[choose]))
    best = LogisticRegression(C=strengths[int(np.argmin(losses))], max_iter=300, tol=1e-3)
    return best.fit(rotated, labels), basis


def span(
    values: Float[np.ndarray, "item d_model"],
) -> tuple[Float[np.ndarray, "item rank"], Float[np.ndarray, "rank d_model"]]:
    """Return coordinates in an orthonormal basis of the rows' span, and the basis, from the smaller Gram matrix."""
    if len(values) > values.shape[1]:
        return values, np.eye(values.shape[1])
    eigenvalues, vectors = np.linalg.eigh(values @ values.T)
    kept = eigenvalues > max(eigenvalues[-1], 1.0) * 1e-9
    if not kept.any():  # the same activation everywhere, as at layer 0 of prompts that end alike
        return np.zeros((len(values), 1)), np.zeros((1, values.shape[1]))
    scales = np.sqrt(eigenvalues[kept])
    return vectors[:, kept] * scales, (vectors[:, kept] / scales).T @ values


def _loss(probe: LogisticRegression, features: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean log-loss over labels that the probe has seen."""
    seen = np.isin(labels, probe.classes_)
    columns = np.searchsorted(probe.classes_, labels[seen])
    return (
        -float(probe.predict_log_proba(features[seen])[np.arange(len(columns)), columns].mean()) if seen.any() else 0.0
    )
