"""From records to the summary: accuracy with bands, the gaps to the rivals, and verdicts."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from lensbench.errors import unknown_name
from lensbench.results.arrays import CONTROL_TASK, FIXED, NO_LAYER, ORACLE, CellScores, Scored, cells_of
from lensbench.results.bands import MARGIN, NO_VERDICT, VERDICTS, Band, GapVerdict, gap_verdict
from lensbench.results.contests import PairedMethod, by_relation, methods_of, paired, samples_of, samples_under
from lensbench.results.frames import METRIC_COLUMNS, SUMMARY_COLUMNS, best_layers, frame_of
from lensbench.results.metrics import DIAGNOSTIC, metrics
from lensbench.results.records import NO_BASELINE
from lensbench.results.samples import RequiredBaseline, Sample, SummarySettings

FACED = {
    "uses_activation": ("uses_activation",),
    "beats_text": ("uses_activation", "beats_text"),
    "target_specific": ("uses_activation", "beats_text", "target_specific"),
}
"""The rivals that a question is decided against: who beats the text must beat the prompt alone as well.

What is the target's own must be read from the activation, and beat the text: a verbalizer that holds the fact itself,
asked in text, is then as good, and nothing is said to be privileged.
"""
ONE_MODEL = "incomplete without another verbalizer"
"""What is said in place of `privileged` where the target is its own verbalizer: what it holds, the verbalizer holds."""

DETECTABLE = "detectable_gap"

__all__ = ["DIAGNOSTIC", "RequiredBaseline", "SummarySettings", "best_layers", "metrics", "summarise"]


def summarise(
    records: pd.DataFrame,
    questions: Mapping[str, str],
    *,
    due: Mapping[str, Mapping[str, RequiredBaseline]] | None = None,
    excused: Iterable[tuple[str, str, str, str, str]] = (),
    defaults: Mapping[str, str] | None = None,
    selected: Iterable[tuple[str, str]] = (),
    apart: Iterable[tuple[str, str]] = (),
    prose: Iterable[str] = (),
    margin: float = MARGIN,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Summarise records: one row for each combination of the summary's keys (`frames.KEY_COLUMNS`).

    A method's rows are repeated for each question that had a rival; their gap is the corrected paired difference to the
    strongest rival of that question at that layer. Method and rival are paired over the items that both scored. A rival
    is scored under the method's rule with a selection of its own; one whose attempts are not the method's (question
    forms, ways to pick a choice) is always `selected` where the method is `fixed`. Rows of `oracle` carry no verdict.
    Rows of relation `all` are relation-macro means of (accuracy - chance) / (1 - chance) over the items that every
    method at that task and site scored. The attempts of the control task are rows of their own, named in `rule`.

    Args:
        records: as `read_records` gives them, of one run.
        questions: baseline -> uses_activation, beats_text, target_specific or diagnostic (never a rival).
        due: inspector -> the rivals that it must have faced: where one has no scores, a gap that holds over the others
            is `incomplete`, not a verdict.
        excused: (task, site, inspector, baseline, relation) where a rival cannot answer.
        defaults: inspector -> its default attempt; by default the first in the order of the records.
        selected: (task, relation) whose items were chosen by what the model says in text; they get no verdict, and no
            part in totals.
        apart: (task, relation) that have no part in totals either.
        prose: tasks in which no rival that reads the text has anything to say.
        margin: a rival surely closer than this `matches`.
        level: of the simultaneous bands.
        draws: bootstrap draws.
        seed: of the bootstrap.
    """
    settings = SummarySettings(
        questions, due or {}, frozenset(excused), defaults or {}, frozenset(selected), frozenset(apart),
        frozenset(prose), margin, level, draws, seed,
    )  # fmt: skip
    return summary_and_power(records, settings)[0]


def summary_and_power(records: pd.DataFrame, settings: SummarySettings) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The summary, and for each of its gaps the metric `detectable_gap` (rows as in metrics.csv).

    That is the smallest true gap to the strongest rival that such a study would find in 80 % of its repetitions (NaN
    where it would find none); `n` is the number of subjects.
    """
    table, cells = cells_of(records)
    check_questions(cells, settings)
    blocks = [block for group in methods_of(table, cells) for block in _method_blocks(group, settings)]
    power = [
        {**block, "metric": DETECTABLE, "value": block["detectable"], "n": block["subjects"],
         "ci_low": np.nan, "ci_high": np.nan}
        for block in blocks if block.get("detectable") is not None and block["rule"] != ORACLE
    ]  # fmt: skip
    return frame_of(blocks, SUMMARY_COLUMNS), frame_of(power, METRIC_COLUMNS)


def check_questions(cells: Iterable[CellScores], settings: SummarySettings) -> None:
    """Raise UsageError where a baseline has no question, or one that is unknown."""
    for name in sorted({cell.key["baseline"] for cell in cells} - {NO_BASELINE}):
        if name not in settings.questions:
            raise unknown_name("baseline", name, settings.questions)
    for name, question in settings.questions.items():
        if question not in (*VERDICTS, DIAGNOSTIC):
            raise unknown_name(f"question of baseline {name}:", question, (*VERDICTS, DIAGNOSTIC))


def _method_blocks(method: PairedMethod, settings: SummarySettings) -> Iterator[dict[str, Any]]:
    control = method.cells.get(CONTROL_TASK)
    for rule in method.rules:
        for sample, scores in samples_under(method, rule, settings):
            yield from _sample_blocks(method, scores, sample, rule)
    for attempt in control.attempts if control else ():
        by_attempt = {CONTROL_TASK: by_relation(method, control, FIXED, settings, (attempt,))} if control else {}
        for sample, here in samples_of(method, by_attempt, settings):
            yield from _sample_blocks(method, here, sample, attempt)


def _sample_blocks(
    method: PairedMethod, scores: Mapping[str, Scored], sample: Sample, rule: str
) -> Iterator[dict[str, Any]]:
    asked = sample.settings.questions
    own = scores.get(NO_BASELINE)
    for name, rival in scores.items():
        if name != NO_BASELINE:
            yield {**_score_columns(method, name, rival, sample), "rule": rule, "question": asked[name]}
    if own is None:
        return
    columns = {**_score_columns(method, NO_BASELINE, own, sample), "rule": rule}
    gaps = list(gaps_of(method, scores, sample))
    for question, found in gaps:
        selected = (columns["task"], sample.label) in sample.settings.selected
        verdict = "" if rule == ORACLE else NO_VERDICT if selected else found.verdict
        gap = {} if found.gap is None else {
            "gap": found.gap.estimate, "gap_low": found.gap.low, "gap_high": found.gap.high,
            "detectable": found.gap.detectable,
        }  # fmt: skip
        yield {**columns, **gap, "question": question, "strongest_baseline": found.strongest, "verdict": verdict}
    if not gaps:
        yield columns


def _score_columns(method: PairedMethod, name: str, scored: Scored, sample: Sample) -> dict[str, Any]:
    cell, layers, items = method.cells[name], method.layers, scored.items
    band = sample.score_band(items, scored.corrected)
    accuracy = sample.mean(items, scored.raw)
    if cell.layers == (NO_LAYER,):
        band, accuracy = band.at(len(layers)), np.repeat(accuracy, len(layers))
    else:
        layers = cell.layers
    return {
        **cell.key, "relation": sample.label, "layer": np.array(layers),
        "n": len(items), "subjects": len(np.unique(sample.table.subject[items])),
        "accuracy": accuracy, "accuracy_corrected": band.estimate, "ci_low": band.low, "ci_high": band.high,
        "chance": 0.0 if sample.is_total else float(sample.chance(items).mean()),
    }  # fmt: skip


def gaps_of(method: PairedMethod, scores: Mapping[str, Scored], sample: Sample) -> Iterator[tuple[str, GapVerdict]]:
    """The verdict on each question that had a rival here; `incomplete` where a rival that was due is missing."""
    own = scores[NO_BASELINE]
    asked = sample.settings.questions
    rivals = {
        name: bands
        for name, rival in scores.items()
        if asked.get(name, DIAGNOSTIC) != DIAGNOSTIC
        and (bands := _paired_bands(method, name, own, rival, sample)) is not None
    }
    own_key = method.cells[NO_BASELINE].key
    silent = own_key["task"] in sample.settings.prose
    for question, faced in FACED.items():
        if silent and question == "beats_text":
            continue
        if any(asked[name] == question for name in rivals):
            facing = {name: bands for name, bands in rivals.items() if asked[name] in faced}
            found = gap_verdict(question, facing, sample.settings.margin)
            missing = _missing(method, scores, sample, faced)
            if missing:
                found.verdict[found.verdict == VERDICTS[question]] = f"incomplete without {', '.join(missing)}"
            if question == "target_specific" and own_key["model"] == own_key["verbalizer"]:
                found.verdict[found.verdict == VERDICTS[question]] = ONE_MODEL
            yield question, found


def _missing(method: PairedMethod, scores: Mapping[str, Scored], sample: Sample, faced: Iterable[str]) -> list[str]:
    """The rivals that were due in one of the method's relations, and have no scores there."""
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
    method: PairedMethod, name: str, own: Scored, rival: Scored, sample: Sample
) -> tuple[Band, Band] | None:
    """Raw and corrected bands of method minus rival over the items that both scored, or None without any."""
    pair = paired(method, name, own, rival)
    if pair is None:
        return None
    band = sample.difference_band(pair.items, pair.corrected)
    return (band if pair.alike else sample.difference_band(pair.items, pair.raw)), band
