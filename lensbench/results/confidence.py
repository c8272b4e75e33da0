"""How far a method's confidence in its answers can be relied on."""

import numpy as np
from jaxtyping import Bool, Float

BINS = 10
"""Of equal width, over which the calibration error is taken."""


def calibration_error(confidence: Float[np.ndarray, " item"], right: Bool[np.ndarray, " item"]) -> float:
    """Return the expected calibration error: |accuracy - mean confidence| of ten bins, weighted by their items."""
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = [abs(right[bins == b].mean() - confidence[bins == b].mean()) * (bins == b).mean() for b in np.unique(bins)]
    return float(sum(gaps))


def auroc(confidence: Float[np.ndarray, " item"], right: Bool[np.ndarray, " item"]) -> float | None:
    """Return the chance that a right answer is given with more confidence than a wrong one, ties counting half.

    None where all answers are right, or none.
    """
    good, bad = confidence[right], confidence[~right]
    if not len(good) or not len(bad):
        return None
    above = (good[:, None] > bad[None]).mean() + 0.5 * (good[:, None] == bad[None]).mean()
    return float(above)
