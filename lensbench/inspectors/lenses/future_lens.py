"""Future lens."""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from lensbench.errors import UsageError
from lensbench.inspectors.base import Lens
from lensbench.inspectors.evidence import Learns, Source, Training
from lensbench.inspectors.target import Target
from lensbench.models.corpus import WINDOW, Corpus
from lensbench.models.language_model import LanguageModel
from lensbench.models.ridge import RunningMoments, check_amounts, every_pair


class FutureLens(Lens):
    """U(N(W h_l + b)) with W, b regressed on h_L some tokens later (Pal et al. 2023, arXiv 2311.04897, linear).

    For each layer l and each N: W, b = argmin of the mean of |h_L(t + N) - W h_l(t) - b|^2 + ridge |W|^2 over corpus
    positions t. The model turns h_L(t + N) into its prediction of token t + N + 1. N is the paper's: it counts tokens
    beyond the next one, which is N = 0. So N = 1 asks one residual for the token after the next one, two tokens after
    the one it stands on; N = 0 is the affine lens.

    What it is held against is the text's own going on: the model has read the tokens between when it predicts, the
    lens has not. That a token is read from h does not say that the model had it in mind: frequent words follow by
    themselves, which a constant activation shows.

    Args:
        tokens: corpus tokens for the regression.
        ridge: penalty, relative to the mean variance of the residual's coordinates.
        beyond: the N, one attempt each.
    """

    name: ClassVar[str] = "future_lens"
    reads: ClassVar[frozenset[Source]] = frozenset({"activation"})
    learns_from: ClassVar[Learns] = "corpus"
    tries: ClassVar[str] = "one for each number of tokens beyond the next (3 by default)"
    cost: ClassVar[str] = "a pass over the corpus, once a model; then a matrix and the head for each attempt"

    def __init__(self, tokens: int = 8192, ridge: float = 0.001, beyond: tuple[int, ...] = (1, 2, 3)) -> None:
        self.tokens = tokens
        self.ridge = ridge
        self.beyond = beyond

    @property
    def ahead(self) -> tuple[int, ...]:
        """Which token each attempt predicts: 0 for the next one, 1 for the one after that..."""
        return tuple(self.beyond)

    def check(self, target: Target, verbalizer: LanguageModel) -> None:
        """Refuse amounts that cannot be.

        Raises:
            UsageError: no tokens, a negative penalty, or an N that is no distance inside a window of the corpus.
        """
        check_amounts(self.name, tokens=self.tokens, ridge=self.ridge, needed=True)
        wrong = [n for n in self.beyond if not isinstance(n, int) or not 0 <= n < WINDOW // 2]
        if wrong or not self.beyond or len(set(self.beyond)) < len(self.beyond):
            raise UsageError(
                f"future_lens.beyond = {self.beyond!r}: expected different numbers from 0 (the next token) to "
                f"{WINDOW // 2 - 1}, such as (1, 2, 3)"
            )

    def fit(self, target: Target, verbalizer: LanguageModel, training: Training) -> "FutureLens":
        """Learn the maps of all layers and distances in one pass over the corpus, or take them from the cache."""
        corpus = training.corpus
        self.target_ = target
        learned = corpus.learn_once(
            type(self),
            {**self.parameters(), "beyond": list(self.beyond)},
            lambda learning: learning.stage("ridge", lambda: self._solve(target, corpus)),
        )
        self.weight_: Float[Tensor, "attempt layer d_model d_model"] = learned["weight"]
        self.bias_: Float[Tensor, "attempt layer d_model"] = learned["bias"]
        return self

    def logits(self, layer: int, values: Float[Tensor, "item d_model"], attempt: int) -> Float[Tensor, "item vocab"]:
        """Return U(N(W h + b)) of one layer, the last one too, and one distance."""
        if self.beyond[attempt] == 0 and layer == self.target_.n_layers:
            return self.target_.unembed(values)  # h_L on itself, without what the penalty takes off
        moved = values.float() @ self.weight_[attempt, layer].T + self.bias_[attempt, layer]
        return self.target_.unembed(moved.to(values.dtype))

    def _solve(self, target: Target, corpus: Corpus) -> dict[str, Tensor]:
        """Regress from the positions that have all of the later ones after them in their window."""
        layers, width, ahead = target.n_layers + 1, target.d_model, len(self.beyond)
        moments = RunningMoments(every_pair(layers, ahead), width, width, target.device, centred=False)
        for batch in corpus.residuals_in_windows(self.tokens):
            values = batch.float()
            until = values.shape[2] - max(self.beyond)
            later = torch.stack([values[-1, :, n : n + until].flatten(0, 1) for n in self.beyond])
            moments.add(values[:, :, :until].flatten(1, 2), later)
        weight, bias = moments.ridge(self.ridge, standardised=False)
        return {"weight": weight.unflatten(0, (ahead, layers)), "bias": bias.unflatten(0, (ahead, layers))}
