"""How often would a verdict be given if there were nothing to find? Golds permuted over subjects, on stored records."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from statsmodels.stats.proportion import proportion_confint

from lensbench.errors import UsageError
from lensbench.results.arrays import ORACLE, CellScores, Items, Scored, cells_of
from lensbench.results.bands import Floats, Ints
from lensbench.results.golds import Golds, Predictions, check_exchangeable, credit, golds_of, unresolved
from lensbench.results.records import NO_BASELINE
from lensbench.results.samples import PairedMethod, Sample, SummarySettings, methods_of, samples_under
from lensbench.results.verdicts import DIAGNOSTIC, FACED, VERDICTS, check_questions, gaps_of, paired

Refit: TypeAlias = Callable[[Mapping[tuple[str, str, str], str]], pd.DataFrame]
"""Takes (task, relation, subject) -> permuted gold; gives the records of what learned from these labels."""

ANY = "any"
"""The `relation` and `rule` of the rows that count a verdict wherever it stands."""
WHERE = ("model", "verbalizer", "task", "site", "inspector", "relation", "rule", "question")
COLUMNS = (*WHERE, "alarms", "permutations", "rate", "ci_low", "ci_high", "unresolved_ties")
_Place: TypeAlias = tuple[str, ...]


def false_alarms(
    records: pd.DataFrame,
    settings: SummarySettings,
    *,
    permutations: int = 1000,
    seed: int = 0,
    choice_sets: Mapping[str, str] | None = None,
    over_folds: bool = False,
    refit: Refit | None = None,
) -> pd.DataFrame:
    """Count how often a verdict that holds appears at any layer when the golds are permuted.

    The golds of a relation are shuffled over its subjects within fold and choice set, so that every balance stays as
    it is; all items of a subject get the same new gold. What method and baselines said stays, what it earned is counted
    again, attempts are selected again, and the verdicts are those of `summarise`. What they said can be kept only if it
    does not depend on labels. A method that learns from labels, with its baselines, must learn anew each time: `refit`.
    A baseline that says the best constant of the training folds need not, as balance within folds stays.

    Args:
        records: of one run: methods with their baselines.
        settings: as the run's verdicts are given (`samples.SummarySettings`): questions, due baselines, level...
        permutations: how many.
        seed: of the permutations.
        choice_sets: item -> its choice set; by default read off the records (see `golds.golds_of`).
        over_folds: deal golds over folds, too: for relations with few subjects a choice set, none of whose readers
            learned labels.
        refit: gives the records of method and baselines for other labels.

    Returns:
        One row a method, relation, rule and question, and one a method and question with relation and rule `any`:
        `alarms` of `permutations`, their rate with a Clopper-Pearson interval at the settings' level, and
        `unresolved_ties`, the share of predictions whose credit under another gold is known in expectation only.

    Raises:
        LensbenchError: a subject has two golds in a relation.
        UsageError: no permutation changes a gold, most subjects would get their own back, or there are none to make.
    """
    if permutations < 1:
        raise UsageError(f"permutations must be 1 or more, got {permutations}")
    asked = [name for name, question in settings.questions.items() if question != DIAGNOSTIC]
    faced = records[records["baseline"].isin([NO_BASELINE, *asked])]
    golds, said = golds_of(faced, choice_sets, over_folds=over_folds)
    table, cells = cells_of(records)
    check_questions(cells, settings)
    table, _ = cells_of(faced)
    check_exchangeable(faced, golds)
    rng = np.random.default_rng(seed)
    counts: Counter[_Place] = Counter()
    for _ in range(permutations):
        gold = golds.permuted(rng)
        if refit is None:
            held = _held(table, [_rescored(one, golds, gold) for one in said], settings)
        else:
            again = refit(golds.labels(gold))
            held = _held(*cells_of(again[again["baseline"].isin([NO_BASELINE, *asked])]), settings)
        counts.update(_with_any(held))
    return _table(counts, permutations, settings.level, _unresolved(said, golds) if refit is None else {})


def _rescored(one: Predictions, golds: Golds, gold: Ints) -> CellScores:
    """The cell as it would have scored with other golds."""
    cell = one.cell
    new, old, choices = (of[cell.items][None, :, None] for of in (gold, golds.gold, golds.choices))

    def earned(said: Ints, before: Floats) -> Floats:
        after: Floats = (said == new).astype(np.float64)
        tie = np.nonzero((before > 0) & (before < 1))
        whole = [np.broadcast_to(of, said.shape)[tie] for of in (new, said, old, choices)]
        after[tie] = credit(whole[0], whole[1], whole[2], before[tie], whole[3])
        after[said < 0] = np.nan
        return after

    raw = earned(one.raw, cell.raw)
    same = np.array_equal(one.raw, one.corrected) and np.array_equal(cell.raw, cell.corrected, equal_nan=True)
    return replace(cell, raw=raw, corrected=raw if same else earned(one.corrected, cell.corrected))


def _held(table: Items, cells: Iterable[CellScores], settings: SummarySettings) -> Iterator[tuple[_Place, bool]]:
    """Yield for each question with a verdict its place, and whether the gap holds at any layer."""
    for method in methods_of(table, cells):
        if NO_BASELINE not in method.cells:
            continue
        key = method.cells[NO_BASELINE].key
        for rule in method.rules:
            if rule == ORACLE:
                continue
            for sample, scores in samples_under(method, rule, settings):
                if NO_BASELINE not in scores or (key["task"], sample.label) in settings.selected:
                    continue
                for question, holds in _holding(method, scores, sample).items():
                    yield (*(key[name] for name in WHERE[:5]), sample.label, rule, question), holds


def _holding(method: PairedMethod, scores: Mapping[str, Scored], sample: Sample) -> dict[str, bool]:
    """Return for each question whether its gap holds at any layer; bands are made only where one could."""
    could = {question: _could_hold(question, method, scores, sample) for question in FACED}
    holds = {question: False for question, possible in could.items() if possible is not None}
    if any(could.values()):
        found = {question: gap.verdict == VERDICTS[question] for question, gap in gaps_of(method, scores, sample)}
        holds = {question: bool(verdict.any()) for question, verdict in found.items()}
    return holds


def _could_hold(question: str, method: PairedMethod, scores: Mapping[str, Scored], sample: Sample) -> bool | None:
    """Return whether each baseline could be beaten at some layer, by the critical value of one; None without any."""
    asked = sample.settings.questions
    if question == "beats_text" and method.cells[NO_BASELINE].key["task"] in sample.settings.prose:
        return None
    baselines = [name for name in scores if asked.get(name) in FACED[question]]
    pairs = {name: paired(method, name, scores[NO_BASELINE], scores[name]) for name in baselines}
    if not any(asked[name] == question and pair is not None for name, pair in pairs.items()):
        return None
    possible = np.ones(len(method.layers), dtype=bool)
    for pair in pairs.values():
        if pair is None:
            continue
        for differences in (pair.corrected,) if pair.alike else (pair.corrected, pair.raw):
            possible &= sample.could_be_positive(pair.items, differences)
            if not possible.any():
                return False
    return True


def _with_any(held: Iterable[tuple[_Place, bool]]) -> dict[_Place, int]:
    """Return 1 or 0 for each place of a verdict in one permutation, and for whether it holds anywhere."""
    found: dict[_Place, int] = {}
    for place, holds in held:
        anywhere = (*place[:5], ANY, ANY, place[7])
        found[place] = int(holds)
        found[anywhere] = max(found.get(anywhere, 0), int(holds))
    return found


def _unresolved(said: Iterable[Predictions], golds: Golds) -> dict[_Place, float]:
    parts: dict[_Place, list[NDArray[np.bool_]]] = {}
    for one in said:
        cell = one.cell
        old, choices = (of[cell.items][None, :, None] for of in (golds.gold, golds.choices))
        for codes, earned in ((one.raw, cell.raw), (one.corrected, cell.corrected)):
            ties = unresolved(codes, old, np.nan_to_num(earned, nan=1.0), choices)
            parts.setdefault(tuple(cell.key[name] for name in WHERE[:5]), []).append(ties[codes >= 0])
    return {place: float(np.concatenate(ties).mean()) for place, ties in parts.items()}


def _table(counts: Counter[_Place], permutations: int, level: float, ties: Mapping[_Place, float]) -> pd.DataFrame:
    rows = []
    for place, alarms in sorted(counts.items(), key=lambda pair: (*pair[0][:5], pair[0][5] != ANY, *pair[0][5:])):
        low, high = proportion_confint(alarms, permutations, alpha=1.0 - level, method="beta")
        rows.append((*place, alarms, permutations, alarms / permutations, low, high, ties.get(place[:5], 0.0)))
    return pd.DataFrame(rows, columns=list(COLUMNS))
