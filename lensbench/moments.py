"""Least squares from residuals to the last layer's residuals, for all layers in one pass over a corpus."""

import torch
from jaxtyping import Float
from torch import Tensor

from lensbench.corpus import WINDOW
from lensbench.errors import UsageError


class Moments:
    """What the normal equations of all layers need: sums over corpus positions, and a sample of the positions.

    Args:
        n_layers: L; the layers 0 to L - 1 are regressed on.
        d_model: the residual's width.
        device: where the sums are kept.
        keep_every: one position in so many is kept in the sample; None keeps none.
    """

    def __init__(self, n_layers: int, d_model: int, device: torch.device, keep_every: int | None = None) -> None:
        shape = (n_layers, d_model)
        self.count = 0
        self.sum_x = torch.zeros(shape, dtype=torch.float64, device=device)
        self.sum_y = torch.zeros(d_model, dtype=torch.float64, device=device)
        self.xx = torch.zeros((*shape, d_model), dtype=torch.float64, device=device)
        self.xy = torch.zeros_like(self.xx)
        self.keep_every = keep_every
        self._kept: list[Tensor] = []

    def add(self, batch: Float[Tensor, "layer position d_model"]) -> None:
        """Take in the residuals of layers 0 to L at some positions."""
        values = batch.float()
        self.count += values.shape[1]
        if self.keep_every is not None:
            self._kept.append(values[:, :: self.keep_every].clone())
        last = values[-1]
        self.sum_y += last.double().sum(0)
        for layer, x in enumerate(values[:-1]):
            self.sum_x[layer] += x.double().sum(0)
            self.xx[layer] += x.T @ x
            self.xy[layer] += x.T @ last

    def kept(self) -> Float[Tensor, "layer position d_model"]:
        """Return the sample of positions."""
        return torch.cat(self._kept, dim=1)

    def ridge(
        self, penalty: float, *, residual: bool
    ) -> tuple[Float[Tensor, "layer d_model d_model"], Float[Tensor, "layer d_model"]]:
        """Solve the ridge regression of every layer, in float64: coordinates differ by three orders of magnitude.

        Args:
            penalty: relative to the mean variance of the layer's coordinates; the offset is not penalised.
            residual: regress h_L - h_l, so that the penalty shrinks towards h_L = h_l; else h_L itself, so that it
                shrinks towards the mean of h_L.

        Returns:
            Matrix and offset of each layer, in float32; zeros where no position has been taken in.
        """
        weight, bias = torch.zeros_like(self.xx, dtype=torch.float32), torch.zeros_like(self.sum_x, dtype=torch.float32)
        if not self.count:
            return weight, bias
        mean_y = self.sum_y / self.count
        for layer in range(len(self.xx)):
            mean = self.sum_x[layer] / self.count
            xx = self.xx[layer] / self.count - torch.outer(mean, mean)
            xy = self.xy[layer] / self.count - torch.outer(mean, mean_y)
            eye = torch.eye(len(xx), dtype=torch.float64, device=xx.device)
            goal, mean_goal = (xy - xx, mean_y - mean) if residual else (xy, mean_y)
            solved = torch.linalg.solve(xx + penalty * xx.diagonal().mean() * eye, goal)
            weight[layer] = solved.T.float()
            bias[layer] = (mean_goal - mean @ solved).float()
        return weight, bias


def check_amounts(method: str, *, tokens: int, ridge: float) -> None:
    """Refuse corpus tokens that make no window, and a penalty below zero.

    Raises:
        UsageError: what was given, and what to give.
    """
    if not isinstance(tokens, int) or 0 < tokens < WINDOW or tokens < 0:
        raise UsageError(f"{method}.tokens = {tokens!r}: expected 0, or at least {WINDOW}, the length of a window")
    if not isinstance(ridge, int | float) or not 0 <= ridge < float("inf"):
        raise UsageError(f"{method}.ridge = {ridge!r}: expected a number that is not below 0")
