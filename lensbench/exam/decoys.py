"""Decoys that fill a paper up: where those of the baselines would stand out by their number, lengths or company."""

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float

from lensbench.harness.recording import Asked, Question, Recording, TrainingSet, digest_of

Choices = tuple[str, ...]
NEAR = 1e-5
"""Lengths that differ by a smaller share are the same."""
SPREAD = 0.01
"""How far the lengths of noise lie from those of other rows, as a share."""


@dataclass(frozen=True, eq=False)
class PaperRow:
    """One row of a paper.

    Attributes:
        asked: the activation, and the question.
        choices: the answers that it has to choose from, where it gives only one.
        training: the digest of its training set; empty where there is none.
        real: whether it is an activation of the target at the place that is asked about.
    """

    asked: Asked
    choices: Choices
    training: str
    real: bool


class Stratum(NamedTuple):
    """Rows that look alike but for their activations and choices."""

    question: Question
    layer: int
    training: str


@dataclass
class Filler:
    """Adds decoys to the rows of a paper.

    Args:
        rows: of the paper; decoys are added to them.
        recording: all that recorders were asked; training sets are added to it.
        rng: draws everything.
        dtype: the precision of the real activations, which decoys have too.
    """

    rows: list[PaperRow]
    recording: Recording
    rng: random.Random
    dtype: torch.dtype = torch.float32

    def fill(self) -> None:
        """Add what is missing.

        Each layer of a question gets equally many training sets; decoys are asked under several questions as often as
        real activations are; no row is alone with its length; and everywhere there are equally many decoys for each
        real row.
        """
        self._even_training_sets()
        self._ask_elsewhere()
        for stratum, rows in self._strata().items():
            alone = _alone([_length(row) for row in rows])
            self._add(stratum, rows, [_length(rows[i]) for i in alone], [rows[i].choices for i in alone])
        groups: dict[tuple[Question, int, Choices], dict[str, list[PaperRow]]] = defaultdict(lambda: defaultdict(list))
        for row in self.rows:
            groups[row.asked.question, row.asked.layer, row.choices][row.training].append(row)
        wanted = max((_decoys(sets.values()) for sets in groups.values()), default=0.0)
        strata = self._strata()
        for (question, layer, choices), sets in groups.items():
            total = round(_real(sets.values()) * (1 + wanted))
            for training, rows in sets.items():
                stratum = Stratum(question, layer, training)
                lengths = self._pairs_of_lengths(strata[stratum], total - len(rows))
                self._add(stratum, strata[stratum], lengths, [choices] * len(lengths))

    def _strata(self) -> dict[Stratum, list[PaperRow]]:
        found: dict[Stratum, list[PaperRow]] = defaultdict(list)
        for row in self.rows:
            found[Stratum(row.asked.question, row.asked.layer, row.training)].append(row)
        return found

    def _even_training_sets(self) -> None:
        """Give each layer of a question as many training sets as any other: the number would tell where an edit is."""
        sets: dict[tuple[Question, int], dict[str, list[PaperRow]]] = defaultdict(lambda: defaultdict(list))
        for row in self.rows:
            if row.training:
                sets[row.asked.question, row.asked.layer][row.training].append(row)
        most = Counter[Question]()
        for (question, _), own in sets.items():
            most[question] = max(most[question], len(own))
        for (question, layer), own in sets.items():
            like = self.recording.training[
                next(training for training, rows in own.items() if any(r.real for r in rows))
            ]
            for _ in range(most[question] - len(own)):
                values = self._noise(like.activations, np.linalg.norm(like.activations, axis=1).tolist())
                digest = digest_of(question, layer, like.groups, like.labels, values)
                made = TrainingSet(like.question, layer, values, like.groups, like.labels)
                self.recording.training[digest] = made
                for choices in dict.fromkeys(row.choices for rows in own.values() for row in rows):
                    row = next(row for rows in own.values() for row in rows if row.choices == choices)
                    (noise,) = self._noise(values, [_length(row)])
                    self.rows.append(self._decoy(Stratum(question, layer, digest), noise, choices, row.asked))

    def _ask_elsewhere(self) -> None:
        """Ask decoys under further questions, where real activations stand under several."""
        places: dict[tuple[str, int], dict[Question, list[PaperRow]]] = defaultdict(lambda: defaultdict(list))
        for row in self.rows:
            places[row.asked.question.site, row.asked.layer][row.asked.question].append(row)
        for (_, layer), asked in places.items():
            real = {q: {_key(row) for row in rows if row.real} for q, rows in asked.items()}
            for question, rows in asked.items():
                decoys = [row for row in rows if not row.real]
                for other in asked:
                    shared = len(real[question] & real[other]) / max(1, len(real[question])) if other != question else 0
                    # Each pair of questions is met twice.
                    for row in self.rng.sample(decoys, min(len(decoys), round(shared * len(decoys) / 2))):
                        like = self.rng.choice([one for one in asked[other] if one.real])
                        stratum = Stratum(other, layer, like.training)
                        self.rows.append(self._decoy(stratum, row.asked.activation, like.choices, like.asked))

    def _pairs_of_lengths(self, rows: Sequence[PaperRow], count: int) -> list[float]:
        """Draw lengths near those of rows, each twice; one of them three times where the number is odd."""
        drawn = [
            _length(self.rng.choice(rows)) * (1 + SPREAD * self.rng.gauss(0, 1)) for _ in range(max(0, count) // 2)
        ]
        lone = [_length(self.rng.choice(rows))] if count == 1 else drawn[:1]
        return [*drawn, *drawn, *(lone if count % 2 and count > 0 else [])]

    def _add(
        self, stratum: Stratum, like: Sequence[PaperRow], lengths: Sequence[float], choices: Sequence[Choices]
    ) -> None:
        """Add noise of these lengths."""
        if not lengths:
            return
        real = [row for row in like if row.real] or like
        values = self._noise(np.stack([row.asked.activation for row in real]), lengths)
        for one, chosen in zip(values, choices, strict=True):
            self.rows.append(self._decoy(stratum, one, chosen, self.rng.choice(like).asked))

    def _decoy(
        self, stratum: Stratum, values: Float[np.ndarray, " d_model"], choices: Choices, like: Asked
    ) -> PaperRow:
        same = digest_of(stratum.question, stratum.layer, like.text, values)
        asked = replace(
            like, question=stratum.question, layer=stratum.layer, activation=values, training=stratum.training,
            same=same,
        )  # fmt: skip
        return PaperRow(asked, choices, stratum.training, real=False)

    def _noise(
        self, like: Float[np.ndarray, "item d_model"], lengths: Sequence[float]
    ) -> Float[np.ndarray, "row d_model"]:
        """Draw vectors of these lengths with the mean and covariance of others."""
        rng = np.random.default_rng(self.rng.getrandbits(64))
        rows = like.astype(np.float64)
        centred = rows - rows.mean(0)
        drawn = rows.mean(0) + rng.standard_normal((len(lengths), len(rows))) @ centred / max(1, len(rows) - 1) ** 0.5
        noise = drawn * np.asarray(lengths)[:, None] / np.linalg.norm(drawn, axis=1, keepdims=True)
        found: Float[np.ndarray, "row d_model"] = torch.from_numpy(noise).to(self.dtype).float().numpy()
        return found


def _key(row: PaperRow) -> bytes:
    return row.asked.activation.tobytes()


def _length(row: PaperRow) -> float:
    return float(np.linalg.norm(row.asked.activation.astype(np.float64)))


def _alone(lengths: Sequence[float]) -> list[int]:
    """Return the places of lengths that no other is like."""
    order = np.argsort(lengths)
    ordered = np.asarray(lengths)[order]
    gaps = np.diff(ordered) > NEAR * ordered[1:]
    before, after = np.r_[True, gaps], np.r_[gaps, True]
    return [int(i) for i in order[before & after]]


def _real(sets: Iterable[Sequence[PaperRow]]) -> int:
    listed = list(sets)
    return max(sum(row.real for row in rows) for rows in listed) or max(map(len, listed))


def _decoys(sets: Iterable[Sequence[PaperRow]]) -> float:
    """How many decoys there are for each real row, in the training set that has the most."""
    listed = list(sets)
    return max(map(len, listed)) / _real(listed) - 1
