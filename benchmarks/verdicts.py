"""How often is a verdict given that should not be, do the bands cover, and what does a study of some size find?

Simulated right and wrong answers at 31 layers. Whether an item is answered is decided by a curve that moves slowly from
layer to layer, partly shared between the readers and between the items of a subject, as it is in records. For the
permutation test of whose activation is read, `benchmarks/made_readers.py` makes what every activation says. Run it by
hand (half an hour on one core; `--short`: a minute); what it prints is quoted in docs/statistics.md.
"""

import argparse
from collections import Counter
from dataclasses import dataclass

import numpy as np
from scipy import special, stats

from lensbench.results.bands import MARGIN, Band, joint_bands, simultaneous_band
from lensbench.results.change_point import emergence
from lensbench.results.power import Study, subjects_needed
from lensbench.results.verdicts import Compared, gap_verdict

LAYERS, MEMORY, SHARED, DRAWS, CHANCE = 31, 0.9, 0.6, 1000, 0.125
SHAPES = {
    "at once, by .50": lambda after: np.full_like(after, 0.5),
    "at once, by .15": lambda after: np.full_like(after, 0.15),
    "by .05 a layer": lambda after: np.minimum(0.05 * (after + 1), 0.6),
    "by .02 a layer": lambda after: np.minimum(0.02 * (after + 1), 0.4),
    "for five layers": lambda after: np.where(after < 5, 0.4, 0.0),
    "never": np.zeros_like,
}
"""How a gain in accuracy grows with the number of layers after the planted one."""


@dataclass(frozen=True)
class Simulated:
    """Of many studies: how often each baseline's band covered, and how often each word was said at some layer."""

    studies: int
    covered: tuple[int, ...]
    said: Counter[str]

    @property
    def coverage(self) -> tuple[float, float]:
        """The lowest and the highest over the baselines."""
        return min(self.covered) / self.studies, max(self.covered) / self.studies

    def rate(self, word: str) -> float:
        """Share of studies in which a verdict begins with a word at some layer."""
        return self.said[word] / self.studies


CLAIM, BEATEN, WITHIN = "beats", "beaten", "within"


def curves(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Standard normal at each layer, each layer like the one before: [*shape, layer]."""
    steps = rng.standard_normal((*shape, LAYERS))
    for layer in range(1, LAYERS):
        steps[..., layer] = MEMORY * steps[..., layer - 1] + np.sqrt(1 - MEMORY**2) * steps[..., layer]
    return steps


def answers(rng: np.random.Generator, subjects: int, rates: np.ndarray, items: int = 2) -> np.ndarray:
    """Return right (1) or wrong (0), [reader, subject x item, layer], each reader at its rate [reader(, layer)]."""
    common, own = curves(rng, 1, subjects, 1), curves(rng, len(rates), subjects, items)
    latent = np.sqrt(SHARED) * common + np.sqrt(1 - SHARED) * own
    threshold = special.ndtri(rates).reshape(len(rates), 1, 1, -1)
    return (latent < threshold).reshape(len(rates), subjects * items, LAYERS).astype(float)


def simulate(subjects: int, rates: list[float], studies: int, items: int = 2, seed: int = 0) -> Simulated:
    """Make studies of reader 0 against all others, at the same rate at every layer."""
    rng = np.random.default_rng([seed, subjects, items, *(int(1000 * rate) for rate in rates)])
    clusters = np.repeat(np.arange(subjects), items)
    covered, said = np.zeros(len(rates) - 1, int), Counter[str]()
    for _ in range(studies):
        found = answers(rng, subjects, np.array(rates), items)
        differences = [found[0] - other for other in found[1:]]
        bands: list[Band] = [simultaneous_band(one, clusters, draws=DRAWS) for one in differences]
        joint = joint_bands([(one, clusters, None) for one in differences], draws=DRAWS)
        for index, (band, rate) in enumerate(zip(bands, rates[1:], strict=True)):
            covered[index] += bool(((band.low <= rates[0] - rate) & (rates[0] - rate <= band.high)).all())
        compared = {str(i): Compared(*pair) for i, pair in enumerate(zip(bands, joint, strict=True))}
        said.update({verdict.split()[0] for verdict in gap_verdict("beats_text", compared).verdict})
    return Simulated(studies, tuple(map(int, covered)), said)


def found_at(subjects: int, gap: float, study: Study, studies: int) -> float:
    """How often a gap over one rival is found at one given layer, the last: what `power.power_of` approximates."""
    rng = np.random.default_rng([subjects, int(1000 * gap)])
    clusters = np.repeat(np.arange(subjects), study.items)
    hits = 0
    for _ in range(studies):
        own, rival = answers(rng, subjects, np.array([study.baseline + gap, study.baseline]), study.items)
        hits += bool(simultaneous_band(own - rival, clusters, draws=DRAWS).low[-1] > 0)
    return hits / studies


def differences(rng: np.random.Generator, subjects: int, shape: str, planted: int, *, identical: bool) -> np.ndarray:
    """Implanted minus unedited [subject x item, layer]; before the planted layer both are the same, or only alike."""
    after = np.arange(LAYERS, dtype=float) - planted
    gain = np.where(after < 0, 0.0, SHAPES[shape](np.maximum(after, 0.0)))
    own, unedited = answers(rng, subjects, np.stack([CHANCE + gain, np.full(LAYERS, CHANCE)]))
    return np.where((after < 0) & identical, 0.0, own - unedited)


def emerged(subjects: int, shape: str, studies: int, *, identical: bool, planted: int = 10) -> dict[str, float]:
    """How often something emerges, and where it does, how often the interval holds the layer; its median width."""
    rng = np.random.default_rng([subjects, planted, list(SHAPES).index(shape)])
    clusters = np.repeat(np.arange(subjects), 2)
    found = [
        emergence(differences(rng, subjects, shape, planted, identical=identical), clusters, range(LAYERS), draws=DRAWS)
        for _ in range(studies)
    ]
    there = [one for one in found if one.layer is not None]
    covered = [one.contains(planted) for one in there]
    widths = [one.high - one.low + 1 for one in there if one.low is not None and one.high is not None]
    late = [one.layer - planted for one in there if one.layer is not None]
    return {
        "emerges": len(there) / studies,
        "covers": float(np.mean(covered)) if there else float("nan"),
        "width": float(np.median(widths)) if there else float("nan"),
        "late": float(np.median(late)) if there else float("nan"),
    }


def nulls(studies: int, sizes: tuple[int, ...]) -> None:
    """Print false verdicts and coverage where method and baselines tie, or differ by the margin."""
    print(f"\nNothing to find: {studies} studies each, {LAYERS} layers\n")
    print("| rate of all | baselines | items | subjects | claimed | beaten by | within, at the margin | bands cover |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for rate in (0.15, 0.5, 0.8):
        for subjects in sizes:
            for baselines, items in ((1, 2), (3, 2), (1, 1)):
                found = simulate(subjects, [rate] * (baselines + 1), studies, items)
                apart = simulate(subjects, [rate, *[rate + MARGIN] * baselines], studies, items)
                cover = ", ".join(f"{share:.3f}" for share in found.coverage)
                rates = (found.rate(CLAIM), found.rate(BEATEN), apart.rate(WITHIN))
                cells = (f"{rate:.2f}", baselines, items, subjects, *(f"{one:.3f}" for one in rates), cover)
                print("|", " | ".join(map(str, cells)), "|", flush=True)


def gaps(studies: int, sizes: tuple[int, ...], sides: tuple[float, ...]) -> None:
    """Print power and coverage where there is a gap, against three baselines that tie."""
    print(f"\nA gap at every layer over three baselines at .30 that tie: {studies} studies each\n")
    print("| gap | subjects | claimed at some layer | bands cover (least, most) |")
    print("| --- | --- | --- | --- |")
    for gap in sides:
        for subjects in sizes:
            found = simulate(subjects, [0.3 + gap, 0.3, 0.3, 0.3], studies)
            cover = ", ".join(f"{share:.3f}" for share in found.coverage)
            print(f"| {gap:.2f} | {subjects} | {found.rate(CLAIM):.3f} | {cover} |", flush=True)


def activations(studies: int, few: int) -> None:
    """Print how often `uses the activation` is said, with and without anything to find, and by which condition."""
    from made_readers import MadeReader  # beside this file, which tests import as a module

    print(f"\nUses the activation, one item a subject, eight answers: {studies} studies each ({few} of totals)\n")
    print("| gap | relations x subjects | exchanged within | baselines besides | p <= .025 (95 % interval) | claimed |")
    print("| --- | --- | --- | --- | --- | --- |")
    for gap, relations, subjects, folds, baselines in READERS:
        made = MadeReader(gap, relations, subjects, baselines=baselines, learns=folds)
        count = studies if relations == 1 else few
        found = [made.study(seed) for seed in range(count)]
        hits = sum(p_value <= 0.025 for p_value, _ in found)
        low, high = stats.binomtest(hits, count).proportion_ci()
        cells = (
            f"{gap:.2f}", f"{relations} x {subjects}", "folds" if folds else "relations", len(baselines),
            f"{hits / count:.3f} ({low:.3f}-{high:.3f})", f"{np.mean([claimed for _, claimed in found]):.3f}",
        )  # fmt: skip
        print("|", " | ".join(map(str, cells)), "|", flush=True)


OTHERS = ("gaussian", "mean", "question_only")
READERS = (
    *((0.0, 1, n, folds, others) for n in (14, 40) for folds in (False, True) for others in ((), OTHERS)),
    *((0.0, 5, n, False, ()) for n in (14, 40)),
    *((gap, 1, n, folds, OTHERS) for gap, n in ((0.2, 40), (0.4, 14), (0.2, 14), (0.1, 40)) for folds in (False, True)),
    # Effects of the run that this design replaces, over the relations that a method can answer in the new one.
    *((round(effect * 7 / 8, 2), n, 40, folds, OTHERS)
      for effect, n, folds in ((0.29, 5, False), (0.37, 5, False), (0.53, 5, False), (0.45, 3, True))),
)  # fmt: skip
"""Gap, relations, subjects of each, whether activations are exchanged within folds, baselines besides `shuffled`."""


def planned(studies: int, sides: tuple[float, ...]) -> None:
    """Print how often a gap is found by as many subjects as `subjects_needed` says: .80 is right."""
    print(f"\nSubjects for a gap at one layer over one rival at .30, power .80: {studies} studies each\n")
    print("| gap | subjects_needed | found |")
    print("| --- | --- | --- |")
    rng = np.random.default_rng(0)
    for gap in sides:
        own, rival = answers(rng, 20_000, np.array([0.3 + gap, 0.3]))[..., -1]
        pair = (own - rival).reshape(-1, 2)
        alike = float(np.corrcoef(pair.T)[0, 1])
        study = Study(0.3, float(np.corrcoef(own, rival)[0, 1]), items=2, alike=alike, layers=LAYERS)
        subjects = subjects_needed(gap, study)
        print(f"| {gap:.2f} | {subjects} | {found_at(subjects, gap, study, studies):.3f} |", flush=True)


def emergences(studies: int, sizes: tuple[int, ...]) -> None:
    """Print how well the planted layer is found."""
    print(f"\nA fact planted at layer 10 of {LAYERS - 1}, unedited at chance .125: {studies} studies each\n")
    print("| before it | the gain comes | subjects | emerges | interval holds it | width | estimate late by |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for identical in (True, False):
        for shape in SHAPES:
            for subjects in sizes:
                found = emerged(subjects, shape, studies, identical=identical)
                before = "identical" if identical else "alike"
                rest = (
                    "| | |"
                    if shape == "never"
                    else f"{found['covers']:.2f} | {found['width']:.0f} | {found['late']:.0f} |"
                )
                print(f"| {before} | {shape} | {subjects} | {found['emerges']:.3f} | {rest}", flush=True)


def main() -> None:
    """Print tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="fewer studies of fewer kinds")
    if parser.parse_args().short:
        nulls(60, (60,))
        activations(10, 3)
        gaps(60, (60,), (0.1, 0.2))
        planned(60, (0.2,))
        emergences(20, (60,))
    else:
        nulls(1000, (40, 120))
        activations(1000, 200)
        gaps(1000, (20, 40, 80, 120, 240), (0.05, 0.1, 0.2, 0.3, 0.6))
        planned(1000, (0.1, 0.2, 0.3))
        emergences(300, (30, 60, 120))


if __name__ == "__main__":
    main()
