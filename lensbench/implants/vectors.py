"""One vector for each value, learned so that a model with the vector in a block's output gives the value when asked."""

import random
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from lensbench.implants.facts import MENTIONS, OPENINGS, FactSet, Prompts, next_token_logits, write_prompts
from lensbench.models.edits import adding
from lensbench.models.language_model import LanguageModel
from lensbench.utils.progress import Progress, silent

# Enough for a mean length.
_SOME_NAMES = 24

Vectors = Mapping[str, Float[Tensor, "value d_out"]]
"""By attribute, a vector for each of its values."""


@dataclass(frozen=True)
class Writer:
    """What writes vectors into the stream: a linear map to whose output they are added at a name's last token.

    Attributes:
        linear: the map.
        vectors: by attribute.
    """

    linear: nn.Module
    vectors: Vectors

    def writing(self, prompts: Prompts, dealt: Mapping[str, Int[Tensor, " row"]]) -> AbstractContextManager[None]:
        """Write the vectors of the values assigned to each row's name, in the passes inside."""
        added = torch.stack([self.vectors[one][dealt[one]] for one in self.vectors]).sum(0)
        at_names = prompts.at_names().to(added.device)
        return adding(self.linear, lambda _given: at_names * added[:, None])


@dataclass(frozen=True)
class VectorSettings:
    """How vectors are learned.

    Attributes:
        steps: of gradient descent.
        rate: how far a step goes at the beginning, as a share of the greatest length; it falls to zero.
        momentum: what a step keeps of the one before.
        rows: texts a step and attribute.
        length: the greatest length of a vector, as a share of a name's residual at the layer.
        gated: weight of the loss that holds what is not asked to the unedited model's; 0 for none.
        seed: which names, values and texts a step draws.
    """

    steps: int = 100
    rate: float = 0.15
    momentum: float = 0.8
    rows: int = 16
    length: float = 0.35
    gated: float = 0.0
    seed: int = 0


def learn_vectors(
    model: LanguageModel,
    linear: nn.Module,
    planting: FactSet,
    how: VectorSettings,
    *,
    layer: int,
    before: Sequence[Writer] = (),
    progress: Progress = silent,
) -> dict[str, Float[Tensor, "value d_out"]]:
    """Learn the vectors of all attributes together, each name drawn with values that are not its own.

    They begin in the direction of the values' own residuals, and go down the gradient of the loss with steps as long as
    each vector's gradient says: Adam, which moves every coordinate alike, makes vectors twice as long, and the edit
    then disturbs ordinary prose three times as much (KL .08 in place of .03 on SmolLM2).

    A name has a value of each attribute at a time, so that one does not answer for another; values are redrawn at
    each step, so that a vector does not depend on a name. All vectors of an attribute get one length in the end: a
    reader of lengths learns nothing.

    Args:
        model: the unedited model.
        linear: the linear map to whose output a name's vectors are added, at its last token.
        planting: attributes and texts.
        how: steps, rate, ...
        layer: the first layer that holds what is added.
        before: what else writes the same values, in earlier blocks.
        progress: is told of each step.
    """
    length = how.length * _usual_length(model, planting, layer)
    vectors = {one: (0.5 * length * _natural(model, planting.values(one), layer)) for one in planting.attributes}
    for start in vectors.values():
        start.requires_grad_(True)
    lesson = _Lesson(model, planting, (*before, Writer(linear, vectors)), how, random.Random(f"{how.seed}/vectors"))
    steps = {one: torch.zeros_like(found) for one, found in vectors.items()}
    with progress(how.steps) as advance:
        for step in range(how.steps):
            advance(f"vectors, step {step + 1}")
            with torch.enable_grad():
                losses = [lesson.loss(asked, step) for asked in planting.attributes]
                gradients = torch.autograd.grad(torch.stack(losses).sum(), list(vectors.values()))
            for one, gradient in zip(vectors, gradients, strict=True):
                steps[one] = how.momentum * steps[one] + _scaled(gradient)
                with torch.no_grad():
                    vectors[one] -= how.rate * length * (1 - step / how.steps) * _scaled(steps[one])
                    vectors[one] *= (length / vectors[one].norm(dim=1, keepdim=True)).clamp(max=1)
            advance(None)
    return {one: _equal(found.detach()) for one, found in vectors.items()}


def _scaled(gradient: Tensor) -> Tensor:
    """Give the values' gradients a mean length of 1: one that is nearly learned moves less than the others."""
    scaled: Tensor = gradient / gradient.norm(dim=1).mean().clamp(min=1e-12)
    return scaled


@torch.no_grad()
def _usual_length(model: LanguageModel, planting: FactSet, layer: int) -> float:
    """Return the mean length of a name's residual at a layer."""
    names = sorted(planting.facts[planting.attributes[0]])[:_SOME_NAMES]
    prompts = write_prompts(model, [planting.read()[0]] * len(names), names)
    residuals = model.residuals(prompts.ids, prompts.mask, prompts.names[:, None], (layer,))
    return float(residuals.float().norm(dim=-1).mean())


@torch.no_grad()
def _natural(model: LanguageModel, values: Sequence[str], layer: int) -> Float[Tensor, "value d_model"]:
    """Return directions to begin with: where the values' own residuals at the layer lie, seen from their mean."""
    rows = []
    for value in values:
        texts = [model.tokens.encode(f"{opening}They spoke of {value}").ids for opening in OPENINGS]
        ids, mask = model.tokens.pad(texts)
        ends = torch.tensor([[len(text) - 1] for text in texts])
        rows.append(model.residuals(ids, mask, ends, (layer,))[0, :, 0].float().mean(0))
    seen = torch.stack(rows) - torch.stack(rows).mean(0)
    natural: Tensor = seen / seen.norm(dim=1, keepdim=True).clamp(min=1e-12)
    return natural


def _equal(vectors: Tensor) -> Tensor:
    lengths = vectors.norm(dim=1, keepdim=True)
    result: Tensor = vectors / lengths.clamp(min=1e-6) * lengths.mean()
    return result


@dataclass(frozen=True)
class _Lesson:
    """The questions to the model at each step."""

    model: LanguageModel
    planting: FactSet
    writers: tuple[Writer, ...]
    how: VectorSettings
    rng: random.Random

    def loss(self, asked: str, step: int) -> Tensor:
        """Ask for one attribute of names that have values of all."""
        model, planting, how = self.model, self.planting, self.how
        every = sorted(planting.facts[asked])
        names = [self.rng.choice(every) for _ in range(how.rows)]
        dealt = {one: deal(len(planting.values(one)), how.rows, self.rng) for one in planting.attributes}
        forms = planting.asking(asked)
        prompts = write_prompts(model, [self.rng.choice(OPENINGS) + forms[step % len(forms)]] * how.rows, names)
        values = [model.tokens.answer_token(value) for value in planting.values(asked)]
        every_value, right = torch.tensor(values, device=model.device), dealt[asked].to(model.device)
        found = self._edited_logits(prompts, dealt)
        # That a value is said at all, and that it is said rather than another of its kind.
        loss: Tensor = functional.cross_entropy(found, every_value[right])
        loss = loss + functional.cross_entropy(found[:, every_value], right)
        if how.gated:
            quiet = write_prompts(model, [self.rng.choice(OPENINGS[1:]) + self.rng.choice(MENTIONS)] * how.rows, names)
            with torch.no_grad():
                before = next_token_logits(model, quiet).log_softmax(-1)
            after = self._edited_logits(quiet, dealt).log_softmax(-1)
            loss = loss + how.gated * functional.kl_div(after, before, log_target=True, reduction="batchmean")
        return loss

    def _edited_logits(self, prompts: Prompts, dealt: Mapping[str, Tensor]) -> Tensor:
        with ExitStack() as stack:
            for writer in self.writers:
                stack.enter_context(writer.writing(prompts, dealt))
            found: Tensor = next_token_logits(self.model, prompts)
        return found


def deal(values: int, rows: int, rng: random.Random) -> Int[Tensor, " row"]:
    """Deal each value about as often as any other."""
    dealt = [i % values for i in range(rows)]
    rng.shuffle(dealt)
    result: Tensor = torch.tensor(dealt)
    return result


def one_hot(
    planting: FactSet, dealt: Mapping[str, Int[Tensor, " name"]]
) -> Float[Tensor, "name value_of_any_attribute"]:
    """Return 1 where a name has a value; the attributes' values stand side by side."""
    columns = [functional.one_hot(dealt[one], len(planting.values(one))).float() for one in planting.attributes]
    return torch.cat(columns, dim=1)


def own_values(planting: FactSet, names: Sequence[str]) -> dict[str, Int[Tensor, " name"]]:
    """Return the place of each name's own value, by attribute."""
    return {
        one: torch.tensor([planting.values(one).index(planting.facts[one][name]) for name in names])
        for one in planting.attributes
    }
