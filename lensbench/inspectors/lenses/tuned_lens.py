"""Tuned lens."""

import inspect as introspection
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from lensbench.errors import UsageError
from lensbench.inspectors.base import Translator
from lensbench.inspectors.evidence import Learns, Source, Training
from lensbench.inspectors.target import Target
from lensbench.models.corpus import Corpus
from lensbench.models.hub import HUB
from lensbench.models.language_model import LanguageModel
from lensbench.models.optimization import (
    Resumable,
    TrainingSchedule,
    draw_positions,
    optimizer_moments,
    restore_moments,
)
from lensbench.models.ridge import RunningMoments, check_amounts, every_pair
from lensbench.models.tuned_lens_files import CONFIG, PARAMS, Checkpoint, read_checkpoint, save_checkpoint

LEARNING_RATE = 3e-4
POSITIONS_PER_STEP = 16
# Neighbouring positions are much alike: at most every fourth is trained on.
MIN_APART = 4
# From what KL(p || lens) on, in nats, a layer learns at the full rate.
FULL_RATE = 2.0
LOSSES = ("kl", "reverse_kl", "mse", "cosine")


class TunedLens(Translator):
    """U(N(h_l + A_l h_l + b_l)): a learned affine translator a layer (Belrose et al. 2023, arXiv 2303.08112).

    A and b begin as the ridge regression of h_L - h_l on h_l, for all layers in one pass over the corpus, and are
    then trained a little on the published loss KL(p || lens). The residual form makes ridge shrink towards the logit
    lens, not towards zero.

    Other losses are there for the question why it is KL. With t = h + A h + b: `reverse_kl` is KL(lens || p); `mse`
    is |t - h_L|^2 before the final norm, over the variance of h_L in the corpus (what of it is left unexplained);
    `cosine` is 1 - cos(N(t), N(h_L)), after the final norm, where the head reads. All four begin at the same ridge,
    and learn at the same rate: KL(p || lens) at the beginning sets it for each layer, whatever the loss.

    The translators of others are read from a checkpoint of the tuned-lens package, and `save` writes one.

    Args:
        tokens: corpus tokens for the ridge; 0 leaves the translators at zero, which is the logit lens.
        ridge: penalty, relative to the mean variance of the residual's coordinates.
        steps: training steps on the loss, of 16 positions each; 0 leaves the ridge.
        seed: which positions are drawn.
        bf16: train in bfloat16 where that is faster (most GPUs); the translators themselves stay in float32.
        loss: kl, reverse_kl, mse or cosine.
        checkpoint: a folder with config.json and params.pt, `hub:ORG/NAME@COMMIT` for such a folder on the Hub, or
            `hub:MODEL_ID` for the Hub space AlignmentResearch/tuned-lens; nothing is learned then, and none of the
            other parameters may be given.
    """

    name: ClassVar[str] = "tuned_lens"
    reads: ClassVar[frozenset[Source]] = frozenset({"activation"})
    learns_from: ClassVar[Learns] = "corpus"
    cost: ClassVar[str] = "a pass over the corpus, once a model; then a matrix and the head"

    def __init__(
        self,
        tokens: int = 8192,
        ridge: float = 0.001,
        steps: int = 16,
        seed: int = 0,
        bf16: bool = False,
        loss: str = "kl",
        checkpoint: str | None = None,
    ) -> None:
        self.tokens = tokens
        self.ridge = ridge
        self.steps = steps
        self.seed = seed
        self.bf16 = bf16
        self.loss = loss
        self.checkpoint = checkpoint

    def check(self, target: Target, verbalizer: LanguageModel) -> None:
        """Refuse an unknown loss, amounts that cannot be, and a checkpoint that is broken or of another model.

        Raises:
            UsageError: what does not fit, and what to give instead.
            LensbenchError: the Hub was not reached.
        """
        if self.loss not in LOSSES:
            raise UsageError(f"tuned_lens.loss = {self.loss!r}: expected one of {', '.join(LOSSES)}")
        check_amounts(self.name, tokens=self.tokens, ridge=self.ridge)
        if not isinstance(self.steps, int) or self.steps < 0:
            raise UsageError(f"tuned_lens.steps = {self.steps!r}: expected 0 or more")
        if self.checkpoint is None:
            return
        given = [name for name, default in self._defaults().items() if getattr(self, name) != default]
        if given:
            raise UsageError(
                f"tuned_lens.{given[0]} is for fitting, and tuned_lens.checkpoint for reading: give only one"
            )
        read_checkpoint(self.checkpoint, target.identity)

    def _defaults(self) -> dict[str, object]:
        found = introspection.signature(type(self)).parameters.values()
        return {one.name: one.default for one in found if one.name != "checkpoint"}

    def files(self) -> tuple[Path, ...]:
        """Return the files of a checkpoint in a folder; one of the Hub is known by its name."""
        if self.checkpoint is None or self.checkpoint.startswith(HUB):
            return ()
        folder = Path(self.checkpoint).expanduser()
        return folder / CONFIG, folder / PARAMS

    def fit(self, target: Target, verbalizer: LanguageModel, training: Training) -> "TunedLens":
        """Learn the translators of layers 0 to L - 1, or take them from the cache or the checkpoint."""
        self.target_ = target
        learned = self._learned(target, training)
        self.weight_: Float[Tensor, "layer d_model d_model"] = learned["weight"]
        self.bias_: Float[Tensor, "layer d_model"] = learned["bias"]
        return self

    def _learned(self, target: Target, training: Training) -> dict[str, Tensor]:
        if self.checkpoint is not None:
            read = read_checkpoint(self.checkpoint, target.identity)
            return {"weight": read.weight.to(target.device), "bias": read.bias.to(target.device)}
        corpus = training.corpus
        return corpus.learn_once(type(self), self.parameters(), lambda learning: self._learn(target, corpus, learning))

    def save(self, folder: Path) -> None:
        """Write the translators as a checkpoint of the tuned-lens package, which both can read.

        Raises:
            UsageError: there is such a folder, or the translators are themselves read from a checkpoint.
        """
        if self.checkpoint is not None:
            raise UsageError(f"this lens was read from {self.checkpoint}, which is already a checkpoint; copy it")
        made_by = {"inspector": self.name, "parameters": self.parameters()}
        save_checkpoint(Checkpoint(self.weight_, self.bias_, made_by), self.target_.identity, folder)

    def translate(
        self, layers: tuple[int, ...], values: Float[Tensor, "layer item d_model"]
    ) -> Float[Tensor, "layer item d_model"]:
        """Return h + A h + b at each layer; the last layer stays as it is."""
        pairs = zip(layers, values, strict=True)
        return torch.stack([self._translated(layer, h) if layer < len(self.bias_) else h for layer, h in pairs])

    def _translated(self, layer: int, h: Tensor) -> Tensor:
        return h + (h.float() @ self.weight_[layer].T + self.bias_[layer]).to(h.dtype)

    def _learn(self, target: Target, corpus: Corpus, learning: TrainingSchedule) -> dict[str, Tensor]:
        start = learning.stage("ridge", lambda: self._begin(target, corpus.residuals(self.tokens)))
        if not (self.steps and self.tokens):
            return {name: start[name] for name in ("weight", "bias")}
        polish = _Polish(_Loss(self.loss, target, start["kept"][-1]), start, self.steps, self.seed, bf16=self.bf16)
        for step in learning.steps(self.steps, polish):
            polish.step(step)
        return polish.translators()

    def _begin(self, target: Target, batches: Iterable[Tensor]) -> dict[str, Tensor]:
        """Solve the normal equations of all layers in one pass over the corpus, and keep positions to train on."""
        position_bytes = 4 * (target.n_layers + 1) * target.d_model
        wanted = min(POSITIONS_PER_STEP * self.steps, target.budget_bytes // 2 // position_bytes)
        apart = max(MIN_APART, self.tokens // max(1, wanted))
        pairs, width = every_pair(target.n_layers), target.d_model
        moments = RunningMoments(pairs, width, width, target.device, centred=False)
        kept: list[Tensor] = []
        for batch in batches:
            # A copy: a view would keep the whole batch.
            kept.append(batch[:, ::apart].float().clone())
            moments.add(batch[:-1], batch[-1:])
        weight, bias = moments.ridge(self.ridge, standardised=False, residual=True)
        return {"weight": weight, "bias": bias, **({"kept": torch.cat(kept, dim=1)} if self.tokens else {})}


@dataclass(frozen=True)
class _Loss:
    """How far translated residuals lie from the last layer's, as `TunedLens` defines it.

    Attributes:
        kind: one of `LOSSES`.
        target: whose norm and head are used.
        last: residuals of the last layer on the corpus, [position, d_model], for their variance.
    """

    kind: str
    target: Target
    last: Tensor

    @torch.no_grad()
    def goal(self, last: Float[Tensor, "position d_model"]) -> Tensor:
        """Return what translated residuals are to come near, from the last layer's."""
        if self.kind == "mse":
            return last
        if self.kind == "cosine":
            return self.target.norm(last)
        return self.target.unembed(last).log_softmax(-1)

    def distance(self, goal: Tensor, translated: Float[Tensor, "layer position d_model"]) -> Float[Tensor, " layer"]:
        """Return each layer's loss, mean over positions."""
        if self.kind == "mse":
            return (translated - goal).square().mean((1, 2)) / self.last.var(0).mean()
        flat = translated.flatten(0, 1)
        if self.kind == "cosine":
            normed = self.target.norm(flat).reshape(translated.shape)
            return 1 - torch.cosine_similarity(normed, goal, dim=-1).mean(-1)
        lens = self.target.unembed(flat).float().log_softmax(-1).reshape(len(translated), len(goal), -1)
        first, second = (goal, lens) if self.kind == "kl" else (lens, goal)
        return (first.exp() * (first - second)).sum(-1).mean(-1)


class _Polish(Resumable):
    """Gradient steps on a loss, all layers from one forward pass of the model, at a rate that falls to zero."""

    def __init__(self, loss: _Loss, start: dict[str, Tensor], steps: int, seed: int, *, bf16: bool) -> None:
        self._loss = loss
        self._kept = start["kept"]
        self._weights = [weight.clone().requires_grad_(True) for weight in start["weight"]]
        self._biases = [bias.clone().requires_grad_(True) for bias in start["bias"]]
        pairs = zip(self._weights, self._biases, strict=True)
        self._optimiser = torch.optim.Adam([{"params": pair} for pair in pairs], lr=0.0)
        self._reach = torch.ones(len(self._weights))
        self._steps, self._seed, self._bf16 = steps, seed, bf16

    def step(self, step: int) -> None:
        """Make one step on positions that its number draws."""
        h = draw_positions(self._kept, POSITIONS_PER_STEP, self._seed, step)
        self._optimiser.zero_grad()
        losses = self._losses(self._loss, h, learn=True)
        if step == 0:
            # Adam's steps do not shrink with the gradient: layers with little left to gain would only get noise.
            nats = losses if self._loss.kind == "kl" else self._losses(replace(self._loss, kind="kl"), h, learn=False)
            self._reach = (nats / FULL_RATE).clamp(max=1.0).cpu()
        for group, share in zip(self._optimiser.param_groups, self._reach.tolist(), strict=True):
            group["lr"] = LEARNING_RATE * share * (1 - step / self._steps)
        self._optimiser.step()

    def _losses(self, loss: _Loss, h: Float[Tensor, "layer position d_model"], *, learn: bool) -> Tensor:
        """Return each layer's loss; with `learn`, add its gradients to those of the translators."""
        goal = loss.goal(h[-1])
        # Some layers at a time: what a backward pass keeps of the logits is several times their size.
        at_once = max(1, loss.target.head_rows // (2 * POSITIONS_PER_STEP))
        losses = []
        for layers in torch.arange(len(self._weights)).split(at_once):
            with torch.autocast(h.device.type, dtype=torch.bfloat16, enabled=self._bf16), torch.set_grad_enabled(learn):
                moved = [h[i] + h[i] @ self._weights[i].T + self._biases[i] for i in layers.tolist()]
                found = loss.distance(goal, torch.stack(moved))
            if learn:
                found.sum().backward()
            losses.append(found.detach())
        return torch.cat(losses)

    def translators(self) -> dict[str, Tensor]:
        """Return what has been learned."""
        return {"weight": torch.stack(self._weights).detach(), "bias": torch.stack(self._biases).detach()}

    def state(self) -> dict[str, Tensor]:
        """Return everything that the steps so far have changed."""
        return {**self.translators(), "reach": self._reach, **optimizer_moments(self._optimiser)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from such a state."""
        rest = dict(state)
        with torch.no_grad():
            for name, held in (("weight", self._weights), ("bias", self._biases)):
                for own, value in zip(held, rest.pop(name), strict=True):
                    own.copy_(value)
        self._reach = rest.pop("reach").cpu()
        restore_moments(self._optimiser, rest)
