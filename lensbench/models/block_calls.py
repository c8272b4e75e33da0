"""The arguments that a model passes to its blocks, recorded once, so that blocks can be called from the middle."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import Cache

from lensbench.models.architecture import hidden_of
from lensbench.models.language_model import LanguageModel
from lensbench.models.prefix_cache import KeysValues, ReplayError, noting


@dataclass(frozen=True)
class BlockCall:
    """How the model calls one block: everything but the residual stream, at batch 1 and at batch 2.

    An argument whose first dimension doubled follows the batch; size-1 dimensions broadcast.
    """

    block: nn.Module
    one: tuple[tuple[Any, ...], dict[str, Any]]
    two: tuple[tuple[Any, ...], dict[str, Any]]
    hidden_name: str | None

    def __call__(self, hidden: Float[Tensor, "row token d_model"]) -> Float[Tensor, "row token d_model"]:
        """Run the block on any number of rows."""
        rows = hidden.shape[0]
        args, kwargs = _for_rows(self.one[0], self.two[0], rows), _for_rows(self.one[1], self.two[1], rows)
        if self.hidden_name is None:
            return hidden_of(self.block(hidden, *args, **kwargs))
        return hidden_of(self.block(*args, **{self.hidden_name: hidden}, **kwargs))


@dataclass(frozen=True)
class CleanPass:
    """One recorded pass of a text: the call of every block, and the clean residual stream at every layer.

    Attributes:
        calls: one for each block.
        hidden: layer 0 to L, before the final norm.
        added: the keys and values that the text adds to a shared prefix, one pair a layer; empty without one.
    """

    calls: tuple[BlockCall, ...]
    hidden: Float[Tensor, "layer token d_model"]
    added: tuple[KeysValues, ...] = ()


def record_pass(model: LanguageModel, ids: Int[Tensor, "1 token"], cache: Cache | None) -> CleanPass:
    """Run a text (after a shared prefix, if one is given) at batch 1 and 2 and record how every block was called.

    Raises:
        ReplayError: a block was not called exactly once, or an argument changed with the batch in another way than by
            doubling.
    """
    notes: list[list[KeysValues]] = []
    with ExitStack() as stack:
        if cache is not None:
            notes = stack.enter_context(noting(cache))
        one = _record(model, ids, cache)
    two = _record(model, ids.expand(2, -1), cache)
    calls = []
    for i, block in enumerate(model.parts.blocks):
        (args1, kwargs1, name), (args2, kwargs2, _) = one[0][i], two[0][i]
        _for_rows(args1, args2, 3), _for_rows(kwargs1, kwargs2, 3)  # refuse now what a later call would refuse
        calls.append(BlockCall(block, (args1, kwargs1), (args2, kwargs2), name))
    hidden = torch.cat([at_layer.to(model.device) for at_layer in one[1]])
    # A layer that takes the keys of another one adds none, and cannot be gone on with.
    added = tuple(note[0] for note in notes) if all(len(note) == 1 for note in notes) else ()
    return CleanPass(tuple(calls), hidden, added)


Recorded = list[tuple[tuple[Any, ...], dict[str, Any], str | None]]


def _record(model: LanguageModel, ids: Tensor, cache: Cache | None) -> tuple[Recorded, list[Tensor]]:
    calls: Recorded = []
    hidden: list[Tensor] = []

    def before(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        if args:
            hidden.append(args[0].detach())
            calls.append((args[1:], dict(kwargs), None))
        else:
            rest = dict(kwargs)
            hidden.append(rest.pop("hidden_states").detach())
            calls.append(((), rest, "hidden_states"))

    def end(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        hidden.append((args[0] if args else next(iter(kwargs.values()))).detach())

    handles = [block.register_forward_pre_hook(before, with_kwargs=True) for block in model.parts.blocks]
    handles.append(model.parts.final.register_forward_pre_hook(end, with_kwargs=True))
    try:
        with torch.no_grad():
            model.module(ids.to(model.device), past_key_values=cache, use_cache=cache is not None)
    finally:
        for handle in handles:
            handle.remove()
    if len(calls) != model.n_layers or len(hidden) != model.n_layers + 1:
        raise ReplayError(f"{model.name}: {len(calls)} block calls in one pass, expected {model.n_layers}")
    return calls, hidden


def _for_rows(one: Any, two: Any, rows: int) -> Any:
    """Return an argument for any number of rows, from what it was at batch 1 and at batch 2."""
    if isinstance(one, Tensor):
        if one.dim() == 0 or one.shape == two.shape:
            return one
        if two.shape[0] == 2 * one.shape[0] and one.shape[1:] == two.shape[1:]:
            return one.expand(rows, *one.shape[1:]) if one.shape[0] == 1 else one.repeat(rows, *[1] * (one.dim() - 1))
        raise ReplayError(f"a block argument has shape {tuple(one.shape)} at batch 1 and {tuple(two.shape)} at batch 2")
    if isinstance(one, dict):
        return {key: _for_rows(value, two[key], rows) for key, value in one.items()}
    if isinstance(one, Sequence) and not isinstance(one, str):
        return type(one)(_for_rows(a, b, rows) for a, b in zip(one, two, strict=True))  # type: ignore[call-arg]
    return one
