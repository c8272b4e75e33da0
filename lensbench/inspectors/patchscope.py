"""Patchscope."""

from dataclasses import replace
from typing import ClassVar

import numpy as np
import torch

from lensbench.asking import first_line
from lensbench.errors import UsageError
from lensbench.evidence import Evidence, Learns, Scores, Source, Target
from lensbench.inspectors.base import Inspector, OwnPrompt, by_layer
from lensbench.model.language_model import LanguageModel
from lensbench.patching import make_prompt, patcher_of


class Patchscope(Inspector):
    """Put the residual in the place of a word in another prompt, and let the model go on.

    Ghandeharioun et al. 2024, arXiv 2401.06102.

    The quintuplet (T, i*, f, M*, l*): prompt T is the item's question, i* its slot, f the identity, M* the
    verbalizer, l* the target layer.

    Args:
        target_layers: l*, one attempt each; the first is the default.
        prompt: T for all items, with the slot `{subject}`; None takes each relation's own inspection prompt.
        placeholder: the word in the slot; one token of the verbalizer.
    """

    name: ClassVar[str] = "patchscope"
    reads: ClassVar[frozenset[Source]] = frozenset({"activation", "question"})
    learns_from: ClassVar[Learns] = "nothing"
    tries: ClassVar[str] = "one a target layer"
    cost: ClassVar[str] = "a patched pass an item, layer and target layer"
    generates: ClassVar[bool] = True

    def __init__(
        self, target_layers: tuple[int, ...] = (1,), prompt: str | None = None, placeholder: str = "x"
    ) -> None:
        self.target_layers = tuple(target_layers)
        self.prompt = prompt
        self.placeholder = placeholder

    def check(self, target: Target, verbalizer: LanguageModel) -> None:
        """Check that activations fit the verbalizer.

        Raises:
            UsageError: a target layer that the verbalizer lacks, or a verbalizer of another width.
        """
        outside = [layer for layer in self.target_layers if layer not in range(verbalizer.n_layers + 1)]
        if outside or not self.target_layers:
            raise UsageError(
                f"patchscope: target_layers {self.target_layers}; {verbalizer.name} has layers 0 to "
                f"{verbalizer.n_layers}"
            )
        if target.d_model != verbalizer.d_model:
            raise UsageError(
                f"patchscope: {target.name} has width {target.d_model}, verbalizer {verbalizer.name} "
                f"{verbalizer.d_model}; choose a verbalizer of the same width"
            )

    def own_prompt(self, question: str) -> OwnPrompt:
        """Return the inspection prompt T."""
        return OwnPrompt(self.prompt or question, self.placeholder)

    def inspect(self, evidence: Evidence) -> Scores:
        """Patch every layer's residual of every item into the inspection prompt at every target layer.

        Where a description is asked for, the model goes on from there.
        """
        assert evidence.residuals is not None
        assert evidence.question is not None
        own = self.own_prompt(evidence.question)
        prompt = make_prompt(self.verbalizer_, own.text, own.placeholder)
        layers, items, _ = evidence.residuals.values.shape
        attempts = len(self.target_layers)
        vectors = evidence.residuals.values[:, None].expand(-1, attempts, -1, -1).flatten(0, 2)
        target_layers = torch.tensor(self.target_layers)[None, :, None].expand(layers, -1, items).flatten()
        tokens = [self.verbalizer_.tokens.answer_token(answer) for answer in evidence.answers]
        patcher = patcher_of(self.verbalizer_)
        scores = patcher.score(prompt, vectors, target_layers, tokens)
        found = by_layer(scores, layers, tuple(f"target_layer={layer}" for layer in self.target_layers))
        if not evidence.describe:
            return found
        said = patcher.generate(prompt, vectors, target_layers, evidence.describe)
        texts = np.array([first_line(text) for text in said], dtype=object)
        return replace(found, texts=texts.reshape(layers, attempts, items))
