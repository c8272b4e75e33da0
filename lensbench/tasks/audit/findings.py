"""What an audit finds: a figure for a relation and a check, and what is allowed where a task does not say."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

ALL = "all"
"""In place of a relation's name: what holds for every relation without a threshold of its own."""

# A value passes when it is not above its threshold. The order is that of every table.
DEFAULT_THRESHOLDS: Mapping[str, float] = {
    "answer in text": 0.0,
    # Only where the sources are to state the answer: there it is no leak, and a task may still ask for less.
    "answer given": 1.0,
    "answer in subject": 0.0,
    "relation words": 0.0,
    "answer in knowledge": 0.0,
    "knowledge repeats": 0.0,
    "read at token 0": 0.0,
    "too few classes": 0.0,
    "best constant": 0.10,
    "gold is first": 0.05,
    "gold is in the middle": 0.05,
    "median popularity": 0.05,
    "most popular": 0.05,
    "fold imbalance": 0.15,
    "near duplicates": 0.02,
    "subject characters": 0.10,
    "alias collisions": 0.0,
    "token collisions": 0.0,
    "alias token collisions": 0.0,
}
# Made only with a model's tokenizer.
MODEL_CHECKS = frozenset({"token collisions", "alias token collisions"})

Thresholds = Mapping[tuple[str, str], float]
"""The most that is allowed, by (relation, check); the relation may be `all`."""

Figure = tuple[float, str]
"""A value, and in words what was seen."""


@dataclass(frozen=True)
class AuditFinding:
    """One figure of the audit.

    Attributes:
        relation: Name of the relation.
        check: What was checked, one of the keys of `DEFAULT_THRESHOLDS`.
        value: The figure. Of a leak the share of facts; of a guess its accuracy minus what chance allows.
        threshold: The most that is allowed.
        ok: Whether the value is within the threshold.
        detail: The figure in words, with the first examples.
    """

    relation: str
    check: str
    value: float
    threshold: float
    ok: bool
    detail: str


def threshold_of(thresholds: Thresholds, relation: str, check: str) -> float:
    """Return the threshold of a relation's own, else the one for all relations, else the default."""
    general = thresholds.get((ALL, check), DEFAULT_THRESHOLDS[check])
    return thresholds.get((relation, check), general)


def within(value: float, threshold: float) -> bool:
    """Tell whether a value passes; what differs by rounding only does."""
    return value <= threshold + 1e-9


def examples(hits: Sequence[str], most: int = 3) -> str:
    """Return the first of what was found, and how many more there are."""
    return ", ".join(hits[:most]) + (f" and {len(hits) - most} more" if len(hits) > most else "")
