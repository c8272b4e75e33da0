"""Passes with residuals overwritten: one vector at a prompt's placeholders, or many tokens at many layers.

What depends on a patched vector is little: the tokens before the placeholder never change (run once, keys and values
shared), below the target layer nothing changes (a row starts there), only the last position is scored. See
docs/decisions/0005-patched-pass.md. An interchange intervention (Geiger et al. 2021, Causal Abstractions of Neural
Networks) puts residuals of another pass, of another text or model, in place of some: the answer tells whether what was
replaced had a part in it.
"""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Literal, TypeVar, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lensbench.errors import LensbenchError
from lensbench.models.architecture import on_input
from lensbench.models.chat import Text
from lensbench.models.language_model import LanguageModel
from lensbench.models.memory import bytes_per_row, is_out_of_memory
from lensbench.models.proofs import proved
from lensbench.models.replay import CleanPass, record_pass, shared_prefix
from lensbench.tasks.facts import SLOT

# On a CPU, larger batches are no faster, and leave its caches.
CPU_TOKENS = 512


LOG = logging.getLogger("lensbench")
Way = TypeVar("Way")
Mode = Literal["shared", "layer_start", "plain"]
MODES: tuple[Mode, ...] = get_args(Mode)


Write = Literal["overwrite", "norm_matched", "add"]
WRITES: tuple[Write, ...] = get_args(Write)


@dataclass(frozen=True)
class Prompt:
    """A target prompt, and what is done to the residual at its placeholders.

    Attributes:
        ids: its tokens.
        position: of the (first) placeholder.
        more: positions of further placeholders, after the first.
        write: `overwrite`; `norm_matched` (the vector at the length of what it overwrites); `add` (the vector at the
            length of what is there, added to it).
    """

    ids: tuple[int, ...]
    position: int
    more: tuple[int, ...] = ()
    write: Write = "overwrite"

    @property
    def positions(self) -> tuple[int, ...]:
        """All placeholders, in order."""
        return (self.position, *self.more)

    def written(
        self, there: Float[Tensor, "row place d_model"], vectors: Float[Tensor, "row width"]
    ) -> Float[Tensor, "row place d_model"]:
        """Return what is at the placeholders after the patch.

        Args:
            there: what is at them before it.
            vectors: one vector a row, which all placeholders get, or one a placeholder, side by side.
        """
        given: Tensor = vectors.unflatten(1, (-1, there.shape[2])).to(there)
        if self.write == "overwrite":
            return given.expand_as(there)
        # In float32: the square of a large residual is beyond half precision.
        lengths = there.float().norm(dim=-1, keepdim=True) / given.float().norm(dim=-1, keepdim=True).clamp(min=1e-12)
        matched: Tensor = given * lengths.to(given.dtype)
        return matched if self.write == "norm_matched" else there + matched


def make_prompt(model: LanguageModel, text: Text, placeholder: str, write: Write = "overwrite", run: int = 0) -> Prompt:
    """Return the prompt for `text`, whose slots `{subject}` the placeholder fills.

    Args:
        model: whose tokenizer and chat template count.
        text: the text, or a conversation.
        placeholder: one token of the model.
        write: see `Prompt`.
        run: so many tokens in a row are written over, from the first slot on, whatever they are; 0 takes the slots.

    Raises:
        LensbenchError: no slot in the text, or a placeholder that is not one token of its own, or is token 0.
    """
    if SLOT not in text:
        raise LensbenchError(f"inspection prompt {str(text)!r} has no {SLOT} slot; put one where the activation goes")
    encoding, written = model.tokens.encode(text.replace(SLOT, placeholder)), model.tokens.rendered(text)
    parts = written[encoding.begin :].split(SLOT)
    if not encoding.text.startswith(
        parts[0] if run else written.replace(SLOT, placeholder), encoding.begin if run else 0
    ):
        raise LensbenchError(f"the chat template of {model.name} changes what surrounds the slots of {str(text)!r}")
    if run:
        begin = encoding.begin + len(parts[0])
        first = sum(end <= begin for _, end in encoding.offsets)
        if not 0 < first <= len(encoding.ids) - run:
            raise LensbenchError(f"inspection prompt {str(text)!r} has no place for {run} activations in a row")
        return Prompt(encoding.ids, first, tuple(range(first + 1, first + run)), write)
    positions, begin = [], 0
    for part in parts[:-1]:
        start = begin + len(part)
        begin = start + len(placeholder)
        position = model.tokens.locate(encoding, (start, begin))
        whole = model.tokens.decode(encoding.ids[position : position + 1]).strip() == placeholder.strip()
        if encoding.offsets[position][0] - encoding.begin > start and not whole:
            raise LensbenchError(
                f"placeholder {placeholder!r} is several tokens for {model.name}; choose a one-token word, such as 'x'"
            )
        positions.append(position)
    if len(set(positions)) < len(positions):
        raise LensbenchError(
            f"two slots of {str(text)!r} are one token for {model.name}; put a blank between them, or another word"
        )
    return Prompt(encoding.ids, positions[0], tuple(positions[1:]), write)


class PatchedPass:
    """Patched passes of one prompt.

    Args:
        model: the verbalizer M*.
        prompt: the target prompt T and the position i* in it.
        mode: how much is shared between rows; `fastest_mode` finds what a model allows.
    """

    def __init__(self, model: LanguageModel, prompt: Prompt, mode: Mode) -> None:
        self.model = model
        self.prompt = prompt
        self.mode = mode
        self.ids = torch.tensor([prompt.ids], device=model.device)
        self._skip = prompt.position if mode == "shared" else 0

    @cached_property
    def prefix(self) -> Any:
        """The cache of the tokens before the placeholder; None where they are not shared."""
        return shared_prefix(self.model, self.ids[:, : self._skip]) if self._skip else None

    @cached_property
    def clean(self) -> CleanPass:
        """The rest of the prompt, run once without a patch."""
        return record_pass(self.model, self.ids[:, self._skip :], self.prefix)

    @property
    def nbytes(self) -> int:
        """What it keeps, at most: residuals of the tokens after the prefix, and keys and values of all tokens."""
        if "clean" not in vars(self):
            return 0
        hidden = self.clean.hidden
        return hidden.nbytes + 2 * hidden.nbytes // hidden.shape[1] * len(self.prompt.ids)

    @property
    def row_bytes(self) -> int:
        """What one more row adds to the memory of a pass; measured, once for all prompts of the same lengths."""
        # Blocks are alike: where rows can start at the last one, it tells for all.
        layer = 0 if self.mode == "plain" else self.model.n_layers - 1

        def run(rows: int) -> Tensor:
            zeros = torch.zeros(rows, self.model.d_model, device=self.model.device, dtype=self.model.dtype)
            return self.run(zeros, [layer] * rows)

        lengths = f"{self._skip} {len(self.prompt.ids)} {len(self.prompt.more)}"
        return proved(self.model, f"row_bytes {self.mode} {lengths}", lambda: bytes_per_row(run))

    @property
    def rows_per_batch(self) -> int:
        """How many rows run at once: a function of model, prompt and memory budget, so that a plan gives same bytes."""
        tokens = len(self.prompt.ids) - self._skip
        return self.model.budget.rows(self.row_bytes, cpu_most=max(1, CPU_TOKENS // tokens))

    @torch.no_grad()
    def final_residuals(
        self, vectors: Float[Tensor, "row width"], target_layers: Int[Tensor, " row"]
    ) -> Float[Tensor, "row d_model"]:
        """Overwrite the placeholders' residual at each row's target layer; return the last position's at layer L.

        Args:
            vectors: what to write, one row a pass; see `Prompt.written`.
            target_layers: l*, 0 (embeddings) to L, one a row.
        """
        # How batches are put together is decided here, once: inside the loop nobody waits for the device.
        layers = target_layers.cpu()
        order = torch.argsort(layers, stable=True)
        sorted_layers = layers[order].tolist()
        device = self.model.device
        out = torch.empty(len(vectors), self.model.d_model, dtype=self.model.dtype, device=device)
        taken, put = order.to(vectors.device), order.to(device)

        def run(rows: slice) -> None:
            given = vectors[taken[rows]].to(device, self.model.dtype, non_blocking=True)
            out[put[rows]] = self.run(given, sorted_layers[rows])

        self.model.budget.in_batches(len(vectors), lambda _begin: self.rows_per_batch, run)
        return out

    @torch.no_grad()
    def run(self, vectors: Float[Tensor, "row width"], layers: list[int]) -> Float[Tensor, "row d_model"]:
        """Run one batch of rows that are sorted by target layer."""
        return self._hooked(vectors, layers) if self.mode == "plain" else self._started(vectors, layers)

    def _started(self, vectors: Tensor, layers: list[int]) -> Tensor:
        """Each row joins the batch at its own target layer."""
        clean = self.clean
        places = [position - self._skip for position in self.prompt.positions]
        running = vectors.new_empty(0, clean.hidden.shape[1], self.model.d_model)
        started = 0
        for layer in range(self.model.n_layers + 1):
            joining = layers.count(layer)
            if joining:
                rows = clean.hidden[layer].expand(joining, -1, -1).clone()
                rows[:, places] = self.prompt.written(rows[:, places], vectors[started : started + joining])
                running = torch.cat([running, rows.to(running.device)])
                started += joining
            if layer < self.model.n_layers and started:
                running = clean.calls[layer](running)
        return running[:, -1].to(vectors.device)

    def _hooked(self, vectors: Tensor, layers: list[int]) -> Tensor:
        """Run a whole pass: the definition, and the reference for other modes."""
        with self.model.reading((self.model.n_layers,)) as seen:
            self.hooked(self.ids.expand(len(vectors), -1), vectors, layers, use_cache=False)
        return seen[self.model.n_layers][:, -1].to(vectors.device)

    def hooked(self, ids: Int[Tensor, "row token"], vectors: Tensor, layers: Sequence[int], **arguments: Any) -> Any:
        """Run the model on texts that begin with the prompt, the placeholder's residual overwritten.

        Args:
            ids: the texts.
            vectors: what is written, one a row.
            layers: at which layer, one a row.
            arguments: of the model.
        """
        places = torch.tensor(self.prompt.positions)
        with ExitStack() as stack:
            for layer in set(layers):
                own = torch.tensor([row for row, at in enumerate(layers) if at == layer])

                def overwrite(hidden: Tensor, own: Tensor = own) -> Tensor:
                    at = own[:, None].to(hidden.device), places.to(hidden.device)
                    hidden[at] = self.prompt.written(hidden[at], vectors[own.to(vectors.device)])
                    return hidden

                stack.enter_context(writing(self.model, layer, overwrite))
            return self.model.module(ids, **arguments)


@contextmanager
def writing(model: LanguageModel, layer: int, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Let passes inside go on with what `change` makes of a copy of the residual stream at one layer."""
    # Before whoever reads there already: at layer L that is the final residual itself.
    with on_input([model.stops[layer]], lambda _, hidden: change(hidden.clone()), prepend=True):
        yield


def try_each(ways: Sequence[Way], deviation: Callable[[Way], float]) -> Iterator[tuple[Way, float, str]]:
    """Try ways to compute something: how far each lies from the plain way, or infinity and why it is impossible."""
    for way in ways:
        try:
            yield way, deviation(way), ""
        except Exception as error:  # whatever a foreign block raises when called from the middle
            if is_out_of_memory(error):
                raise
            yield way, math.inf, str(error)


def agreeing(model: LanguageModel, tried: Iterable[tuple[Way, float, str]], what: str) -> Iterator[Way]:
    """Yield the ways that agree with the plain one, and log why others are not used."""
    for way, off, reason in tried:
        if off <= model.tolerance:
            yield way
        else:
            LOG.info("%s: %s %s is not used (%s)", model.name, what, way, reason or f"off by {off:.1e}")


def trial_vectors(model: LanguageModel, prompt: Prompt) -> Float[Tensor, "layer d_model"]:
    """Return one fixed random vector a layer, on the scale of the prompt's own residuals there, to try passes on."""
    ids, every = torch.tensor([prompt.ids]), range(model.n_layers + 1)
    clean = model.residuals(ids, torch.ones_like(ids), torch.tensor([[prompt.position]]), every)[:, 0, 0]
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0)).to(model.device, model.dtype)
    return clean + noise * clean.float().std(-1, keepdim=True).to(model.dtype)


@dataclass(frozen=True)
class Spots:
    """Texts, and some tokens of each.

    Attributes:
        texts: the tokens of each text.
        places: the positions of those tokens, text by text; a text may have none.
    """

    texts: tuple[tuple[int, ...], ...]
    places: tuple[tuple[int, ...], ...]

    def select(self, rows: slice) -> "Spots":
        """Return some of the texts."""
        return Spots(self.texts[rows], self.places[rows])

    def count(self, rows: slice) -> int:
        """Return how many tokens some of the texts have."""
        return sum(len(places) for places in self.places[rows])


def read_spots(model: LanguageModel, spots: Spots) -> Float[Tensor, "layer spot d_model"]:
    """Return the residual stream at the spots, at every layer, text by text and in the order of their places."""

    def run(rows: slice) -> Tensor:
        ids, mask = model.tokens.pad(spots.texts[rows])
        own = spots.places[rows]
        width = max(1, *(len(places) for places in own))
        positions = torch.tensor([[*places, *[0] * (width - len(places))] for places in own])
        found = model.residuals(ids, mask, positions, range(model.n_layers + 1))
        kept = torch.tensor([[i < len(places) for i in range(width)] for places in own], device=found.device)
        return found[:, kept]

    return torch.cat(_spots_in_batches(model, spots, run), dim=1)


def interchanged(
    model: LanguageModel, spots: Spots, values: Float[Tensor, "layer spot d_model"], layers: Sequence[int]
) -> Float[Tensor, "text d_model"]:
    """Return the last token's residual before the final norm, the spots overwritten at some layers, all in one pass."""

    def run(rows: slice) -> Tensor:
        part = spots.select(rows)
        begin = spots.count(slice(0, rows.start))
        given = values[:, begin : begin + spots.count(rows)]
        ids, mask = model.tokens.pad(part.texts)
        at = torch.tensor([(row, place) for row, places in enumerate(part.places) for place in places]).view(-1, 2)
        with ExitStack() as stack:
            for layer in layers:
                stack.enter_context(writing(model, layer, partial(_overwrite_spots, at=at, values=given[layer])))
            last = mask.sum(1, keepdim=True) - 1
            return model.residuals(ids, mask, last, (model.n_layers,))[0, :, 0]

    return torch.cat(_spots_in_batches(model, spots, run))


def _overwrite_spots(hidden: Tensor, at: Tensor, values: Tensor) -> Tensor:
    row, place = at.to(hidden.device, torch.long).unbind(1)  # of no places at all, torch makes numbers
    hidden[row, place] = values.to(hidden)
    return hidden


def _spots_in_batches(model: LanguageModel, spots: Spots, run: Callable[[slice], Tensor]) -> list[Tensor]:
    longest = max(len(text) for text in spots.texts)
    most = model.budget.rows(model.token_bytes * longest, cpu_most=max(1, CPU_TOKENS // longest))
    return model.budget.in_batches(len(spots.texts), lambda _begin: most, run)
