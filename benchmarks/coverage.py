"""Do the bands cover, and how often is a gap claimed that is not there? Simulated right and wrong answers, 31 layers.

Each subject has two items. Whether an item is answered is decided by a curve that moves slowly from layer to layer,
partly shared between method and rival and between the items of a subject, as it is in records. Run it by hand
(two minutes); what it prints is quoted in docs/results.md.
"""

import argparse

import numpy as np
from scipy import special

from lensbench.statistics import gap_verdict, simultaneous_band

LAYERS, ITEMS, MEMORY, SHARED = 31, 2, 0.9, 0.6


def answers(rng: np.random.Generator, subjects: int, rates: np.ndarray) -> np.ndarray:
    """Return right (1) or wrong (0) for [reader, subject x item, layer], each right at its rate in `rates`[reader]."""

    def curves(*shape: int) -> np.ndarray:
        steps = rng.standard_normal((*shape, LAYERS))
        out = np.empty_like(steps)
        out[..., 0] = steps[..., 0]
        for layer in range(1, LAYERS):
            out[..., layer] = MEMORY * out[..., layer - 1] + np.sqrt(1 - MEMORY**2) * steps[..., layer]
        return out

    common = curves(1, subjects, 1)
    own = curves(len(rates), subjects, ITEMS)
    latent = np.sqrt(SHARED) * common + np.sqrt(1 - SHARED) * own
    right = latent < special.ndtri(rates)[:, None, None, None]
    return right.reshape(len(rates), subjects * ITEMS, LAYERS).astype(float)


def simulate(subjects: int, rates: np.ndarray, repetitions: int) -> tuple[float, float]:
    """Return how often the band of reader 0 minus reader 1 covers at all layers, and how often a gap is claimed.

    The claim is made somewhere over all layers, for reader 0 against all others.
    """
    rng = np.random.default_rng([subjects, *(int(1000 * rate) for rate in rates)])
    clusters = np.repeat(np.arange(subjects), ITEMS)
    truth = rates[0] - rates[1]
    covered = claimed = 0
    for _ in range(repetitions):
        found = answers(rng, subjects, rates)
        bands = [simultaneous_band(found[0] - other, clusters, draws=1000) for other in found[1:]]
        covered += bool(((bands[0].low <= truth) & (truth <= bands[0].high)).all())
        verdict = gap_verdict("uses_activation", {str(i): (band, band) for i, band in enumerate(bands)}).verdict
        claimed += bool((verdict == "uses the activation").any())
    return covered / repetitions, claimed / repetitions


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=1000)
    repetitions = parser.parse_args().repetitions
    print(f"{repetitions} repetitions, {LAYERS} layers, {ITEMS} items a subject")
    print("subjects  rates of method and rivals     band covers  gap claimed at any layer")
    for rates in ([0.5, 0.5], [0.5, 0.5, 0.5], [0.9, 0.9], [0.15, 0.1], [0.6, 0.5], [0.8, 0.5], [0.6, 0.15]):
        for subjects in (14, 56, 168):
            covered, claimed = simulate(subjects, np.array(rates), repetitions)
            false = " (false)" if rates[0] == rates[1] else ""
            print(f"{subjects:8}  {', '.join(map(str, rates)):30} {covered:11.3f}  {claimed:.3f}{false}")


if __name__ == "__main__":
    main()
