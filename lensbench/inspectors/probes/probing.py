"""What probes share: classes that can be learned, subjects held out, a smaller basis, a classifier at each layer."""

import math
import os
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lensbench.errors import NotApplicableError, UsageError
from lensbench.inspectors.base import Inspector
from lensbench.inspectors.evidence import Evidence, Training
from lensbench.inspectors.scores import Scores
from lensbench.inspectors.target import Target
from lensbench.models.activations import Residuals
from lensbench.models.language_model import LanguageModel

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

# scikit-learn is imported where it is used: it takes more than a second, and runs without probes need none of it.
MIN_SUBJECTS = 5
PARALLEL_LAYERS = 8
ROUNDING = 1e-12
"""A variance below this share of the mean square is rounding: the activations are alike."""
HELD_OUT = 0.25
"""The share of the training subjects that choose a setting."""

Fitted = TypeVar("Fitted")


@runtime_checkable
class Classifier(Protocol):
    """What reads one layer."""

    @property
    def classes_(self) -> np.ndarray:
        """The answers that it knows, in the order of its scores."""

    def predict_log_proba(self, values: Float[np.ndarray, "item d_model"]) -> Float[np.ndarray, "item class"]:
        """Return log-probabilities of the classes."""


class Standardised(NamedTuple):
    """A logistic regression on residuals that are standardised first."""

    mean: Float[np.ndarray, " d_model"]
    scale: Float[np.ndarray, " d_model"]
    probe: "LogisticRegression"

    @property
    def classes_(self) -> np.ndarray:
        """The answers that it knows."""
        classes: np.ndarray = self.probe.classes_
        return classes

    def predict_log_proba(self, values: Float[np.ndarray, "item d_model"]) -> Float[np.ndarray, "item class"]:
        """Return log-probabilities of the classes."""
        found: np.ndarray = self.probe.predict_log_proba((values - self.mean) / self.scale)
        return found


@dataclass(frozen=True)
class Labelled:
    """Training items without their activations.

    Attributes:
        labels: their answers.
        groups: a number for each item's subject.
    """

    labels: np.ndarray
    groups: Int[np.ndarray, " item"]

    @classmethod
    def of(cls, training: Training) -> "Labelled":
        """Take them from what an inspector may learn from."""
        return cls(np.array(training.labels), np.array(training.groups))

    def split(self, seed: int) -> tuple[Int[np.ndarray, " learning"], Int[np.ndarray, " choosing"]]:
        """Return the places of the items to learn from, and of those of a quarter of the subjects, held out."""
        from sklearn.model_selection import GroupShuffleSplit

        chooser = GroupShuffleSplit(1, test_size=HELD_OUT, random_state=seed)
        learn, choose = next(chooser.split(self.labels, groups=self.groups))
        return learn, choose


class ClassProbe(Inspector):
    """A classifier over the relation's answers at each layer, for one relation and fold."""

    class_subjects: ClassVar[int] = MIN_SUBJECTS

    def fit(self, target: Target, verbalizer: LanguageModel, training: Training) -> "ClassProbe":
        """Fit one classifier a layer.

        Raises:
            NotApplicableError: an answer has fewer than 5 training subjects.
        """
        require_classes(training)
        residuals = training.residuals
        self.layers_ = residuals.layers
        # Where its classifiers are at home: the mean of each layer, and a step there.
        self.around_ = [
            (one.double().mean(0).cpu().numpy(), float(one.float().std(0).mean()) or 1.0) for one in residuals.values
        ]
        self.probes_: Sequence[Classifier] = self.learn(residuals, Labelled.of(training))
        return self

    @abstractmethod
    def learn(self, residuals: Residuals, labelled: Labelled) -> Sequence[Classifier]:
        """Return a fitted classifier for each layer, each from that layer alone."""

    def directions(self, layer: int, answers: Sequence[str]) -> Float[Tensor, "answer d_model"] | None:
        """Return the weights of each answer in the residual's own coordinates; None where the classifier has none.

        That is where it is not linear, or knows not all of the answers.
        """
        place = self.layers_.index(layer)
        probe, (centre, spread) = self.probes_[place], self.around_[place]
        weights = linear_weights(probe, centre, spread)
        known = list(probe.classes_)
        if weights is None or not set(answers) <= set(known):
            return None
        return torch.from_numpy(weights[[known.index(answer) for answer in answers]]).float()

    def inspect(self, evidence: Evidence) -> Scores:
        """Return the probes' log-probabilities; an answer that training never had gets -inf."""
        out = np.full((len(evidence.layers), 1, evidence.residuals.values.shape[1], len(evidence.answers)), -np.inf)
        for i, (layer, values) in enumerate(zip(evidence.layers, evidence.residuals.values, strict=True)):
            probe = self.probes_[self.layers_.index(layer)]
            columns = [evidence.answers.index(answer) for answer in probe.classes_]
            out[i, 0][:, columns] = probe.predict_log_proba(values.float().cpu().numpy())
        return Scores(("default",), torch.from_numpy(out).float())


def linear_weights(
    probe: Classifier, centre: Float[np.ndarray, " d_model"], step: float
) -> Float[np.ndarray, "class d_model"] | None:
    """Return the weights of a linear classifier, their mean over the classes taken off; None if it is not linear.

    Log-probabilities are the weights' products but for what all classes share, so that they need not be looked for
    inside the classifier.

    Args:
        probe: the classifier.
        centre: the mean of what it has learned from: far from it, probabilities are 0.
        step: how far from there it is tried.
    """
    units = step * np.eye(len(centre))
    at = probe.predict_log_proba(np.concatenate([centre[None], centre + units, centre + 2 * units]))
    at = at - at.mean(axis=1, keepdims=True)
    once, twice = at[1 : len(centre) + 1] - at[0], at[len(centre) + 1 :] - at[0]
    if not np.allclose(2 * once, twice, rtol=1e-4, atol=1e-6 * np.abs(once).max()):
        return None  # an infinite score is not close to anything, either
    weights: np.ndarray = once.T / step
    return weights


def require_classes(training: Training, least: int = MIN_SUBJECTS) -> None:
    """Refuse relations where a class cannot be learned.

    Args:
        training: what is learned from.
        least: how many training subjects each answer needs.

    Raises:
        NotApplicableError: an answer has fewer.
    """
    pairs = set(zip(training.labels or (), training.groups, strict=True))
    subjects = Counter(label for label, _ in pairs)
    few = [answer for answer in training.answers if subjects[answer] < least]
    if few:
        raise NotApplicableError(
            f"{len(few)} of {len(training.answers)} answers have fewer than {least} training subjects "
            f"({few[0]}: {subjects[few[0]]})"
        )


def require_numbers(probe: Inspector, name: str, least: float, *, beyond: bool = False, whole: bool = False) -> None:
    """Refuse a parameter that is not a number from `least` on, or several of them.

    Args:
        probe: whose parameter it is.
        name: the parameter's name.
        least: the smallest number allowed.
        beyond: whether it must be larger than `least`.
        whole: whether it must be a whole number.

    Raises:
        UsageError: it is something else, or an empty list.
    """
    given = getattr(probe, name)
    several = isinstance(given, tuple)
    if (given if several else True) and all(
        _fits(one, least, beyond, whole) for one in (given if several else (given,))
    ):
        return
    kind = f"{'whole ' if whole else ''}{'numbers' if several else 'number'}"
    expected = f"{'one or more' if several else 'a'} {kind} {'above' if beyond else 'not below'} {least:g}"
    raise UsageError(f"{probe.name}: {name} is {given!r}, expected {expected}; change it, or leave it out")


def _fits(one: Any, least: float, beyond: bool, whole: bool) -> bool:
    if isinstance(one, bool) or not isinstance(one, int if whole else (int, float)) or not math.isfinite(one):
        return False
    return bool(one > least if beyond else one >= least)


def at_each_layer(fit: Callable[..., Fitted], residuals: Residuals, *arguments: object) -> list[Fitted]:
    """Return what `fit` makes of each layer's values, in float32, and of the arguments; many layers in parallel."""
    from joblib import Parallel, delayed

    jobs = os.cpu_count() or 1
    found: list[Fitted] = Parallel(n_jobs=jobs if len(residuals.layers) >= PARALLEL_LAYERS else 1)(
        delayed(_one_layer)(fit, values.float().cpu().numpy(), arguments) for values in residuals.values
    )
    return found


def _one_layer(fit: Callable[..., Fitted], values: np.ndarray, arguments: tuple[object, ...]) -> Fitted:
    from sklearn import config_context
    from threadpoolctl import threadpool_limits

    # Thousands of small problems: threads, and checks of the same arrays again and again, cost more than the fits.
    with threadpool_limits(1), config_context(skip_parameter_validation=True, assume_finite=True):
        return fit(values, *arguments)


def moments(
    values: Float[np.ndarray, "item d_model"],
) -> tuple[Float[np.ndarray, " d_model"], Float[np.ndarray, " d_model"]]:
    """Return each coordinate's mean, and its standard deviation, never quite zero."""
    return values.mean(0), values.std(0) + 1e-6


def reduced(
    values: Float[np.ndarray, "item d_model"], learn: int
) -> tuple[Float[np.ndarray, "item coordinate"], Float[np.ndarray, "d_model coordinate"]]:
    """Return coordinates in an orthonormal basis of the items' span, and the basis.

    With fewer items than coordinates an L2-penalised regression in such a basis is the same one, and smaller. This one
    is built up item by item: the first `learn` items have nothing beyond its first `learn` coordinates.
    """
    if learn >= values.shape[1]:
        return values, np.eye(values.shape[1], dtype=values.dtype)
    from scipy.linalg import qr

    basis, triangle = qr(values.T, mode="economic", check_finite=False)
    return np.ascontiguousarray(triangle.T), basis


def unreduced(probe: "LogisticRegression", basis: Float[np.ndarray, "d_model coordinate"]) -> "LogisticRegression":
    """Let a regression that was fitted in a basis take what the basis was made from."""
    probe.coef_ = probe.coef_ @ basis.T
    probe.n_features_in_ = len(basis)
    return probe
