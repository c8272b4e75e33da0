"""How many subjects does it take to find a gap? Before a study: its size, as `detectable_gap` tells it afterwards."""

from dataclasses import dataclass

import numpy as np
from scipy import optimize, special

from lensbench.errors import UsageError
from lensbench.results.bands import DIFFERENCE, POWER, CriticalValue, Sampled

_MOST = 10_000_000


@dataclass(frozen=True)
class Study:
    """The assumptions about a study before it is made.

    Attributes:
        rival: true accuracy of the strongest rival.
        correlation: between method and rival being right, over items: 0 if they know different things.
        items: of each subject.
        alike: correlation of the differences of two items of one subject.
        layers: how many are looked at; their number matters only for the critical value.
        critical: that of the simultaneous band; by default Bonferroni's over the layers, 3.15 for 31: a little on the
            safe side, as neighbouring layers are alike and the band's own is about 3.1.
        level: of the band.
    """

    baseline: float
    correlation: float = 0.0
    items: int = 1
    alike: float = 0.0
    layers: int = 1
    critical: float | None = None
    level: float = 0.95

    def variance(self, gap: float) -> float:
        """Return the variance of a subject's mean paired difference, where the method beats the rival by the gap.

        Raises:
            UsageError: the method would be right more often than always, or no two readers are correlated like that.
        """
        own, spread = self.baseline + gap, self.baseline * (1 - self.baseline)
        if not gap > 0 or not self.baseline >= 0 or not own <= 1:
            raise UsageError(
                f"a gap of {gap:g} over a rival at {self.baseline:g} is not possible: both must lie between 0 and 1"
            )
        both = self.baseline * own + self.correlation * np.sqrt(spread * own * (1 - own))
        if not max(0.0, self.baseline + own - 1) - 1e-9 <= both <= min(self.baseline, own) + 1e-9:
            raise UsageError(
                f"accuracies {self.baseline:g} and {own:g} cannot be correlated by {self.correlation:g}: both would be "
                f"right in {both:.2f} of the items; give a correlation nearer to 0"
            )
        single = own + self.baseline - 2 * both - gap**2
        return float(single * (1 + (self.items - 1) * self.alike) / self.items)

    def least(self) -> float:
        """The critical value."""
        if self.critical is not None:
            return self.critical
        return float(special.ndtri(1 - (1 - self.level) / (2 * self.layers)))


def power_of(gap: float, subjects: int | float, study: Study) -> float:
    """Return how often a study would find the gap at one layer, over one rival, by a normal approximation.

    At one given layer: over all the layers at which there is a gap the chance to find it at some is larger. Against
    several rivals that do as well it is smaller, as every one must be beaten.
    """
    variance = np.array([study.variance(gap) / subjects])
    student = float(special.stdtrit(max(subjects - 1.0, 1.0), (1 + study.level) / 2))
    mean = Sampled(np.array([gap]), np.sqrt(variance)[None], float(subjects), 1.0)
    smallest = mean.smallest(DIFFERENCE, CriticalValue(max(study.least(), student), 2 * DIFFERENCE.pairs))[0]
    if np.isnan(smallest):
        return 0.0
    if variance[0] == 0:
        return float(gap > smallest)
    return float(special.ndtr((gap - smallest) / np.sqrt(variance[0])))


def subjects_needed(gap: float, study: Study, power: float = POWER) -> int:
    """Return how many subjects find a gap with this power: `subjects_needed(0.2, Study(baseline=0.5))`.

    Raises:
        UsageError: an impossible gap or correlation (see `Study.variance`), or power that is none.
    """
    if not 0 < power < 1:
        raise UsageError(f"power must lie between 0 and 1, got {power:g}")
    if power_of(gap, _MOST, study) < power:
        raise UsageError(f"a gap of {gap:g} would take more than {_MOST} subjects: ask for a larger one")
    found = optimize.brentq(lambda log: power_of(gap, float(np.exp(log)), study) - power - 1e-12, 0.0, np.log(_MOST))
    return int(np.ceil(np.exp(found)))
