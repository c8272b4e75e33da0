"""Keys and values of a prompt's prefix, run once and seen by every row of every later call."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from lensbench.errors import LensbenchError
from lensbench.models.language_model import LanguageModel

# Of one layer: [row, head, token, head_dim] each.
KeysValues = tuple[Tensor, Tensor]


class ReplayError(LensbenchError):
    """A model whose blocks cannot be called from the middle, or whose prefix cannot be shared."""


class SharedPrefixLayer(DynamicLayer):
    """One layer's keys and values of a prefix, run at batch 1.

    `update` returns prefix and new keys together and stores nothing, so that one cache serves any number of calls.

    Attributes:
        noted: where somebody notes what rows add, a list of their keys and values; else None.
    """

    def __init__(self, source: DynamicLayer) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        assert source.keys is not None
        assert source.values is not None
        self.prefix: KeysValues = (source.keys, source.values)
        self.keys, self.values = self.prefix
        self.dtype, self.device = source.keys.dtype, source.keys.device
        self.is_initialized = True
        self.is_sliding = getattr(source, "is_sliding", False)
        # Of a sliding window only its last tokens are kept; positions count all of them.
        self.seen = int(getattr(source, "cumulative_length", source.keys.shape[-2]))
        self.noted: list[KeysValues] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        """Return the prefix's keys and values, for as many rows as the new ones have, followed by the new ones."""
        if self.noted is not None:
            self.noted.append((key_states, value_states))
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
def noting(cache: Cache) -> Iterator[list[list[KeysValues]]]:
    """Note the keys and values that calls inside add to a shared prefix: one list a layer."""
    layers = _shared(cache)
    notes: list[list[KeysValues]] = [[] for _ in layers]
    for layer, note in zip(layers, notes, strict=True):
        layer.noted = note
    try:
        yield notes
    finally:
        for layer in layers:
            layer.noted = None


def grown(cache: Cache, added: Sequence[KeysValues]) -> Cache:
    """Return a cache for going on: the shared prefix, and at each layer what the rows added to it."""
    return Cache(layers=[GrowingLayer(layer, own) for layer, own in zip(_shared(cache), added, strict=True)])


def _shared(cache: Cache) -> list[SharedPrefixLayer]:
    return [layer for layer in cache.layers if isinstance(layer, SharedPrefixLayer)]
