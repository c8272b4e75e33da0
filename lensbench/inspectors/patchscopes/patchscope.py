"""Patchscope."""

import math
from dataclasses import replace
from typing import ClassVar

import numpy as np
from jaxtyping import Float
from torch import Tensor

from lensbench.errors import UsageError, unknown_name
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
from lensbench.models.language_model import LanguageModel
from lensbench.models.patching.passes import WRITES, Write
from lensbench.models.prompting import score_answers
from lensbench.tasks.facts import SLOT


class Patchscope(Inspector):
    """Put the residual in the place of a word in another prompt, and let the model go on.

    Ghandeharioun et al. 2024, arXiv 2401.06102.

    The quintuplet (T, i*, f, M*, l*): h*_{l*}[i*] ← f(h_l) in M*'s pass on T. Prompt T is the item's question or one of
    the method's own, i* its slot, f the identity (`mapped_patchscope` has an affine one), M* the verbalizer, l* the
    target layer. With several slots the same vector is written at each; with `write="norm_matched"` and an instruction
    as prompt this is SelfIE (Chen et al. 2024, arXiv 2403.10949).

    Args:
        target_layers: l*, one attempt each, the first is the default: numbers and `same`, the source layer; or `all`,
            or `stride:4`.
        prompt: T for all items, with slots `{subject}`, or the name of one of ours: `token_identity`, also with a
            number of demonstrations (`token_identity:5`), `description` or `instruction`; None takes each relation's
            own inspection prompt.
        placeholder: the word in the slot; one token of the verbalizer.
        write: `overwrite`; `norm_matched`, the residual at the length of what it overwrites; `add`, that added to what
            is there.
        relevancy: also measure by how much the patch moves the probability of the top answer.
        contrast: α >= 0; answers are scored by log p(patched) + α (log p(patched) - log p(unpatched)), so that what the
            prompt says by itself counts against an answer. The idea is that of BALOR (arXiv 2602.00300), whose formula
            we have not seen: this one is ours. Texts are generated without it.
    """

    name: ClassVar[str] = "patchscope"
    reads: ClassVar[frozenset[Source]] = frozenset({"activation", "question"})
    learns_from: ClassVar[Learns] = "nothing"
    tries: ClassVar[str] = "one a target layer"
    cost: ClassVar[str] = "a patched pass an item, layer and target layer"
    generates: ClassVar[bool] = True

    def __init__(
        self,
        target_layers: TargetLayers | str = (1,),
        prompt: str | None = None,
        placeholder: str = "x",
        write: Write = "overwrite",
        relevancy: bool = False,
        contrast: float = 0.0,
    ) -> None:
        self.target_layers = target_layers if isinstance(target_layers, str) else tuple(target_layers)
        self.prompt = prompt
        self.placeholder = placeholder
        self.write = write
        self.relevancy = relevancy
        self.contrast = contrast

    def check(self, target: Target, verbalizer: LanguageModel) -> None:
        """Check the parameters, and that activations fit the verbalizer.

        Raises:
            UsageError: a target layer that the verbalizer lacks, a verbalizer of another width, an unknown prompt or
                way of writing, a placeholder of several tokens, or a negative contrast.
        """
        if not isinstance(self.contrast, int | float) or not 0 <= self.contrast < math.inf:
            raise UsageError(f"{self.name}.contrast = {self.contrast!r}: expected 0 or more")
        chosen_layers(self.name, self.target_layers, target, verbalizer)
        check_width(self.name, target, verbalizer)
        if self.write not in WRITES:
            raise unknown_name(f"{self.name}.write", self.write, WRITES)
        check_prompt(self.name, verbalizer, self.prompt, self.placeholder)

    def fit(self, target: Target, verbalizer: LanguageModel, training: Training) -> "Patchscope":
        """Find the target layers; there is nothing to learn."""
        self.verbalizer_ = verbalizer
        self.target_layers_ = chosen_layers(self.name, self.target_layers, target, verbalizer)
        return self

    def own_prompt(self, question: str) -> OwnPrompt:
        """Return the inspection prompt T."""
        return OwnPrompt(prompt_text(self.name, self.prompt, question), self.placeholder)

    def inspect(self, evidence: Evidence) -> Scores:
        """Patch every layer's residual of every item into the inspection prompt at every target layer.

        Where a description is asked for, the model goes on from there.
        """
        own, values = self.own_prompt(evidence.question), evidence.residuals.values
        attempts = [
            Attempt(attempt_name(f"target_layer={layer}", layer), values, at_layer(layer, evidence.layers))
            for layer in self.target_layers_
        ]
        found = read_patched(self.verbalizer_, own, attempts, evidence, self.write)
        if not (self.relevancy or self.contrast):
            return found
        text = own.text.replace(SLOT, own.placeholder)
        plain = score_answers(self.verbalizer_, [text], evidence.answers).log_probs[0].double()
        if self.relevancy:
            found = replace(found, measures={"relevancy": relevancy(found, plain)})
        if self.contrast:
            moved = found.log_scores - plain.to(found.log_scores)
            found = replace(found, log_scores=found.log_scores + self.contrast * moved, ranks=None)
        return found


def relevancy(patched: Scores, plain: Float[Tensor, " answer"]) -> Float[np.ndarray, "layer attempt item"]:
    """Return |p(a; patched) - p(a; unpatched)| of the answer a of the relation that ranks highest.

    That is how SelfIE (arXiv 2403.10949) tells what came from the activation from what the prompt says by itself; here
    of the answer's first token, where SelfIE has it of each generated one.

    Args:
        patched: the method's scores.
        plain: log-probabilities of the answers without a patch.
    """
    unpatched = plain.cpu().exp()
    log_scores = patched.log_scores.cpu().double()
    top = log_scores.argmax(-1, keepdim=True)
    moved = (log_scores.exp().gather(-1, top) - unpatched[top]).abs()
    found: Float[np.ndarray, "layer attempt item"] = moved[..., 0].numpy()
    return found
