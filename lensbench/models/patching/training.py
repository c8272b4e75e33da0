"""Patched passes with gradients: what verbalizers are trained by."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lensbench.models.gradients import last_layer, token_losses
from lensbench.models.language_model import LanguageModel
from lensbench.models.patching.passes import Prompt, writing


@dataclass(frozen=True)
class Lesson:
    """What a verbalizer is to say after a prompt.

    Attributes:
        prompt: with its placeholders.
        answer: the tokens that are to follow.
    """

    prompt: Prompt
    answer: tuple[int, ...]


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
    hidden = _patched(model, lessons, vectors, layer)
    # What is read at a token predicts the one after it.
    scored = [[(len(lesson.prompt.ids) - 1 + k, token) for k, token in enumerate(lesson.answer)] for lesson in lessons]
    return token_losses(model, hidden, scored)


def _patched(
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

    with writing(model, layer, write):
        return last_layer(model, ids, mask)
