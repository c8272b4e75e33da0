"""Jacobian lens."""

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from lensbench.errors import UsageError
from lensbench.inspectors.base import Translator
from lensbench.inspectors.evidence import Learns, Source, Training
from lensbench.inspectors.target import Target
from lensbench.models.corpus import Corpus
from lensbench.models.gradients import jacobian
from lensbench.models.language_model import LanguageModel
from lensbench.models.optimization import Resumable, TrainingSchedule
from lensbench.utils.code import code_digest


class JacobianLens(Translator):
    """U(N((J_l + λI) h_l)): each layer carried to the last by the model's own mean derivative (Anthropic 2026).

    J_l = E[∂h_L/∂h_l], the derivative of the last layer's residual in layer l's at the same position, mean over corpus
    positions. Nothing is fitted to what the model says: J is what the later layers do to a small change, not a
    regression on where they end.

    The definition has no offset, and there is none here: an expansion around the mean, J (h - E h_l) + E h_L, would be
    a first-order guess of h_L, and would carry the corpus's mean prediction into every answer. At the last layer J is
    the identity, and the lens the model.

    Args:
        positions: corpus positions in the mean. Each costs `d_model` backward passes of one token.
        identity: λ, so much of the residual itself is added; much of it gives the logit lens.
        seed: which positions are drawn.
    """

    name: ClassVar[str] = "jacobian_lens"
    reads: ClassVar[frozenset[Source]] = frozenset({"activation"})
    learns_from: ClassVar[Learns] = "corpus"
    cost: ClassVar[str] = "d_model backward passes of a token for each corpus position, once a model; then a matrix"

    def __init__(self, positions: int = 16, identity: float = 0.0, seed: int = 0) -> None:
        self.positions = positions
        self.identity = identity
        self.seed = seed

    def check(self, target: Target, verbalizer: LanguageModel) -> None:
        """Refuse a mean over no positions, and a negative λ.

        Raises:
            UsageError: what was given, and what to give instead.
        """
        if not isinstance(self.positions, int) or self.positions < 1:
            raise UsageError(f"jacobian_lens.positions = {self.positions!r}: expected 1 or more")
        if not isinstance(self.identity, int | float) or not 0 <= self.identity < math.inf:
            raise UsageError(f"jacobian_lens.identity = {self.identity!r}: expected 0 or more")

    def fit(self, target: Target, verbalizer: LanguageModel, training: Training) -> "JacobianLens":
        """Differentiate the target at corpus positions, or take the mean from the cache: it is the same for every λ."""
        corpus = training.corpus
        self.target_ = target
        settings = {"positions": self.positions, "seed": self.seed, "jacobian": code_digest(jacobian)}
        learned = corpus.learn_once(type(self), settings, lambda learning: self._learn(target, corpus, learning))
        self.weight_: Float[Tensor, "layer d_model d_model"] = learned["weight"]
        return self

    def translate(
        self, layers: tuple[int, ...], values: Float[Tensor, "layer item d_model"]
    ) -> Float[Tensor, "layer item d_model"]:
        """Return J h + λ h at each layer; the last layer stays as it is."""
        pairs = zip(layers, values, strict=True)
        return torch.stack([self._carried(layer, h) if layer < len(self.weight_) else h for layer, h in pairs])

    def _carried(self, layer: int, h: Tensor) -> Tensor:
        return (h.float() @ self.weight_[layer].T + self.identity * h.float()).to(h.dtype)

    def _learn(self, target: Target, corpus: Corpus, learning: TrainingSchedule) -> dict[str, Tensor]:
        mean = _Mean(target)
        contexts = corpus.contexts(self.positions, self.seed)
        for step in learning.steps(self.positions, mean):
            mean.add(corpus.jacobian(contexts[step]).weight[:-1])
        return mean.state()


class _Mean(Resumable):
    """The mean of the Jacobians so far."""

    def __init__(self, target: Target) -> None:
        self._count = 0
        shape = (target.n_layers, target.d_model, target.d_model)
        self._weight = torch.zeros(shape, device=target.device)

    def add(self, weight: Float[Tensor, "layer d_model d_model"]) -> None:
        self._count += 1
        self._weight += (weight.float() - self._weight) / self._count

    def state(self) -> dict[str, Tensor]:
        """Return the mean, and of how many."""
        return {"weight": self._weight, "count": torch.tensor(self._count)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from such a state."""
        self._weight, self._count = state["weight"], int(state["count"])
