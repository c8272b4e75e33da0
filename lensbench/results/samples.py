"""The items that one row of a summary is about, and how their scores are averaged."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import special

from lensbench.results.arrays import Items
from lensbench.results.bands import DIFFERENCE, MARGIN, SCORE, Band, Floats, Ints, Scale, simultaneous_band
from lensbench.results.frames import ALL
from lensbench.results.resampling import sampled, simultaneous_cut, single_cut


@dataclass(frozen=True)
class RequiredBaseline:
    """A rival that a method must have faced before anything good is said of it.

    Attributes:
        question: that it is a rival in.
        essential: whether the verdict is open even where the rival cannot answer the relation's questions.
    """

    question: str
    essential: bool


@dataclass(frozen=True)
class SummarySettings:
    """How a summary is made.

    Attributes:
        questions: baseline -> its question.
        due: inspector -> the rivals that it must have faced, by name.
        excused: (task, site, inspector, baseline, relation) where a rival is not applicable.
        defaults: inspector -> its default attempt, else the first in the records.
        selected: (task, relation) whose items were chosen by what the model says in text: they get no verdict.
        apart: (task, relation) that have no part in totals; the selected have none either.
        prose: tasks in which no rival that reads the text has anything to say: nothing is said of beating it.
    """

    questions: Mapping[str, str]
    due: Mapping[str, Mapping[str, RequiredBaseline]] = field(default_factory=dict)
    excused: frozenset[tuple[str, str, str, str, str]] = frozenset()
    defaults: Mapping[str, str] = field(default_factory=dict)
    selected: frozenset[tuple[str, str]] = frozenset()
    apart: frozenset[tuple[str, str]] = frozenset()
    prose: frozenset[str] = frozenset()
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

    def could_be_positive(self, items: Ints, differences: Floats) -> NDArray[np.bool_]:
        """Whether the band's lower limit could be above 0: [layer]. Where not, it is not, whatever the other layers."""
        values, scale = self._differences(items, differences)
        mean = sampled(values, self.table.subject[items], self.table.relation[items])
        cut = single_cut(mean, scale, self.settings.level)
        # The tolerance is for what rounding does to limits of exactly 0.
        possible: NDArray[np.bool_] = mean.statistic(scale, cut) > cut.critical - 1e-9
        return possible

    def p_values(self, items: Ints, differences: Floats) -> Floats:
        """How surprising each mean difference would be if there were none anywhere: [layer], two-sided.

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
