"""What one row of a summary is about: the items of a relation, or all, and the scores of method and baselines there."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from scipy import special

from lensbench.results.activation_test import ActivationTest
from lensbench.results.arrays import CONTROL_TASK, FIXED, KEYS, ORACLE, SELECTED, CellScores, Items, Scored
from lensbench.results.bands import (
    DIFFERENCE,
    MARGIN,
    SCORE,
    Band,
    Floats,
    Ints,
    Scale,
    joint_bands,
    sampled,
    simultaneous_band,
    simultaneous_cut,
    single_cut,
)
from lensbench.results.records import ALL, CORRECTED, NO_BASELINE


@dataclass(frozen=True)
class RequiredBaseline:
    """A baseline that a method must have been compared with before a verdict holds.

    Attributes:
        question: that it is a baseline in.
        essential: whether the verdict is open even where the baseline cannot answer the relation's questions.
    """

    question: str
    essential: bool


@dataclass(frozen=True)
class SummarySettings:
    """How a summary is made.

    Attributes:
        questions: baseline -> its question.
        due: inspector -> the baselines that it must have faced, by name.
        excused: (task, site, inspector, baseline, relation) where a baseline is not applicable.
        defaults: inspector -> its default attempt, else the first in the records.
        selected: (task, relation) whose items were chosen by what the model says in text: they get no verdict.
        apart: (task, relation) that have no part in totals; the selected have none either.
        prose: tasks in which no baseline that reads the text has anything to say: nothing is said of beating it.
        learns_labels: the methods with a fit for each fold; subjects are exchanged within folds.
        uncalibrated: the methods of which `privileged` cannot be said, as they learn labels and were never calibrated.
        unfit: inspector -> the check that it fails: it gets no verdict.
        score: the score that decides, `corrected` or `raw`.
    """

    questions: Mapping[str, str]
    due: Mapping[str, Mapping[str, RequiredBaseline]] = field(default_factory=dict)
    excused: frozenset[tuple[str, str, str, str, str]] = frozenset()
    defaults: Mapping[str, str] = field(default_factory=dict)
    selected: frozenset[tuple[str, str]] = frozenset()
    apart: frozenset[tuple[str, str]] = frozenset()
    prose: frozenset[str] = frozenset()
    learns_labels: frozenset[str] = frozenset()
    uncalibrated: frozenset[str] = frozenset()
    unfit: Mapping[str, str] = field(default_factory=dict)
    score: str = CORRECTED
    margin: float = MARGIN
    level: float = 0.95
    draws: int = 2000
    seed: int = 0


@dataclass(frozen=True)
class Sample:
    """A relation, or the total over relations (label `all`), where scores are rescaled so that chance is 0."""

    label: str
    table: Items
    settings: SummarySettings

    @property
    def is_total(self) -> bool:
        """Whether this is the macro mean over relations."""
        return self.label == ALL

    def chance(self, items: Ints) -> Floats:
        """Chance of each item: [item, 1]."""
        chance: Floats = self.table.chance[items][:, None]
        return chance

    def mean(self, items: Ints, scores: Floats) -> Floats:
        """The (macro) mean a layer, without a band."""
        values = self._rescaled(items, scores)
        _, stratum = np.unique(self.table.relation[items], return_inverse=True)
        means: Floats = np.stack([values[stratum == index].mean(axis=0) for index in range(stratum.max() + 1)])
        macro: Floats = means.mean(axis=0)
        return macro

    def _rescaled(self, items: Ints, scores: Floats) -> Floats:
        chance = self.chance(items)
        rescaled: Floats = (scores - chance) / (1.0 - chance) if self.is_total else scores
        return rescaled

    def score_band(self, items: Ints, scores: Floats) -> Band:
        """The band of a mean score; scores are [item, layer]."""
        chance = float(self.table.chance[items].max())
        scale = SCORE.stretched(-chance / (1.0 - chance), 1.0) if self.is_total else SCORE
        return self._band(items, self._rescaled(items, scores), scale)

    def difference_band(self, items: Ints, differences: Floats) -> Band:
        """The band of a mean paired difference; differences are [item, layer]."""
        return self._band(items, *self._differences(items, differences))

    def mean_difference(self, items: Ints, differences: Floats) -> Floats:
        """The estimate of `difference_band`, without a band: [layer]."""
        values, _ = self._differences(items, differences)
        return sampled(values, self.table.subject[items], self.table.relation[items]).estimate

    def joint_bands(self, pairs: Sequence[tuple[Ints, Floats]]) -> list[Band]:
        """The bands of several mean paired differences (items, [item, layer]) that hold for all of them at once."""
        chosen, table = self.settings, self.table
        scales, samples = [], []
        for items, differences in pairs:
            values, scale = self._differences(items, differences)
            scales.append(scale)
            samples.append((values, table.subject[items], table.relation[items]))
        widest = max(scales, key=lambda scale: scale.high)
        return joint_bands(samples, scale=widest, level=chosen.level, draws=chosen.draws, seed=chosen.seed)

    def could_be_positive(self, items: Ints, differences: Floats) -> NDArray[np.bool_]:
        """Return at which layers the band's lower limit could be above 0, whatever the other layers: [layer]."""
        values, scale = self._differences(items, differences)
        mean = sampled(values, self.table.subject[items], self.table.relation[items])
        cut = single_cut(mean, scale, self.settings.level)
        # The tolerance is for what rounding does to limits of exactly 0.
        possible: NDArray[np.bool_] = mean.statistic(scale, cut) > cut.critical - 1e-9
        return possible

    def p_values(self, items: Ints, differences: Floats) -> Floats:
        """Return the two-sided p-value of each mean difference, if there were none at any layer: [layer].

        Below 1 - level exactly where the band of `difference_band` excludes 0. Further out the largest |t| over layers
        is taken to fall off like that of so many independent layers as give the band its critical value.
        """
        values, scale = self._differences(items, differences)
        chosen = self.settings
        mean = sampled(values, self.table.subject[items], self.table.relation[items])
        cut = simultaneous_cut(mean, scale, chosen.level, chosen.draws, chosen.seed)
        freedom = max(mean.subjects - 1.0, 1.0)
        layers = (1.0 - chosen.level) / special.stdtr(freedom, -cut.critical)
        p_values: Floats = np.minimum(1.0, layers * special.stdtr(freedom, -np.abs(mean.statistic(scale, cut))))
        return p_values

    def _differences(self, items: Ints, differences: Floats) -> tuple[Floats, Scale]:
        if not self.is_total:
            return differences, DIFFERENCE
        chance = self.chance(items)
        end = 1.0 / (1.0 - float(chance.max()))
        return differences / (1.0 - chance), DIFFERENCE.stretched(-end, end)

    def _band(self, items: Ints, values: Floats, scale: Scale) -> Band:
        chosen, table = self.settings, self.table
        return simultaneous_band(
            values, table.subject[items], table.relation[items],
            scale=scale, level=chosen.level, draws=chosen.draws, seed=chosen.seed,
        )  # fmt: skip


@dataclass(frozen=True)
class PairedMethod:
    """A method at one task and site with its baselines, and the permutation test of whose activation it reads."""

    table: Items
    cells: Mapping[str, CellScores]
    test: ActivationTest | None = None

    @property
    def layers(self) -> tuple[int, ...]:
        """The method's layers."""
        own = self.cells.get(NO_BASELINE)
        return own.layers if own else max((cell.layers for cell in self.cells.values()), key=len)

    @property
    def rules(self) -> tuple[str, ...]:
        """The rules under which its scores are reported."""
        own = self.cells.get(NO_BASELINE)
        return (FIXED, SELECTED, ORACLE) if own and len(own.attempts) > 1 else (FIXED,)

    def rule_of(self, baseline: str, rule: str) -> str:
        """A baseline with attempts of its own kind has no default among them: selected where the method is fixed."""
        own, cell = self.cells.get(NO_BASELINE), self.cells[baseline]
        foreign = own is None or not set(cell.attempts) <= set(own.attempts)
        return SELECTED if rule == FIXED and baseline != NO_BASELINE and foreign else rule


def deciding(cells: list[CellScores], settings: SummarySettings) -> list[CellScores]:
    """Return the cells with the score that decides in the place of the corrected one."""
    if settings.score == CORRECTED:
        return cells
    return [replace(cell, raw=cell.corrected, corrected=cell.raw) for cell in cells]


def methods_of(
    table: Items, cells: Iterable[CellScores], tests: Mapping[tuple[str, ...], ActivationTest] | None = None
) -> Iterator[PairedMethod]:
    """Put the cells of each method and of its baselines together, baselines at all layers of the method."""
    groups: dict[tuple[str, ...], dict[str, CellScores]] = {}
    for cell in cells:
        place = tuple(cell.key[name] for name in KEYS if name != "baseline")
        groups.setdefault(place, {})[cell.key["baseline"]] = cell
    for place, group in groups.items():
        if NO_BASELINE in group:
            layers = group[NO_BASELINE].layers
            group = {name: cell.between(layers, table.relation) for name, cell in group.items()}
        chance = table.chance.copy()
        for cell in group.values():
            chance[cell.items] = cell.chance
        yield PairedMethod(replace(table, chance=chance), group, (tests or {}).get((*place, NO_BASELINE)))


def samples_under(
    method: PairedMethod, rule: str, settings: SummarySettings
) -> Iterator[tuple[Sample, dict[str, Scored]]]:
    """Yield each relation, then the total over the method's relations, with all scores there."""
    scores = {
        name: by_relation(method, cell, method.rule_of(name, rule), settings)
        for name, cell in method.cells.items()
        if name != CONTROL_TASK
    }
    yield from samples_of(method, scores, settings)


def by_relation(
    method: PairedMethod,
    cell: CellScores,
    rule: str,
    settings: SummarySettings,
    attempts: tuple[str, ...] | None = None,
) -> dict[int, Scored]:
    """The scores of a cell under a rule, relation by relation: attempts are chosen within each."""
    result = {}
    for relation in np.unique(method.table.relation[cell.items]):
        part = cell.part(method.table.of_relation(cell.items, int(relation)), attempts)
        if part is not None:
            default = settings.defaults.get(cell.key["inspector"], cell.attempts[0])
            result[int(relation)] = part.scored(rule, default, method.table.fold)
    return result


def samples_of(
    method: PairedMethod, scores: Mapping[str, Mapping[int, Scored]], settings: SummarySettings
) -> Iterator[tuple[Sample, dict[str, Scored]]]:
    """Yield each relation, then the total, with the scores there."""
    table = method.table
    for relation in sorted({number for of_cell in scores.values() for number in of_cell}):
        here = {name: of_cell[relation] for name, of_cell in scores.items() if relation in of_cell}
        yield Sample(table.relations[relation], table, settings), here
    task = next(iter(method.cells.values())).key["task"]
    outside = settings.selected | settings.apart
    answered = scores.get(NO_BASELINE)
    chosen = [
        code
        for code, name in enumerate(table.relations)
        if (task, name) not in outside and (answered is None or code in answered)
    ]
    totals = {
        name: _joined([part for relation, part in of_cell.items() if relation in chosen])
        for name, of_cell in scores.items()
    }
    yield Sample(ALL, table, settings), {name: part for name, part in totals.items() if part is not None}


def _joined(parts: Sequence[Scored]) -> Scored | None:
    if not parts:
        return None
    return Scored(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("items", "raw", "corrected")))
