"""A norm with its scale frozen: what is linear in it, learned by calling it on chosen inputs, and proved."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from lensbench.errors import LensbenchError

# How far a norm's own numbers may lie from the form's, relative to the largest; norms in half precision round twice.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 2e-2, torch.float16: 4e-3}
# What norms add to the mean square.
EPSILONS = (0.0, 1e-12, 1e-8, 1.1920929e-07, 1e-6, 1e-5, 1e-4, 1e-3)
# The sizes at which a norm is tried, in root mean squares: at the small ones epsilon shows.
SIZES = (1.0, 1e-2, 1e-3)


@dataclass(frozen=True)
class FrozenNorm:
    """y = gain ⊙ c(x) / σ(x) + bias, with c(x) = x or x - mean(x), and σ² the mean square of c(x), plus epsilon.

    With σ frozen it is linear: the parts of x add up to y. RMSNorm and LayerNorm are of this form; no norm at all
    (y = x) is too, with σ = 1.

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
        return self.gain.to(part.device) * self.centre(part)

    def back(self, directions: Float[Tensor, "*row d_model"]) -> Float[Tensor, "*row d_model"]:
        """Return the transpose of `linear` on directions: what reads x as they read y."""
        return self.centre(self.gain.to(directions.device) * directions)


def no_norm(width: int, device: torch.device) -> FrozenNorm:
    """Return the norm that leaves all as it is."""
    ones = torch.ones(width, device=device)
    return FrozenNorm(ones, torch.zeros_like(ones), centred=False, scaled=False, epsilon=0.0)


def fit_frozen_norm(
    norm: Callable[[Tensor], Tensor], x: Float[Tensor, "row d_model"], dtype: torch.dtype
) -> FrozenNorm:
    """Return the form of a norm, found by calling it on some rows and their negatives, at several sizes.

    N(x) + N(-x) is twice the bias, and N(x) - N(-x) twice what has none: neither is taken for the other.

    Args:
        norm: what to call.
        x: rows like those that it is given.
        dtype: what it computes in.

    Raises:
        LensbenchError: no norm of this form does what it does, to `TOLERANCE` of the largest output.
    """
    unit = x.float() / x.float().square().mean(1, keepdim=True).sqrt().clamp(min=1e-12)
    # As the norm is given it: what is rounded away is no part of it.
    rows = torch.cat([x.to(dtype), *(size * unit.to(dtype) for size in SIZES)])
    plus, minus = norm(rows).double(), norm(-rows).double()
    given, odd, bias = rows.double(), (plus - minus) / 2, ((plus + minus) / 2).mean(0)
    forms = [(False, False, 0.0), *((centred, True, epsilon) for centred in (False, True) for epsilon in EPSILONS)]
    ones, zeros = torch.ones_like(bias), torch.zeros_like(bias)
    found = [_fitted(FrozenNorm(ones, zeros, *form), given, odd) for form in forms]
    # min takes the first of equals: no norm before a norm.
    _, best = min(found, key=lambda pair: pair[0])
    fitted = best.linear(given) * best.scale(given) + bias
    off = float((fitted - plus).abs().max() / plus.abs().max().clamp(min=1e-12))
    if not off <= TOLERANCE[dtype]:
        raise LensbenchError(f"the norm is no RMSNorm or LayerNorm with a frozen scale (off by {off:.0e})")
    return replace(best, gain=best.gain.float(), bias=bias.float())


def _fitted(trial: FrozenNorm, x: Tensor, odd: Tensor) -> tuple[float, FrozenNorm]:
    """Solve odd = gain c(x)/σ(x) for each coordinate by least squares over rows; return the error, and the norm."""
    given = trial.centre(x) * trial.scale(x)
    gain = (given * odd).sum(0) / given.square().sum(0).clamp(min=1e-30)
    return float((gain * given - odd).square().sum()), replace(trial, gain=gain)
