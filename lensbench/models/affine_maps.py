"""Affine maps between layers of two models, by ridge regression on one and the same text."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

# A coordinate that hardly moves counts as if it moved this much, relative to the mean variance.
LEAST_VARIANCE = 1e-9
# How many positions there are differs from batch to batch.
Paired = tuple[Float[Tensor, "layer _ d_model"], Float[Tensor, "other_layer _ d_other"]]


@dataclass(frozen=True)
class LayerPair:
    """A layer of the model that is read, and the layer of the other model that it is mapped to.

    Attributes:
        source: l.
        target: l*.
    """

    source: int
    target: int


class PairMoments:
    """What the normal equations of h*_{l*} ≈ W h_l + b need, for many pairs of layers in one pass over a text.

    Args:
        pairs: for which layers.
        width: of the model that is read.
        other_width: of the other model.
        device: where the sums are kept.
    """

    def __init__(self, pairs: Sequence[LayerPair], width: int, other_width: int, device: torch.device) -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        self.pairs = tuple(pairs)
        self.sources = tuple(sorted({pair.source for pair in pairs}))
        self.targets = tuple(sorted({pair.target for pair in pairs}))
        self.count = 0
        self._sum_x = zeros(len(self.sources), width)
        self._sum_y = zeros(len(self.targets), other_width)
        self._xx = zeros(len(self.sources), width, width)
        self._xy = zeros(len(self.pairs), width, other_width)
        # Near the means: products of coordinates that lie far from 0 and hardly move would drown in rounding.
        self._near_x, self._near_y = zeros(len(self.sources), width), zeros(len(self.targets), other_width)

    def add(
        self, values: Float[Tensor, "layer position d_model"], others: Float[Tensor, "target position d_other"]
    ) -> None:
        """Take in positions: of the model that is read all layers, of the other one `targets`, in that order."""
        x, y = [values[layer].double() for layer in self.sources], [other.double() for other in others]
        if not self.count:
            self._near_x, self._near_y = (torch.stack([one.mean(0) for one in side]) for side in (x, y))
        self.count += values.shape[1]
        # Products in float32 are near enough: coordinates are brought to one scale before anything is solved.
        near_x = [(one - near).float() for one, near in zip(x, self._near_x, strict=True)]
        near_y = [(one - near).float() for one, near in zip(y, self._near_y, strict=True)]
        for i, one in enumerate(near_x):
            self._sum_x[i] += one.double().sum(0)
            self._xx[i] += one.T @ one
        for i, one in enumerate(near_y):
            self._sum_y[i] += one.double().sum(0)
        for i, pair in enumerate(self.pairs):
            self._xy[i] += near_x[self.sources.index(pair.source)].T @ near_y[self.targets.index(pair.target)]

    def ridge(self, penalty: float) -> tuple[Float[Tensor, "pair d_other d_model"], Float[Tensor, "pair d_other"]]:
        """Return W and b of each pair, in float32: the least mean of |y - W x - b|^2 + penalty Σ_i var(x_i) |W_i|^2.

        Each coordinate is penalised by its own variance: those of a residual stream differ by six orders of magnitude,
        and a penalty that is the same for all would leave the largest alone. The offset is not penalised, so that the
        penalty shrinks towards the mean of y. A source layer is solved once, for all its target layers.
        """
        _, width, other_width = self._xy.shape
        weight = torch.zeros(len(self.pairs), other_width, width, device=self._xy.device)
        bias = torch.zeros(len(self.pairs), other_width, device=self._xy.device)
        for i, layer in enumerate(self.sources):
            own = [j for j, pair in enumerate(self.pairs) if pair.source == layer]
            places = [self.targets.index(self.pairs[j].target) for j in own]
            mean_x, mean_y = self._sum_x[i] / self.count, self._sum_y[places] / self.count
            xx = self._xx[i] / self.count - torch.outer(mean_x, mean_x)
            xy = self._xy[own] / self.count - mean_x[None, :, None] * mean_y[:, None]
            variance = xx.diagonal()
            scale = variance.clamp(min=max(LEAST_VARIANCE * float(variance.mean()), 1e-30)).sqrt()
            scaled = xx / torch.outer(scale, scale)
            scaled.diagonal().add_(penalty)
            goal = (xy / scale[:, None]).permute(1, 0, 2).flatten(1)
            solved = torch.linalg.solve(scaled, goal) / scale[:, None]
            weight[own] = solved.T.reshape(len(own), other_width, width).float()
            at_mean = ((mean_x + self._near_x[i]) @ solved).reshape(len(own), other_width)
            bias[own] = (mean_y + self._near_y[places] - at_mean).float()
        return weight, bias


def fit_maps(
    paired: Iterable[Paired], pairs: Sequence[LayerPair], penalty: float
) -> tuple[Float[Tensor, "pair d_other d_model"], Float[Tensor, "pair d_other"]]:
    """Fit a map for each pair of layers.

    Args:
        paired: residuals of the model that is read at all layers, and of the other one at the pairs' target layers in
            ascending order, position by position; see `Corpus.paired`.
        pairs: which layer is mapped to which.
        penalty: see `PairMoments.ridge`.

    Raises:
        ValueError: no position at all.
    """
    moments: PairMoments | None = None
    for values, others in paired:
        if moments is None:
            moments = PairMoments(pairs, values.shape[2], others.shape[2], values.device)
        moments.add(values, others)
    if moments is None:
        raise ValueError("no position was given to fit maps on")
    return moments.ridge(penalty)
