"""A norm with its scale frozen: what is linear in it, learned from a few of its inputs and outputs, and proved."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from lensbench.errors import LensbenchError

TOLERANCE = 1e-3
# What norms add to the variance: it counts where a model's numbers are small.
EPSILONS = (0.0, 1e-12, 1e-8, 1e-6, 1e-5, 1e-4)


@dataclass(frozen=True)
class FrozenNorm:
    """y = gain ⊙ c(x) / σ(x) + bias, with c(x) = x or x - mean(x), and σ² the mean square of c(x), plus epsilon.

    With σ frozen it is linear: the parts of x add up to y. RMSNorm and LayerNorm are of this form; no norm at all
    (y = gain x) is too, with σ = 1.

    Attributes:
        gain: [d_model].
        bias: [d_model].
        centred: whether the mean is taken out.
        scaled: whether σ is divided by.
        epsilon: what is added to the mean square.
    """

    gain: Float[Tensor, " d_model"]
    bias: Float[Tensor, " d_model"]
    centred: bool
    scaled: bool
    epsilon: float

    def centre(self, x: Float[Tensor, "*row d_model"]) -> Float[Tensor, "*row d_model"]:
        """Return c(x), which is its own transpose."""
        return x - x.mean(-1, keepdim=True) if self.centred else x

    def scale(self, x: Float[Tensor, "*row d_model"]) -> Float[Tensor, "*row 1"]:
        """Return 1/σ(x)."""
        if not self.scaled:
            return torch.ones_like(x[..., :1])
        return (self.centre(x).square().mean(-1, keepdim=True) + self.epsilon).rsqrt()

    def linear(self, part: Float[Tensor, "*row d_model"]) -> Float[Tensor, "*row d_model"]:
        """Return gain ⊙ c(part), to be multiplied by the frozen scale of the whole."""
        return self.gain * self.centre(part)

    def back(self, directions: Float[Tensor, "*row d_model"]) -> Float[Tensor, "*row d_model"]:
        """Return the transpose of `linear` on directions: what reads x as they read y."""
        return self.centre(self.gain * directions)


def fit_frozen_norm(x: Float[Tensor, "row d_model"], y: Float[Tensor, "row d_model"]) -> FrozenNorm:
    """Return the norm that takes x to y.

    Raises:
        LensbenchError: no norm of this form does, to 1e-3 of the largest output.
    """
    x, y = x.double(), y.double()
    forms = [(False, False, 0.0), *((centred, True, epsilon) for centred in (False, True) for epsilon in EPSILONS)]
    ones, zeros = torch.ones_like(x[0]), torch.zeros_like(x[0])
    found = [_fitted(FrozenNorm(ones, zeros, *form), x, y) for form in forms]
    # min takes the first of equals: no norm before a norm, no bias before a bias.
    off, best = min(found, key=lambda pair: pair[0])
    if off > TOLERANCE:
        raise LensbenchError(f"the norm is no RMSNorm or LayerNorm with a frozen scale (off by {off:.0e})")
    return replace(best, gain=best.gain.float(), bias=best.bias.float())


def _fitted(trial: FrozenNorm, x: Tensor, y: Tensor) -> tuple[float, FrozenNorm]:
    """Solve y = gain c(x)/σ(x) + bias for each coordinate by least squares over rows; return the error, and the norm.

    Without a bias where that does as well.
    """
    given = trial.centre(x) * trial.scale(x)
    mean, goal = given.mean(0), y.mean(0)
    spread = (given - mean).square().sum(0).clamp(min=1e-30)
    slope = ((given - mean) * (y - goal)).sum(0) / spread
    with_bias = replace(trial, gain=slope, bias=goal - slope * mean)
    plain = replace(trial, gain=(given * y).sum(0) / given.square().sum(0).clamp(min=1e-30))
    errors = [
        float((one.gain * given + one.bias - y).abs().max() / y.abs().max().clamp(min=1e-12))
        for one in (plain, with_bias)
    ]
    return (errors[0], plain) if errors[0] <= 10 * errors[1] + 1e-7 else (errors[1], with_bias)
