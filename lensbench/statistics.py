"""Simultaneous confidence bands over layers, and the verdicts drawn from them.

Everything here works on plain arrays: one value an item and layer, the subject and the relation of each item. No model.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from lensbench.errors import LensbenchError, unknown_name

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]


MARGIN = 0.05
"""A rival whose paired difference is surely below this matches the method. Fixed before any result was seen."""

VERDICTS: Mapping[str, str] = {
    "uses_activation": "uses the activation",
    "beats_text": "beats this text reader",
    "target_specific": "privileged",
}
"""What may be said of a method when the gap of a question holds."""
NO_VERDICT = "no verdict (chosen items)"
"""What is said instead where the items were chosen by what the model says in text."""


@dataclass(frozen=True)
class Scale:
    """The possible range of a value, and the small-sample correction that suits it.

    `pairs` pseudo-subjects stand at each end of the range in the 95 % interval of a single layer: one for differences
    (Bonett & Price 2012, adjusted Wald for paired proportions), two for scores (Agresti & Coull 1998, "add two
    successes and two failures"). Real differences are mostly 0, so pseudo-subjects at +1 and -1 are correction
    enough; bands of scores are widened to `student`'s t besides. `benchmarks/coverage.py` measures what comes of it.
    """

    low: float
    high: float
    pairs: int
    student: bool

    def stretched(self, low: float, high: float) -> "Scale":
        """The same correction on another range."""
        return replace(self, low=low, high=high)


DIFFERENCE = Scale(-1.0, 1.0, pairs=1, student=False)
SCORE = Scale(0.0, 1.0, pairs=2, student=True)


@dataclass(frozen=True)
class Band:
    """An estimate a layer, and limits that hold for all layers at once."""

    estimate: Floats
    low: Floats
    high: Floats

    def at(self, layers: int) -> "Band":
        """A band of one entry repeated, for a rival that reads no layer."""
        return Band(np.repeat(self.estimate, layers), np.repeat(self.low, layers), np.repeat(self.high, layers))


def simultaneous_band(
    values: ArrayLike,
    clusters: ArrayLike,
    strata: ArrayLike | None = None,
    *,
    scale: Scale = DIFFERENCE,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> Band:
    """A simultaneous confidence band over layers for a mean, or for the mean of the strata's means.

    Subjects (clusters) are resampled whole, and the critical value is the quantile of the largest |t| over layers
    (sup-t; Montiel Olea & Plagborg-Moller 2019). The estimate is linear up to the strata's denominators, so each
    subject has an influence psi[subject, layer], and a bootstrap draw is `(weights - 1) @ psi`: one matrix product
    for all draws, with no stratum that a draw could empty.

    Five subjects that all agree have no variance but are no proof. So the limits are those of a sample with k more
    pseudo-subjects at each end of the possible range (Bonett & Price 2012; Agresti & Coull 1998). With n subjects, mean
    u from the middle of the range and half range h:

        centre = n u / (n + 2k)     variance = (n^2 V + 2k h^2 + 2k n u^2 / (n + 2k)) / (n + 2k)^2

    where V = sum psi^2 is the variance of the mean. For a macro mean n is the effective number of subjects sum(a^2)^-1
    (Kish 1965), a being a subject's share of the estimate: it is the number of subjects when all weigh the same,
    whether every relation asks about all of them or each about its own, and less when a small relation makes a few
    subjects heavy.

    Agresti & Coull's number of pseudo-subjects is z^2 / 2 at the interval's own critical value z, so
    k = scale.pairs r (critical / 1.96)^2: with 31 layers about twice that of one layer. Without this factor bands
    cover too rarely where differences are rare and one-sided. A pseudo-subject has one
    answer where a real one has an answer in each of its S relations; so r = sum a_s^2 / sum a^2, a_s being the share in
    relation s, is 1 for subjects with one relation and 1/S for subjects with S; where it is below 1, differences too
    are widened to Student's t.

    Args:
        values: [item, layer], paired differences or scores; no NaN.
        clusters: [item], the global subject.
        strata: [item], the relation; None for one stratum.
        scale: range of the values; the band is clipped to it.
        level: probability that the whole band covers.
        draws: bootstrap draws.
        seed: of the bootstrap.

    Raises:
        LensbenchError: no items, or values that are not finite.
    """
    scores = np.asarray(values, dtype=np.float64)
    if scores.ndim != 2 or not len(scores):
        raise LensbenchError(f"a band needs values [item, layer] with at least one item, got shape {scores.shape}")
    if not np.isfinite(scores).all():
        raise LensbenchError("a band needs finite values: drop the items that were not scored before pairing")
    estimate, influence, shares = _influence(scores, clusters, strata)
    weights = shares.sum(axis=1)
    subjects = float(1.0 / np.square(weights).sum())
    repeats = float(np.square(shares).sum() / np.square(weights).sum())
    variance = np.square(influence).sum(axis=0)
    normal = _critical_value(influence, variance, level, draws, seed)
    small_sample = scale.student or repeats < 1.0 - 1e-9
    critical = float(special.stdtrit(max(subjects - 1.0, 1.0), special.ndtr(normal))) if small_sample else normal
    middle, half = (scale.low + scale.high) / 2, (scale.high - scale.low) / 2
    added = 2 * scale.pairs * repeats * (normal / 1.96) ** 2
    total, offset = subjects + added, estimate - middle
    centre = middle + subjects * offset / total
    squares = subjects**2 * variance + added * half**2 + added * subjects * offset**2 / total
    reach = critical * np.sqrt(squares) / total
    # The centre is pulled inwards: where the pull exceeds the reach, the estimate itself is the limit.
    low = np.clip(np.minimum(centre - reach, estimate), scale.low, scale.high)
    high = np.clip(np.maximum(centre + reach, estimate), scale.low, scale.high)
    return Band(estimate, low, high)


def _influence(scores: Floats, clusters: ArrayLike, strata: ArrayLike | None) -> tuple[Floats, Floats, Floats]:
    """The (macro) mean [layer], each subject's influence on it [subject, layer], its share in it [subject, stratum]."""
    _, cluster = np.unique(np.asarray(clusters), return_inverse=True)
    groups = np.zeros(len(scores), np.int64) if strata is None else np.asarray(strata)
    _, stratum, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    weight = 1.0 / (len(sizes) * sizes[stratum])
    membership = np.zeros((len(sizes), len(scores)))
    membership[stratum, np.arange(len(scores))] = 1.0 / sizes[stratum]
    means = membership @ scores
    spread = np.zeros((cluster.max() + 1, len(scores)))
    spread[cluster, np.arange(len(scores))] = weight
    shares = np.stack([spread[:, stratum == index].sum(axis=1) for index in range(len(sizes))], axis=1)
    return means.mean(axis=0), spread @ (scores - means[stratum]), shares


def _critical_value(influence: Floats, variance: Floats, level: float, draws: int, seed: int) -> float:
    """The quantile of max |t| over the layers that vary at all; at least that of one normal variable."""
    single = float(special.ndtri((1.0 + level) / 2.0))
    varying = variance > 1e-12
    if varying.sum() < 2:
        return single
    scaled = (influence[:, varying] / np.sqrt(variance[varying])).astype(np.float32)
    largest = np.abs(_centred_weights(len(influence), draws, seed) @ scaled).max(axis=1)
    return max(single, float(np.quantile(largest, level)))


@lru_cache(maxsize=8)
def _centred_weights(clusters: int, draws: int, seed: int) -> NDArray[np.float32]:
    """Multinomial bootstrap weights minus their expectation 1: [draw, cluster]. Shared by all bands of a run."""
    generator = np.random.default_rng([seed, clusters])
    counts = generator.multinomial(clusters, np.full(clusters, 1.0 / clusters), size=draws)
    return counts.astype(np.float32) - np.float32(1.0)


@dataclass(frozen=True)
class GapVerdict:
    """The verdict on one question at each layer, and the corrected paired difference to the strongest rival there."""

    verdict: NDArray[np.object_]
    strongest: NDArray[np.object_]
    gap: Band | None


def gap_verdict(question: str, rivals: Mapping[str, tuple[Band, Band]], margin: float = MARGIN) -> GapVerdict:
    """Decide whether a gap holds at each layer.

    The gap holds iff the lower limit of the difference to *every* rival is above 0, raw and corrected (an
    intersection-union test, Berger 1982: no correction over rivals is needed, while the maximum of rivals inside a
    bootstrap is too narrow at ties). Else it is `matched by` a rival whose upper limits are both below the margin (the
    strongest such), else `inconclusive`. A gap that surely exists but is smaller than the margin holds.

    Args:
        question: `uses_activation`, `beats_text` or `target_specific`.
        rivals: the bands (raw, corrected) of method minus rival.
        margin: differences below it do not matter; fixed beforehand.
    """
    if question not in VERDICTS:
        raise unknown_name("question", question, VERDICTS)
    if not rivals:
        none = np.array(["no rival"], dtype=object)
        return GapVerdict(none, np.array([""], dtype=object), None)
    names = np.array(list(rivals), dtype=object)
    raw, corrected = (tuple(pair[kind] for pair in rivals.values()) for kind in (0, 1))
    difference = np.stack([band.estimate for band in corrected])
    low = np.stack([np.minimum(a.low, b.low) for a, b in zip(raw, corrected, strict=True)])
    high = np.stack([np.maximum(a.high, b.high) for a, b in zip(raw, corrected, strict=True)])
    strongest = difference.argmin(axis=0)
    layers = np.arange(difference.shape[1])
    matched = high < margin
    matcher = np.where(matched, difference, np.inf).argmin(axis=0)
    verdict = np.full(len(layers), "inconclusive", dtype=object)
    for layer in np.flatnonzero(matched.any(axis=0)):
        verdict[layer] = f"matched by {names[matcher[layer]]}"
    corrected_low = np.stack([band.low for band in corrected])
    verdict[(verdict == "inconclusive") & (corrected_low > 0).all(axis=0)] = "inconclusive (raw score)"
    verdict[(low > 0).all(axis=0)] = VERDICTS[question]
    limits = [np.stack([getattr(band, side) for band in corrected])[strongest, layers] for side in ("low", "high")]
    return GapVerdict(verdict, names[strongest], Band(difference[strongest, layers], limits[0], limits[1]))
