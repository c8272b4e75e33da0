"""Made-up methods that read activations: what they say of every activation, at every layer, as records."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
from scipy import special

from lensbench.results.crossed_files import crossed_table
from lensbench.results.records import NO_BASELINE, frame_of
from lensbench.results.samples import SummarySettings
from lensbench.results.summary import summarise

ANSWERS = tuple(f"answer{i}" for i in range(8))
LAYERS, MEMORY = 31, 0.9
TASTE = np.array([1.0, 1.0, 0, 0, 0, 0, 0, 0])
"""What a method prefers to say, before its prior is corrected."""


@dataclass(frozen=True)
class MadeReader:
    """A method that is right of some subjects from the middle layer on, and guesses otherwise.

    Attributes:
        gap: over chance, from layer 15 on; 0 reads nothing.
        relations: about the same subjects, with gold answers of their own.
        subjects: of each, with one item.
        baselines: further baselines of the question: `gaussian` guesses, others say one answer at each layer.
        learns: whether it has a fit for each fold, each with a taste of its own.
    """

    gap: float
    relations: int
    subjects: int
    baselines: tuple[str, ...] = ()
    learns: bool = False

    def study(self, seed: int) -> tuple[float, bool]:
        """Return the smallest p-value over layers, and whether the claim is made at some layer."""
        rng = np.random.default_rng([seed, self.subjects, self.relations, int(1000 * self.gap), self.learns])
        records, tables = [], []
        for relation in range(self.relations):
            gold = rng.integers(0, len(ANSWERS), self.subjects)
            said = self._guesses(rng)
            if self.gap > 0:
                knows = curves(rng, self.subjects) < special.ndtri(self.gap / (1 - 1 / len(ANSWERS)))
                said = np.where(knows & (np.arange(LAYERS) >= 15), gold[:, None], said)
            records.append(_records(said, gold, f"relation{relation}", NO_BASELINE))
            tables.append(_table(said, gold, f"relation{relation}"))
            for name in self.baselines:
                other = self._guesses(rng) if name == "gaussian" else np.tile(curves(rng, 8).argmax(0), (len(gold), 1))
                records.append(_records(other, gold, f"relation{relation}", name))
        settings = SummarySettings(
            dict.fromkeys(("shuffled", *self.baselines), "uses_activation"), draws=500,
            learns_labels=frozenset({"reader"} if self.learns else ()),
        )  # fmt: skip
        summary = summarise(pd.concat(records, ignore_index=True), settings, frame_of(tables))
        own = summary[summary["baseline"] == NO_BASELINE]
        own = own[(own["relation"] == "all") == (self.relations > 1)]
        return float(own["p_value"].min()), bool((own["verdict"] == "uses the activation").any())

    def _guesses(self, rng: np.random.Generator) -> np.ndarray:
        """Answers that have nothing to do with the gold ones, their prior corrected: [subject, layer]."""
        scores = curves(rng, self.subjects, len(ANSWERS)) + TASTE[:, None]
        if self.learns:
            scores = scores + curves(rng, 5, len(ANSWERS))[np.arange(self.subjects) % 5]
        else:
            scores = scores - scores.mean(axis=0)
        found: np.ndarray = scores.argmax(axis=1)
        return found


def curves(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Standard normal at each layer, each layer like the one before: [*shape, layer]."""
    steps = rng.standard_normal((*shape, LAYERS))
    for layer in range(1, LAYERS):
        steps[..., layer] = MEMORY * steps[..., layer - 1] + np.sqrt(1 - MEMORY**2) * steps[..., layer]
    return steps


def _where(relation: str, baseline: str) -> dict[str, str]:
    same = {"model": "made", "verbalizer": "made", "task": "made", "site": "subject", "inspector": "reader"}
    return {**same, "relation": relation, "baseline": baseline}


def _records(said: np.ndarray, gold: np.ndarray, relation: str, baseline: str) -> pd.DataFrame:
    subjects = np.repeat(np.arange(len(gold)), LAYERS)
    correct = (said == gold[:, None]).astype(float).ravel()
    return pd.DataFrame(
        {
            **_where(relation, baseline), "layer": np.tile(np.arange(LAYERS), len(gold)), "attempt": "default",
            "item": [f"{relation}/{i:03}" for i in subjects], "subject": [f"s{i:03}" for i in subjects],
            "fold": subjects % 5, "gold": [ANSWERS[gold[i]] for i in subjects], "chance": 1 / len(ANSWERS),
            "correct": correct, "correct_corrected": correct, "seed": 0, "known": None,
        }
    ).astype({"layer": "Int16"})  # fmt: skip


def _table(said: np.ndarray, gold: np.ndarray, relation: str) -> pa.Table:
    golds = np.unique(gold)
    credit = (said.T[:, None, :, None] == golds).astype(float)
    names = [f"{relation}/{i:03}" for i in range(len(gold))]
    where = _where(relation, NO_BASELINE)
    return crossed_table(credit, range(LAYERS), ["default"], names, [ANSWERS[code] for code in golds], **where)
