"""Mass-mean probe."""

from typing import ClassVar, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.special import log_softmax
from sklearn.covariance import ledoit_wolf_shrinkage

from lensbench.errors import UsageError
from lensbench.inspectors.evidence import Learns, Source
from lensbench.inspectors.probes.probing import ROUNDING, ClassProbe, Labelled, at_each_layer, reduced
from lensbench.inspectors.target import Target
from lensbench.models.activations import Residuals
from lensbench.models.language_model import LanguageModel


class MassMeanProbe(ClassProbe):
    """theta · (h_l - (mu_+ + mu_-) / 2) with theta = mu_+ - mu_-: the difference of means (Marks & Tegmark 2023).

    arXiv 2310.06824.

    For several classes, class k has the score mu_k · M h - mu_k · M mu_k / 2, so that any two compare as in the paper:
    by M theta. M is the identity, or the inverse of the covariance within the classes (the paper's variant for data
    like those learned from; Fisher's linear discriminant), shrunk as Ledoit & Wolf (2004) do, because there are fewer
    items than coordinates. Nothing is tuned, and residuals are taken as they are.

    Args:
        covariance: whether M is the inverse covariance.
    """

    name: ClassVar[str] = "mass_mean_probe"
    reads: ClassVar[frozenset[Source]] = frozenset({"activation"})
    learns_from: ClassVar[Learns] = "labels"
    tries: ClassVar[str] = "one"
    cost: ClassVar[str] = "a mean a class, layer, relation and fold"

    def __init__(self, covariance: bool = False) -> None:
        self.covariance = covariance

    def check(self, target: Target, verbalizer: LanguageModel) -> None:
        """Check the parameters.

        Raises:
            UsageError: `covariance` is neither true nor false.
        """
        if not isinstance(self.covariance, bool):
            raise UsageError(f"{self.name}: covariance is {self.covariance!r}, expected true or false; change it")

    def learn(self, residuals: Residuals, labelled: Labelled) -> list["Means"]:
        """Take the means of each layer."""
        return at_each_layer(_fit_layer, residuals, labelled.labels, self.covariance)


class Means(NamedTuple):
    """The class means of one layer, as a linear classifier.

    Attributes:
        classes_: the answers.
        centre: taken off the residuals first, which changes no comparison, and loses no digits.
        theta: M mu_k, of centred means.
        bias: -mu_k · M mu_k / 2.
    """

    classes_: np.ndarray
    centre: Float[np.ndarray, " d_model"]
    theta: Float[np.ndarray, "d_model class"]
    bias: Float[np.ndarray, " class"]

    def predict_log_proba(self, values: Float[np.ndarray, "item d_model"]) -> Float[np.ndarray, "item class"]:
        """Return log-probabilities of the classes."""
        found: np.ndarray = log_softmax((values - self.centre) @ self.theta + self.bias, axis=1)
        return found


def _fit_layer(values: Float[np.ndarray, "item d_model"], labels: np.ndarray, covariance: bool) -> Means:
    classes, place = np.unique(labels, return_inverse=True)
    whole = values.astype(np.float64)
    centre = whole.mean(0)
    centred = whole - centre
    means = np.stack([centred[place == k].mean(0) for k in range(len(classes))])
    residue = centred - means[place]
    # Where all items of a class are alike there is nothing to divide by.
    differ = (residue**2).mean() > ROUNDING * (whole**2).mean()
    theta = _inverse_times(residue, means) if covariance and differ else means
    return Means(classes, centre, theta.T, -0.5 * (theta * means).sum(1))


def _inverse_times(
    residue: Float[np.ndarray, "item d_model"], means: Float[np.ndarray, "class d_model"]
) -> Float[np.ndarray, "class d_model"]:
    """Return the inverse of the shrunk covariance times each mean.

    Shrunk, it is (1 - s) S + s t I with t the mean variance of a coordinate. Outside of the span of the items it is
    s t I, and the means lie inside: a matrix as large as the number of items is all that is inverted.
    """
    share = ledoit_wolf_shrinkage(residue, assume_centered=True)
    spread = (residue**2).mean()
    coordinates, basis = reduced(np.concatenate([residue, means]), len(residue) + len(means))
    inside = coordinates[: len(residue)]
    shrunk = (1 - share) * inside.T @ inside / len(inside) + share * spread * np.eye(inside.shape[1])
    found: np.ndarray = np.linalg.solve(shrunk, coordinates[len(residue) :].T).T @ basis.T
    return found
