"""Probe with a hidden layer."""

from collections.abc import Iterator
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.special import log_softmax
from torch import Tensor

from lensbench.inspectors.evidence import Learns, Source
from lensbench.inspectors.probes.probing import ClassProbe, Labelled, at_each_layer, moments, reduced, require_numbers
from lensbench.inspectors.target import Target
from lensbench.models.activations import Residuals
from lensbench.models.language_model import LanguageModel

# What the items of the layers that are trained at once may take, and what is computed of them on the way.
CHUNK_BYTES = 2**28
# Adam's own is smaller: where classes are balanced the first gradients are rounding, and would become whole steps.
EPSILON = 1e-6


class MlpProbe(ClassProbe):
    """softmax(V relu(W z(h_l) + b) + c): a probe with one hidden layer, for contrast (Hewitt & Liang 2019).

    arXiv 1909.03368. It can learn more than a linear probe of the same labels, random ones too: what it reads is less
    surely in the activation. Trained with Adam on all items of a fold at once. It is trained twice: on three quarters
    of the subjects, where the log-loss of the others says after how many steps to stop; then on all, for as many.

    Args:
        hidden: units of the hidden layer.
        steps: the most training steps.
        rate: learning rate.
        seed: the first weights, and which training subjects say when to stop.
    """

    name: ClassVar[str] = "mlp_probe"
    reads: ClassVar[frozenset[Source]] = frozenset({"activation"})
    learns_from: ClassVar[Learns] = "labels"
    tries: ClassVar[str] = "one"
    cost: ClassVar[str] = "a small network a layer, relation and fold"

    def __init__(self, hidden: int = 64, steps: int = 100, rate: float = 0.003, seed: int = 0) -> None:
        self.hidden = hidden
        self.steps = steps
        self.rate = rate
        self.seed = seed

    def check(self, target: Target, verbalizer: LanguageModel) -> None:
        """Check the parameters.

        Raises:
            UsageError: no hidden unit or step, a rate that is not above 0, or a seed that is no whole number from 0 on.
        """
        require_numbers(self, "hidden", 1.0, whole=True)
        require_numbers(self, "steps", 1.0, whole=True)
        require_numbers(self, "rate", 0.0, beyond=True)
        require_numbers(self, "seed", 0.0, whole=True)

    def learn(self, residuals: Residuals, labelled: Labelled) -> list["Network"]:
        """Train the networks of some layers at a time."""
        order = labelled.split(self.seed)
        inputs = at_each_layer(_inputs, residuals, np.concatenate(order), len(order[0]))
        classes, place = np.unique(labelled.labels[np.concatenate(order)], return_inverse=True)
        items, width = inputs[0].coordinates.shape
        at_once = max(1, CHUNK_BYTES // (4 * items * (width + 6 * self.hidden)))
        found = []
        for begin in range(0, len(inputs), at_once):
            chunk = inputs[begin : begin + at_once]
            z = torch.from_numpy(np.stack([one.coordinates for one in chunk])).to(residuals.values.device)
            weights = self._train(z, torch.from_numpy(place).to(z.device), len(order[0]))
            arrays = zip(chunk, *(weight.cpu().numpy() for weight in weights), strict=True)
            found += [Network(classes, one.mean, one.scale, one.basis @ w, b, v, c) for one, w, b, v, c in arrays]
        return found

    def _train(
        self, z: Float[Tensor, "layer item coordinate"], place: Int[Tensor, " item"], learn: int
    ) -> list[Tensor]:
        """Return the weights of each layer's network, after as many steps as its held-out items speak for."""
        answers = int(place.max()) + 1
        start = self._start(z, answers)
        losses = torch.stack(
            [
                _losses(weights, z[:, learn:], place[learn:])
                for weights in self._descend(start, z[:, :learn], place[:learn], self.steps)
            ]
        )
        best = losses.argmin(0)
        kept = [torch.zeros_like(weight) for weight in start]
        for step, weights in enumerate(self._descend(start, z, place, int(best.max()))):
            for held, weight in zip(kept, weights, strict=True):
                held[best == step] = weight[best == step]
        return kept

    def _start(self, z: Float[Tensor, "layer item coordinate"], answers: int) -> list[Tensor]:
        """Return first weights, the same at all layers; those of the second layer are zero: nothing is known yet."""
        generator = torch.Generator().manual_seed(self.seed)
        width = z.shape[2]
        into = torch.randn(width, self.hidden, generator=generator) / width**0.5
        weights = (into, torch.zeros(1, self.hidden), torch.zeros(self.hidden, answers), torch.zeros(1, answers))
        return [weight.expand(len(z), *weight.shape).contiguous().to(z.device) for weight in weights]

    def _descend(
        self, start: list[Tensor], z: Float[Tensor, "layer item coordinate"], place: Int[Tensor, " item"], steps: int
    ) -> Iterator[list[Tensor]]:
        """Yield the weights before the first step and after each."""
        weights = [weight.clone().requires_grad_(True) for weight in start]
        optimiser = torch.optim.Adam(weights, lr=self.rate, eps=EPSILON)
        yield [weight.detach() for weight in weights]
        for _ in range(steps):
            optimiser.zero_grad()
            with torch.enable_grad():
                _losses(weights, z, place).sum().backward()
            optimiser.step()
            yield [weight.detach() for weight in weights]


class Network(NamedTuple):
    """One layer's network, on residuals that are standardised first."""

    classes_: np.ndarray
    mean: Float[np.ndarray, " d_model"]
    scale: Float[np.ndarray, " d_model"]
    into: Float[np.ndarray, "d_model hidden"]
    into_bias: Float[np.ndarray, "1 hidden"]
    out: Float[np.ndarray, "hidden class"]
    out_bias: Float[np.ndarray, "1 class"]

    def predict_log_proba(self, values: Float[np.ndarray, "item d_model"]) -> Float[np.ndarray, "item class"]:
        """Return log-probabilities of the classes."""
        hidden = np.maximum(((values - self.mean) / self.scale) @ self.into + self.into_bias, 0)
        found: np.ndarray = log_softmax(hidden @ self.out + self.out_bias, axis=1)
        return found


class _Inputs(NamedTuple):
    """One layer's items in a basis of their span: what they lack, no weight could learn of."""

    mean: Float[np.ndarray, " d_model"]
    scale: Float[np.ndarray, " d_model"]
    coordinates: Float[np.ndarray, "item coordinate"]
    basis: Float[np.ndarray, "d_model coordinate"]


def _inputs(values: Float[np.ndarray, "item d_model"], order: Int[np.ndarray, " item"], learn: int) -> _Inputs:
    mean, scale = moments(values)
    return _Inputs(mean, scale, *reduced(((values - mean) / scale)[order], learn))


def _losses(
    weights: list[Tensor], z: Float[Tensor, "layer item coordinate"], place: Int[Tensor, " item"]
) -> Float[Tensor, " layer"]:
    """Return each layer's mean log-loss."""
    into, into_bias, out, out_bias = weights
    logits = (z @ into + into_bias).relu() @ out + out_bias
    return -logits.log_softmax(-1)[:, torch.arange(len(place)), place].mean(1)
