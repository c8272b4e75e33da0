"""At which layer does a planted fact emerge? The change-point of implanted minus unedited, with an interval."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from lensbench.errors import UsageError
from lensbench.results.bands import (
    DIFFERENCE,
    CriticalValue,
    Floats,
    Ints,
    Sampled,
    centred_weights,
    sampled,
    simultaneous_cut,
    single_cut,
)


@dataclass(frozen=True)
class Emergence:
    """The layer at which a difference begins, with an interval; all None where none is found.

    Attributes:
        layer: the first asked layer of the fit.
        low: the first layer of the interval. Between two asked layers nothing is known: where only every second layer
            was asked and the interval begins at layer 8, it is 7, one after the asked layer before.
        high: its last layer, an asked one: the first at which the difference is surely above 0, all layers considered.
    """

    layer: int | None
    low: int | None
    high: int | None

    def contains(self, layer: int) -> bool:
        """Whether the interval contains the layer."""
        return self.low is not None and self.high is not None and self.low <= layer <= self.high


def emergence(
    difference: Float[np.ndarray, "item layer"],
    subjects: ArrayLike,
    layers: Sequence[int],
    *,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> Emergence:
    """Find the layer at which a paired difference begins to be above zero.

    Nothing is assumed of how high it is afterwards, whether it rises at once or slowly, or falls again in late layers.

    1. Something emerges iff the simultaneous lower limit (`statistics.simultaneous_band`) is above 0 at some layer. The
       first such layer ends the interval: that the difference began later would take a false alarm of the band.
    2. Up to there the model 'zero before tau, a free mean at each layer from tau on' is fitted: cost(tau) is the sum of
       t(l)^2 over layers l < tau, plus a penalty for each free mean, the squared critical value of a single layer.
    3. The same fit on resampled subjects, with the penalty 1 that t^2 has by chance, gives the interval's beginning:
       the (1 - level) / 2 quantile. A rise so slow that hardly an item changes at first can begin before it.

    t is the one of the band, with its pseudo-subjects: it is 0 where all items are equal in both, as they are before
    the planted layer, and finite where all differ.

    Args:
        difference: right (or credit) with the implant minus right without, paired: -1 to 1.
        subjects: of each item; they are resampled whole.
        layers: those asked, ascending.
        level: of the interval, and of the test whether anything emerges.
        draws: bootstrap draws.
        seed: of the bootstrap.

    Raises:
        UsageError: layers that are not those of the differences, or values out of range.
    """
    asked = list(layers)
    if len(asked) != difference.shape[1] or asked != sorted(set(asked)):
        raise UsageError(f"differences of {difference.shape[1]} layers need as many ascending layers, got {asked}")
    if np.abs(difference).max(initial=0.0) > 1.0:
        raise UsageError(
            f"differences of right and wrong lie between -1 and 1, got {np.abs(difference).max():g}: give credits, "
            f"not scores"
        )
    found = sampled(difference, subjects)
    sure = found.statistic(DIFFERENCE, cut := simultaneous_cut(found, DIFFERENCE, level, draws, seed)) > cut.critical
    if not sure.any():
        return Emergence(None, None, None)
    last = int(sure.argmax())
    single = single_cut(found, DIFFERENCE, level)
    begins = int(_fitted(found.statistic(DIFFERENCE, cut)[None, :last], single.critical**2)[0])
    resampled = _fitted(_redrawn(found, cut, draws, seed)[:, :last], 1.0)
    first = min(begins, int(np.quantile(resampled, (1.0 - level) / 2, method="inverted_cdf")))
    return Emergence(asked[begins], asked[first - 1] + 1 if first else 0, asked[last])


def _fitted(statistics: Float[np.ndarray, "fit layer"], penalty: float) -> Ints:
    """The tau of least cost [fit]: the first of the given layers that has a free mean; their number, if none has."""
    costs = np.cumsum(np.square(np.maximum(statistics, 0.0)) - penalty, axis=1)
    fitted: Ints = np.insert(costs, 0, 0.0, axis=1).argmin(axis=1)
    return fitted


def _redrawn(found: Sampled, cut: CriticalValue, draws: int, seed: int) -> Floats:
    """The statistic of each bootstrap draw: [draw, layer]."""
    weights = centred_weights(len(found.influence), draws, seed).astype(np.float64)
    deviation = weights @ found.influence
    variance = found.variance + weights @ np.square(found.influence) - np.square(deviation) / len(found.influence)
    again = Sampled(found.estimate + deviation, np.sqrt(np.maximum(variance, 0.0))[None], found.subjects, found.repeats)
    return again.statistic(DIFFERENCE, cut)
