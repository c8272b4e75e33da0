"""Ridge regressions between the layers of one model, or of two, from running moments in one pass over a corpus."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lensbench.errors import UsageError
from lensbench.models.corpus import WINDOW
from lensbench.models.precision import in_float64

# A coordinate that hardly moves counts as if it moved this much, relative to the mean variance.
LEAST_VARIANCE = 1e-9
# How many positions there are differs from batch to batch.
Paired = tuple[Float[Tensor, "layer _ d_model"], Float[Tensor, "other_layer _ d_other"]]


class LayerPair(NamedTuple):
    """A layer that is regressed on, and the layer (or any other target) that it is mapped to.

    Attributes:
        source: l.
        target: l*.
    """

    source: int
    target: int


@dataclass(frozen=True)
class Solution:
    """The regressions on one source: y ≈ mean_y + weightᵀ (x - mean_x) / scale.

    Attributes:
        pairs: the places of its pairs among all.
        mean_x: the source's mean.
        scale: what each coordinate is divided by.
        weight: of each pair.
        mean_y: the mean of each pair's target.
    """

    pairs: list[int]
    mean_x: Float[Tensor, " d_x"]
    scale: Float[Tensor, " d_x"]
    weight: Float[Tensor, "d_x pair d_y"]
    mean_y: Float[Tensor, "pair d_y"]


class RunningMoments:
    """Sums over positions, from which the normal equations of y_{l*} ≈ W x_l + b are solved for many pairs (l, l*).

    Args:
        pairs: which source is mapped to which target.
        width: of the sources.
        target_width: of the targets.
        device: where the sums are kept.
        centred: sum distances from the first batch's mean: products of coordinates that lie far from 0 and hardly move
            would drown in rounding.
        dtype: in which the products of sources and targets are summed.
    """

    def __init__(
        self,
        pairs: Sequence[LayerPair],
        width: int,
        target_width: int,
        device: torch.device,
        *,
        centred: bool = True,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        kept = torch.device("cpu") if device.type == "mps" else device  # which has no float64

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=kept)

        self.pairs = tuple(pairs)
        self.sources = tuple(sorted({pair.source for pair in pairs}))
        self.targets = tuple(sorted({pair.target for pair in pairs}))
        self.count = 0
        self._centred, self._device = centred, device
        self._origin_x, self._origin_y = zeros(len(self.sources), width), zeros(len(self.targets), target_width)
        self._sum_x, self._sum_y = zeros(len(self.sources), width), zeros(len(self.targets), target_width)
        self._xx = zeros(len(self.sources), width, width)
        self._xy = torch.zeros(len(self.pairs), width, target_width, dtype=dtype, device=kept)

    def add(self, values: Float[Tensor, "source position d_x"], targets: Float[Tensor, "target position d_y"]) -> None:
        """Take in positions: all sources by their numbers, and the targets in ascending order."""
        sources = [in_float64(values[source]) for source in self.sources]
        goals = [in_float64(target) for target in targets]
        if self._centred and not self.count:
            self._origin_x, self._origin_y = (torch.stack([one.mean(0) for one in side]) for side in (sources, goals))
        self.count += values.shape[1]
        # Products in float32 are near enough: what is summed over a batch is added in float64.
        xs = [(one - origin).float() for one, origin in zip(sources, self._origin_x, strict=True)]
        ys = [(one - origin).float() for one, origin in zip(goals, self._origin_y, strict=True)]
        for i, x in enumerate(xs):
            self._sum_x[i] += x.double().sum(0)
            self._xx[i] += x.T @ x
        for i, y in enumerate(ys):
            self._sum_y[i] += y.double().sum(0)
        for i, pair in enumerate(self.pairs):
            self._xy[i] += xs[self.sources.index(pair.source)].T @ ys[self.targets.index(pair.target)]

    def solutions(self, penalty: float, *, standardised: bool = True, residual: bool = False) -> Iterator[Solution]:
        """Solve each source once for all its targets, in float64."""
        for i, source in enumerate(self.sources):
            own = [j for j, pair in enumerate(self.pairs) if pair.source == source]
            goals = [self.targets.index(self.pairs[j].target) for j in own]
            mean_x, mean_y = self._sum_x[i] / self.count, self._sum_y[goals] / self.count
            xx = self._xx[i] / self.count - torch.outer(mean_x, mean_x)
            xy = self._xy[own].double() / self.count - mean_x[:, None] * mean_y[:, None]
            if residual:
                xy = xy - xx
            variance = xx.diagonal()
            mean_variance = variance.mean()
            least = max(LEAST_VARIANCE * float(mean_variance), 1e-30)
            scale = variance.clamp(min=least).sqrt() if standardised else torch.ones_like(variance)
            scaled = xx / torch.outer(scale, scale)
            scaled.diagonal().add_(penalty if standardised else penalty * mean_variance)
            # All targets share the left side: [d_x, pair * d_y].
            weight = torch.linalg.solve(scaled, (xy / scale[:, None]).transpose(0, 1).flatten(1))
            mean_x, mean_y = mean_x + self._origin_x[i], mean_y + self._origin_y[goals]
            yield Solution(
                own, mean_x, scale, weight.unflatten(1, (len(own), -1)), mean_y - mean_x if residual else mean_y
            )

    def ridge(
        self, penalty: float, *, standardised: bool = True, residual: bool = False
    ) -> tuple[Float[Tensor, "pair d_y d_x"], Float[Tensor, "pair d_y"]]:
        """Return W and b of each pair, in float32; zeros where no position has been taken in.

        The offset is not penalised, so that the penalty shrinks towards the mean of y.

        Args:
            penalty: of |W|².
            standardised: penalise each coordinate by its own variance, penalty Σ_i var(x_i) |W_i|²: those of a residual
                stream differ by six orders of magnitude, and a penalty that is the same for all leaves the largest
                alone. Else all by the mean variance of the source's coordinates.
            residual: regress y - x, so that the penalty shrinks towards y = x.
        """
        _, width, target_width = self._xy.shape
        weight = torch.zeros(len(self.pairs), target_width, width, device=self._xy.device)
        bias = torch.zeros(len(self.pairs), target_width, device=self._xy.device)
        if not self.count:
            return weight.to(self._device), bias.to(self._device)
        for one in self.solutions(penalty, standardised=standardised, residual=residual):
            solved = one.weight / one.scale[:, None, None]
            weight[one.pairs] = solved.permute(1, 2, 0).float()
            bias[one.pairs] = (one.mean_y - (one.mean_x @ solved.flatten(1)).reshape(one.mean_y.shape)).float()
        return weight.to(self._device), bias.to(self._device)


def every_pair(sources: int, targets: int = 1) -> list[LayerPair]:
    """Return the pairs of the sources 0, 1... with each target, target after target."""
    return [LayerPair(source, target) for target in range(targets) for source in range(sources)]


def fit_maps(
    paired: Iterable[Paired], pairs: Sequence[LayerPair], penalty: float
) -> tuple[Float[Tensor, "pair d_other d_model"], Float[Tensor, "pair d_other"]]:
    """Fit a map for each pair of layers, each coordinate penalised by its own variance.

    Args:
        paired: residuals of the model that is read at all layers, and of the other one at the pairs' target layers in
            ascending order, position by position; see `Corpus.paired`.
        pairs: which layer is mapped to which.
        penalty: see `RunningMoments.ridge`.

    Raises:
        ValueError: no position at all.
    """
    moments: RunningMoments | None = None
    for values, others in paired:
        if moments is None:
            moments = RunningMoments(pairs, values.shape[2], others.shape[2], values.device)
        moments.add(values, others)
    if moments is None:
        raise ValueError("no position was given to fit maps on")
    return moments.ridge(penalty)


def check_amounts(method: str, *, tokens: int, ridge: float, needed: bool = False) -> None:
    """Refuse corpus tokens that make no window, and a penalty below zero; where tokens are `needed`, none as well.

    Raises:
        UsageError: what was given, and what to give.
    """
    if not isinstance(tokens, int) or 0 < tokens < WINDOW or tokens < 0:
        raise UsageError(f"{method}.tokens = {tokens!r}: expected 0, or at least {WINDOW}, the length of a window")
    if not isinstance(ridge, int | float) or not 0 <= ridge < float("inf"):
        raise UsageError(f"{method}.ridge = {ridge!r}: expected 0 or more")
    if needed and not tokens:
        raise UsageError(f"{method}.tokens = 0: a regression needs some; give {WINDOW} or more")
