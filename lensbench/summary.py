"""From records to the summary: accuracy with bands, the gaps to the rivals, and verdicts."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from lensbench.errors import LensbenchError, unknown_name
from lensbench.frames import ALL, SUMMARY_COLUMNS, best_layers, frame_of
from lensbench.metrics import CONTROL_TASK, DIAGNOSTIC, metrics
from lensbench.records import NO_BASELINE
from lensbench.samples import Due, Sample, Settings
from lensbench.scored import FIXED, NO_LAYER, ORACLE, SELECTED, Cell, Items, Scored, cells_of
from lensbench.statistics import MARGIN, NO_VERDICT, VERDICTS, Band, GapVerdict, Ints, gap_verdict

FACED = {
    "uses_activation": ("uses_activation",),
    "beats_text": ("uses_activation", "beats_text"),
    "target_specific": ("target_specific",),
}
"""The rivals that a question is decided against: who beats the text must beat the prompt alone as well."""

__all__ = ["DIAGNOSTIC", "Due", "Settings", "best_layers", "metrics", "summarise"]


def summarise(
    records: pd.DataFrame,
    questions: Mapping[str, str],
    *,
    due: Mapping[str, Mapping[str, Due]] | None = None,
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
    settings = Settings(
        questions, due or {}, frozenset(excused), defaults or {}, frozenset(selected), frozenset(apart),
        frozenset(prose), margin, level, draws, seed,
    )  # fmt: skip
    table, cells = cells_of(records)
    _check(cells, settings)
    blocks = [block for group in _methods(table, cells) for block in _method_blocks(group, settings)]
    return frame_of(blocks, SUMMARY_COLUMNS)


def _check(cells: Iterable[Cell], settings: Settings) -> None:
    for name in sorted({cell.key["baseline"] for cell in cells} - {NO_BASELINE}):
        if name not in settings.questions:
            raise unknown_name("baseline", name, settings.questions)
    for name, question in settings.questions.items():
        if question not in (*VERDICTS, DIAGNOSTIC):
            raise unknown_name(f"question of baseline {name}:", question, (*VERDICTS, DIAGNOSTIC))


@dataclass(frozen=True)
class _Method:
    """A method at one task and site with its rivals, and the items that all methods there scored."""

    table: Items
    cells: Mapping[str, Cell]
    common: Ints

    @property
    def layers(self) -> tuple[int, ...]:
        own = self.cells.get(NO_BASELINE)
        return own.layers if own else max((cell.layers for cell in self.cells.values()), key=len)

    def rules(self) -> tuple[str, ...]:
        own = self.cells.get(NO_BASELINE)
        return (FIXED, SELECTED, ORACLE) if own and len(own.attempts) > 1 else (FIXED,)

    def rule_of(self, baseline: str, rule: str) -> str:
        """A rival with attempts of its own kind has no default among them: selected where the method is fixed."""
        own, cell = self.cells.get(NO_BASELINE), self.cells[baseline]
        foreign = own is None or not set(cell.attempts) <= set(own.attempts)
        return SELECTED if rule == FIXED and baseline != NO_BASELINE and foreign else rule


def _methods(table: Items, cells: Iterable[Cell]) -> Iterator[_Method]:
    places: dict[tuple[str, ...], dict[tuple[str, ...], dict[str, Cell]]] = {}
    for cell in cells:
        key = cell.key
        place = places.setdefault((key["model"], key["task"], key["site"]), {})
        place.setdefault((key["verbalizer"], key["inspector"]), {})[key["baseline"]] = cell
    for methods in places.values():
        scored = [group[NO_BASELINE].items for group in methods.values() if NO_BASELINE in group]
        common = scored[0] if scored else np.empty(0, np.int64)
        for items in scored[1:]:
            common = np.intersect1d(common, items, assume_unique=True)
        for group in methods.values():
            yield _Method(table, group, common)


def _method_blocks(method: _Method, settings: Settings) -> Iterator[dict[str, Any]]:
    control = method.cells.get(CONTROL_TASK)
    plain = {name: cell for name, cell in method.cells.items() if name != CONTROL_TASK}
    for rule in method.rules():
        scores = {
            name: _by_relation(method, cell, method.rule_of(name, rule), settings) for name, cell in plain.items()
        }
        yield from _blocks(method, scores, rule, settings)
    for attempt in control.attempts if control else ():
        scores = {CONTROL_TASK: _by_relation(method, control, FIXED, settings, (attempt,))} if control else {}
        yield from _blocks(method, scores, attempt, settings)


def _by_relation(
    method: _Method, cell: Cell, rule: str, settings: Settings, attempts: tuple[str, ...] | None = None
) -> dict[int, Scored]:
    """The scores of a cell under a rule, relation by relation: attempts are chosen within each."""
    result = {}
    for relation in np.unique(method.table.relation[cell.items]):
        part = cell.part(method.table.of_relation(cell.items, int(relation)), attempts)
        if part is not None:
            default = settings.defaults.get(cell.key["inspector"], cell.attempts[0])
            result[int(relation)] = part.scored(rule, default, method.table.fold)
    return result


def _blocks(
    method: _Method, scores: Mapping[str, Mapping[int, Scored]], rule: str, settings: Settings
) -> Iterator[dict[str, Any]]:
    """The rows of one method under one rule: each relation, then the total over the items that all methods scored."""
    table = method.table
    for relation in sorted({number for of_cell in scores.values() for number in of_cell}):
        sample = Sample(table.relations[relation], table, settings)
        here = {name: of_cell[relation] for name, of_cell in scores.items() if relation in of_cell}
        yield from _sample_blocks(method, here, sample, rule)
    sample = Sample(ALL, table, settings)
    task = next(iter(method.cells.values())).key["task"]
    chosen = [i for i, name in enumerate(table.relations) if (task, name) not in settings.selected | settings.apart]
    totals = {
        name: _joined([part for relation, part in of_cell.items() if relation in chosen], method.common)
        for name, of_cell in scores.items()
    }
    yield from _sample_blocks(method, {name: part for name, part in totals.items() if part is not None}, sample, rule)


def _joined(parts: Iterable[Scored], items: Ints) -> Scored | None:
    kept = [part for part in (part.only(items) for part in parts) if len(part.items)]
    if not kept:
        return None
    return Scored(*(np.concatenate([getattr(part, name) for part in kept]) for name in ("items", "raw", "corrected")))


def _sample_blocks(
    method: _Method, scores: Mapping[str, Scored], sample: Sample, rule: str
) -> Iterator[dict[str, Any]]:
    asked = sample.settings.questions
    own = scores.get(NO_BASELINE)
    for name, rival in scores.items():
        if name != NO_BASELINE:
            yield {**_score_columns(method, name, rival, sample), "rule": rule, "question": asked[name]}
    if own is None:
        return
    columns = {**_score_columns(method, NO_BASELINE, own, sample), "rule": rule}
    gaps = list(_gaps(method, scores, sample))
    for question, found in gaps:
        selected = (columns["task"], sample.label) in sample.settings.selected
        verdict = "" if rule == ORACLE else NO_VERDICT if selected else found.verdict
        gap = {} if found.gap is None else {
            "gap": found.gap.estimate, "gap_low": found.gap.low, "gap_high": found.gap.high
        }  # fmt: skip
        yield {**columns, **gap, "question": question, "strongest_baseline": found.strongest, "verdict": verdict}
    if not gaps:
        yield columns


def _score_columns(method: _Method, name: str, scored: Scored, sample: Sample) -> dict[str, Any]:
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


def _gaps(method: _Method, scores: Mapping[str, Scored], sample: Sample) -> Iterator[tuple[str, GapVerdict]]:
    """The verdict on each question that had a rival here; `incomplete` where a rival that was due is missing."""
    own = scores[NO_BASELINE]
    asked = sample.settings.questions
    rivals = {
        name: bands
        for name, rival in scores.items()
        if asked.get(name, DIAGNOSTIC) != DIAGNOSTIC
        and (bands := _paired_bands(method, name, own, rival, sample)) is not None
    }
    silent = method.cells[NO_BASELINE].key["task"] in sample.settings.prose
    for question, faced in FACED.items():
        if silent and question == "beats_text":
            continue
        if any(asked[name] == question for name in rivals):
            facing = {name: bands for name, bands in rivals.items() if asked[name] in faced}
            found = gap_verdict(question, facing, sample.settings.margin)
            missing = _missing(method, scores, sample, faced)
            if missing:
                found.verdict[found.verdict == VERDICTS[question]] = f"incomplete without {', '.join(missing)}"
            yield question, found


def _missing(method: _Method, scores: Mapping[str, Scored], sample: Sample, faced: Iterable[str]) -> list[str]:
    """The rivals that were due in one of the method's relations, and have no scores there."""
    table, settings, key = method.table, sample.settings, method.cells[NO_BASELINE].key

    def relations(name: str) -> set[str]:
        return {table.relations[i] for i in table.relation[scores[name].items]} if name in scores else set()

    def lacks(name: str, due: Due) -> bool:
        place = (key["task"], key["site"], key["inspector"], name)
        open_ones = relations(NO_BASELINE) - relations(name)
        return any(due.essential or (*place, relation) not in settings.excused for relation in open_ones)

    owed = settings.due.get(key["inspector"], {})
    return [name for name, due in owed.items() if due.question in faced and lacks(name, due)]


def _paired_bands(method: _Method, name: str, own: Scored, rival: Scored, sample: Sample) -> tuple[Band, Band] | None:
    """Raw and corrected bands of method minus rival over the items that both scored, or None without any."""
    theirs = method.cells[name].layers
    if theirs not in ((NO_LAYER,), method.layers):
        key = method.cells[name].key
        raise LensbenchError(
            f"baseline {name} of {key['inspector']} was scored at other layers than the method (task {key['task']}, "
            f"site {key['site']}): run `lensbench evaluate` for both with the same --layers"
        )
    items, ours, others = np.intersect1d(own.items, rival.items, assume_unique=True, return_indices=True)
    if not len(items):
        return None
    raw = own.raw[ours] - rival.raw[others]
    corrected = own.corrected[ours] - rival.corrected[others]
    band = sample.difference_band(items, corrected)
    return (band if np.array_equal(raw, corrected) else sample.difference_band(items, raw)), band
