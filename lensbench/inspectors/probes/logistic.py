"""Multinomial logistic regressions on many layers at once: one decomposition a layer, then Newton steps on all layers.

An L2-penalised regression of n items is the same one in the coordinates of their principal components, of which there
are no more than items. There the second derivatives are nearly diagonal, so that a conjugate gradient which is divided
by their diagonal needs few steps. The components do not depend on the labels: other labels of the same items share
them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

# A component whose sum of squares is below this share of the largest is rounding.
LEAST_COMPONENT = 1e-10
NEWTON_STEPS, CONJUGATE_STEPS, HALVINGS = 100, 200, 30
# A step must lower the loss by at least this share of what its slope promises (Armijo's rule).
DESCENT = 1e-4


@dataclass(frozen=True)
class PrincipalComponents:
    """The principal components of items, at each layer.

    Attributes:
        features: the items' coordinates. Of all items the columns are orthogonal to each other, of some of them nearly.
        squares: the sum of squares of each column; 0 for a component that is left out.
    """

    features: Float[Tensor, "layer item component"]
    squares: Float[Tensor, "layer component"]

    @classmethod
    def of(cls, items: Float[Tensor, "layer item d_model"]) -> "PrincipalComponents":
        """Decompose items, by the smaller of their two matrices of products."""
        wide = items.shape[1] < items.shape[2]
        products = items @ items.mT if wide else items.mT @ items
        squares, vectors = torch.linalg.eigh(products)
        squares = torch.where(squares > LEAST_COMPONENT * squares[:, -1:], squares, 0.0)
        features = vectors * squares.sqrt()[:, None] if wide else (items @ vectors) * (squares > 0)[:, None]
        return cls(features, squares)

    def at_items(self, items: Int[Tensor, " chosen"]) -> "PrincipalComponents":
        """Return some of the items, in the components of all."""
        features = self.features[:, items]
        return PrincipalComponents(features, (features**2).sum(1))

    def rounded(self) -> "PrincipalComponents":
        """Return them in float32: half as much to read, and near enough to compare penalties, or to begin with."""
        return PrincipalComponents(self.features.float(), self.squares.float())

    def directions(
        self, items: Float[Tensor, "layer item d_model"], weight: Float[Tensor, "layer class component"]
    ) -> Float[Tensor, "layer class d_model"]:
        """Return weights of the components as weights of the coordinates that these items were given in."""
        return (weight * self._shares[:, None]) @ self.features.mT @ items

    @property
    def _shares(self) -> Float[Tensor, "layer component"]:
        return torch.where(self.squares > 0, 1 / self.squares, 0.0)


@dataclass(frozen=True)
class Regressions:
    """One regression a layer: log-probabilities are log_softmax(weight @ features.T + bias).

    Classes come first: products of few rows with many columns are several times faster than those of many with few.
    """

    weight: Float[Tensor, "layer class component"]
    bias: Float[Tensor, "layer class"]

    @classmethod
    def zeros(cls, components: PrincipalComponents, classes: int) -> "Regressions":
        """Return regressions that know nothing."""
        layers, _, width = components.features.shape
        like = components.features
        return cls(like.new_zeros(layers, classes, width), like.new_zeros(layers, classes))

    def log_probs(self, features: Float[Tensor, "layer item component"]) -> Float[Tensor, "layer class item"]:
        """Return log-probabilities of the classes."""
        return (self.weight @ features.mT + self.bias[..., None]).log_softmax(1)

    def moved(self, step: "Regressions", length: Float[Tensor, " layer"]) -> "Regressions":
        """Return regressions that lie a number of steps from here."""
        return Regressions(self.weight + length[:, None, None] * step.weight, self.bias + length[:, None] * step.bias)

    def dot(self, other: "Regressions") -> Float[Tensor, " layer"]:
        """Return the inner product with others."""
        return (self.weight * other.weight).sum((1, 2)) + (self.bias * other.bias).sum(1)

    def largest(self) -> Float[Tensor, " layer"]:
        """Return the largest absolute number."""
        return torch.maximum(self.weight.abs().amax((1, 2)), self.bias.abs().amax(1))

    def at(self, layers: Tensor) -> "Regressions":
        """Return those of some layers."""
        return Regressions(self.weight[layers], self.bias[layers])

    def map(self, change: Callable[[Tensor], Tensor]) -> "Regressions":
        """Return what a change makes of both parts."""
        return Regressions(change(self.weight), change(self.bias))


def fit_regressions(
    components: PrincipalComponents,
    labels: Int[Tensor, " item"],
    strengths: Float[Tensor, " layer"],
    start: Regressions,
    tolerance: float,
) -> Regressions:
    """Minimise mean log-loss + |W|² / (2 C n) at each layer; scikit-learn's LogisticRegression has the same minimum.

    With two classes scikit-learn penalises the difference of their weights, |w_1 - w_0|² / (2 C n), and so do we.

    Args:
        components: of n items.
        labels: the class of each item, from 0 on.
        strengths: C of each layer.
        start: where the search begins; its last axis has the number of classes.
        tolerance: a layer is done where no derivative is larger.
    """
    classes = start.bias.shape[1]
    penalty = ((2.0 if classes == 2 else 1.0) / (strengths * len(labels))).to(components.features)
    problem = _Problem(
        components.features, components.squares, torch.nn.functional.one_hot(labels, classes).T.to(penalty), penalty
    )
    found = start.map(lambda part: part.to(penalty, copy=True))
    left = torch.arange(len(penalty))
    for _ in range(NEWTON_STEPS):
        here = found.at(left)
        probabilities, gradient = problem.gradient(here)
        wrong = gradient.largest() > tolerance
        if not wrong.all():
            left, problem = left[wrong], problem.select(wrong)
            here, gradient = here.at(wrong), gradient.at(wrong)
            probabilities = probabilities[wrong]
        if not len(left):
            break
        step = problem.newton_step(probabilities, gradient)
        moved = problem.descend(here, step, gradient)
        found.weight[left], found.bias[left] = moved.weight, moved.bias
    return found


@dataclass(frozen=True)
class _Problem:
    features: Float[Tensor, "layer item component"]
    squares: Float[Tensor, "layer component"]
    gold: Float[Tensor, "class item"]
    penalty: Float[Tensor, " layer"]

    @property
    def items(self) -> int:
        return self.gold.shape[1]

    def select(self, layers: Tensor) -> "_Problem":
        return _Problem(self.features[layers], self.squares[layers], self.gold, self.penalty[layers])

    def loss(self, at: Regressions) -> Float[Tensor, " layer"]:
        return -(at.log_probs(self.features) * self.gold).sum((1, 2)) / self.items + self.penalty / 2 * (
            at.weight**2
        ).sum((1, 2))

    def gradient(self, at: Regressions) -> tuple[Tensor, Regressions]:
        """Return the probabilities of the classes, and the derivatives of the loss."""
        probabilities = at.log_probs(self.features).exp()
        return probabilities, self._pulled((probabilities - self.gold) / self.items, at.weight)

    def _pulled(self, rows: Tensor, weight: Tensor) -> Regressions:
        return Regressions(rows @ self.features + self.penalty[:, None, None] * weight, rows.sum(2))

    def newton_step(self, probabilities: Tensor, gradient: Regressions) -> Regressions:
        """Solve H step = -gradient, nearly: the nearer to the minimum, the more exactly."""
        spread = (probabilities * (1 - probabilities)).mean(2).clamp(min=1e-12)
        share = self.squares[:, None] / self.items
        diagonal = Regressions(share * spread[..., None] + self.penalty[:, None, None], spread)

        def product(step: Regressions) -> Regressions:
            moved = step.weight @ self.features.mT + step.bias[..., None]
            moved = probabilities * (moved - (probabilities * moved).sum(1, keepdim=True)) / self.items
            return self._pulled(moved, step.weight)

        largest = gradient.largest()
        enough = torch.minimum(torch.full_like(largest, 0.1), largest.sqrt()) * largest
        tiny = torch.finfo(largest.dtype).tiny
        step = gradient.map(torch.zeros_like)
        rest = gradient.map(torch.neg)
        scaled = Regressions(rest.weight / diagonal.weight, rest.bias / diagonal.bias)
        way, size = scaled, rest.dot(scaled)
        for _ in range(CONJUGATE_STEPS):
            going = rest.largest() > enough
            if not going.any():
                break
            bent = product(way)
            length = torch.where(going, size / way.dot(bent).clamp(min=tiny), 0.0)
            step, rest = step.moved(way, length), rest.moved(bent, -length)
            scaled = Regressions(rest.weight / diagonal.weight, rest.bias / diagonal.bias)
            before, size = size, rest.dot(scaled)
            way = scaled.moved(way, size / before.clamp(min=tiny))
        return step

    def descend(self, at: Regressions, step: Regressions, gradient: Regressions) -> Regressions:
        """Go the step, or as much of it as lowers the loss."""
        loss, slope = self.loss(at), gradient.dot(step)
        rounding = 16 * torch.finfo(loss.dtype).eps * loss.abs()
        length = torch.ones_like(loss)
        moved = at.moved(step, length)
        for _ in range(HALVINGS):
            # Near the minimum the promise is smaller than the rounding of the loss.
            high = self.loss(moved) > loss + DESCENT * length * slope + rounding
            if not high.any():
                break
            length = torch.where(high, length / 2, length)
            moved = at.moved(step, length)
        return moved
