"""How often would a verdict be given if there were nothing to find? Golds permuted over subjects, on stored records."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lensbench.errors import UsageError
from lensbench.results.activation_test import activation_tests
from lensbench.results.arrays import ORACLE, CellScores, cells_of
from lensbench.results.bands import Floats, Ints
from lensbench.results.crossed import crossed_of
from lensbench.results.golds import Golds, Predictions, check_exchangeable, credit, golds_of, unresolved
from lensbench.results.records import NO_BASELINE
from lensbench.results.samples import PairedMethod, SummarySettings, deciding, methods_of, samples_under
from lensbench.results.summary import methods_with_tests
from lensbench.results.verdicts import DIAGNOSTIC, check_questions, claims

Refit: TypeAlias = Callable[[Mapping[tuple[str, str, str], str]], tuple[pd.DataFrame, pd.DataFrame | None]]
"""Takes (task, relation, subject) -> permuted gold; gives the records of what learned from these labels, and their
credit under other activations where there is any."""

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
    crossed: pd.DataFrame | None = None,
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
        refit: gives the records of method and baselines, and their credit under other activations, for other labels.
        crossed: credit under other activations, as `crossed.read_crossed` gives it.

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
    check_exchangeable(faced, golds)
    check_questions(cells_of(records)[1], settings)
    stored = _Stored(faced, said, golds, settings, crossed)
    rng = np.random.default_rng(seed)
    counts: Counter[_Place] = Counter()
    for _ in range(permutations):
        gold = golds.permuted(rng)
        if refit is None:
            held = _held(stored.methods(gold), settings)
        else:
            again, others = refit(golds.labels(gold))
            again = again[again["baseline"].isin([NO_BASELINE, *asked])]
            held = _held(methods_with_tests(again, settings, others), settings)
        counts.update(_with_any(held))
    return _table(counts, permutations, settings.level, _unresolved(said, golds) if refit is None else {})


class _Stored:
    """Stored predictions, scored by other gold answers."""

    def __init__(
        self, records: pd.DataFrame, said: list[Predictions], golds: Golds, settings: SummarySettings,
        crossed: pd.DataFrame | None,
    ) -> None:  # fmt: skip
        self._table, _ = cells_of(records)
        self._said, self._golds, self._settings = said, golds, settings
        cells = [one.cell for one in said]
        known = crossed_of(self._table, cells, crossed) if crossed is not None else {}
        self._tests = activation_tests(
            self._table, cells, known,
            learns_labels=settings.learns_labels, defaults=settings.defaults, seed=settings.seed,
        )  # fmt: skip

    def methods(self, gold: Ints) -> Iterator[PairedMethod]:
        """Put the methods together as these gold answers, [item], score them."""
        names = [self._golds.answers[code] for code in gold]
        cells = deciding([_rescored(one, self._golds, gold) for one in self._said], self._settings)
        tests = {place: test.with_golds(names) for place, test in self._tests.items()}
        yield from methods_of(self._table, cells, tests)


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


def _held(methods: Iterable[PairedMethod], settings: SummarySettings) -> Iterator[tuple[_Place, bool]]:
    """Yield for each question with a verdict its place, and whether the gap holds at any layer."""
    for method in methods:
        if NO_BASELINE not in method.cells:
            continue
        key = method.cells[NO_BASELINE].key
        for rule in method.rules:
            if rule == ORACLE:
                continue
            for sample, scores in samples_under(method, rule, settings):
                if NO_BASELINE not in scores or (key["task"], sample.label) in settings.selected:
                    continue
                for question, holds in claims(method, scores, sample, rule).items():
                    yield (*(key[name] for name in WHERE[:5]), sample.label, rule, question), holds


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
    from scipy.stats import binomtest  # takes longer to import than pandas

    rows = []
    for place, alarms in sorted(counts.items(), key=lambda pair: (*pair[0][:5], pair[0][5] != ANY, *pair[0][5:])):
        low, high = binomtest(alarms, permutations).proportion_ci(level)
        rows.append((*place, alarms, permutations, alarms / permutations, low, high, ties.get(place[:5], 0.0)))
    return pd.DataFrame(rows, columns=list(COLUMNS))
