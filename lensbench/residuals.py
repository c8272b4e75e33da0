"""The residual stream at the read sites of items."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lensbench.model.language_model import LanguageModel
from lensbench.model.tokens import TokenError
from lensbench.tasks import Item

# Enough for a CPU's matrix products to run at full speed, small enough to stay in its caches.
CPU_TOKENS = 512


@dataclass(frozen=True)
class Residuals:
    """Residual stream of one read site for each item, at some layers (0 = embeddings, before the final norm)."""

    layers: tuple[int, ...]
    values: Float[Tensor, "layer item d_model"]

    def at(self, layers: Sequence[int]) -> "Residuals":
        """Return the same items at other of its layers."""
        return Residuals(tuple(layers), self.values[[self.layers.index(layer) for layer in layers]])

    def of(self, items: Sequence[int]) -> "Residuals":
        """Return the same layers for the items at these places."""
        return Residuals(self.layers, self.values[:, list(items)])


@dataclass(frozen=True)
class Reading:
    """What to run to read one item: its source up to the read site, which a causal model cannot see beyond."""

    ids: tuple[int, ...]

    @property
    def position(self) -> int:
        """The read site: the last token kept."""
        return len(self.ids) - 1


def find_site(model: LanguageModel, item: Item) -> Reading:
    """Find an item's read site under the model's tokenizer.

    Raises:
        TokenError: the site cannot be located, or is token 0.
    """
    encoding = model.tokens.encode(item.source)
    try:
        position = model.tokens.last(encoding)
        if item.site == "subject":
            position = model.tokens.locate(encoding, item.subject_span)
    except TokenError as error:
        raise TokenError(f"item {item.id}: {error}") from None
    return Reading(encoding.ids[: position + 1])


def capture(model: LanguageModel, readings: Sequence[Reading], layers: Sequence[int]) -> Residuals:
    """Read every site at every layer, in one pass a distinct source, and keep nothing else.

    A pass stops after the deepest layer. Batches hold texts of like length and are a function of the readings and the
    memory budget alone, so that the same plan gives the same bytes.
    """
    distinct = sorted(set(readings), key=lambda reading: (len(reading.ids), reading.ids))

    def size(begin: int) -> int:
        most, end = tokens_per_batch(model), begin + 1
        while end < len(distinct) and len(distinct[end].ids) * (end + 1 - begin) <= most:
            end += 1
        return end - begin

    def run(batch: slice) -> Tensor:
        ids, mask = model.tokens.pad([reading.ids for reading in distinct[batch]])
        positions = torch.tensor([[reading.position] for reading in distinct[batch]])
        return model.residuals(ids, mask, positions, layers)[:, :, 0]

    kept = model.budget.in_batches(len(distinct), size, run)
    place = {reading: i for i, reading in enumerate(distinct)}
    return Residuals(tuple(layers), torch.cat(kept, dim=1)[:, [place[reading] for reading in readings]])


def tokens_per_batch(model: LanguageModel) -> int:
    """Return how many tokens of source texts are run at once."""
    return model.budget.rows(model.token_bytes, cpu_most=CPU_TOKENS)
