"""The residual stream at the read sites of items."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lensbench.models.budget import is_out_of_memory
from lensbench.models.language_model import TOLERANCE, LanguageModel
from lensbench.models.prefix_cache import shared_prefix
from lensbench.models.shared_texts import CPU_GROUP_COST, GPU_GROUP_COST, Group, group_by_prefix, order
from lensbench.models.tokens import TokenError
from lensbench.tasks import Item

LOG = logging.getLogger("lensbench")
# Enough for a CPU's matrix products to run at full speed, small enough to stay in its caches.
CPU_TOKENS = 512
# How many texts sharing is tried on.
TRIED = 8


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

    What sources begin with in common is run once, where the model allows it; a pass stops after the deepest layer.
    Batches hold texts of like length and are a function of the readings and the memory budget alone, so that the same
    plan gives the same bytes.
    """
    texts = list(dict.fromkeys(reading.ids for reading in readings))
    groups = group_by_prefix(texts, CPU_GROUP_COST if model.device.type == "cpu" else GPU_GROUP_COST)
    if len(groups) > 1 or groups[0].prefix:
        groups = groups if _shares_prefixes(model, groups[-1]) else [Group(0, tuple(sorted(texts, key=order)))]
    kept = torch.cat([_run(model, group, layers) for group in groups], dim=1)
    place = {text: i for i, text in enumerate(text for group in groups for text in group.texts)}
    return Residuals(tuple(layers), kept[:, [place[reading.ids] for reading in readings]])


def _run(model: LanguageModel, group: Group, layers: Sequence[int]) -> Float[Tensor, "layer text d_model"]:
    """Read the last token of each text of a group."""
    skip, texts = group.prefix, group.texts
    prefix = shared_prefix(model, torch.tensor([texts[0][:skip]])) if skip else None

    def size(begin: int) -> int:
        most, end = tokens_per_batch(model), begin + 1
        while end < len(texts) and (len(texts[end]) - skip) * (end + 1 - begin) <= most:
            end += 1
        return end - begin

    def run(batch: slice) -> Tensor:
        ids, mask = model.tokens.pad([text[skip:] for text in texts[batch]])
        mask = torch.cat([mask.new_ones(len(mask), skip), mask], dim=1)
        positions = torch.tensor([[len(text) - skip - 1] for text in texts[batch]])
        return model.residuals(ids, mask, positions, layers, prefix)[:, :, 0]

    return torch.cat(model.budget.in_batches(len(texts), size, run), dim=1)


def _shares_prefixes(model: LanguageModel, group: Group) -> bool:
    """Whether texts after a shared prefix are read as whole ones are; tried once a model, on some of its texts."""
    if "shares_prefixes" not in model.companions:
        some = group.texts[:: max(1, len(group.texts) // TRIED)]
        layers = range(model.n_layers + 1)
        whole = _run(model, Group(0, some), layers).float()
        try:
            off = (_run(model, Group(group.prefix, some), layers).float() - whole).abs().amax((1, 2))
        except Exception as error:  # whatever a foreign model raises when it is given such a cache
            if is_out_of_memory(error):
                raise
            off = torch.full((1,), torch.inf)
            LOG.info("%s: texts are run whole (%s)", model.name, error)
        largest = whole.abs().amax((1, 2)).clamp(min=1.0)
        shares = bool((off <= TOLERANCE[model.dtype] * largest).all())
        if not shares and bool(off.isfinite().all()):
            LOG.info("%s: texts are run whole (sharing what they begin with is off by %.1e)", model.name, off.max())
        model.companions["shares_prefixes"] = shares
    return bool(model.companions["shares_prefixes"])


def tokens_per_batch(model: LanguageModel) -> int:
    """Return how many tokens of source texts are run at once."""
    return model.budget.rows(model.token_bytes, cpu_most=CPU_TOKENS)
