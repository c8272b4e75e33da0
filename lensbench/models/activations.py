"""The residual stream at the read sites of items: captured in as few passes as possible, and cached on disk."""

import hashlib
import html
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from lensbench.errors import TokenError
from lensbench.models.language_model import LanguageModel
from lensbench.models.memory import is_out_of_memory
from lensbench.models.proofs import proved
from lensbench.models.replay import shared_prefix
from lensbench.models.tokens import Encoding
from lensbench.tasks.items import Item
from lensbench.utils.cache import atomic_folder, folder_size, is_whole, seal, size_limit
from lensbench.utils.code import code_digest

# What a group costs beside its tokens: a pass of the prefix alone, and a batch of its own. In tokens of a large batch:
# a short pass waits for the weights, on a GPU also for its own beginning.
CPU_GROUP_COST, GPU_GROUP_COST = 128, 4096
LOG = logging.getLogger("lensbench")
# Enough for a CPU's matrix products to run at full speed, small enough to stay in its caches.
CPU_TOKENS = 512
# How many texts sharing is tried on.
TRIAL_TEXTS = 8
RESIDUALS_FILE = "residuals.safetensors"


Ids = tuple[int, ...]


@dataclass(frozen=True)
class Group:
    """Texts that begin with the same tokens.

    Attributes:
        prefix: how many tokens are run once for all of them; 0 for texts that are run whole.
        texts: sorted by length, then by content.
    """

    prefix: int
    texts: tuple[Ids, ...]


def group_by_prefix(texts: Sequence[Ids], cost: int = CPU_GROUP_COST) -> list[Group]:
    """Split distinct texts into groups so that the fewest tokens are run; texts with nothing to share come first.

    At least the last token of each text stays out of its prefix: something has to be read.

    Args:
        texts: token ids.
        cost: what a group costs beside its tokens.
    """
    shared = sorted(_best_groups(sorted(texts), 0, cost), key=lambda group: group.texts)
    inside = {text for group in shared for text in group.texts}
    alone = tuple(sorted((text for text in texts if text not in inside), key=_by_length))
    return [Group(0, alone)] * bool(alone) + shared


def _by_length(text: Ids) -> tuple[int, Ids]:
    """Texts of like length stand together."""
    return len(text), text


def _best_groups(texts: list[Ids], shared: int, cost: int) -> list[Group]:
    """Return the groups that save most among sorted texts whose first `shared` tokens are the same."""
    texts = [text for text in texts if len(text) > shared]  # others have nothing to read after a longer prefix
    if len(texts) < 2:
        return []
    first, last = texts[0], texts[-1]  # of sorted texts these two differ soonest
    most = min(map(len, texts)) - 1
    prefix = shared
    while prefix < most and first[prefix] == last[prefix]:
        prefix += 1
    apart = [group for part in _split_at(texts, prefix) for group in _best_groups(part, prefix + 1, cost)]
    together = (len(texts) - 1) * prefix - cost
    if together > 0 and together >= sum((len(group.texts) - 1) * group.prefix - cost for group in apart):
        return [Group(prefix, tuple(sorted(texts, key=_by_length)))]
    return apart


def _split_at(texts: list[Ids], place: int) -> Iterator[list[Ids]]:
    """Split sorted texts by the token at a place; a text that ends before it is a part of its own."""
    part: list[Ids] = []
    for text in texts:
        if part and text[place : place + 1] != part[-1][place : place + 1]:
            yield part
            part = []
        part.append(text)
    if part:
        yield part


@dataclass(frozen=True)
class Residuals:
    """Residual stream of one read site for each item, at some layers (0 = embeddings, before the final norm).

    Attributes:
        layers: the layers.
        values: of the read site's last token.
        before: where sites are of several tokens, those of the tokens before it, aligned at the end; zeros where a
            site has fewer.
        counts: how many tokens the site of each item has; empty where each has one.
    """

    layers: tuple[int, ...]
    values: Float[Tensor, "layer item d_model"]
    before: Float[Tensor, "layer item token d_model"] | None = None
    counts: tuple[int, ...] = ()

    def __repr__(self) -> str:
        shape = zip(("layer", "item", "d_model"), self.values.shape, strict=False)
        sizes, named = " x ".join(f"{axis} {size}" for axis, size in shape), ", ".join(map(str, self.layers))
        kind = f"{str(self.values.dtype).removeprefix('torch.')} on {self.values.device}"
        return f"Residuals({sizes}; layers {named}; {kind})"

    def _repr_html_(self) -> str:
        return f"<code>{html.escape(repr(self))}</code>"

    def at_layers(self, layers: Sequence[int]) -> "Residuals":
        """Return the same items at some of the layers."""
        places = [self.layers.index(layer) for layer in layers]
        before = None if self.before is None else self.before[places]
        return Residuals(tuple(layers), self.values[places], before, self.counts)

    def at_items(self, items: Sequence[int]) -> "Residuals":
        """Return the same layers of the items at these places."""
        places = list(items)
        if self.before is None:
            return Residuals(self.layers, self.values[:, places])
        counts = tuple(self.counts[place] for place in places)
        return Residuals(self.layers, self.values[:, places], self.before[:, places], counts)

    def joined(self, other: "Residuals") -> "Residuals":
        """Return the same items at the layers of both, in ascending order."""
        before = None if self.before is None or other.before is None else torch.cat([self.before, other.before])
        both = Residuals(self.layers + other.layers, torch.cat([self.values, other.values]), before, self.counts)
        return both.at_layers(sorted(both.layers))

    def as_several(self) -> "Residuals":
        """Return the same, as sites that may have several tokens, whether any has or not."""
        if self.before is not None:
            return self
        layers, items, width = self.values.shape
        return Residuals(self.layers, self.values, self.values.new_zeros(layers, items, 0, width), (1,) * items)

    def by_count(self) -> dict[int, tuple[list[int], Float[Tensor, "layer item token d_model"]]]:
        """Return the items whose sites have each number of tokens, with the vectors of all their tokens in order."""
        if self.before is None:
            return {1: (list(range(self.values.shape[1])), self.values[:, :, None])}
        found = {}
        for count in sorted(set(self.counts)):
            items = [i for i, own in enumerate(self.counts) if own == count]
            first = self.before.shape[2] - (count - 1)
            found[count] = items, torch.cat([self.before[:, items, first:], self.values[:, items, None]], dim=2)
        return found

    def change(self, change: Callable[[Float[Tensor, "layer row width"]], Tensor]) -> "Residuals":
        """Return residuals of the same shape, made from the last tokens of all sites, and from all other tokens."""
        if self.before is None:
            return Residuals(self.layers, change(self.values))
        width = self.before.shape[2]
        own = torch.tensor([[width - i < count for i in range(width)] for count in self.counts]).flatten()
        others = self.before.flatten(1, 2).clone()
        # Made from a single token, it would be that token again.
        others[:, own] = change(others[:, own]) if int(own.sum()) > 1 else 0
        return Residuals(self.layers, change(self.values), others.unflatten(1, (-1, width)), self.counts)

    def same_at(self, layer: int, other: "Residuals") -> bool:
        """Whether the activations of a layer are the same as others to the bit."""
        one, another = self.at_layers((layer,)), other.at_layers((layer,))
        if one.counts != another.counts or not torch.equal(one.values, another.values):
            return False
        return one.before is None or another.before is None or torch.equal(one.before, another.before)


@dataclass(frozen=True)
class Reading:
    """What to run to read one item: its source up to the read site, which a causal model cannot see beyond.

    Attributes:
        ids: the tokens.
        count: how many of them are read, the last ones.
    """

    ids: tuple[int, ...]
    count: int = 1

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
        if item.place == "subject":
            position = model.tokens.locate(encoding, item.subject_span)
    except TokenError as error:
        raise TokenError(f"item {item.id}: {error}") from None
    return Reading(encoding.ids[: position + 1], tokens_read(item, encoding, position))


def tokens_read(item: Item, encoding: Encoding, position: int) -> int:
    """Return how many tokens are read that end at a position; token 0 is not among them.

    Raises:
        TokenError: the subject's name is to be read, and ends elsewhere, or the source does not hold it.
    """
    extent = item.extent
    if extent.kind == "span":
        begin = item.subject_span[0] + encoding.begin
        first = next((i for i, (_, end) in enumerate(encoding.offsets) if end > begin), position)
        if item.place != "subject" or begin == item.subject_span[1] + encoding.begin:
            raise TokenError(f"item {item.id}: only at the place `subject` can the subject's name be read; drop /span")
        return max(1, min(position, position + 1 - first))
    return {"token": 1, "segment": min(extent.length, position), "text": position}[extent.kind]


def too_long(model: LanguageModel, item: Item) -> bool:
    """Whether an item's source has more tokens, up to its read site, than the model has positions for."""
    if model.most_tokens is None:
        return False
    encoding = model.tokens.encode(item.source)
    end = item.subject_span[1] + encoding.begin if item.place == "subject" else len(encoding.text)
    return sum(begin < end for begin, _ in encoding.offsets) > model.most_tokens


def capture(model: LanguageModel, readings: Sequence[Reading], layers: Sequence[int]) -> Residuals:
    """Read every site at every layer, in one pass a distinct source, and keep nothing else.

    What sources begin with in common is run once, where the model allows it; a pass stops after the deepest layer.
    Batches hold texts of like length and are a function of the readings and the memory budget alone, so that the same
    plan gives the same bytes. Texts of which several tokens are read are run whole.
    """
    if any(reading.count > 1 for reading in readings):
        return _capture_segments(model, readings, layers)
    texts = list(dict.fromkeys(reading.ids for reading in readings))
    groups = group_by_prefix(texts, CPU_GROUP_COST if model.device.type == "cpu" else GPU_GROUP_COST)
    if len(groups) > 1 or groups[0].prefix:
        # Tried once a model, on the texts that come first.
        shares = proved(
            model, "shares_prefixes", lambda: _shares_prefixes(model, groups[-1]),
            lambda shares: not shares or _shares_prefixes(model, groups[-1], 2),
        )  # fmt: skip
        if not shares:
            groups = [Group(0, tuple(sorted(texts, key=_by_length)))]
    kept = torch.cat([_capture_group(model, group, layers) for group in groups], dim=1)
    place = {text: i for i, text in enumerate(text for group in groups for text in group.texts)}
    return Residuals(tuple(layers), kept[:, [place[reading.ids] for reading in readings]])


def _capture_segments(model: LanguageModel, readings: Sequence[Reading], layers: Sequence[int]) -> Residuals:
    """Read the last tokens of each text, as many as are asked for."""
    distinct = sorted(set(readings), key=lambda one: (len(one.ids), one.ids, one.count))
    width = max(one.count for one in readings)

    def run(batch: slice) -> Tensor:
        ids, mask = model.tokens.pad([one.ids for one in distinct[batch]])
        last = mask.sum(1, keepdim=True) - 1
        positions = last + torch.arange(1 - width, 1)
        found = model.residuals(ids, mask, positions.clamp(min=0), layers)
        counts = torch.tensor([one.count for one in distinct[batch]])
        absent = (torch.arange(width) < width - counts[:, None]).to(found.device)
        return found.masked_fill(absent[None, :, :, None], 0)

    lengths = [len(one.ids) for one in distinct]
    kept = torch.cat(model.budget.in_token_batches(lengths, lambda: tokens_per_batch(model), run), dim=1)
    place = {one: i for i, one in enumerate(distinct)}
    every = kept[:, [place[one] for one in readings]]
    return Residuals(tuple(layers), every[:, :, -1], every[:, :, :-1], tuple(one.count for one in readings))


def _capture_group(model: LanguageModel, group: Group, layers: Sequence[int]) -> Float[Tensor, "layer text d_model"]:
    """Read the last token of each text of a group."""
    skip, texts = group.prefix, group.texts
    prefix = shared_prefix(model, torch.tensor([texts[0][:skip]])) if skip else None

    def run(batch: slice) -> Tensor:
        ids, mask = model.tokens.pad([text[skip:] for text in texts[batch]])
        mask = torch.cat([mask.new_ones(len(mask), skip), mask], dim=1)
        positions = torch.tensor([[len(text) - skip - 1] for text in texts[batch]])
        return model.residuals(ids, mask, positions, layers, prefix)[:, :, 0]

    lengths = [len(text) - skip for text in texts]
    return torch.cat(model.budget.in_token_batches(lengths, lambda: tokens_per_batch(model), run), dim=1)


def _shares_prefixes(model: LanguageModel, group: Group, tried: int = TRIAL_TEXTS) -> bool:
    """Whether texts after a shared prefix are read as whole ones are, tried on some texts."""
    some = group.texts[:: max(1, len(group.texts) // tried)]
    layers = range(model.n_layers + 1)
    whole = _capture_group(model, Group(0, some), layers).float()
    try:
        off = (_capture_group(model, Group(group.prefix, some), layers).float() - whole).abs().amax((1, 2))
    except Exception as error:  # whatever a foreign model raises when it is given such a cache
        if is_out_of_memory(error):
            raise
        LOG.info("%s: texts are run whole (%s)", model.name, error)
        return False
    shares = bool((off <= model.tolerance * whole.abs().amax((1, 2)).clamp(min=1.0)).all())
    if not shares:
        LOG.info("%s: texts are run whole (sharing their beginnings is off by %.1e)", model.name, off.max())
    return shares


def tokens_per_batch(model: LanguageModel) -> int:
    """Return how many tokens of source texts are run at once."""
    return model.budget.rows(model.token_bytes, cpu_most=CPU_TOKENS)


class ResidualCache:
    """Captured residuals in files that are mapped into memory, and paged in as they are read.

    Args:
        folder: where the files are; None keeps nothing.
        limit: how many bytes they may take, by default `LENSBENCH_CACHE_LIMIT`; the least recently read go first.
    """

    def __init__(self, folder: Path | None, limit: int | None = None) -> None:
        self.folder = folder
        self.limit = size_limit() if limit is None else limit

    def read(self, model: LanguageModel, readings: Sequence[Reading], layers: Sequence[int]) -> Residuals:
        """Return the residuals of these sites, from the disk where they have been captured before."""
        if self.folder is None:
            return capture(model, readings, layers)
        place = self.folder / _cache_key(model, readings, layers)
        if not is_whole(place):
            captured = capture(model, readings, layers)
            if not self._keep(self.folder, place, captured):
                return captured
        with suppress(OSError):  # the cache of another user may not be ours to touch
            os.utime(place)
        with safe_open(place / RESIDUALS_FILE, framework="pt") as file:
            kept = {name: file.get_tensor(name).to(model.device) for name in file.keys()}  # noqa: SIM118
        counts = tuple(reading.count for reading in readings) if "before" in kept else ()
        return Residuals(tuple(layers), kept["values"], kept.get("before"), counts)

    def _keep(self, folder: Path, place: Path, captured: Residuals) -> bool:
        """Write residuals, if there is room for them."""
        values = captured.values
        size = values.nbytes + (0 if captured.before is None else captured.before.nbytes)
        if size > self.limit:
            LOG.warning("residuals of %d MB are not kept: the cache limit is %d MB", size >> 20, self.limit >> 20)
            return False
        self._make_room(folder, size)
        try:
            with atomic_folder(place) as partial:
                kept = {"values": values} if captured.before is None else {"values": values, "before": captured.before}
                save_file({name: one.contiguous().cpu() for name, one in kept.items()}, partial / RESIDUALS_FILE)
                seal(partial, place.name)
        except OSError as error:
            LOG.warning("residuals are not kept: %s; see `lensbench cache`", error.strerror or error)
            return False
        return True

    def _make_room(self, folder: Path, size: int) -> None:
        kept = sorted((path.stat().st_mtime, path.name, path) for path in folder.glob("[!.]*") if path.is_dir())
        sizes = {path: folder_size(path) for _, _, path in kept}
        total = sum(sizes.values())
        for _, _, path in kept:
            if total + size <= self.limit:
                return
            # A process that reads it keeps its mapping.
            shutil.rmtree(path, ignore_errors=True)
            total -= sizes[path]


def _cache_key(model: LanguageModel, readings: Sequence[Reading], layers: Sequence[int]) -> str:
    digest = hashlib.sha256()
    parts = (
        version("lensbench"), code_digest(capture), code_digest(LanguageModel), model.fingerprint, model.dtype,
        model.attention, model.device.type, model.parts.paths, tokens_per_batch(model), tuple(layers),
    )  # fmt: skip
    digest.update(repr(parts).encode())
    for reading in readings:
        digest.update(repr(reading.ids if reading.count == 1 else (reading.ids, reading.count)).encode())
    return digest.hexdigest()[:24]
