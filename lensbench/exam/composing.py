"""Which rows a paper has: real ones and decoys in one proportion everywhere, in random order, some of them twice."""

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from lensbench.harness.recording import Asked, Question, Recording, digest_of

SHEETS = 8
"""How many sheets a paper has, beside the one that stands there twice."""
REPEATED = 0.02
"""The share of rows that stand on two sheets."""
FEWEST_REPEATED = 8
Repeat = Literal["other neighbours", "same neighbours"]
Choices = tuple[str, ...]


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


class LaidRow(NamedTuple):
    """A row as it stands in the paper: which one it is, and on which sheet."""

    place: int
    sheet: int


class RowGroup(NamedTuple):
    """Rows that look alike but for their activations and training sets."""

    question: Question
    layer: int
    choices: Choices


@dataclass
class Composer:
    """Collects the rows of a paper.

    Args:
        recording: all that recorders were asked.
        seed: of everything random.
    """

    recording: Recording
    seed: str
    rows: list[PaperRow] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._rng = random.Random(f"{self.seed}/rows")
        self._places: dict[tuple[str, str, Choices, str | None], int] = {}
        self._trained: dict[str, list[str]] = defaultdict(list)
        self._main: dict[tuple[Question, int], str] = {}
        for one in self.recording.asked:
            if one.training:
                self._trained[one.same].append(one.training)
                self._main.setdefault((one.question, one.layer), one.training)

    def add(self, number: int, choices: Choices, item: str, *, real: bool) -> int:
        """Return the place of the row for what was asked of an item; real rows are to be added first.

        Args:
            number: of what was asked.
            choices: of the item.
            item: its name. Each has a row of its own for its own activation, and shares those of decoys.
            real: whether it is the item's own activation in the target.
        """
        asked = self.recording.asked[number]
        training = asked.training or self._training_of(asked)
        own = (asked.same, training, choices, item)
        if not real and own in self._places:
            return self._places[own]
        key = own if real else (asked.same, training, choices, None)
        if key not in self._places:
            self._places[key] = len(self.rows)
            self.rows.append(PaperRow(asked, choices, training, real))
        return self._places[key]

    def _training_of(self, asked: Asked) -> str:
        """The training set that a learner has for a row which was asked of a method that learns nothing."""
        main = self._main.get((asked.question, asked.layer), "")
        known = self._trained.get(asked.same, [])
        return main if main in known or not known else known[0]

    def fill(self) -> None:
        """Add decoys, so that everywhere there are as many for each real row; made as the baseline `gaussian` does."""
        groups: dict[RowGroup, dict[str, list[PaperRow]]] = defaultdict(lambda: defaultdict(list))
        alike: dict[tuple[Question, int, str], list[PaperRow]] = defaultdict(list)
        for row in self.rows:
            groups[RowGroup(row.asked.question, row.asked.layer, row.choices)][row.training].append(row)
            alike[row.asked.question, row.asked.layer, row.training].append(row)
        wanted = max((_decoys(sets) for sets in groups.values()), default=0.0)
        for group, sets in groups.items():
            real = _real(sets)
            for training, rows in sets.items():
                like = alike[group.question, group.layer, training]
                like = [row for row in like if row.real] or like
                missing = round(real * (1 + wanted)) - len(rows)
                for values in self._noise([row.asked.activation for row in like], max(0, missing)):
                    same = digest_of(group.question, group.layer, None, values)
                    text = self._rng.choice(rows).asked.text  # each text is as frequent as any other
                    asked = Asked(group.question, group.layer, values, training, text, same)
                    self.rows.append(PaperRow(asked, group.choices, training, real=False))

    def _noise(self, like: Sequence[Float[np.ndarray, " d_model"]], count: int) -> Float[np.ndarray, "row d_model"]:
        """Draw vectors with the mean and covariance of others, each as long as one of them."""
        rng = np.random.default_rng(self._rng.getrandbits(64))
        rows = np.stack(like).astype(np.float64)
        centred = rows - rows.mean(0)
        drawn = rows.mean(0) + rng.standard_normal((count, len(rows))) @ centred / max(1, len(rows) - 1) ** 0.5
        lengths = np.linalg.norm(rows[rng.integers(len(rows), size=count)], axis=1, keepdims=True)
        noise: Float[np.ndarray, "row d_model"] = drawn * lengths / np.linalg.norm(drawn, axis=1, keepdims=True)
        return noise.astype(np.float32)

    def ordered(self) -> tuple[list[LaidRow], list[tuple[int, int, Repeat]]]:
        """Draw the order of the rows, on sheets; some rows stand in the paper twice.

        Single rows are repeated on another sheet, and one sheet is repeated as a whole. A method whose answers differ
        on the second is not deterministic; where they differ in the first alone, it looks at what stands beside a row.

        Returns:
            The rows of the paper, as places in `rows`; and the pairs of them that are the same row.
        """
        places = self._rng.sample(range(len(self.rows)), len(self.rows))
        sheets = [places[i::SHEETS] for i in range(SHEETS)]
        again = self._rng.sample(
            range(len(places)), min(len(places), max(FEWEST_REPEATED, round(REPEATED * len(places))))
        )
        for i in again:
            sheet = sheets[(i % SHEETS + self._rng.randrange(1, SHEETS)) % SHEETS]
            sheet.insert(self._rng.randrange(len(sheet) + 1), places[i])
        copied = self._rng.randrange(SHEETS)
        order = self._rng.sample(range(SHEETS + 1), SHEETS + 1)
        laid = [sheets[copied if one == SHEETS else one] for one in order]
        paper = [LaidRow(place, number) for number, sheet in enumerate(laid) for place in sheet]
        begins = [sum(map(len, laid[:number])) for number in range(len(laid))]
        one, other = begins[order.index(copied)], begins[order.index(SHEETS)]
        pairs: list[tuple[int, int, Repeat]] = [
            (one + i, other + i, "same neighbours") for i in range(len(sheets[copied]))
        ]
        rest = [at for at in range(len(paper)) if paper[at].sheet != order.index(SHEETS)]
        first: dict[int, int] = {}
        for at in rest:
            before = first.setdefault(paper[at].place, at)
            if before != at:
                pairs.append((before, at, "other neighbours"))
        return paper, pairs


def _real(sets: dict[str, list[PaperRow]]) -> int:
    return max(sum(row.real for row in rows) for rows in sets.values()) or max(map(len, sets.values()))


def _decoys(sets: dict[str, list[PaperRow]]) -> float:
    """How many decoys there are for each real row, in the training set that has the most."""
    return max(map(len, sets.values())) / _real(sets) - 1


def new_names(count: int, seed: str, what: str, digits: int = 10) -> list[str]:
    """Return names that say nothing, no two the same."""
    rng = random.Random(f"{seed}/{what}")
    found: dict[str, None] = {}
    while len(found) < count:
        found[f"{rng.getrandbits(4 * digits):0{digits}x}"] = None
    return list(found)
