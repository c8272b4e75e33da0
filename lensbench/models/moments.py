"""Least squares from each layer's residuals to the last layer's, in one pass over a corpus."""

from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from lensbench.errors import UsageError
from lensbench.models.corpus import WINDOW


class Moments:
    """What the normal equations of all layers need: sums over corpus positions, and a sample of the positions.

    Args:
        layers: how many layers are regressed on, from 0 on.
        d_model: the residual's width.
        device: where the sums are kept.
        keep_every: one position in so many is kept in the sample; None keeps none.
        goals: how many residuals each layer is regressed to.
    """

    def __init__(
        self, layers: int, d_model: int, device: torch.device, keep_every: int | None = None, goals: int = 1
    ) -> None:
        new = partial(torch.zeros, dtype=torch.float64, device=device)
        self.count = 0
        self.sum_x, self.sum_y = new(layers, d_model), new(goals, d_model)
        self.xx, self.xy = new(layers, d_model, d_model), new(goals, layers, d_model, d_model)
        self.keep_every = keep_every
        self._kept: list[Tensor] = []

    def add(self, batch: Float[Tensor, "layer position d_model"]) -> None:
        """Take in the residuals of layers 0 to L at some positions; the goal is layer L."""
        values = batch.float()
        if self.keep_every is not None:
            self._kept.append(values[:, :: self.keep_every].clone())
        self.add_goals(values[:-1], values[-1:])

    def add_goals(
        self, values: Float[Tensor, "layer position d_model"], goals: Float[Tensor, "goal position d_model"]
    ) -> None:
        """Take in residuals at some positions, and what each of them is regressed to."""
        self.count += values.shape[1]
        self.sum_y += goals.double().sum(1)
        for layer, x in enumerate(values):
            self.sum_x[layer] += x.double().sum(0)
            self.xx[layer] += x.T @ x
            for place, y in enumerate(goals):
                self.xy[place, layer] += x.T @ y

    def kept(self) -> Float[Tensor, "depth position d_model"]:
        """Return the sample of positions."""
        return torch.cat(self._kept, dim=1)

    def ridge(
        self, penalty: float, *, residual: bool = False
    ) -> tuple[Float[Tensor, "goal layer d_model d_model"], Float[Tensor, "goal layer d_model"]]:
        """Solve the ridge regression of every layer, in float64: coordinates differ by three orders of magnitude.

        Args:
            penalty: relative to the mean variance of the layer's coordinates; the offset is not penalised.
            residual: regress y - h_l, so that the penalty shrinks towards y = h_l; else y itself, so that it shrinks
                towards the mean of y.

        Returns:
            Matrix and offset of each goal and layer, in float32; zeros where no position has been taken in.
        """
        weight = torch.zeros_like(self.xy, dtype=torch.float32)
        bias = torch.zeros(self.xy.shape[:3], device=weight.device)
        if not self.count:
            return weight, bias
        mean_y = self.sum_y / self.count
        for layer in range(len(self.xx)):
            mean = self.sum_x[layer] / self.count
            xx = self.xx[layer] / self.count - torch.outer(mean, mean)
            xy = self.xy[:, layer] / self.count - mean[:, None] * mean_y[:, None]
            goal, mean_goal = (xy - xx, mean_y - mean) if residual else (xy, mean_y)
            xx.diagonal().add_(penalty * xx.diagonal().mean())
            # All goals share the left side: [d_model, goal * d_model].
            solved = torch.linalg.solve(xx, goal.transpose(0, 1).flatten(1)).unflatten(1, (len(goal), -1))
            weight[:, layer] = solved.permute(1, 2, 0).float()
            bias[:, layer] = (mean_goal - torch.einsum("i,igj->gj", mean, solved)).float()
        return weight, bias


def check_amounts(method: str, *, tokens: int, ridge: float, needed: bool = False) -> None:
    """Refuse corpus tokens that make no window, and a penalty below zero; where tokens are `needed`, none as well.

    Raises:
        UsageError: what was given, and what to give.
    """
    if not isinstance(tokens, int) or 0 < tokens < WINDOW or tokens < 0:
        raise UsageError(f"{method}.tokens = {tokens!r}: expected 0, or at least {WINDOW}, the length of a window")
    if not isinstance(ridge, int | float) or not 0 <= ridge < float("inf"):
        raise UsageError(f"{method}.ridge = {ridge!r}: expected a number that is not below 0")
    if needed and not tokens:
        raise UsageError(f"{method}.tokens = 0: a regression needs some; give {WINDOW} or more")
