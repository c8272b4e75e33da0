"""Tuned lens."""

from collections.abc import Iterable
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from lensbench.evidence import Evidence, Learns, Scores, Source, Target, Training
from lensbench.inspectors.base import Inspector, read_lens
from lensbench.model.language_model import LanguageModel

LEARNING_RATE = 3e-4
POSITIONS_PER_STEP = 16


class TunedLens(Inspector):
    """U(N(h_l + A_l h_l + b_l)): a learned affine translator a layer (Belrose et al. 2023, arXiv 2303.08112).

    A and b begin as the ridge regression of h_L - h_l on h_l, for all layers in one pass over the corpus, and are
    then trained a little on the published loss KL(p || lens). The residual form makes ridge shrink towards the logit
    lens, not towards zero.

    Args:
        tokens: corpus tokens for the ridge; 0 leaves the translators at zero, which is the logit lens.
        ridge: penalty, relative to the mean variance of the residual's coordinates.
        steps: training steps on the KL loss, of 16 positions each; 0 leaves the ridge.
        seed: which positions are drawn.
    """

    name: ClassVar[str] = "tuned_lens"
    reads: ClassVar[frozenset[Source]] = frozenset({"activation"})
    learns_from: ClassVar[Learns] = "corpus"

    def __init__(self, tokens: int = 8192, ridge: float = 0.001, steps: int = 16, seed: int = 0) -> None:
        self.tokens = tokens
        self.ridge = ridge
        self.steps = steps
        self.seed = seed

    def fit(self, target: Target, verbalizer: LanguageModel, training: Training) -> "TunedLens":
        """Learn the translators of layers 0 to L - 1, or take them from the cache."""
        assert training.corpus is not None
        corpus = training.corpus
        self.target_ = target
        learned = corpus.learn_once(
            type(self), self.parameters(), lambda: self._learn(target, corpus.residuals(self.tokens))
        )
        self.weight_: Float[Tensor, "layer d_model d_model"] = learned["weight"]
        self.bias_: Float[Tensor, "layer d_model"] = learned["bias"]
        return self

    def inspect(self, evidence: Evidence) -> Scores:
        """Translate each layer's residual to the last layer's basis and unembed it; the last layer stays as it is."""
        assert evidence.residuals is not None
        return read_lens(self.target_, evidence, self.translate(evidence.residuals.layers, evidence.residuals.values))

    def translate(
        self, layers: tuple[int, ...], values: Float[Tensor, "layer item d_model"]
    ) -> Float[Tensor, "layer item d_model"]:
        """Return h + A h + b at each layer."""
        pairs = zip(layers, values, strict=True)
        return torch.stack([self._translated(layer, h) if layer < len(self.bias_) else h for layer, h in pairs])

    def _translated(self, layer: int, h: Tensor) -> Tensor:
        return h + (h.float() @ self.weight_[layer].T + self.bias_[layer]).to(h.dtype)

    def _learn(self, target: Target, batches: Iterable[Tensor]) -> dict[str, Tensor]:
        moments = _Moments(target, keep_every=4)
        for batch in batches:
            moments.add(batch)
        weight, bias = moments.ridge(self.ridge)
        if self.steps and self.tokens:
            weight, bias = self._polish(target, weight, bias, moments.kept())
        return {"weight": weight, "bias": bias}

    def _polish(
        self, target: Target, weight: Tensor, bias: Tensor, kept: Float[Tensor, "layer position d_model"]
    ) -> tuple[Tensor, Tensor]:
        """Take gradient steps on KL(p || lens), all layers at once, at a rate that falls to zero."""
        translators = [(w.requires_grad_(True), b.requires_grad_(True)) for w, b in zip(weight, bias, strict=True)]
        optimiser = torch.optim.Adam([{"params": pair} for pair in translators], lr=0.0)
        generator = torch.Generator().manual_seed(self.seed)
        reach = torch.ones(len(translators))
        for step in range(self.steps):
            drawn = torch.randint(kept.shape[1], (POSITIONS_PER_STEP,), generator=generator)
            h = kept[:, drawn]
            moved = [x + x @ w.T + b for x, (w, b) in zip(h, translators, strict=False)]
            losses = _divergence(target, h[-1], torch.stack(moved))
            if step == 0:
                # Adam's steps do not shrink with the gradient: layers with little left to gain would only get noise.
                reach = (losses.detach() / 2).clamp(max=1.0).cpu()
            for group, share in zip(optimiser.param_groups, reach.tolist(), strict=True):
                group["lr"] = LEARNING_RATE * share * (1 - step / self.steps)
            optimiser.zero_grad()
            losses.sum().backward()
            optimiser.step()
        return torch.stack([w.detach() for w, _ in translators]), torch.stack([b.detach() for _, b in translators])


def _divergence(target: Target, last: Tensor, translated: Float[Tensor, "layer position d_model"]) -> Tensor:
    """Return KL(p || lens) of each layer, in nats, mean over positions."""
    with torch.no_grad():
        goal = target.unembed(last).log_softmax(-1)
    lens = target.unembed(translated.flatten(0, 1)).log_softmax(-1)
    shape = (len(translated), len(last), -1)
    return (goal.exp() * (goal - lens.reshape(shape))).sum(-1).mean(-1)


class _Moments:
    """What the normal equations of all layers need: sums over corpus positions, and a sample of the positions."""

    def __init__(self, target: Target, keep_every: int) -> None:
        shape = (target.n_layers, target.d_model)
        self.count = 0
        self.sum_x = torch.zeros(shape, dtype=torch.float64, device=target.device)
        self.sum_y = torch.zeros(target.d_model, dtype=torch.float64, device=target.device)
        self.xx = torch.zeros((*shape, target.d_model), dtype=torch.float64, device=target.device)
        self.xy = torch.zeros_like(self.xx)
        self.keep_every = keep_every
        self._kept: list[Tensor] = []

    def add(self, batch: Float[Tensor, "layer position d_model"]) -> None:
        values = batch.float()
        self.count += values.shape[1]
        self._kept.append(values[:, :: self.keep_every].clone())
        last = values[-1]
        self.sum_y += last.double().sum(0)
        for layer, x in enumerate(values[:-1]):
            self.sum_x[layer] += x.double().sum(0)
            self.xx[layer] += x.T @ x
            self.xy[layer] += x.T @ last

    def kept(self) -> Float[Tensor, "layer position d_model"]:
        return torch.cat(self._kept, dim=1)

    def ridge(self, penalty: float) -> tuple[Tensor, Tensor]:
        """Solve for A and b of every layer, in float64: residual coordinates differ by three orders of magnitude."""
        weight, bias = torch.zeros_like(self.xx, dtype=torch.float32), torch.zeros_like(self.sum_x, dtype=torch.float32)
        if not self.count:
            return weight, bias
        mean_y = self.sum_y / self.count
        for layer in range(len(self.xx)):
            mean = self.sum_x[layer] / self.count
            xx = self.xx[layer] / self.count - torch.outer(mean, mean)
            xy = self.xy[layer] / self.count - torch.outer(mean, mean_y)
            eye = torch.eye(len(xx), dtype=torch.float64, device=xx.device)
            solved = torch.linalg.solve(xx + penalty * xx.diagonal().mean() * eye, xy - xx)
            weight[layer] = solved.T.float()
            bias[layer] = (mean_y - mean - mean @ solved).float()
        return weight, bias
