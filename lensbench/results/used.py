"""Whether the model uses what a method reads: effects of interventions, as shares of that of the whole residual.

The design is docs/decisions/0015-used.md. What is recorded of an intervention is the log-odds of the donor's answer
against the item's own, in the column `gold_log_prob`; this module sees nothing else.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lensbench.results.arrays import FIXED, KEYS
from lensbench.results.bands import Band, Floats, simultaneous_band
from lensbench.results.records import ALL, NO_BASELINE
from lensbench.results.samples import SummarySettings
from lensbench.results.verdicts import ACTIVATION, USED, VERDICTS

INTERVENTION = "intervention"
"""The baseline whose records these are."""
CLEAN, ALONG, RANDOM = "clean", "along", "random_direction"
MEAN_DIFFERENCE, INTERCHANGE = "mean_difference", "interchange"
"""The attempts: nothing changed, and the four interventions."""
NO_CEILING, READABLE, NO_EFFECT = "no ceiling", "readable, no effect seen", "no effect seen"
MOVES, OPPOSITE = "moves the answer, not shown to be read", "moves the answer the other way"
"""What may be said besides that the direction is used: the rest is `inconclusive`."""
LEAST_CEILING, LEAST_PART = 0.05, 1 / 3
"""What the lower limit of a ceiling must exceed: so many nats (odds that move by 5 %), as rounding alone may move them
a little; and that part of the ceiling itself, as a share of what is hardly known is not known."""


@dataclass(frozen=True)
class Effects:
    """The effects of interventions at one place: of one relation, or of all that count in totals.

    Attributes:
        layers: in ascending order.
        values: by attempt, [item, layer]: log-odds after the intervention less those before it.
        subjects: of each item.
        relations: of each item.
        settings: how bands are made.
    """

    layers: tuple[int, ...]
    values: Mapping[str, Floats]
    subjects: NDArray[np.object_]
    relations: NDArray[np.object_]
    settings: SummarySettings

    @cached_property
    def ceiling(self) -> Band:
        """The band of the effect of the whole residual, in nats."""
        return self._band(self.values[INTERCHANGE])

    @cached_property
    def above_random(self) -> Band:
        """The band of the share along the method's direction, less that along a random one."""
        return self.share(ALONG, RANDOM)

    def share(self, *of: str) -> Band:
        """Return the band of an effect's share of the ceiling, or of the difference of two; NaN without a ceiling.

        The share is a ratio of means. Each item's value is its part in the ratio's linear form at the estimate, so
        that the spread of the ceiling is in their spread.
        """
        ceiling, weight = self.values[INTERCHANGE], self._weights
        effect = self.values[of[0]] - (self.values[of[1]] if len(of) > 1 else 0.0)
        there = self.ceiling.low > np.maximum(LEAST_CEILING, LEAST_PART * self.ceiling.estimate)
        mean = np.where(there, weight @ ceiling, 1.0)
        share = (weight @ effect) / mean
        # Layers without a ceiling have no share: they must not widen the band of the others.
        band = self._band(np.where(there, (effect - share * ceiling) / mean + share, 0.0))
        return Band(*(np.where(there, side, np.nan) for side in (band.estimate, band.low, band.high)))

    def _band(self, values: Floats) -> Band:
        """Return the band over layers of a mean of items, each layer's range being as wide as its values."""
        reach = np.abs(values).max(axis=0)
        reach[reach == 0] = 1.0
        band = simultaneous_band(
            values / reach, self.subjects, self.relations, level=self.settings.level, draws=self.settings.draws,
            seed=self.settings.seed,
        )  # fmt: skip
        return Band(*(side * reach for side in (band.estimate, band.low, band.high)))

    def of(self, chosen: NDArray[np.bool_]) -> "Effects":
        """Return those of some of the items."""
        values = {name: array[chosen] for name, array in self.values.items()}
        return Effects(self.layers, values, self.subjects[chosen], self.relations[chosen], self.settings)

    @property
    def _weights(self) -> Floats:
        """Of each item in a mean over relations."""
        _, relation, sizes = np.unique(self.relations, return_inverse=True, return_counts=True)
        weights: Floats = 1.0 / (len(sizes) * sizes[relation])
        return weights


def without_interventions(records: pd.DataFrame) -> pd.DataFrame:
    """Return the records that are answers of methods and baselines about their own items."""
    return records[records["baseline"] != INTERVENTION]


def effects_of(records: pd.DataFrame, settings: SummarySettings) -> Iterator[tuple[dict[str, str], Effects]]:
    """Yield the effects of each method at each task and site, with its key: that of the method's own cell."""
    found = records[records["baseline"] == INTERVENTION]
    for key, part in found.groupby(list(KEYS), observed=True, sort=True):
        wide = part.pivot_table(
            index=["relation", "subject", "item"], columns=["attempt", "layer"], values="gold_log_prob", observed=True
        )
        layers = tuple(sorted({int(layer) for layer in wide.columns.get_level_values("layer")}))
        names = [str(name) for name in dict.fromkeys(wide.columns.get_level_values("attempt"))]
        arrays = {
            name: np.stack([wide[name, layer].to_numpy(np.float64) for layer in layers], axis=1) for name in names
        }
        whole = np.isfinite(np.stack([arrays[name] for name in (CLEAN, ALONG, RANDOM, INTERCHANGE)])).all((0, 2))
        values = {name: array[whole] - arrays[CLEAN][whole] for name, array in arrays.items() if name != CLEAN}
        relations, subjects = (
            wide.index.get_level_values(name).astype(str).to_numpy(object)[whole] for name in ("relation", "subject")
        )
        if len(subjects):
            named = dict(zip(KEYS, map(str, key), strict=True))
            yield named | {"baseline": NO_BASELINE}, Effects(layers, values, subjects, relations, settings)


def parts_of(effects: Effects, task: str) -> Iterator[tuple[str, Effects]]:
    """Yield each relation's effects with its name, then those of all that count in totals."""
    outside = effects.settings.selected | effects.settings.apart
    for relation in sorted(set(effects.relations)):
        yield relation, effects.of(effects.relations == relation)
    inside = np.array([(task, relation) not in outside for relation in effects.relations], dtype=bool)
    if inside.any():
        yield ALL, effects.of(inside)


def used_blocks(
    records: pd.DataFrame, blocks: Sequence[Mapping[str, Any]], settings: SummarySettings
) -> Iterator[dict[str, Any]]:
    """Yield the rows of a summary that answer the fourth question: a method's own, with this gap and verdict.

    Args:
        records: of one run.
        blocks: the summary's other rows, by which is known where a method uses the activation.
        settings: how verdicts are given.
    """
    own: dict[tuple[str, ...], Mapping[str, Any]] = {}
    for block in blocks:
        if block["baseline"] == NO_BASELINE and block["rule"] == FIXED:
            place = _place(block, str(block["relation"]))
            if place not in own or block.get("question") == ACTIVATION:
                own[place] = block
    for key, effects in effects_of(records, settings):
        for relation, part in parts_of(effects, key["task"]):
            there = own.get(_place(key, relation))
            # A total over other relations than the method's own would be readable by what it is not about.
            if there is not None and int(there["relations"]) == len(set(part.relations)):
                yield _block(there, part)


def _place(key: Mapping[str, Any], relation: str) -> tuple[str, ...]:
    return (*(str(key[name]) for name in KEYS), relation)


def _block(own: Mapping[str, Any], effects: Effects) -> dict[str, Any]:
    places = [list(own["layer"]).index(layer) for layer in effects.layers]
    scores = {
        name: np.asarray(value)[places] if isinstance(value, np.ndarray) and len(value) > 1 else value
        for name, value in own.items()
        if name not in ("p_value", "detectable_gap")
    }
    uses = np.broadcast_to(np.asarray(own.get("verdict", ""), dtype=object), len(own["layer"]))[places]
    gap = effects.above_random
    return scores | {
        "layer": np.array(effects.layers), "question": USED, "strongest_baseline": RANDOM,
        "n": len(effects.subjects), "subjects": len(set(effects.subjects)),
        "gap": gap.estimate, "gap_low": gap.low, "gap_high": gap.high,
        "verdict": used_verdict(effects, uses == VERDICTS[ACTIVATION]),
    }  # fmt: skip


def used_verdict(effects: Effects, readable: NDArray[np.bool_]) -> NDArray[np.object_]:
    """Return at each layer whether the direction is used, or what is said in place of it.

    Args:
        effects: of one relation, or of all.
        readable: whether the method uses the activation, at each layer.
    """
    share, above, margin = effects.share(ALONG), effects.above_random, effects.settings.margin
    verdict = np.full(len(effects.layers), "inconclusive", dtype=object)
    follows = (share.low > 0) & (above.low > 0)
    # An effect that is surely there, and surely as good as none, is no use.
    none = (share.low > -margin) & (share.high < margin)
    verdict[share.high < 0] = OPPOSITE
    for found, words in ((follows, (VERDICTS[USED], MOVES)), (none, (READABLE, NO_EFFECT))):
        verdict[found & readable], verdict[found & ~readable] = words
    verdict[np.isnan(share.estimate)] = NO_CEILING
    return verdict


def effect_metrics(records: pd.DataFrame, settings: SummarySettings) -> Iterator[dict[str, Any]]:
    """Yield rows of metrics.csv: each intervention's share of the ceiling, and the ceiling in nats."""
    for key, effects in effects_of(records, settings):
        for relation, part in parts_of(effects, key["task"]):
            for name in part.values:
                if not np.isfinite(part.values[name]).all():
                    continue  # a relation without mean differences leaves their total without any
                band = part.ceiling if name == INTERCHANGE else part.share(name)
                there = ~np.isnan(band.estimate)
                yield {
                    **key, "baseline": INTERVENTION, "relation": relation, "layer": np.array(part.layers)[there],
                    "rule": name, "question": USED, "metric": CEILING if name == INTERCHANGE else SHARE,
                    "value": band.estimate[there], "ci_low": band.low[there], "ci_high": band.high[there],
                    "n": len(part.subjects),
                }  # fmt: skip


SHARE, CEILING = "share_of_interchange", "interchange_log_odds"
"""The metrics: an effect as a share of the ceiling, and the ceiling itself, in nats."""
