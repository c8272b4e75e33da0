"""Cheats that read what is not theirs: another layer, another item of the batch, or another of many attempts."""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from lensbench.inspectors.base import Inspector
from lensbench.inspectors.evidence import Evidence, Scores
from lensbench.inspectors.target import Target

ATTEMPTS = 64
TURNS = 100.0
"""How fast the noise turns: residuals that are as alike as two layers of one text get noise that is not."""


def _read(target: Target, values: Float[Tensor, "layer item d_model"], evidence: Evidence) -> Scores:
    """Unembed residuals, as the logit lens does."""
    scores = target.compare_answers(values.flatten(0, 1), evidence.answers)
    return Scores(("default",), scores.reshape(*values.shape[:2], -1)[:, None])


class LaterLayer(Inspector):
    """Reads the last layer that it is given, and says at every layer what it finds there."""

    name: ClassVar[str] = "cheat_later_layer"

    def inspect(self, evidence: Evidence) -> Scores:
        """Unembed the last layer at each."""
        assert evidence.residuals is not None
        values = evidence.residuals.values
        return _read(self.target_, values[-1:].expand_as(values), evidence)


class NextLayer(Inspector):
    """Reads the layer after the one that it answers for, where it is given that: off by one."""

    name: ClassVar[str] = "cheat_next_layer"

    def inspect(self, evidence: Evidence) -> Scores:
        """Unembed layer l + 1 at layer l."""
        assert evidence.residuals is not None
        layers = evidence.layers
        places = [layers.index(layer + 1 if layer + 1 in layers else layer) for layer in layers]
        return _read(self.target_, evidence.residuals.values[places], evidence)


class SameAtEveryLayer(Inspector):
    """Reads one layer, in the middle of those that it is given, and says at all of them what it finds there."""

    name: ClassVar[str] = "cheat_same_at_every_layer"

    def inspect(self, evidence: Evidence) -> Scores:
        """Unembed the middle layer at each."""
        assert evidence.residuals is not None
        values = evidence.residuals.values
        middle = len(values) // 2
        return _read(self.target_, values[middle : middle + 1].expand_as(values), evidence)


class ClustersTheBatch(Inspector):
    """Compares the items of a batch, and deals the answers out among them so that each is given equally often.

    Logits are standardised over the items, then items and answers are balanced in turn (Sinkhorn's scaling).
    """

    name: ClassVar[str] = "cheat_clusters_the_batch"

    def inspect(self, evidence: Evidence) -> Scores:
        """Unembed, and balance."""
        assert evidence.residuals is not None
        found = _read(self.target_, evidence.residuals.values, evidence).log_scores.double()
        found = found - found.mean(2, keepdim=True)
        found = 5 * found / found.std(2, correction=0, keepdim=True).clamp(min=1e-6)
        for _ in range(50):
            found = found.log_softmax(2).log_softmax(3)
        return Scores(("default",), found)


def _noise(evidence: Evidence) -> Scores:
    """Make noise of the residual, as a hash would, again and again: nothing that it says is left in it."""
    assert evidence.residuals is not None
    values = torch.nn.functional.normalize(evidence.residuals.values.double(), dim=2)
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(ATTEMPTS, len(evidence.answers), values.shape[2], generator=generator).to(values)
    scores = torch.einsum("lid,nad->lnia", values, directions).mul(TURNS).sin()
    return Scores(tuple(f"draw={n}" for n in range(ATTEMPTS)), scores)


class BestOfMany(Inspector):
    """Makes noise of the residual in 64 ways, in the hope that one of them is right of each item."""

    name: ClassVar[str] = "cheat_best_of_many"
    tries: ClassVar[str] = f"{ATTEMPTS} draws of noise"

    def inspect(self, evidence: Evidence) -> Scores:
        """Make noise, many times."""
        return _noise(evidence)


class HiddenAttempts(Inspector):
    """Makes noise of the residual in 64 ways, and declares one."""

    name: ClassVar[str] = "cheat_hidden_attempts"
    tries: ClassVar[str] = "one"

    def inspect(self, evidence: Evidence) -> Scores:
        """Make noise, many times."""
        return _noise(evidence)
