"""Ways to cheat in an exam that need no method at all: what they try must earn nothing.

Each is given a whole paper, and answers it; none of them reads an activation for what it says.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from lensbench.exam.paper import Paper

Sheet = dict[str, Float[np.ndarray, "attempt answer"]]


@dataclass(frozen=True)
class ExamCheat:
    """A way to cheat.

    Attributes:
        answer: answers a paper.
        how: it cheats, in a sentence.
    """

    answer: Callable[[Paper], Sheet]
    how: str


def spots_decoys(paper: Paper) -> Sheet:
    """Take rows of odd lengths, and rows that stand there twice, for decoys; read noise in the others alone."""
    rows, activations = paper.asked.rows.to_pylist(), paper.asked.activations
    lengths = np.linalg.norm(activations, axis=1)
    twice = Counter(values.tobytes() for values in activations)
    layers = np.array([row["layer"] for row in rows])
    usual = {layer: np.quantile(lengths[layers == layer], (0.1, 0.9)) for layer in set(layers.tolist())}
    found = {}
    for row, values, length in zip(rows, activations, lengths, strict=True):
        low, high = usual[row["layer"]]
        odd = not low <= length <= high or twice[values.tobytes()] > 1
        found[row["row"]] = _flat(row) if odd else _noise(row, values.tobytes())
    return found


def uses_order(paper: Paper) -> Sheet:
    """Take the answers in the order in which the rows stand in the paper."""
    rows = paper.asked.rows.to_pylist()
    return {row["row"]: _at(row, i * len(row["choices"]) // len(rows)) for i, row in enumerate(rows)}


def uses_positions(paper: Paper) -> Sheet:
    """Take the answer that stands at the place which the row's name draws: where lists are sorted, places may tell."""
    return {row["row"]: _at(row, int(row["row"], 16) % len(row["choices"])) for row in paper.asked.rows.to_pylist()}


def _flat(row: Mapping[str, Any]) -> Float[np.ndarray, "attempt answer"]:
    return np.zeros((1, len(row["answers"])))


def _at(row: Mapping[str, Any], place: int) -> Float[np.ndarray, "attempt answer"]:
    found = _flat(row)
    found[0, row["answers"].index(row["choices"][place])] = 1.0
    return found


def _noise(row: Mapping[str, Any], seed: bytes) -> Float[np.ndarray, "attempt answer"]:
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(seed).digest()[:8], "little"))
    return rng.standard_normal((1, len(row["answers"])))


EXAM_CHEATS = {
    "exam_cheat_decoys": ExamCheat(spots_decoys, "It guesses which rows are decoys, and spares itself there."),
    "exam_cheat_order": ExamCheat(uses_order, "It takes the answers in the order of the paper."),
    "exam_cheat_positions": ExamCheat(uses_positions, "It takes the answer at a place that the row's name draws."),
}
