"""What is kept of a prediction over the whole vocabulary: log-probabilities and ranks of the tokens asked about."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

Ids = tuple[int, ...]
# Up to so many asked tokens, counting for each of them takes less time than sorting.
COUNTED = 384


@dataclass(frozen=True)
class TokenScores:
    """What is kept of a full-vocabulary prediction.

    Attributes:
        log_probs: natural log-probability of each asked token.
        ranks: how many tokens of the vocabulary score higher (0 = the top).
        top: ids of the likeliest tokens of the vocabulary, likeliest first; as many as were asked for.
    """

    log_probs: Float[Tensor, "row token"]
    ranks: Int[Tensor, "row token"]
    top: Int[Tensor, "row place"]

    def rows(self, places: Int[Tensor, " place"]) -> "TokenScores":
        """Return the rows at these places."""
        return TokenScores(self.log_probs[places], self.ranks[places], self.top[places])

    @staticmethod
    def concat(parts: Sequence["TokenScores"]) -> "TokenScores":
        """Return the rows of several, one after the other."""
        return TokenScores(
            *(torch.cat([getattr(part, name) for part in parts]) for name in ("log_probs", "ranks", "top"))
        )


def score_logits(
    logits: Float[Tensor, "row vocab"], asked: Int[Tensor, " token"], top_k: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `TokenScores` keeps of logits."""
    scores = logits[:, asked]
    top = logits.topk(top_k, dim=1).indices
    # On a CPU some rows at a time: what is read twice is then still in its caches.
    parts = logits.split(32) if logits.device.type == "cpu" else (logits,)
    normaliser = torch.cat([part.logsumexp(1, keepdim=True) for part in parts])
    return scores - normaliser, ranks_of(logits, scores), top


def ranks_of(logits: Float[Tensor, "row vocab"], scores: Float[Tensor, "row token"]) -> Int[Tensor, "row token"]:
    """Return how many of a row's logits lie above each score; sorting them would cost more than the head itself."""
    if logits.device.type == "cpu" and scores.shape[1] <= COUNTED:
        # numpy counts a comparison in five microseconds; sorting takes it more than two milliseconds a row.
        pairs = zip(logits.numpy(), scores.numpy(), strict=True)
        return torch.tensor([[np.count_nonzero(row > score) for score in asked] for row, asked in pairs])
    ordered, order = scores.sort(dim=1)
    # Place every logit among the few asked scores, then count from above.
    place = torch.searchsorted(ordered, logits)
    counts = torch.zeros(len(logits), scores.shape[1] + 1, device=logits.device)
    counts.scatter_add_(1, place, torch.ones((), device=logits.device).expand(place.shape))
    above = counts.flip(1).cumsum(1).flip(1)[:, 1:].long()
    return torch.empty_like(above).scatter_(1, order, above)


def score_in_steps(sequences: Sequence[Ids], score: Callable[[Ids, Sequence[int]], TokenScores]) -> TokenScores:
    """Return the log-probability of each sequence of tokens, step by step, and the worst rank of its tokens.

    Args:
        sequences: the tokens of each answer.
        score: scores tokens as the next one after the prompts and some first tokens of an answer.
    """
    asked: dict[Ids, dict[int, None]] = {}
    for ids in sequences:
        for n, token in enumerate(ids):
            asked.setdefault(ids[:n], {})[token] = None
    found = {begun: score(begun, tuple(tokens)) for begun, tokens in asked.items()}
    places = {begun: {token: i for i, token in enumerate(tokens)} for begun, tokens in asked.items()}

    def steps(ids: Ids, name: str) -> Tensor:
        columns = [getattr(found[ids[:n]], name)[:, places[ids[:n]][token]] for n, token in enumerate(ids)]
        return torch.stack(columns)

    return TokenScores(
        torch.stack([steps(ids, "log_probs").sum(0) for ids in sequences], dim=1),
        torch.stack([steps(ids, "ranks").amax(0) for ids in sequences], dim=1),
        found[()].top,
    )
