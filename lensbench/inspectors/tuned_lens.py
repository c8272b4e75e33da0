"""Tuned lens."""

from collections.abc import Iterable, Mapping
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from lensbench.corpus import Corpus
from lensbench.evidence import Learns, Source, Target, Training
from lensbench.inspectors.base import Translator
from lensbench.learning import Learning, Resumable
from lensbench.model.language_model import LanguageModel

LEARNING_RATE = 3e-4
POSITIONS_PER_STEP = 16
# Neighbouring positions are much alike: at most every fourth is trained on.
MIN_APART = 4


class TunedLens(Translator):
    """U(N(h_l + A_l h_l + b_l)): a learned affine translator a layer (Belrose et al. 2023, arXiv 2303.08112).

    A and b begin as the ridge regression of h_L - h_l on h_l, for all layers in one pass over the corpus, and are
    then trained a little on the published loss KL(p || lens). The residual form makes ridge shrink towards the logit
    lens, not towards zero.

    Args:
        tokens: corpus tokens for the ridge; 0 leaves the translators at zero, which is the logit lens.
        ridge: penalty, relative to the mean variance of the residual's coordinates.
        steps: training steps on the KL loss, of 16 positions each; 0 leaves the ridge.
        seed: which positions are drawn.
        bf16: train in bfloat16 where that is faster (most GPUs); the translators themselves stay in float32.
    """

    name: ClassVar[str] = "tuned_lens"
    reads: ClassVar[frozenset[Source]] = frozenset({"activation"})
    learns_from: ClassVar[Learns] = "corpus"
    cost: ClassVar[str] = "a pass over the corpus, once a model; then a matrix and the head"

    def __init__(
        self, tokens: int = 8192, ridge: float = 0.001, steps: int = 16, seed: int = 0, bf16: bool = False
    ) -> None:
        self.tokens = tokens
        self.ridge = ridge
        self.steps = steps
        self.seed = seed
        self.bf16 = bf16

    def fit(self, target: Target, verbalizer: LanguageModel, training: Training) -> "TunedLens":
        """Learn the translators of layers 0 to L - 1, or take them from the cache."""
        assert training.corpus is not None
        corpus = training.corpus
        self.target_ = target
        learned = corpus.learn_once(
            type(self), self.parameters(), lambda learning: self._learn(target, corpus, learning)
        )
        self.weight_: Float[Tensor, "layer d_model d_model"] = learned["weight"]
        self.bias_: Float[Tensor, "layer d_model"] = learned["bias"]
        return self

    def translate(
        self, layers: tuple[int, ...], values: Float[Tensor, "layer item d_model"]
    ) -> Float[Tensor, "layer item d_model"]:
        """Return h + A h + b at each layer; the last layer stays as it is."""
        pairs = zip(layers, values, strict=True)
        return torch.stack([self._translated(layer, h) if layer < len(self.bias_) else h for layer, h in pairs])

    def _translated(self, layer: int, h: Tensor) -> Tensor:
        return h + (h.float() @ self.weight_[layer].T + self.bias_[layer]).to(h.dtype)

    def _learn(self, target: Target, corpus: Corpus, learning: Learning) -> dict[str, Tensor]:
        start = learning.stage("ridge", lambda: self._begin(target, corpus.residuals(self.tokens)))
        if not (self.steps and self.tokens):
            return {name: start[name] for name in ("weight", "bias")}
        polish = _Polish(target, start, self.steps, self.seed, bf16=self.bf16)
        for step in learning.steps(self.steps, polish):
            polish.step(step)
        return polish.translators()

    def _begin(self, target: Target, batches: Iterable[Tensor]) -> dict[str, Tensor]:
        """Solve the normal equations of all layers in one pass over the corpus, and keep positions to train on."""
        position_bytes = 4 * (target.n_layers + 1) * target.d_model
        wanted = min(POSITIONS_PER_STEP * self.steps, target.budget_bytes // 2 // position_bytes)
        moments = _Moments(target, keep_every=max(MIN_APART, self.tokens // max(1, wanted)))
        for batch in batches:
            moments.add(batch)
        weight, bias = moments.ridge(self.ridge)
        return {"weight": weight, "bias": bias, **({"kept": moments.kept()} if self.tokens else {})}


class _Polish(Resumable):
    """Gradient steps on KL(p || lens), all layers from one forward pass of the model, at a rate that falls to zero."""

    def __init__(self, target: Target, start: dict[str, Tensor], steps: int, seed: int, *, bf16: bool) -> None:
        self._target = target
        self._kept = start["kept"]
        self._weights = [weight.clone().requires_grad_(True) for weight in start["weight"]]
        self._biases = [bias.clone().requires_grad_(True) for bias in start["bias"]]
        pairs = zip(self._weights, self._biases, strict=True)
        self._optimiser = torch.optim.Adam([{"params": pair} for pair in pairs], lr=0.0)
        self._reach = torch.ones(len(self._weights))
        self._steps, self._seed, self._bf16 = steps, seed, bf16

    def step(self, step: int) -> None:
        """Make one step on positions that its number draws."""
        generator = torch.Generator().manual_seed(1_000_003 * self._seed + step)
        h = self._kept[:, torch.randint(self._kept.shape[1], (POSITIONS_PER_STEP,), generator=generator)]
        self._optimiser.zero_grad()
        with torch.no_grad():
            goal = self._target.unembed(h[-1]).log_softmax(-1)
        # Some layers at a time: what a backward pass keeps of the logits is several times their size.
        at_once = max(1, self._target.head_rows // (2 * POSITIONS_PER_STEP))
        losses = []
        for layers in torch.arange(len(self._weights)).split(at_once):
            with torch.autocast(h.device.type, dtype=torch.bfloat16, enabled=self._bf16):
                moved = [h[i] + h[i] @ self._weights[i].T + self._biases[i] for i in layers.tolist()]
                loss = self._divergence(goal, torch.stack(moved))
            loss.sum().backward()
            losses.append(loss.detach())
        if step == 0:
            # Adam's steps do not shrink with the gradient: layers with little left to gain would only get noise.
            self._reach = (torch.cat(losses) / 2).clamp(max=1.0).cpu()
        for group, share in zip(self._optimiser.param_groups, self._reach.tolist(), strict=True):
            group["lr"] = LEARNING_RATE * share * (1 - step / self._steps)
        self._optimiser.step()

    def _divergence(self, goal: Tensor, translated: Float[Tensor, "layer position d_model"]) -> Float[Tensor, " layer"]:
        """Return KL(p || lens) of each layer, in nats, mean over positions."""
        lens = self._target.unembed(translated.flatten(0, 1)).float().log_softmax(-1)
        return (goal.exp() * (goal - lens.reshape(len(translated), len(goal), -1))).sum(-1).mean(-1)

    def translators(self) -> dict[str, Tensor]:
        """Return what has been learned."""
        return {"weight": torch.stack(self._weights).detach(), "bias": torch.stack(self._biases).detach()}

    def state(self) -> dict[str, Tensor]:
        """Return everything that the steps so far have changed."""
        momenta = {
            f"{index}.{name}": value
            for index, kept in self._optimiser.state_dict()["state"].items()
            for name, value in kept.items()
        }
        return {**self.translators(), "reach": self._reach, **momenta}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from such a state."""
        rest = dict(state)
        with torch.no_grad():
            for name, held in (("weight", self._weights), ("bias", self._biases)):
                for own, value in zip(held, rest.pop(name), strict=True):
                    own.copy_(value)
        self._reach = rest.pop("reach").cpu()
        kept: dict[int, dict[str, Tensor]] = {}
        for key, value in rest.items():
            index, _, name = key.partition(".")
            kept.setdefault(int(index), {})[name] = value.cpu() if name == "step" else value
        self._optimiser.load_state_dict({**self._optimiser.state_dict(), "state": kept})


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
