"""Two models on one text: which positions of the one and of the other are the same place of it, and their residuals."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lensbench.models.language_model import LanguageModel
from lensbench.models.tokens import Encoding, Tokens


@dataclass(frozen=True)
class PairedText:
    """A text as two models see it.

    Attributes:
        ids: the tokens of one.
        other_ids: the tokens of the other.
        positions: pairs of positions that are the same place of the text; neither is 0, an attention sink.
    """

    ids: tuple[int, ...]
    other_ids: tuple[int, ...]
    positions: tuple[tuple[int, int], ...]


def same_tokenizer(one: Tokens, other: Tokens) -> bool:
    """Whether two models split texts alike, so that one's tokens can be given to the other."""
    if one is other:
        return True
    texts = [tokens.definition for tokens in (one, other)]
    return bool(texts[0] == texts[1])


def pair_window(encoding: Encoding, window: range, other: Tokens) -> PairedText:
    """Pair the positions of some tokens of a text with those of another tokenizer on the characters that they cover.

    Two tokens are a pair that end at the same character, each the last of its text that does.
    """
    ids = tuple(encoding.ids[i] for i in window)
    spans = [encoding.offsets[i] for i in window]
    covered = [span for span in spans if span[0] < span[1]]
    begin, end = (covered[0][0], covered[-1][1]) if covered else (0, 0)
    found = other.encode(encoding.text[begin:end])
    own = _ends([(a - begin, b - begin) for a, b in spans])
    theirs = _ends([(a - len(other.prefix), b - len(other.prefix)) for a, b in found.offsets])
    pairs = tuple((own[at], theirs[at]) for at in sorted(own.keys() & theirs.keys()))
    return PairedText(ids, found.ids, tuple(pair for pair in pairs if min(pair) > 0))


def _ends(spans: Sequence[tuple[int, int]]) -> dict[int, int]:
    """Return the last token that ends at each character."""
    return {b: i for i, (a, b) in enumerate(spans) if a < b and b > 0}


def residuals_at(
    model: LanguageModel, texts: Sequence[tuple[int, ...]], positions: Sequence[Sequence[int]], layers: Sequence[int]
) -> Float[Tensor, "layer position d_model"]:
    """Read some positions of each text, text after text."""
    ids, mask = model.tokens.pad(texts)
    # Rows with fewer positions are filled with position 0, which is dropped again.
    sites = torch.zeros(len(texts), max(map(len, positions)), dtype=torch.long)
    for row, own in enumerate(positions):
        sites[row, : len(own)] = torch.tensor(own)
    wanted = (sites > 0).to(model.device)
    return model.residuals(ids, mask, sites, layers)[:, wanted]


def paired_residuals(
    model: LanguageModel, other: LanguageModel, texts: Sequence[PairedText], layers: Sequence[int]
) -> tuple[Float[Tensor, "layer position d_model"], Float[Tensor, "other_layer position d_other"]]:
    """Read the positions that two models share: of the one at all layers, of the other at some."""
    own, theirs = ([[pair[side] for pair in text.positions] for text in texts] for side in (0, 1))
    every = range(model.n_layers + 1)
    values = residuals_at(model, [text.ids for text in texts], own, every)
    if other is model:
        return values, values[list(layers)]
    others = residuals_at(other, [text.other_ids for text in texts], theirs, sorted(set(layers)))
    return values, others[[sorted(set(layers)).index(layer) for layer in layers]].to(values.device)
