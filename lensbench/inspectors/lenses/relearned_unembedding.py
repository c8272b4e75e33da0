"""Relearned unembedding."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lensbench.errors import UsageError
from lensbench.inspectors.base import Lens
from lensbench.inspectors.evidence import Learns, Source, Training
from lensbench.inspectors.target import Target
from lensbench.models.corpus import WINDOW, Corpus
from lensbench.models.language_model import LanguageModel
from lensbench.models.optimization import (
    Resumable,
    TrainingSchedule,
    draw_positions,
    optimizer_moments,
    restore_moments,
)

# Learning rates of A, c and B: a step moves every entry, and a feature sums over many of A's.
RATES = {"down": 3e-4, "offset": 3e-3, "up": 3e-3}
# From this divergence on, in nats, a layer learns at the full rate.
FULL_RATE = 2.0
POSITIONS_PER_STEP = 16
# Neighbouring positions are much alike: at most every fourth is learned from.
MIN_APART = 4
# Positions that the start is computed from: more than a residual has coordinates, in small models.
START_POSITIONS = 1024
# Penalty of the start's regression, relative to the variance of its features; and directions tried beyond the rank.
START_RIDGE = 0.03
SPARE = 8


class RelearnedUnembedding(Lens):
    """(U + B_l A_l) N(h_l) + B_l c_l: what if each layer had a codebook of its own? A low-rank change of the head.

    The logit lens asks every layer in the words of the last. Here the words are learned anew for each layer, and the
    residual stays where it is: the tuned lens moves h, this lens moves U. A [rank, d_model], c [rank] and
    B [vocab, rank] are trained on the mean of KL(p || lens) over corpus positions with Adam. They begin at the
    reduced-rank regression of what the logits lack, U N(h_L) - U N(h_l), on N(h_l). A soft-cap or scale of the head
    is applied before B A N(h) is added. The last layer keeps the model's own head.

    It is ours, a question put to the other lenses: a full-rank head could say all that the tuned lens says (but for
    the norm), and at this rank it mostly learns which words to expect.

    Args:
        rank: of the change; 0 is the logit lens.
        tokens: corpus tokens; every fourth position at most is learned from.
        steps: training steps of 16 positions each; 0 leaves the start.
        seed: which positions are drawn.
    """

    name: ClassVar[str] = "relearned_unembedding"
    reads: ClassVar[frozenset[Source]] = frozenset({"activation"})
    learns_from: ClassVar[Learns] = "corpus"
    cost: ClassVar[str] = "minutes of training on the corpus, once for each model; then the head and a narrow one"

    def __init__(self, rank: int = 16, tokens: int = 8192, steps: int = 100, seed: int = 0) -> None:
        self.rank = rank
        self.tokens = tokens
        self.steps = steps
        self.seed = seed

    def check(self, target: Target, verbalizer: LanguageModel) -> None:
        """Refuse amounts that cannot be.

        Raises:
            UsageError: what was given, and what to give instead.
        """
        if not isinstance(self.rank, int) or not 0 <= self.rank <= target.d_model:
            raise UsageError(
                f"relearned_unembedding.rank = {self.rank!r}: expected 0 to {target.d_model}, the width of "
                f"{target.name}"
            )
        if not isinstance(self.tokens, int) or self.tokens < WINDOW:
            raise UsageError(
                f"relearned_unembedding.tokens = {self.tokens!r}: expected at least {WINDOW}, the length of a window"
            )
        if not isinstance(self.steps, int) or self.steps < 0:
            raise UsageError(f"relearned_unembedding.steps = {self.steps!r}: expected 0 or more")

    def fit(self, target: Target, verbalizer: LanguageModel, training: Training) -> "RelearnedUnembedding":
        """Learn the heads of layers 0 to L - 1, or take them from the cache."""
        self.target_ = target
        if self.rank == 0:
            return self
        corpus = training.corpus
        learned = corpus.learn_once(
            type(self), self.parameters(), lambda learning: self._learn(target, corpus, learning)
        )
        self.down_: Float[Tensor, "layer rank d_model"] = learned["down"]
        self.offset_: Float[Tensor, "layer rank"] = learned["offset"]
        self.up_: Float[Tensor, "layer vocab rank"] = learned["up"]
        return self

    def logits(self, layer: int, values: Float[Tensor, "item d_model"], attempt: int) -> Float[Tensor, "item vocab"]:
        """Return U N(h) + B (A N(h) + c)."""
        own = self.target_.unembed(values)
        if self.rank == 0 or layer == self.target_.n_layers:
            return own
        features = self.target_.norm(values).float() @ self.down_[layer].T + self.offset_[layer]
        return own + features @ self.up_[layer].T

    def _learn(self, target: Target, corpus: Corpus, learning: TrainingSchedule) -> dict[str, Tensor]:
        kept = learning.stage("positions", lambda: {"kept": self._positions(target, corpus)})["kept"]
        start = learning.stage("start", lambda: self._begin(target, kept))
        heads = _Heads(target, start, kept, self.steps, self.seed)
        for step in learning.steps(self.steps, heads):
            heads.step(step)
        return heads.learned()

    def _positions(self, target: Target, corpus: Corpus) -> Float[Tensor, "layer position d_model"]:
        """Return the residuals at the positions that are learned from: as many as fit, spread over the corpus."""
        position_bytes = 4 * (target.n_layers + 1) * target.d_model
        wanted = max(POSITIONS_PER_STEP, target.budget_bytes // 2 // position_bytes)
        every = max(MIN_APART, -(-self.tokens // wanted))
        return torch.cat([batch[:, ::every].float() for batch in corpus.residuals(self.tokens)], dim=1)

    def _begin(self, target: Target, kept: Float[Tensor, "layer position d_model"]) -> dict[str, Tensor]:
        """Compute every layer's start from some of the positions."""
        vocab = target.unembed(kept[-1, :1]).shape[1]
        some = max(POSITIONS_PER_STEP, min(START_POSITIONS, target.budget_bytes // (16 * vocab)))
        places = torch.linspace(0, kept.shape[1] - 1, min(some, kept.shape[1])).long().to(kept.device)
        with torch.no_grad():
            goal = _log_probs(target, kept[-1, places])
            layers = [_low_rank(target, h[places], goal, self.rank) for h in kept[:-1]]
        return {name: torch.stack([one[name] for one in layers]) for name in layers[0]}


@torch.no_grad()
def _log_probs(target: Target, residuals: Float[Tensor, "row d_model"]) -> Float[Tensor, "row vocab"]:
    return torch.cat([target.unembed(rows).log_softmax(-1) for rows in residuals.split(target.head_rows)])


def _low_rank(
    target: Target, residuals: Float[Tensor, "row d_model"], goal: Float[Tensor, "row vocab"], rank: int
) -> dict[str, Tensor]:
    """Regress what a layer's logits lack on its normed residual, at a low rank.

    The directions are those in which the lack matters to the loss (each token weighs as much as the model gives it);
    they are found by a randomised decomposition (Halko et al. 2011), as there are vocab x row numbers.
    """
    lack = goal - _log_probs(target, residuals)
    normed = target.norm(residuals).float()
    mean, scale = normed.mean(0), normed.std(0) + 1e-6
    x = torch.cat([(normed - mean) / scale, torch.ones_like(normed[:, :1])], dim=1)
    gram = x.T @ x
    gram.diagonal()[:-1] += START_RIDGE * len(x)
    solve = torch.linalg.solve(gram, x.T)  # [feature, row]
    weighted = lack * goal.exp().mean(0).sqrt()
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(len(x), rank + SPARE, generator=generator).to(x)
    for _ in range(3):
        fitted = x @ (solve @ (weighted @ (weighted.T @ basis)))
        basis = torch.linalg.qr(fitted).Q
    # The leading right singular vectors of the fitted lack, as combinations of its rows.
    explained = weighted.T @ (solve.T @ (x.T @ basis))  # [vocab, rank + spare]
    right = torch.linalg.svd(explained, full_matrices=False).U[:, :rank]
    down = solve @ (weighted @ right)  # [feature, rank]
    down = down / (x @ down).square().mean(0).sqrt().clamp(min=1e-6)
    features = x @ down
    gram = features.T @ features
    gram.diagonal().add_(START_RIDGE * gram.diagonal().mean())
    up = torch.linalg.solve(gram, features.T @ lack).T
    return {
        "down": down[:-1].T.contiguous(),
        "offset": down[-1].clone(),
        "up": up.contiguous(),
        "mean": mean,
        "scale": scale,
    }


class _Heads(Resumable):
    """Gradient steps on KL(p || lens), all layers from one pass of the model, at a rate that falls to zero."""

    def __init__(self, target: Target, start: dict[str, Tensor], kept: Tensor, steps: int, seed: int) -> None:
        self._target, self._kept, self._steps, self._seed = target, kept, steps, seed
        self._mean, self._scale = start["mean"][:, None], start["scale"][:, None]
        self._heads = [
            tuple(start[name][layer].clone().requires_grad_(True) for name in RATES)
            for layer in range(len(start["down"]))
        ]
        self._optimiser = torch.optim.Adam([{"params": [part]} for head in self._heads for part in head], lr=0.0)
        self._reach = torch.ones(len(self._heads))

    def step(self, step: int) -> None:
        """Make one step on positions that its number draws."""
        h = draw_positions(self._kept, POSITIONS_PER_STEP, self._seed, step)
        goal = _log_probs(self._target, h[-1])
        self._optimiser.zero_grad()
        # Some layers at a time: what a backward pass keeps of the logits is several times their size.
        at_once = max(1, self._target.head_rows // (2 * POSITIONS_PER_STEP))
        losses = []
        for layers in torch.arange(len(h) - 1).split(at_once):
            loss = self._divergence(h, goal, layers)
            loss.sum().backward()
            losses.append(loss.detach())
        if step == 0:
            # Adam's steps do not shrink with the gradient: layers with little left to gain would only get noise.
            self._reach = (torch.cat(losses) / FULL_RATE).clamp(max=1.0).cpu()
        rates = [share * rate for share in self._reach.tolist() for rate in RATES.values()]
        for group, rate in zip(self._optimiser.param_groups, rates, strict=True):
            group["lr"] = rate * (1 - step / self._steps)
        self._optimiser.step()

    def _divergence(
        self,
        h: Float[Tensor, "depth position d_model"],
        goal: Float[Tensor, "position vocab"],
        layers: Int[Tensor, " layer"],
    ) -> Float[Tensor, " layer"]:
        """Return KL(p || lens) of some layers, in nats, mean over positions."""
        flat = h[layers.to(h.device)].flatten(0, 1)
        with torch.no_grad():
            own = self._target.unembed(flat).split(len(goal))
            normed = self._target.norm(flat).float().split(len(goal))
        losses = []
        for layer, logits, rows in zip(layers.tolist(), own, normed, strict=True):
            down, offset, up = self._heads[layer]
            x = (rows - self._mean[layer]) / self._scale[layer]
            lens = torch.addmm(logits, x @ down.T + offset, up.T).log_softmax(-1)
            losses.append((goal.exp() * (goal - lens)).sum(-1).mean())
        return torch.stack(losses)

    def learned(self) -> dict[str, Tensor]:
        """Return the heads, for a normed residual as it is."""
        stacked = self._stacked()
        down = stacked["down"] / self._scale
        return {"down": down, "offset": stacked["offset"] - (down @ self._mean.mT)[..., 0], "up": stacked["up"]}

    def _stacked(self) -> dict[str, Tensor]:
        parts = zip(*self._heads, strict=True)
        return {name: torch.stack(part).detach() for name, part in zip(RATES, parts, strict=True)}

    def state(self) -> dict[str, Tensor]:
        """Return everything that the steps so far have changed."""
        return {**self._stacked(), "reach": self._reach, **optimizer_moments(self._optimiser)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from such a state."""
        rest = dict(state)
        parts = [rest.pop(name) for name in RATES]
        with torch.no_grad():
            for layer, head in enumerate(self._heads):
                for own, part in zip(head, parts, strict=True):
                    own.copy_(part[layer])
        self._reach = rest.pop("reach").cpu()
        restore_moments(self._optimiser, rest)
