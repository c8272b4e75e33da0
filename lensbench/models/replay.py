"""Blocks called from the middle of a model: a prefix that is run once and shared, and recorded calls of every block."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import Cache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from lensbench.errors import LensbenchError
from lensbench.models.architecture import hidden_of, removing
from lensbench.models.language_model import LanguageModel

# Of one layer: [row, head, token, head_dim] each.
KeysValues = tuple[Tensor, Tensor]


class ReplayError(LensbenchError):
    """A model whose blocks cannot be called from the middle, or whose prefix cannot be shared."""


class SharedPrefixLayer(DynamicLayer):
    """One layer's keys and values of a prefix, run at batch 1.

    `update` returns prefix and new keys together and stores nothing, so that one cache serves any number of calls.

    Attributes:
        recorded: where somebody records what rows add, a list of their keys and values; else None.
    """

    def __init__(self, source: DynamicLayer) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        if source.keys is None or source.values is None:
            raise ReplayError("a layer of the cache holds no keys and values")
        self.prefix: KeysValues = (source.keys, source.values)
        self.keys, self.values = self.prefix
        self.dtype, self.device = source.keys.dtype, source.keys.device
        self.is_initialized = True
        self.is_sliding = getattr(source, "is_sliding", False)
        # Of a sliding window only its last tokens are kept; positions count all of them.
        self.seen = int(getattr(source, "cumulative_length", source.keys.shape[-2]))
        self.recorded: list[KeysValues] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        """Return the prefix's keys and values, for as many rows as the new ones have, followed by the new ones."""
        if self.recorded is not None:
            self.recorded.append((key_states, value_states))
        return self._after_prefix(key_states), self._after_prefix(value_states, 1)

    def _after_prefix(self, new: Tensor, which: int = 0) -> Tensor:
        prefix = self.prefix[which]
        return torch.cat([prefix.expand(new.shape[0], *prefix.shape[1:]), new], dim=-2)

    def get_seq_length(self) -> int:
        """Return how many tokens came before."""
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return length and offset of the keys for the attention mask."""
        kept = self.prefix[0].shape[-2]
        return kept + self.get_seq_length() - self.seen + query_length, self.seen - kept


class GrowingLayer(SharedPrefixLayer):
    """A shared prefix, and after it what each row has added itself."""

    def __init__(self, shared: SharedPrefixLayer, own: KeysValues) -> None:
        super().__init__(shared)
        self.prefix, self.seen = shared.prefix, shared.seen
        self._own = own

    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        """Keep the new keys and values, and return all."""
        keys, values = self._own
        self._own = torch.cat([keys, key_states], dim=-2), torch.cat([values, value_states], dim=-2)
        return self._after_prefix(self._own[0]), self._after_prefix(self._own[1], 1)

    def get_seq_length(self) -> int:
        """Return how many tokens came before: the prefix's, and the rows' own."""
        return self.seen + self._own[0].shape[-2]


def shared_prefix(model: LanguageModel, ids: Int[Tensor, "1 token"]) -> Cache:
    """Run a prefix once and return a cache that any number of rows can share.

    Raises:
        ReplayError: the model keeps another state than keys and values (state-space layers), which cannot be shared so.
    """
    with torch.no_grad():
        cache = model.module(ids.to(model.device), use_cache=True).past_key_values
    layers = getattr(cache, "layers", None)
    plain = (DynamicLayer, DynamicSlidingWindowLayer)
    if not layers or any(type(layer) not in plain or layer.keys is None for layer in layers):
        raise ReplayError(f"{model.name}: its cache is not made of plain keys and values")
    return Cache(layers=[SharedPrefixLayer(layer) for layer in layers])


@contextmanager
def recording(cache: Cache) -> Iterator[list[list[KeysValues]]]:
    """Note the keys and values that calls inside add to a shared prefix: one list a layer."""
    layers = _shared(cache)
    records: list[list[KeysValues]] = [[] for _ in layers]
    for layer, record in zip(layers, records, strict=True):
        layer.recorded = record
    try:
        yield records
    finally:
        for layer in layers:
            layer.recorded = None


def extended(cache: Cache, added: Sequence[KeysValues]) -> Cache:
    """Return a cache for going on: the shared prefix, and at each layer what the rows added to it."""
    return Cache(layers=[GrowingLayer(layer, own) for layer, own in zip(_shared(cache), added, strict=True)])


def _shared(cache: Cache) -> list[SharedPrefixLayer]:
    return [layer for layer in cache.layers if isinstance(layer, SharedPrefixLayer)]


@dataclass(frozen=True)
class BlockCall:
    """How the model calls one block: everything but the residual stream, at batch 1 and at batch 2.

    An argument whose first dimension doubled follows the batch; size-1 dimensions broadcast. Of batch 2 only shapes
    are kept.
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
    """Run a text (after a shared prefix, if one is given) and record how every block was called, at batch 1 and 2.

    The pass of batch 2 is made once for texts of one length, as it tells shapes alone.

    Raises:
        ReplayError: a block was not called exactly once, or an argument changed with the batch in another way than by
            doubling.
    """
    records: list[list[KeysValues]] = []
    with ExitStack() as stack:
        if cache is not None:
            records = stack.enter_context(recording(cache))
        one = _record(model, ids, cache)
    lengths = (0 if cache is None else cache.get_seq_length(), ids.shape[1])
    two = model.cache.get_or_compute(
        ("calls of two rows", *lengths), lambda: _shapes(_record(model, ids.expand(2, -1), cache)[0])
    )
    calls = []
    for i, block in enumerate(model.parts.blocks):
        (args1, kwargs1, name), (args2, kwargs2, _) = one[0][i], two[i]
        _for_rows(args1, args2, 3), _for_rows(kwargs1, kwargs2, 3)  # refuse now what a later call would refuse
        calls.append(BlockCall(block, (args1, kwargs1), (args2, kwargs2), name))
    hidden = torch.cat([at_layer.to(model.device) for at_layer in one[1]])
    # A layer that takes the keys of another one adds none, and cannot be continued.
    added = tuple(record[0] for record in records) if all(len(record) == 1 for record in records) else ()
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
    with removing(handles), torch.no_grad():
        model.module(ids.to(model.device), past_key_values=cache, use_cache=cache is not None)
    if len(calls) != model.n_layers or len(hidden) != model.n_layers + 1:
        raise ReplayError(f"{model.name}: {len(calls)} block calls in one pass, expected {model.n_layers}")
    return calls, hidden


def _shapes(value: Any) -> Any:
    """Return arguments with tensors that have a shape and no content, and nothing in place of other objects."""
    if isinstance(value, Tensor):
        return value.to("meta")
    if isinstance(value, dict):
        return {key: _shapes(one) for key, one in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return type(value)(_shapes(one) for one in value)  # type: ignore[call-arg]
    return None


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
