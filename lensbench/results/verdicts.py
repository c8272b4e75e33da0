"""The verdicts: whether a gap holds against every baseline that is due."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lensbench.errors import LensbenchError, unknown_name
from lensbench.results.activation_test import SHUFFLED
from lensbench.results.arrays import FIXED, NO_LAYER, SELECTED, CellScores, Scored
from lensbench.results.bands import MARGIN, Band, Floats, Ints
from lensbench.results.records import NO_BASELINE
from lensbench.results.samples import PairedMethod, RequiredBaseline, Sample, SummarySettings

DIAGNOSTIC = "diagnostic"
"""The question of baselines and measures that decide nothing."""
USED = "used_by_model"
"""The question that interventions answer, with words of their own (`lensbench.results.used`)."""
VERDICTS: Mapping[str, str] = {
    "uses_activation": "uses the activation",
    "beats_text": "beats this text reader",
    "target_specific": "privileged",
    USED: "used along this direction",
}
"""What may be said of a method when the gap of a question holds."""
NO_VERDICT = "no verdict (chosen items)"
"""What is said instead where the items were chosen by what the model says in text."""
ACTIVATION = "uses_activation"
FACED = {
    "uses_activation": ("uses_activation",),
    "beats_text": ("uses_activation", "beats_text"),
    "target_specific": ("uses_activation", "beats_text", "target_specific"),
}
"""The baselines that a question is decided against: who beats the text must beat the prompt alone as well.

What is the target's own must be read from the activation, and beat the text: a verbalizer that holds the fact itself,
asked in text, is then as good, and nothing is said to be privileged.
"""
NAMED = {**{question: (question,) for question in FACED}, "target_specific": FACED["target_specific"]}
"""The baselines that may be named as beating or equalling the method: noise, for one, is not a reader of text."""
ONE_MODEL = "incomplete without another verbalizer"
"""What is said in place of `privileged` where the target is its own verbalizer: what it holds, the verbalizer holds."""
NOT_CALIBRATED = "incomplete without calibration"
"""What is said in place of `privileged` of a method that learns labels and was never tried on planted facts."""


@dataclass(frozen=True)
class GapVerdict:
    """The verdict on one question at each layer, the difference to the strongest baseline there, and p-values.

    `p_value` is that of the permutation test, where the question is `uses_activation` and there is one.
    """

    verdict: NDArray[np.object_]
    strongest: NDArray[np.object_]
    gap: Band | None
    p_value: Floats | None = None


@dataclass(frozen=True)
class Compared:
    """A method beside one baseline.

    Attributes:
        band: of method minus baseline.
        joint: the same, for all baselines that may be named at once; None for one that may not (`NAMED`).
        p_value: [layer], where a permutation test decides whether the baseline is beaten, in place of the band.
        surely: whether the band must lie above 0; else the estimate must. The estimate is enough for baselines without
            an activation of the subject where the permutation test has ruled out that none is needed: a band over each
            would find nothing new, and miss two gaps of three (docs/statistics.md). `privileged` needs all bands.
    """

    band: Band
    joint: Band | None = None
    p_value: Floats | None = None
    surely: bool = True

    def beaten(self, level: float) -> NDArray[np.bool_]:
        """Whether the method is better, at each layer."""
        if self.p_value is not None:
            found: NDArray[np.bool_] = self.p_value <= (1 - level) / 2
        else:
            found = (self.band.low if self.surely else self.band.estimate) > 0
        return found


def gap_verdict(
    question: str, baselines: Mapping[str, Compared], margin: float = MARGIN, level: float = 0.95
) -> GapVerdict:
    """Decide whether a gap holds at each layer.

    The gap holds iff *every* baseline is beaten (an intersection-union test, Berger 1982: no correction over baselines
    is needed, while the maximum of baselines inside a bootstrap is too narrow at ties). Else it is `beaten by` a
    baseline if the difference is surely below 0, `within` the margin of one if it surely lies within it on both sides,
    and `inconclusive` otherwise. The strongest such baseline is named.

    Args:
        question: `uses_activation`, `beats_text` or `target_specific`.
        baselines: the method beside each baseline that the question faces.
        margin: the half width of equivalence, fixed beforehand.
        level: of the bands.
    """
    if question not in FACED:
        raise unknown_name("question", question, FACED)
    named = {name: (one.band, one.joint) for name, one in baselines.items() if one.joint is not None}
    if not named:
        none = np.array(["no baseline"], dtype=object)
        return GapVerdict(none, np.array([""], dtype=object), None)
    names = np.array(list(named), dtype=object)
    bands = [band for band, _ in named.values()]
    joint = [band for _, band in named.values() if band is not None]
    difference = np.stack([band.estimate for band in bands])
    strongest, layers = _strongest(difference, [baselines[name] for name in named]), np.arange(difference.shape[1])
    verdict = np.full(len(layers), "inconclusive", dtype=object)
    low, high = (np.stack([getattr(band, side) for band in joint]) for side in ("low", "high"))
    for words, found in (
        (f"within {margin:.2f} of ".replace("0.", "."), (low > -margin) & (high < margin)),
        ("beaten by ", high < 0),
    ):
        which = np.where(found, difference, np.inf).argmin(axis=0)
        for layer in np.flatnonzero(found.any(axis=0)):
            verdict[layer] = f"{words}{names[which[layer]]}"
    verdict[np.all([one.beaten(level) for one in baselines.values()], axis=0)] = VERDICTS[question]
    limits = [np.stack([getattr(band, side) for band in bands])[strongest, layers] for side in ("low", "high")]
    gaps = [band.detectable for band in bands if band.detectable is not None]
    detectable = np.stack(gaps)[strongest, layers] if len(gaps) == len(bands) else None
    gap = Band(difference[strongest, layers], limits[0], limits[1], detectable)
    tested = [one.p_value for one in baselines.values() if one.p_value is not None]
    return GapVerdict(verdict, names[strongest], gap, tested[0] if tested and question == ACTIVATION else None)


def _strongest(difference: Floats, compared: Sequence[Compared]) -> Ints:
    """The baseline that is reported at each layer: the one that does best.

    Where a permutation test decides, its baseline is reported, unless another does as well as the method: of many
    baselines at chance the best is best by chance.
    """
    strongest: Ints = difference.argmin(axis=0)
    tested = [i for i, one in enumerate(compared) if one.p_value is not None]
    return np.where(difference.min(axis=0) > 0, tested[0], strongest) if tested else strongest


def check_questions(cells: Iterable[CellScores], settings: SummarySettings) -> None:
    """Raise UsageError where a baseline has no question, or one that is unknown."""
    for name in sorted({cell.key["baseline"] for cell in cells} - {NO_BASELINE}):
        if name not in settings.questions:
            raise unknown_name("baseline", name, settings.questions)
    for name, question in settings.questions.items():
        if question not in (*VERDICTS, DIAGNOSTIC):
            raise unknown_name(f"question of baseline {name}:", question, (*VERDICTS, DIAGNOSTIC))


def gaps_of(
    method: PairedMethod, scores: Mapping[str, Scored], sample: Sample, rule: str
) -> Iterator[tuple[str, GapVerdict]]:
    """The verdict on each question that had a baseline here; `incomplete` where something that is due is missing."""
    asked, settings = sample.settings.questions, sample.settings
    key = method.cells[NO_BASELINE].key
    pairs = _pairs(method, scores, asked)
    bands = {name: sample.difference_band(pair.items, pair.corrected) for name, pair in pairs.items()}
    p_value = _p_value(method, scores, rule) if SHUFFLED in pairs else None
    for question, faced in FACED.items():
        if question == "beats_text" and key["task"] in settings.prose:
            continue
        if question not in {asked[name] for name in pairs}:
            continue
        own = [name for name in pairs if asked[name] in NAMED[question]]
        joint = dict(zip(own, sample.joint_bands([(pairs[n].items, pairs[n].corrected) for n in own]), strict=True))
        facing = {
            name: Compared(
                bands[name], joint.get(name), p_value if name == SHUFFLED else None,
                _needs_band(question, asked[name], tested=p_value is not None),
            )
            for name in pairs
            if asked[name] in faced
        }  # fmt: skip
        found = gap_verdict(question, facing, settings.margin, settings.level)
        holds = found.verdict == VERDICTS[question]
        found.verdict[holds] = _open(method, scores, sample, question) or VERDICTS[question]
        yield question, found


def claims(method: PairedMethod, scores: Mapping[str, Scored], sample: Sample, rule: str) -> dict[str, bool]:
    """Return for each question with a baseline whether its claim holds at some layer: `gaps_of`, but no more than this.

    It is for many sets of gold answers: what no layer can pass is not looked at further.
    """
    asked, settings = sample.settings.questions, sample.settings
    own = method.cells[NO_BASELINE]
    pairs = _pairs(method, scores, asked)
    p_value = _p_value(method, scores, rule)
    tested = None if p_value is None else p_value <= (1 - settings.level) / 2
    found = {}
    for question, faced in FACED.items():
        if question == "beats_text" and own.key["task"] in settings.prose:
            continue
        facing = [name for name in pairs if asked[name] in faced and (name != SHUFFLED or tested is None)]
        if not (any(asked[name] == question for name in pairs) or (tested is not None and faced == (question,))):
            continue
        possible = np.ones(len(own.layers), dtype=bool) if tested is None else tested.copy()
        surely = [name for name in facing if _needs_band(question, asked[name], tested=tested is not None)]
        # What costs most comes last, and nothing is asked of layers that have failed.
        for condition, names in (
            (lambda items, values: sample.mean_difference(items, values) > 0, set(facing) - set(surely)),
            (sample.could_be_positive, surely),
            (lambda items, values: sample.difference_band(items, values).low > 0, surely),
        ):
            for name in names:
                possible &= possible.any() and condition(pairs[name].items, pairs[name].corrected)
        found[question] = bool(possible.any()) and not _open(method, scores, sample, question)
    return found


def _needs_band(question: str, asked: str, *, tested: bool) -> bool:
    """Whether the band over a baseline must lie above 0, and not only the estimate; see `Compared.surely`."""
    return not tested or asked != ACTIVATION or question == "target_specific"


def _open(method: PairedMethod, scores: Mapping[str, Scored], sample: Sample, question: str) -> str:
    """What is said in place of a claim: what is missing for it, or empty."""
    key, settings = method.cells[NO_BASELINE].key, sample.settings
    missing = _missing(method, scores, sample, FACED[question])
    if question == "target_specific" and key["model"] == key["verbalizer"]:
        return ONE_MODEL
    if question == "target_specific" and not missing and key["inspector"] in settings.uncalibrated:
        return NOT_CALIBRATED
    return f"incomplete without {', '.join(missing)}" if missing else ""


def _p_value(method: PairedMethod, scores: Mapping[str, Scored], rule: str) -> Floats | None:
    """The p-value of the permutation test at each layer; None where the method has no such test here."""
    if method.test is None or rule not in (FIXED, SELECTED):
        return None
    relations = [int(code) for code in np.unique(method.table.relation[scores[NO_BASELINE].items])]
    return method.test.p_values(relations, rule) if set(relations) <= set(method.test.relations) else None


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


def _pairs(
    method: PairedMethod, scores: Mapping[str, Scored], asked: Mapping[str, str]
) -> dict[str, "PairedDifferences"]:
    """The paired differences to each baseline that decides something."""
    own = scores[NO_BASELINE]
    found = {
        name: paired(method, name, own, baseline)
        for name, baseline in scores.items()
        if asked.get(name, DIAGNOSTIC) != DIAGNOSTIC
    }
    return {name: pair for name, pair in found.items() if pair is not None}


@dataclass(frozen=True)
class PairedDifferences:
    """Method minus baseline over the items that both scored: differences of the deciding score."""

    items: Ints
    corrected: Floats


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
    return PairedDifferences(items, own.corrected[ours] - baseline.corrected[others])
