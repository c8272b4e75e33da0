"""Passes in which residuals of several tokens, at several layers at once, come from somewhere else.

An interchange intervention (Geiger et al. 2021, Causal Abstractions of Neural Networks): what is put in place comes
from another pass, of another text or another model; the answer tells whether what was replaced had a part in it.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from lensbench.models.language_model import LanguageModel
from lensbench.models.patching.passes import CPU_TOKENS, writing


@dataclass(frozen=True)
class Spots:
    """Texts, and some tokens of each.

    Attributes:
        texts: the tokens of each text.
        places: the positions of those tokens, text by text; a text may have none.
    """

    texts: tuple[tuple[int, ...], ...]
    places: tuple[tuple[int, ...], ...]

    def of(self, rows: slice) -> "Spots":
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

    return torch.cat(_in_batches(model, spots, run), dim=1)


def interchanged(
    model: LanguageModel, spots: Spots, values: Float[Tensor, "layer spot d_model"], layers: Sequence[int]
) -> Float[Tensor, "text d_model"]:
    """Return the last token's residual before the final norm, the spots overwritten at some layers, all in one pass.

    Args:
        model: that is run.
        spots: texts, and the tokens whose residuals are overwritten.
        values: what stands there instead, at every layer 0 to L.
        layers: those at which it is put in place.
    """

    def run(rows: slice) -> Tensor:
        part = spots.of(rows)
        begin = spots.count(slice(0, rows.start))
        given = values[:, begin : begin + spots.count(rows)]
        ids, mask = model.tokens.pad(part.texts)
        at = torch.tensor([(row, place) for row, places in enumerate(part.places) for place in places]).view(-1, 2)
        with ExitStack() as stack:
            for layer in layers:
                stack.enter_context(writing(model, layer, partial(_put, at=at, values=given[layer])))
            last = mask.sum(1, keepdim=True) - 1
            return model.residuals(ids, mask, last, (model.n_layers,))[0, :, 0]

    return torch.cat(_in_batches(model, spots, run))


def _put(hidden: Tensor, at: Tensor, values: Tensor) -> Tensor:
    row, place = at.to(hidden.device, torch.long).unbind(1)  # of no places at all, torch makes numbers
    hidden[row, place] = values.to(hidden)
    return hidden


def _in_batches(model: LanguageModel, spots: Spots, run: Callable[[slice], Tensor]) -> list[Tensor]:
    longest = max(len(text) for text in spots.texts)
    most = model.budget.rows(model.token_bytes * longest, cpu_most=max(1, CPU_TOKENS // longest))
    return model.budget.in_batches(len(spots.texts), lambda _begin: most, run)
