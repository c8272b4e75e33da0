"""Which rows a paper has: real ones and decoys in one proportion everywhere, in random order, some of them twice."""

import random
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch

from lensbench.exam.decoys import Choices, Filler, PaperRow
from lensbench.harness.recording import Asked, Question, Recording

SHEETS = 8
"""How many sheets a paper has, beside the one that stands there twice."""
REPEATED = 0.02
"""The share of rows that stand on two sheets."""
FEWEST_REPEATED = 8
Repeat = Literal["other neighbours", "same neighbours"]


class LaidRow(NamedTuple):
    """A row as it stands in the paper: which one it is, and on which sheet."""

    place: int
    sheet: int


@dataclass
class Composer:
    """Collects the rows of a paper.

    Args:
        recording: all that recorders were asked.
        seed: of everything random.
        dtype: the precision of the real activations.
    """

    recording: Recording
    seed: str
    dtype: torch.dtype = torch.float32
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

    @property
    def width(self) -> int:
        """How many numbers an activation has."""
        return len(self.rows[0].asked.activation)

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
        """Add decoys, so that nothing but its activation tells what a row is; see `Filler`."""
        Filler(self.rows, self.recording, self._rng, self.dtype).fill()

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


def new_names(count: int, seed: str, what: str, digits: int = 10) -> list[str]:
    """Return names that say nothing, no two the same."""
    rng = random.Random(f"{seed}/{what}")
    found: dict[str, None] = {}
    while len(found) < count:
        found[f"{rng.getrandbits(4 * digits):0{digits}x}"] = None
    return list(found)
