"""The verdicts: whether a gap holds against every baseline that is due."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lensbench.errors import LensbenchError, unknown_name
from lensbench.results.arrays import NO_LAYER, CellScores, Scored
from lensbench.results.bands import MARGIN, Band, Floats, Ints
from lensbench.results.records import NO_BASELINE
from lensbench.results.samples import PairedMethod, RequiredBaseline, Sample, SummarySettings

DIAGNOSTIC = "diagnostic"
"""The question of baselines and measures that decide nothing."""
VERDICTS: Mapping[str, str] = {
    "uses_activation": "uses the activation",
    "beats_text": "beats this text reader",
    "target_specific": "privileged",
}
"""What may be said of a method when the gap of a question holds."""
NO_VERDICT = "no verdict (chosen items)"
"""What is said instead where the items were chosen by what the model says in text."""
FACED = {
    "uses_activation": ("uses_activation",),
    "beats_text": ("uses_activation", "beats_text"),
    "target_specific": ("uses_activation", "beats_text", "target_specific"),
}
"""The baselines that a question is decided against: who beats the text must beat the prompt alone as well.

What is the target's own must be read from the activation, and beat the text: a verbalizer that holds the fact itself,
asked in text, is then as good, and nothing is said to be privileged.
"""
ONE_MODEL = "incomplete without another verbalizer"
"""What is said in place of `privileged` where the target is its own verbalizer: what it holds, the verbalizer holds."""


@dataclass(frozen=True)
class GapVerdict:
    """The verdict on one question at each layer, and the corrected difference to the strongest baseline there."""

    verdict: NDArray[np.object_]
    strongest: NDArray[np.object_]
    gap: Band | None


def gap_verdict(question: str, baselines: Mapping[str, tuple[Band, Band]], margin: float = MARGIN) -> GapVerdict:
    """Decide whether a gap holds at each layer.

    The gap holds iff the lower limit of the difference to *every* baseline is above 0, raw and corrected (an
    intersection-union test, Berger 1982: no correction over baselines is needed, while the maximum of baselines inside
    a bootstrap is too narrow at ties). Else it is `matched by` a baseline whose upper limits are both below the margin
    (the strongest such), else `inconclusive`. A gap that surely exists but is smaller than the margin holds.

    Args:
        question: `uses_activation`, `beats_text` or `target_specific`.
        baselines: the bands (raw, corrected) of method minus baseline.
        margin: differences below it do not matter; fixed beforehand.
    """
    if question not in VERDICTS:
        raise unknown_name("question", question, VERDICTS)
    if not baselines:
        none = np.array(["no rival"], dtype=object)
        return GapVerdict(none, np.array([""], dtype=object), None)
    names = np.array(list(baselines), dtype=object)
    raw, corrected = (tuple(pair[kind] for pair in baselines.values()) for kind in (0, 1))
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
    found = [band.detectable for band in corrected if band.detectable is not None]
    detectable = np.stack(found)[strongest, layers] if len(found) == len(corrected) else None
    return GapVerdict(verdict, names[strongest], Band(difference[strongest, layers], limits[0], limits[1], detectable))


def check_questions(cells: Iterable[CellScores], settings: SummarySettings) -> None:
    """Raise UsageError where a baseline has no question, or one that is unknown."""
    for name in sorted({cell.key["baseline"] for cell in cells} - {NO_BASELINE}):
        if name not in settings.questions:
            raise unknown_name("baseline", name, settings.questions)
    for name, question in settings.questions.items():
        if question not in (*VERDICTS, DIAGNOSTIC):
            raise unknown_name(f"question of baseline {name}:", question, (*VERDICTS, DIAGNOSTIC))


def gaps_of(method: PairedMethod, scores: Mapping[str, Scored], sample: Sample) -> Iterator[tuple[str, GapVerdict]]:
    """The verdict on each question that had a baseline here; `incomplete` where a baseline that was due is missing."""
    own = scores[NO_BASELINE]
    asked = sample.settings.questions
    baselines = {
        name: bands
        for name, baseline in scores.items()
        if asked.get(name, DIAGNOSTIC) != DIAGNOSTIC
        and (bands := _paired_bands(method, name, own, baseline, sample)) is not None
    }
    own_key = method.cells[NO_BASELINE].key
    silent = own_key["task"] in sample.settings.prose
    for question, faced in FACED.items():
        if silent and question == "beats_text":
            continue
        if any(asked[name] == question for name in baselines):
            facing = {name: bands for name, bands in baselines.items() if asked[name] in faced}
            found = gap_verdict(question, facing, sample.settings.margin)
            missing = _missing(method, scores, sample, faced)
            if missing:
                found.verdict[found.verdict == VERDICTS[question]] = f"incomplete without {', '.join(missing)}"
            if question == "target_specific" and own_key["model"] == own_key["verbalizer"]:
                found.verdict[found.verdict == VERDICTS[question]] = ONE_MODEL
            yield question, found


def _missing(method: PairedMethod, scores: Mapping[str, Scored], sample: Sample, faced: Iterable[str]) -> list[str]:
    """The baselines that were due in one of the method's relations, and have no scores there."""
    table, settings, key = method.table, sample.settings, method.cells[NO_BASELINE].key

    def relations(name: str) -> set[str]:
        return {table.relations[i] for i in table.relation[scores[name].items]} if name in scores else set()

    def lacks(name: str, due: RequiredBaseline) -> bool:
        place = (key["task"], key["site"], key["inspector"], name)
        open_ones = relations(NO_BASELINE) - relations(name)
        return any(due.essential or (*place, relation) not in settings.excused for relation in open_ones)

    owed = settings.due.get(key["inspector"], {})
    return [name for name, due in owed.items() if due.question in faced and lacks(name, due)]


def _paired_bands(
    method: PairedMethod, name: str, own: Scored, baseline: Scored, sample: Sample
) -> tuple[Band, Band] | None:
    """Raw and corrected bands of method minus baseline over the items that both scored, or None without any."""
    pair = paired(method, name, own, baseline)
    if pair is None:
        return None
    band = sample.difference_band(pair.items, pair.corrected)
    return (band if pair.alike else sample.difference_band(pair.items, pair.raw)), band


@dataclass(frozen=True)
class PairedDifferences:
    """Method minus baseline over the items that both scored: [item], raw and corrected differences [item, layer]."""

    items: Ints
    raw: Floats
    corrected: Floats

    @property
    def alike(self) -> bool:
        """Whether raw and corrected differences are the same."""
        return np.array_equal(self.raw, self.corrected)


def paired(method: PairedMethod, name: str, own: Scored, baseline: Scored) -> PairedDifferences | None:
    """The paired differences to a baseline, or None where no item was scored by both.

    Raises:
        LensbenchError: the baseline was scored at other layers.
    """
    theirs = method.cells[name].layers
    if theirs not in ((NO_LAYER,), method.layers):
        key = method.cells[name].key
        raise LensbenchError(
            f"baseline {name} of {key['inspector']} was scored at other layers than the method (task {key['task']}, "
            f"site {key['site']}): run `lensbench evaluate` for both with the same --layers"
        )
    items, ours, others = np.intersect1d(own.items, baseline.items, assume_unique=True, return_indices=True)
    if not len(items):
        return None
    return PairedDifferences(
        items, own.raw[ours] - baseline.raw[others], own.corrected[ours] - baseline.corrected[others]
    )
