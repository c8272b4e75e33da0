"""Direct logit attribution."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from lensbench.errors import NotApplicableError, UsageError
from lensbench.inspectors.access import Components
from lensbench.inspectors.base import Inspector
from lensbench.inspectors.evidence import Evidence, Learns, Source, Training
from lensbench.inspectors.scores import Scores
from lensbench.inspectors.target import Target
from lensbench.models.component_capture import Component
from lensbench.models.language_model import LanguageModel

OPTIONAL: tuple[Component, ...] = ("mlp", "head_values", "neurons")
"""Components whose attempts are left out where a model has none."""


class LogitAttribution(Inspector):
    """g U_w · o / σ: what one part of the model adds by itself to the logit of an answer.

    Wang et al. 2022, arXiv 2211.00593.

    The output o of a component, times the row U_w of the head for the answer's token, the final norm's gain g and the
    scale σ that it has at the end of this text kept as they are: all components' contributions add up to the model's
    logit (Chughtai et al. 2024, arXiv 2402.07321). At layer l these are the components of the block that makes layer l:

    - `block`: attention and MLP together, h_l - h_{l-1}; at layer 0 the embedding itself, and nothing in the others;
    - `attention`, `mlp`: each of the two, biases included;
    - `head=i`: one attention head, without the bias of the map that all heads share;
    - `neuron`: the one neuron of the MLP whose contributions to the answers spread most, for each item by itself;
    - `next_heads`: layer l through all heads of the next block, as if each attended to this position alone:
      o = sum of W_O W_V N(h_l); nothing at the last layer;
    - `through=l.i`: the same for head i of block l alone, at layers below l; nothing elsewhere.

    Where a component adds nothing all answers tie. What a model does not have is left out: heads and the MLP of
    state-space models, neurons of experts. Scores are contributions to logits, not log-probabilities: they compare
    answers, and are not a share of anything.

    Args:
        through: (l, i) pairs: the block that makes layer l, and one of its heads, from 0.
    """

    name: ClassVar[str] = "logit_attribution"
    reads: ClassVar[frozenset[Source]] = frozenset({"activation", "components"})
    learns_from: ClassVar[Learns] = "nothing"
    tries: ClassVar[str] = "block, attention, MLP, each head, a neuron, the residual through later heads"
    cost: ClassVar[str] = "a pass an item for each of five components, and a product with each answer's direction"

    def __init__(self, through: tuple[tuple[int, int], ...] = ()) -> None:
        self.through = tuple(tuple(pair) if isinstance(pair, list) else pair for pair in through)

    def check(self, target: Target, verbalizer: LanguageModel) -> None:
        """Refuse heads that the model does not have.

        Raises:
            UsageError: what was given, and what there is.
        """
        if not self.through:
            return
        if why := target.missing_component("heads"):
            raise UsageError(f"logit_attribution.through: {why}; leave it out")
        for pair in self.through:
            pair_of_numbers = isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(n, int) for n in pair)
            if (
                not pair_of_numbers
                or pair[0] not in range(1, target.n_layers + 1)
                or pair[1] not in range(target.heads)
            ):
                raise UsageError(
                    f"logit_attribution.through has {pair!r}: expected (layer, head) pairs; {target.name} has layers 1 "
                    f"to {target.n_layers}, heads 0 to {target.heads - 1}"
                )

    def fit(self, target: Target, verbalizer: LanguageModel, training: Training) -> "LogitAttribution":
        """Find which parts the target has; nothing is learned.

        Raises:
            NotApplicableError: its blocks do not come apart, or its final norm cannot be frozen.
        """
        for needed in ("attention", "final_scale"):
            if why := target.missing_component(needed):
                raise NotApplicableError(why)
        self.target_ = target
        self.found_ = tuple(name for name in OPTIONAL if target.missing_component(name) is None)
        return self

    def attempts(self) -> tuple[str, ...]:
        """Return what is attributed at each layer, by name."""
        names = ["block"]
        if "mlp" in self.found_:
            names += ["attention", "mlp"]
        if "head_values" in self.found_:
            names += [f"head={i}" for i in range(self.target_.heads)]
        if "neurons" in self.found_:
            names.append("neuron")
        if "head_values" in self.found_:
            names += ["next_heads", *(f"through={layer}.{head}" for layer, head in self.through)]
        return tuple(names)

    def inspect(self, evidence: Evidence) -> Scores:
        """Attribute the answers' logits to the parts of each layer's block."""
        reading = self.target_.reading_directions(evidence.answers)
        parts = _read(evidence.components, ("attention", *self.found_))
        scales = evidence.components.read("final_scale").values.float()
        rows = []
        for place, layer in enumerate(evidence.layers):
            own = {name: values[place].float() for name, values in parts.items()}
            block = _Block(self.target_, layer, evidence.residuals.values[place].float(), own, reading)
            found = dict(self._attributed(block))
            rows.append(torch.stack([found[name] for name in self.attempts()]) * scales[place])
        return Scores(self.attempts(), torch.stack(rows))

    def _attributed(self, block: "_Block") -> Iterator[tuple[str, Float[Tensor, "item answer"]]]:
        """Yield the contributions of each attempt, by name, before the final norm's scale."""
        yield "block", block.whole()
        if "mlp" in self.found_:
            yield from ((name, block.along(block.parts[name])) for name in ("attention", "mlp"))
        if "neurons" in self.found_:
            yield "neuron", block.neuron()
        if "head_values" not in self.found_:
            return
        yield from ((f"head={i}", head) for i, head in enumerate(block.heads()))
        following = {block.layer + 1, *(layer for layer, _ in self.through)}
        through = {n: block.through(n) for n in following if block.layer < n <= self.target_.n_layers}
        yield "next_heads", through[block.layer + 1].sum(0) if block.layer + 1 in through else block.nothing()
        for layer, head in self.through:
            yield f"through={layer}.{head}", through[layer][head] if layer in through else block.nothing()


def _read(components: Components, names: tuple[Component, ...]) -> dict[Component, Float[Tensor, "layer item width"]]:
    return {name: components.read(name).values for name in names}


@dataclass(frozen=True)
class _Block:
    """One block at the read sites of some items, and the directions along which it is read.

    Attributes:
        target: whose block.
        layer: the layer that it makes; 0 for the embedding.
        residual: that layer.
        parts: what its parts hold.
        reading: of the answers, the final norm's gain in them.
    """

    target: Target
    layer: int
    residual: Float[Tensor, "item d_model"]
    parts: dict[Component, Float[Tensor, "item width"]]
    reading: Float[Tensor, "answer d_model"]

    def along(self, values: Float[Tensor, "item d_model"]) -> Float[Tensor, "item answer"]:
        return values @ self.reading.T

    def nothing(self) -> Float[Tensor, "item answer"]:
        return torch.zeros(len(self.residual), len(self.reading), device=self.residual.device)

    def whole(self) -> Float[Tensor, "item answer"]:
        if self.layer == 0:
            return self.along(self.residual)
        return self.along(self.parts["attention"] + self.parts.get("mlp", 0))

    def heads(self) -> Float[Tensor, "head item answer"]:
        if self.layer == 0:
            return self.nothing().expand(self.target.heads, -1, -1)
        return self._by_head(self.layer, self.parts["head_values"].unflatten(1, (self.target.heads, -1)))

    def through(self, layer: int) -> Float[Tensor, "head item answer"]:
        return self._by_head(layer, self.target.values_through_heads(layer, self.residual))

    def _by_head(self, layer: int, values: Float[Tensor, "item head head_dim"]) -> Float[Tensor, "head item answer"]:
        return torch.einsum("ihw,ahw->hia", values, self.target.head_directions(layer, self.reading))

    def neuron(self) -> Float[Tensor, "item answer"]:
        if self.layer == 0:
            return self.nothing()
        each = self.target.neuron_directions(self.layer, self.reading)
        values = self.parts["neurons"]
        # A neuron's contributions are its value times its directions: they spread as those do.
        best = (values.abs() * each.std(0, correction=0)).argmax(1)
        return values.gather(1, best[:, None]) * each[:, best].T
