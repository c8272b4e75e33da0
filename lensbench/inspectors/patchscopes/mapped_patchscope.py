"""Patchscope with a learned map."""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from lensbench.errors import UsageError
from lensbench.inspectors.base import Inspector, OwnPrompt
from lensbench.inspectors.evidence import Evidence, Learns, Source, Training
from lensbench.inspectors.patchscopes.patched import (
    Attempt,
    TargetLayers,
    at_layer,
    attempt_name,
    check_prompt,
    chosen_layers,
    prompt_text,
    read_patched,
)
from lensbench.inspectors.scores import Scores
from lensbench.inspectors.target import Target
from lensbench.models.corpus import Corpus
from lensbench.models.language_model import LanguageModel
from lensbench.models.ridge import LayerPair, check_amounts, fit_maps


class MappedPatchscope(Inspector):
    """A Patchscope whose f is affine: carry the residual into the verbalizer's basis, then patch it.

    Ghandeharioun et al. 2024, arXiv 2401.06102, sections 3 and 4.4.

    h*_{l*}[i*] ← W h_l + b, with W, b the ridge regression of the verbalizer's layer l* on the target's layer l, over
    positions of a corpus that are the same place of the text for both tokenizers. One map for each pair of a source
    and a target layer. Target and verbalizer may differ in width, depth and tokenizer. As the maps are learned from a
    corpus, its supervision is another than a Patchscope's.

    Args:
        target_layers: l*, one attempt each, the first is the default: numbers and `same`, the source layer; or `all`,
            or `stride:4`. Each takes a matrix a source layer.
        prompt: T, as a Patchscope's; None takes each relation's own inspection prompt.
        placeholder: the word in the slot; one token of the verbalizer.
        tokens: corpus tokens for the regression.
        ridge: penalty, relative to the variance of each coordinate.
    """

    name: ClassVar[str] = "mapped_patchscope"
    reads: ClassVar[frozenset[Source]] = frozenset({"activation", "question"})
    learns_from: ClassVar[Learns] = "corpus"
    tries: ClassVar[str] = "one a target layer"
    cost: ClassVar[str] = "a pass of both models over the corpus, once; then a matrix, and as a Patchscope"
    generates: ClassVar[bool] = True

    def __init__(
        self,
        target_layers: TargetLayers | str = (1,),
        prompt: str | None = None,
        placeholder: str = "x",
        tokens: int = 16384,
        ridge: float = 0.01,
    ) -> None:
        self.target_layers = target_layers if isinstance(target_layers, str) else tuple(target_layers)
        self.prompt = prompt
        self.placeholder = placeholder
        self.tokens = tokens
        self.ridge = ridge

    def check(self, target: Target, verbalizer: LanguageModel) -> None:
        """Check the parameters.

        Raises:
            UsageError: a target layer that the verbalizer lacks, an unknown prompt, a placeholder of several tokens, no
                tokens to learn from, or no penalty.
        """
        chosen_layers(self.name, self.target_layers, target, verbalizer)
        check_prompt(self.name, verbalizer, self.prompt, self.placeholder)
        check_amounts(self.name, tokens=self.tokens, ridge=self.ridge, needed=True)
        if not self.ridge:
            raise UsageError(
                "mapped_patchscope.ridge = 0: with few positions the regression has no solution; give 0.0001 or more"
            )

    def fit(self, target: Target, verbalizer: LanguageModel, training: Training) -> "MappedPatchscope":
        """Learn the maps of all source layers to the target layers, or take them from the cache."""
        corpus = training.corpus
        self.verbalizer_ = verbalizer
        self.target_layers_ = chosen_layers(self.name, self.target_layers, target, verbalizer)
        sources = range(target.n_layers + 1)
        places = sorted(
            {(layer, at) for t in self.target_layers_ for layer, at in zip(sources, at_layer(t, sources), strict=True)}
        )
        self.pairs_ = {LayerPair(*place): i for i, place in enumerate(places)}
        settings = {
            "pairs": places,
            "tokens": self.tokens,
            "ridge": self.ridge,
            "verbalizer": [verbalizer.fingerprint, str(verbalizer.dtype)],
        }
        learned = corpus.learn_once(
            type(self), settings, lambda learning: learning.stage("maps", lambda: self._learn(corpus))
        )
        self.weight_: Float[Tensor, "pair d_verbalizer d_model"] = learned["weight"]
        self.bias_: Float[Tensor, "pair d_verbalizer"] = learned["bias"]
        return self

    def own_prompt(self, question: str) -> OwnPrompt:
        """Return the inspection prompt T."""
        return OwnPrompt(prompt_text(self.name, self.prompt, question), self.placeholder)

    def inspect(self, evidence: Evidence) -> Scores:
        """Map every layer's residual of every item and patch it into the inspection prompt at every target layer."""
        layers, values = evidence.layers, evidence.residuals.values
        attempts = (
            Attempt(
                attempt_name(f"target_layer={t}", t), self.map(values, layers, at_layer(t, layers)), at_layer(t, layers)
            )
            for t in self.target_layers_
        )
        return read_patched(self.verbalizer_, self.own_prompt(evidence.question), attempts, evidence, "overwrite")

    def map(
        self, values: Float[Tensor, "layer item d_model"], layers: tuple[int, ...], target_layers: tuple[int, ...]
    ) -> Float[Tensor, "layer item d_verbalizer"]:
        """Return W h_l + b of each layer's own target layer, in float32."""
        places = [self.pairs_[LayerPair(*place)] for place in zip(layers, target_layers, strict=True)]
        weight, bias = self.weight_.to(values.device), self.bias_.to(values.device)
        mapped = [h.float() @ weight[place].T + bias[place] for h, place in zip(values, places, strict=True)]
        return torch.stack(mapped)

    def _learn(self, corpus: Corpus) -> dict[str, Tensor]:
        pairs = tuple(self.pairs_)
        targets = sorted({pair.target for pair in pairs})
        weight, bias = fit_maps(corpus.paired(self.verbalizer_, self.tokens, targets), pairs, self.ridge)
        return {"weight": weight, "bias": bias}
