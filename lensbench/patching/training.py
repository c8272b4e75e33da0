"""Patched passes with gradients: what verbalizers are trained by."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lensbench.model.language_model import LanguageModel
from lensbench.patching.passes import Prompt, writing


@dataclass(frozen=True)
class Lesson:
    """What a verbalizer is to say after a prompt.

    Attributes:
        prompt: with its placeholders.
        answer: the tokens that are to follow.
    """

    prompt: Prompt
    answer: tuple[int, ...]


class _Reached(Exception):  # noqa: N818 - not an error: ends a pass before the head
    pass


def answer_losses(
    model: LanguageModel, lessons: Sequence[Lesson], vectors: Float[Tensor, "row d_model"], layer: int
) -> Float[Tensor, " row"]:
    """Return the mean cross-entropy of each answer's tokens, in nats: teacher-forced, with gradients.

    Texts are padded on the right, where nothing that is scored can see it. Only what is scored goes through the head.

    Args:
        model: whose weights may ask for gradients.
        lessons: one a row; all with as many placeholders, and the same way of writing.
        vectors: what is written into each row's prompt.
        layer: where it is written.
    """
    hidden = _last_layer(model, lessons, vectors, layer)
    # What is read at a token predicts the one after it.
    row = torch.tensor([i for i, lesson in enumerate(lessons) for _ in lesson.answer], device=hidden.device)
    at = [len(lesson.prompt.ids) - 1 + k for lesson in lessons for k in range(len(lesson.answer))]
    logits = model.unembed(hidden[row, torch.tensor(at, device=hidden.device)])
    wanted = torch.tensor([token for lesson in lessons for token in lesson.answer], device=logits.device)
    losses = F.cross_entropy(logits.float(), wanted, reduction="none")
    lengths = torch.tensor([len(lesson.answer) for lesson in lessons], device=losses.device)
    return torch.zeros(len(lessons), device=losses.device).index_add(0, row.to(losses.device), losses) / lengths


def _last_layer(
    model: LanguageModel, lessons: Sequence[Lesson], vectors: Tensor, layer: int
) -> Float[Tensor, "row token d_model"]:
    """Run prompts and answers, the prompts patched, and return the residual stream before the final norm."""
    ids, mask = model.tokens.pad([lesson.prompt.ids + lesson.answer for lesson in lessons])
    rows = torch.arange(len(lessons))[:, None]
    places = torch.tensor([lesson.prompt.positions for lesson in lessons])

    def write(hidden: Tensor) -> Tensor:
        at = rows.to(hidden.device), places.to(hidden.device)
        hidden[at] = lessons[0].prompt.written(hidden[at], vectors)
        return hidden

    seen: list[Tensor] = []

    def stop(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        seen.append(args[0] if args else next(iter(kwargs.values())))
        raise _Reached

    handle = model.parts.final.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        with writing(model, layer, write), suppress(_Reached):
            model.module(ids.to(model.device), attention_mask=mask.to(model.device), use_cache=False)
    finally:
        handle.remove()
    return seen[0]
