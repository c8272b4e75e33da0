"""Losses with gradients of the residual stream or of weights."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from lensbench.models.architecture import on_input
from lensbench.models.language_model import LanguageModel
from lensbench.models.patching.passes import Prompt, writing
from lensbench.models.patching.patcher import patcher_of
from lensbench.models.replay import shared_prefix

# More texts at once are no faster on a CPU.
CPU_TOKENS = 512
# What a backward pass keeps: of a block so many residual streams (attention, a gated MLP); of logits so many copies.
KEPT_PER_BLOCK, KEPT_OF_LOGITS = 40, 6


Goals = Callable[[slice, Float[Tensor, "row token vocab"]], Int[Tensor, "goal row token"]]


@dataclass(frozen=True)
class Gradients:
    """Some positions of some texts, at every layer 0 to L.

    Attributes:
        residuals: h_l.
        gradients: of each goal's loss with respect to h_l; the loss of a text is the sum of the cross-entropies at all
            its positions, so what h_l does to later positions through attention is in it.
        losses: mean cross-entropy of each goal over the positions of a text, in nats.
    """

    residuals: Float[Tensor, "layer row place d_model"]
    gradients: Float[Tensor, "goal layer row place d_model"]
    losses: Float[Tensor, "goal row"]


def loss_gradients(
    model: LanguageModel, ids: Int[Tensor, "row token"], goals: Goals, places: Int[Tensor, " place"]
) -> Gradients:
    """Return the gradients of sum_t -log p(goal_t) with respect to the residual stream.

    Args:
        model: whose weights stay without gradients.
        ids: texts of one length.
        goals: from a batch (which rows, and their logits) to the tokens whose cross-entropy is the loss.
        places: the positions whose gradients are kept.
    """
    block_bytes = 4 * KEPT_PER_BLOCK * (model.n_layers + 1) * model.d_model
    row_bytes = ids.shape[1] * (block_bytes + 4 * KEPT_OF_LOGITS * model.vocabulary)

    def size(_begin: int) -> int:
        return model.budget.rows(row_bytes, cpu_most=max(1, CPU_TOKENS // ids.shape[1]))

    parts = model.budget.in_batches(
        len(ids), size, lambda rows: _loss_gradients(model, ids[rows], places, lambda logits: goals(rows, logits))
    )
    return Gradients(
        torch.cat([part.residuals for part in parts], dim=1),
        torch.cat([part.gradients for part in parts], dim=2),
        torch.cat([part.losses for part in parts], dim=1),
    )


def _loss_gradients(model: LanguageModel, ids: Tensor, places: Tensor, goals: Callable[[Tensor], Tensor]) -> Gradients:
    with torch.enable_grad():
        stream = _differentiable_stream(model, ids)
        logits = model.unembed(stream[-1].flatten(0, 1)).log_softmax(-1).unflatten(0, ids.shape)
        wanted = goals(logits.detach()).to(logits.device)
        losses = [-logits.gather(2, tokens[..., None])[..., 0] for tokens in wanted]
        gradients = [
            torch.autograd.grad(loss.sum(), stream, retain_graph=place < len(losses) - 1)
            for place, loss in enumerate(losses)
        ]
    kept = [[gradient[:, places].to(model.device) for gradient in one] for one in gradients]
    return Gradients(
        torch.stack([hidden[:, places].detach().to(model.device) for hidden in stream]),
        torch.stack([torch.stack(one) for one in kept]),
        torch.stack(losses).detach().mean(2),
    )


def _differentiable_stream(model: LanguageModel, ids: Tensor) -> list[Tensor]:
    """Run the model and return its residual stream at every layer, with the graph from the embeddings on."""
    every = range(model.n_layers + 1)
    # The weights ask for no gradients: the graph begins where this tensor goes in.
    with (
        on_input(model.stops[:1], lambda _, hidden: hidden.detach().requires_grad_(True)),
        model.reading(every) as seen,
    ):
        model.module(ids.to(model.device), use_cache=False)
    return [seen[layer] for layer in every]


def last_layer(
    model: LanguageModel, ids: Int[Tensor, "row token"], mask: Int[Tensor, "row token"], prefix: Any = None
) -> Float[Tensor, "row token d_model"]:
    """Run the model and return its residual stream before the final norm, with gradients where weights ask for them.

    After a prefix that was run before (`shared_prefix`), no mask is needed: texts are padded on the right.
    """
    given = {"attention_mask": mask.to(model.device)} if prefix is None else {"past_key_values": prefix}
    with model.reading((model.n_layers,)) as seen:
        model.module(ids.to(model.device), use_cache=prefix is not None, **given)
    return seen[model.n_layers]


def token_losses(
    model: LanguageModel, hidden: Float[Tensor, "row token d_model"], scored: Sequence[Sequence[tuple[int, int]]]
) -> Float[Tensor, " row"]:
    """Return the mean cross-entropy of some tokens of each text, in nats. Only what is scored goes through the head.

    Args:
        model: whose final norm and head are used.
        hidden: the residual stream before the final norm.
        scored: of each text, the positions that are read, and the tokens that are to follow them; one or more.
    """
    row = torch.tensor([i for i, own in enumerate(scored) for _ in own], device=hidden.device)
    at, wanted = torch.tensor([pair for own in scored for pair in own], device=hidden.device).unbind(1)
    logits = model.unembed(hidden[row, at])
    losses = F.cross_entropy(logits.float(), wanted.to(logits.device), reduction="none")
    lengths = torch.tensor([len(own) for own in scored], device=losses.device)
    return torch.zeros(len(scored), device=losses.device).index_add(0, row.to(losses.device), losses) / lengths


@dataclass(frozen=True)
class Lesson:
    """What a verbalizer is to say after a prompt.

    Attributes:
        prompt: with its placeholders.
        answer: the tokens that are to follow.
        vectors: what is written over the placeholders; none writes nothing.
    """

    prompt: Prompt
    answer: tuple[int, ...]
    vectors: Float[Tensor, "place d_model"] | None


def answer_losses(
    model: LanguageModel, lessons: Sequence[Lesson], layer: int, *, frozen: bool = False
) -> Float[Tensor, " row"]:
    """Return the mean cross-entropy of each answer's tokens, in nats: teacher-forced, with gradients.

    Texts are padded on the right, where nothing that is scored can see it. Only what is scored goes through the head.

    Args:
        model: whose weights may ask for gradients.
        lessons: one a row.
        layer: where vectors are written.
        frozen: no weight asks for gradients, and all prompts are the same: what comes before their first placeholder
            does not move, and is run once where the model allows it.
    """
    prompt = lessons[0].prompt
    skip = prompt.position if frozen and patcher_of(model).proved_mode(prompt) == "shared" else 0
    hidden = _patched(model, lessons, layer, skip)
    # What is read at a token predicts the one after it.
    scored = [
        [(len(lesson.prompt.ids) - 1 - skip + k, token) for k, token in enumerate(lesson.answer)] for lesson in lessons
    ]
    return token_losses(model, hidden, scored)


@torch.no_grad()
def mean_answer_loss(
    model: LanguageModel, lessons: Sequence[Lesson], layer: int, batch: int, *, frozen: bool = False
) -> float:
    """Return the mean of the lessons' `answer_losses`, so many at once, to four decimals, to be written down."""
    parts = [answer_losses(model, lessons[i : i + batch], layer, frozen=frozen) for i in range(0, len(lessons), batch)]
    return round(float(torch.cat(parts).mean()), 4)


def _patched(
    model: LanguageModel, lessons: Sequence[Lesson], layer: int, skip: int
) -> Float[Tensor, "row token d_model"]:
    """Run prompts and answers, the prompts patched, and return the residual stream before the final norm.

    The first `skip` tokens, which are those of all, are run once, outside of the graph, and not returned.
    """
    ids, mask = model.tokens.pad([lesson.prompt.ids + lesson.answer for lesson in lessons])
    prefix = shared_prefix(model, ids[:1, :skip]) if skip else None

    def write(hidden: Tensor) -> Tensor:
        for row, lesson in enumerate(lessons):
            if lesson.vectors is not None:
                places = [position - skip for position in lesson.prompt.positions]
                hidden[row, places] = lesson.prompt.written(
                    hidden[row : row + 1, places], lesson.vectors.flatten()[None]
                )[0]
        return hidden

    with writing(model, layer, write):
        return last_layer(model, ids[:, skip:], mask[:, skip:], prefix)
