"""Superscopes."""

import math
from collections.abc import Iterator
from itertools import product
from typing import ClassVar, Literal, get_args

from jaxtyping import Float
from torch import Tensor

from lensbench.errors import NotApplicableError, UsageError
from lensbench.inspectors.base import Inspector, OwnPrompt
from lensbench.inspectors.evidence import Evidence, Learns, Source, Training
from lensbench.inspectors.patchscopes.patched import (
    Attempt,
    TargetLayers,
    at_layer,
    attempt_name,
    check_prompt,
    check_width,
    chosen_layers,
    prompt_text,
    read_patched,
)
from lensbench.inspectors.scores import Scores
from lensbench.inspectors.target import Target
from lensbench.models.components import ComponentError
from lensbench.models.language_model import LanguageModel

Component = Literal["hidden", "mlp", "mlp_input"]
COMPONENTS: tuple[Component, ...] = get_args(Component)


class Superscopes(Inspector):
    """Put an amplified part of a layer in the place of a word in another prompt, and let the model go on.

    Jacobi and Niv 2025, arXiv 2503.02078.

    h_{l*}[i*] ← α v_l, where v_l is the residual after block l (`hidden`), what the MLP of block l adds (`mlp`), or the
    residual that this MLP reads (`mlp_input`). A feature that is weak in a sum of many is said to be read when it is
    made larger. With `hidden` and α = 1 it is a Patchscope. Layer 0 has no MLP: zeros are written there.

    One attempt a component, amplifier and target layer, named `mlp x6 -> 0`; the first is the default.

    Args:
        components: v.
        amplifiers: α; the paper takes 1, 3, 6, 9, 12 and 15.
        target_layers: l*: numbers and `same`, the source layer; or `all`, or `stride:4`. The paper takes 0 and `same`.
        prompt: as a Patchscope's; None takes each relation's own inspection prompt.
        placeholder: the word in the slot; one token of the verbalizer.
    """

    name: ClassVar[str] = "superscopes"
    reads: ClassVar[frozenset[Source]] = frozenset({"activation", "components", "question"})
    learns_from: ClassVar[Learns] = "nothing"
    tries: ClassVar[str] = "one a component, amplifier and target layer"
    cost: ClassVar[str] = "a pass over the sources for components; a patched pass an item, layer and attempt"
    generates: ClassVar[bool] = True

    def __init__(
        self,
        components: tuple[Component, ...] = ("hidden", "mlp", "mlp_input"),
        amplifiers: tuple[int | float, ...] = (1, 3),
        target_layers: TargetLayers | str = (0,),
        prompt: str | None = None,
        placeholder: str = "x",
    ) -> None:
        self.components = tuple(components)
        self.amplifiers = tuple(amplifiers)
        self.target_layers = target_layers if isinstance(target_layers, str) else tuple(target_layers)
        self.prompt = prompt
        self.placeholder = placeholder

    def check(self, target: Target, verbalizer: LanguageModel) -> None:
        """Check the parameters, and that activations fit the verbalizer.

        Raises:
            UsageError: an unknown component, an amplifier that is not above 0, a target layer that the verbalizer
                lacks, a verbalizer of another width, an unknown prompt, or a placeholder of several tokens.
        """
        self._check_lists()
        chosen_layers(self.name, self.target_layers, target, verbalizer)
        check_width(self.name, target, verbalizer)
        check_prompt(self.name, verbalizer, self.prompt, self.placeholder)

    def fit(self, target: Target, verbalizer: LanguageModel, training: Training) -> "Superscopes":
        """Find the target layers; there is nothing to learn."""
        self.verbalizer_ = verbalizer
        self.target_layers_ = chosen_layers(self.name, self.target_layers, target, verbalizer)
        return self

    def own_prompt(self, question: str) -> OwnPrompt:
        """Return the inspection prompt."""
        return OwnPrompt(prompt_text(self.name, self.prompt, question), self.placeholder)

    def inspect(self, evidence: Evidence) -> Scores:
        """Patch every amplified component of every layer and item into the inspection prompt.

        Raises:
            NotApplicableError: the target's blocks have no MLP, and one was asked for.
        """
        own = self.own_prompt(evidence.question)
        return read_patched(self.verbalizer_, own, self._attempts(evidence), evidence, "overwrite")

    def _attempts(self, evidence: Evidence) -> Iterator[Attempt]:
        for component in self.components:
            values = _read(evidence, component)
            for amplifier, layer in product(self.amplifiers, self.target_layers_):
                variant = f"{component} x{amplifier:g}"
                name = attempt_name(f"{variant} -> {layer}", layer, variant)
                # In float32: an amplified residual may be beyond half precision.
                yield Attempt(name, amplifier * values.float(), at_layer(layer, evidence.layers))

    def _check_lists(self) -> None:
        known = [component in COMPONENTS for component in self.components]
        if not known or not all(known) or len(set(self.components)) < len(known):
            raise UsageError(
                f"superscopes: components {self.components}; expected some of {', '.join(COMPONENTS)}, each once"
            )
        # Names of attempts show six digits.
        shown = {f"{amplifier:g}" for amplifier in self.amplifiers if _is_amplifier(amplifier)}
        if not shown or len(shown) < len(self.amplifiers):
            raise UsageError(
                f"superscopes: amplifiers {self.amplifiers}; expected different numbers above 0, such as 1, 3, 6"
            )


def _is_amplifier(given: object) -> bool:
    return isinstance(given, int | float) and not isinstance(given, bool) and 0 < given < math.inf


def _read(evidence: Evidence, component: Component) -> Float[Tensor, "layer item d_model"]:
    if component == "hidden":
        return evidence.residuals.values
    try:
        return evidence.components.read(component).values
    except ComponentError as error:
        raise NotApplicableError(f"{error}; superscopes reads components = hidden alone there") from None
