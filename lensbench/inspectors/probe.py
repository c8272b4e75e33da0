"""Logistic probe."""

from collections import Counter
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import GroupShuffleSplit
from threadpoolctl import threadpool_limits

from lensbench.evidence import Evidence, Learns, NotApplicableError, Scores, Source, Target, Training
from lensbench.inspectors.base import Inspector
from lensbench.model.language_model import LanguageModel

MIN_SUBJECTS = 5


class Probe(Inspector):
    """softmax(W z(h_l) + c): multinomial logistic regression on the standardised residual (Alain & Bengio 2016; Belinkov 2022).

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
        split = GroupShuffleSplit(1, test_size=0.25, random_state=self.seed).split(labels, groups=training.subjects)
        learn, choose = next(split)
        self.layers_ = training.residuals.layers
        with threadpool_limits(1):  # thousands of small problems: threads cost more than they bring
            self.probes_ = [
                _fit_layer(values.float().cpu().numpy(), labels, learn, choose, self.strengths)
                for values in training.residuals.values
            ]
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
    pairs = set(zip(training.labels or (), training.subjects, strict=True))
    subjects = Counter(label for label, _ in pairs)
    few = [answer for answer in training.answers if subjects[answer] < MIN_SUBJECTS]
    if few:
        raise NotApplicableError(
            f"{len(few)} of {len(training.answers)} answers have fewer than {MIN_SUBJECTS} training subjects ({few[0]}: {subjects[few[0]]})"
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

    With fewer items than coordinates the items span a subspace; an L2-penalised regression in its basis is the same one, and smaller.
    """
    mean, scale = values.mean(0), values.std(0) + 1e-6
    u, s, basis = np.linalg.svd((values - mean) / scale, full_matrices=False)
    rotated = u * s
    losses = []
    probe = LogisticRegression(warm_start=True, max_iter=300, tol=1e-3)
    for strength in strengths:
        probe.set_params(C=strength).fit(rotated[learn], labels[learn])
        losses.append(_loss(probe, rotated[choose], labels[choose]))
    best = LogisticRegression(C=strengths[int(np.argmin(losses))], max_iter=300, tol=1e-3).fit(rotated, labels)
    best.coef_ = best.coef_ @ basis
    best.n_features_in_ = basis.shape[1]
    return mean, scale, best


def _loss(probe: LogisticRegression, features: np.ndarray, labels: np.ndarray) -> float:
    seen = np.isin(labels, probe.classes_)
    return (
        float(log_loss(labels[seen], probe.predict_proba(features[seen]), labels=probe.classes_)) if seen.any() else 0.0
    )
