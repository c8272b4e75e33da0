"""Affine lens."""

from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from lensbench.inspectors.base import Translator
from lensbench.inspectors.evidence import Learns, Source, Training
from lensbench.inspectors.target import Target
from lensbench.models.corpus import Corpus
from lensbench.models.language_model import LanguageModel
from lensbench.models.ridge import RunningMoments, check_amounts, every_pair
from lensbench.models.tuned_lens_files import Checkpoint, save_checkpoint


class AffineLens(Translator):
    """U(N(W_l h_l + b_l)): each layer mapped to the last by least squares, "tuned lens" of the Patchscopes paper.

    W_l, b_l = argmin of the mean of |h_L - W h_l - b|^2 + ridge |W|^2 over corpus positions, for all layers in one
    pass (Ghandeharioun et al. 2024, arXiv 2401.06102, section 4.1). No step looks at what the head makes of it, which
    is what sets it apart from the tuned lens of Belrose et al. (2023); and its penalty shrinks towards the mean of h_L,
    theirs towards h_l.

    Args:
        tokens: corpus tokens for the regression.
        ridge: penalty, relative to the mean variance of the residual's coordinates.
    """

    name: ClassVar[str] = "affine_lens"
    reads: ClassVar[frozenset[Source]] = frozenset({"activation"})
    learns_from: ClassVar[Learns] = "corpus"
    cost: ClassVar[str] = "a pass over the corpus, once a model; then a matrix and the head"

    def __init__(self, tokens: int = 8192, ridge: float = 0.001) -> None:
        self.tokens = tokens
        self.ridge = ridge

    def check(self, target: Target, verbalizer: LanguageModel) -> None:
        """Refuse amounts that cannot be.

        Raises:
            UsageError: no tokens, or a negative penalty.
        """
        check_amounts(self.name, tokens=self.tokens, ridge=self.ridge, needed=True)

    def fit(self, target: Target, verbalizer: LanguageModel, training: Training) -> "AffineLens":
        """Learn the maps of layers 0 to L - 1, or take them from the cache."""
        corpus = training.corpus
        self.target_ = target
        learned = corpus.learn_once(
            type(self), self.parameters(), lambda learning: learning.stage("ridge", lambda: self._solve(target, corpus))
        )
        self.weight_: Float[Tensor, "layer d_model d_model"] = learned["weight"]
        self.bias_: Float[Tensor, "layer d_model"] = learned["bias"]
        return self

    def translate(
        self, layers: tuple[int, ...], values: Float[Tensor, "layer item d_model"]
    ) -> Float[Tensor, "layer item d_model"]:
        """Return W h + b at each layer; the last layer stays as it is."""
        pairs = zip(layers, values, strict=True)
        return torch.stack([self._translated(layer, h) if layer < len(self.bias_) else h for layer, h in pairs])

    def save(self, folder: Path) -> None:
        """Write the maps as a checkpoint of the tuned-lens package, whose form h + (W - I) h + b they have too.

        Raises:
            UsageError: there is such a folder.
        """
        identity = torch.eye(self.weight_.shape[1], device=self.weight_.device)
        made_by = {"inspector": self.name, "parameters": self.parameters()}
        save_checkpoint(Checkpoint(self.weight_ - identity, self.bias_, made_by), self.target_.identity, folder)

    def _translated(self, layer: int, h: Tensor) -> Tensor:
        return (h.float() @ self.weight_[layer].T + self.bias_[layer]).to(h.dtype)

    def _solve(self, target: Target, corpus: Corpus) -> dict[str, Tensor]:
        pairs, width = every_pair(target.n_layers), target.d_model
        moments = RunningMoments(pairs, width, width, target.device, centred=False)
        for batch in corpus.residuals(self.tokens):
            moments.add(batch[:-1], batch[-1:])
        weight, bias = moments.ridge(self.ridge, standardised=False)
        return {"weight": weight, "bias": bias}
