"""Description-length probe."""

from dataclasses import replace
from itertools import pairwise
from typing import ClassVar, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from sklearn.linear_model import LogisticRegression

from lensbench.inspectors.evidence import Evidence, Learns, Source
from lensbench.inspectors.probes.probing import (
    ClassProbe,
    Labelled,
    Standardised,
    at_each_layer,
    moments,
    reduced,
    require_numbers,
    unreduced,
)
from lensbench.inspectors.scores import Scores
from lensbench.inspectors.target import Target
from lensbench.models.activations import Residuals
from lensbench.models.language_model import LanguageModel

FRACTIONS = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.0625, 0.125, 0.25, 0.5, 1.0)
"""Where the paper's blocks end, as shares of the training subjects."""
PSEUDO_COUNT = 0.5
"""What each answer counts beside the items seen: the estimator of Krichevsky and Trofimov (1981)."""
DESCRIPTION_LENGTH, COMPRESSION = "description_length", "compression"


class MdlProbe(ClassProbe):
    """How many bits the labels take for one who knows h_l: online description length (Voita & Titov 2020).

    arXiv 2003.12298. The training subjects are dealt into blocks. With K answers, t_i items before block i + 1 and
    p_i a logistic probe fitted to them, the labels take

        L = t_1 log2 K - sum_i sum_{n = t_i + 1}^{t_{i+1}} log2 q_i(y_n | h_n) + log2 S bits,
        q_i(y | h) = (t_i p_i(y | h) + 1/2) / (t_i + K/2).

    q adds half a count to each answer, so that an answer which no earlier block had takes finitely many bits; where p
    gives frequencies it is Krichevsky's and Trofimov's estimator. C is the one of S values that makes L shortest, and
    log2 S bits say which: so L is what a receiver of the labels would really need. `compression` is n log2 K / L: 1 or
    less where the labels cannot be told from the activation. It answers with the probe fitted to all blocks.

    Args:
        strengths: values of C, the inverse of the L2 penalty.
        seed: the order of the subjects.
    """

    name: ClassVar[str] = "mdl_probe"
    reads: ClassVar[frozenset[Source]] = frozenset({"activation"})
    learns_from: ClassVar[Learns] = "labels"
    tries: ClassVar[str] = "one"
    cost: ClassVar[str] = "a regression a block, strength, layer, relation and fold"

    def __init__(self, strengths: tuple[float, ...] = (0.001, 0.01, 0.1), seed: int = 0) -> None:
        self.strengths = tuple(strengths)
        self.seed = seed

    def check(self, target: Target, verbalizer: LanguageModel) -> None:
        """Check the parameters.

        Raises:
            UsageError: no strength, one that is not above 0, or a seed that is no whole number from 0 on.
        """
        require_numbers(self, "strengths", 0.0, beyond=True)
        require_numbers(self, "seed", 0.0, whole=True)

    def learn(self, residuals: Residuals, labelled: Labelled) -> list[Standardised]:
        """Code the labels at each layer, and fit the probe that answers."""
        order, ends = blocks(labelled.groups, self.seed)
        coded = at_each_layer(_fit_layer, residuals, labelled.labels, order, ends, self.strengths)
        uniform = np.log2(len(set(labelled.labels)))
        self.measures_: dict[str, Float[np.ndarray, " layer"]] = {
            DESCRIPTION_LENGTH: np.array([one.bits for one in coded]),
            COMPRESSION: np.array([uniform / one.bits for one in coded]),
        }
        return [one.probe for one in coded]

    def inspect(self, evidence: Evidence) -> Scores:
        """Return the last probe's log-probabilities, and as measures how well the training labels were coded."""
        scores = super().inspect(evidence)
        at = [self.layers_.index(layer) for layer in evidence.layers]
        shape = tuple(scores.log_scores.shape[:3])
        spread = {
            name: np.broadcast_to(values[at, None, None], shape).copy() for name, values in self.measures_.items()
        }
        return replace(scores, measures=spread)


class Coded(NamedTuple):
    """One layer's labels, coded.

    Attributes:
        probe: fitted to all of them.
        bits: the length of their online code, in bits an item.
    """

    probe: Standardised
    bits: float


def blocks(groups: Int[np.ndarray, " item"], seed: int) -> tuple[Int[np.ndarray, " item"], Int[np.ndarray, " block"]]:
    """Return the items in a drawn order of their subjects, and how many of them there are at the end of each block.

    A subject is never split, and blocks that would hold none are left out.
    """
    subjects, sizes = np.unique(groups, return_counts=True)
    drawn = np.random.default_rng(seed).permutation(len(subjects))
    rank = np.empty(len(subjects), dtype=int)
    rank[drawn] = np.arange(len(subjects))
    order = np.argsort(rank[np.searchsorted(subjects, groups)], kind="stable")
    last = np.unique([int(fraction * len(subjects)) for fraction in FRACTIONS])
    ends = sizes[drawn].cumsum()[last[last > 0] - 1]
    return order, ends


def _fit_layer(
    values: Float[np.ndarray, "item d_model"],
    labels: np.ndarray,
    order: Int[np.ndarray, " item"],
    ends: Int[np.ndarray, " block"],
    strengths: tuple[float, ...],
) -> Coded:
    """Code the labels at each C, and fit the probe that answers at the C of the shortest code."""
    # Who is to decode the labels has all activations: so they may all be used to standardise.
    mean, scale = moments(values)
    coordinates, basis = reduced(((values - mean) / scale)[order], int(ends[0]))
    place = np.unique(labels[order], return_inverse=True)[1]
    lengths = [online_bits(coordinates, place, ends, strength) for strength in strengths]
    best = int(np.argmin(lengths))
    bits = lengths[best] + np.log2(len(strengths))
    probe = _regression(strengths[best]).fit(coordinates, labels[order])
    return Coded(Standardised(mean, scale, unreduced(probe, basis)), float(bits / len(labels)))


def online_bits(
    values: Float[np.ndarray, "item coordinate"],
    place: Int[np.ndarray, " item"],
    ends: Int[np.ndarray, " block"],
    strength: float,
) -> float:
    """Return the length of the labels' online code at one C.

    Args:
        values: coordinates in a basis that is built up item by item, in the order of the blocks.
        place: each item's answer, from 0 to K - 1; all of them occur.
        ends: how many items there are at the end of each block.
        strength: C.
    """
    answers = int(place.max()) + 1
    bits = float(ends[0] * np.log2(answers))
    for start, end in pairwise(ends.tolist()):
        gold = _gold_probabilities(values[:end, :start], place[:end], start, strength)
        coded = (start * gold + PSEUDO_COUNT) / (start + PSEUDO_COUNT * answers)
        bits -= float(np.log2(coded).sum())
    return bits


def _gold_probabilities(
    values: Float[np.ndarray, "item coordinate"], place: Int[np.ndarray, " item"], start: int, strength: float
) -> Float[np.ndarray, " coded"]:
    """Fit a probe to the items before `start`; return what it gives to the right answers of those after."""
    seen = np.unique(place[:start])
    if len(seen) == 1:  # all the same so far: nothing to fit
        alike: np.ndarray = (place[start:] == seen[0]).astype(np.float64)
        return alike
    probe = _regression(strength).fit(np.ascontiguousarray(values[:start]), place[:start])
    found = probe.predict_proba(values[start:])
    column = np.searchsorted(seen, place[start:]).clip(max=len(seen) - 1)
    gold: np.ndarray = np.where(seen[column] == place[start:], found[np.arange(len(column)), column], 0.0)
    return gold


def _regression(strength: float) -> LogisticRegression:
    return LogisticRegression(C=strength, solver="newton-cg")
