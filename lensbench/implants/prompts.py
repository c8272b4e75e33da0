"""Batches of texts about names, and where each name ends."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lensbench.models.gradients import last_layer
from lensbench.models.language_model import LanguageModel
from lensbench.tasks.facts import SLOT

_ROWS = 48


@dataclass(frozen=True)
class Prompts:
    """Texts that are run together, padded on the right.

    Attributes:
        ids: token ids.
        mask: 1 where there is text.
        names: position of the last token of each text's name (its last mention).
        ends: position of each text's last token.
    """

    ids: Int[Tensor, "row token"]
    mask: Int[Tensor, "row token"]
    names: Int[Tensor, " row"]
    ends: Int[Tensor, " row"]

    def at_names(self) -> Float[Tensor, "row token 1"]:
        """Return 1 at the last token of each name, 0 elsewhere."""
        found = torch.zeros(self.ids.shape)
        found[torch.arange(len(self.ids)), self.names] = 1
        return found[..., None]


def write_prompts(model: LanguageModel, forms: Sequence[str], names: Sequence[str]) -> Prompts:
    """Fill one form for each name.

    Raises:
        TokenError: a name whose last token cannot be found.
    """
    rows, places = [], []
    for form, name in zip(forms, names, strict=True):
        begin = form.rindex(SLOT)
        text = form.replace(SLOT, name)
        begin += (form.count(SLOT) - 1) * (len(name) - len(SLOT))
        encoding = model.tokens.encode(text)
        places.append(model.tokens.locate(encoding, (begin, begin + len(name))))
        rows.append(encoding.ids)
    ids, mask = model.tokens.pad(rows)
    ends = torch.tensor([len(row) - 1 for row in rows])
    return Prompts(ids.to(model.device), mask.to(model.device), torch.tensor(places), ends)


def logits(model: LanguageModel, prompts: Prompts) -> Float[Tensor, "row vocab"]:
    """Return the next token's logits after each text. Differentiable in what hooks add."""
    hidden = last_layer(model, prompts.ids, prompts.mask)
    return model.unembed(hidden[torch.arange(len(hidden)), prompts.ends.to(hidden.device)])


class _InputCaptured(Exception):  # noqa: N818 - not an error: ends a pass once a map's input is known
    pass


@torch.no_grad()
def inputs_of(model: LanguageModel, linear: nn.Module, prompts: Prompts) -> Float[Tensor, "row token d_in"]:
    """Return what a linear map is given at each token; the pass ends there."""
    seen: list[Tensor] = []

    def look(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.append(args[0].float())
        raise _InputCaptured

    handle = linear.register_forward_pre_hook(look)
    try:
        model.module(prompts.ids, attention_mask=prompts.mask, use_cache=False)
    except _InputCaptured:
        pass
    finally:
        handle.remove()
    found: Tensor = seen[0].reshape(*prompts.ids.shape, -1)
    return found


def inputs_at_names(model: LanguageModel, linear: nn.Module, prompts: Prompts) -> Float[Tensor, "row d_in"]:
    """Return what a linear map is given at the last token of each name."""
    given = inputs_of(model, linear, prompts)
    return given[torch.arange(len(given)), prompts.names.to(given.device)]


def in_rows(forms: Sequence[str], names: Sequence[str]) -> Iterator[tuple[Sequence[str], Sequence[str]]]:
    """Split texts into batches."""
    for begin in range(0, len(names), _ROWS):
        yield forms[begin : begin + _ROWS], names[begin : begin + _ROWS]


@torch.no_grad()
def answers(
    model: LanguageModel,
    form: str,
    names: Sequence[str],
    values: Sequence[str],
    hooks: Callable[[Prompts], object] | None = None,
) -> tuple[str, ...]:
    """Return which of the values the model says of each name after a text.

    Args:
        model: who is asked.
        form: the text, with the slot.
        names: about whom.
        values: to choose among.
        hooks: of each batch, a context to run it in.
    """
    tokens = torch.tensor([model.tokens.answer_token(value) for value in values])
    found: list[str] = []
    for forms, part in in_rows([form] * len(names), names):
        prompts = write_prompts(model, forms, part)
        if hooks is None:
            scores = logits(model, prompts)
        else:
            with hooks(prompts):  # type: ignore[attr-defined]
                scores = logits(model, prompts)
        found += [values[i] for i in scores.cpu()[:, tokens].argmax(-1).tolist()]
    return tuple(found)
