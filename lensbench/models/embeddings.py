"""The table of input embeddings: what a token's row is, and whose row is nearest."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lensbench.models.language_model import LanguageModel

# Cosines that are held at once.
AT_ONCE = 2**24
# Where a model keeps the ids that `readable_ids` found.
KEPT = "readable_ids"


@torch.no_grad()
def embed(model: LanguageModel, ids: Int[Tensor, " token"]) -> Float[Tensor, "token d_embed"]:
    """Return the input embeddings of tokens, in float32, on the model's device.

    They come from the model's own module, scale included (Gemma), so that packed tables and those that are kept
    elsewhere until they are needed give theirs too. What a model adds later (positions) is not in them.
    """
    table: Any = model.module.get_input_embeddings()  # type: ignore[operator]
    rows: Tensor = table(ids.to(model.device))
    return rows.float().to(model.device)


def readable_ids(model: LanguageModel) -> Int[Tensor, " token"]:
    """Return every token that has a text: neither special, nor a row of the table that the tokenizer does not know."""
    if KEPT not in model.companions:
        known = min(model.vocabulary, len(model.tokens.tokenizer))
        special = model.tokens.special_ids
        model.companions[KEPT] = torch.tensor([token for token in range(known) if token not in special])
    ids: Tensor = model.companions[KEPT]
    return ids


@torch.no_grad()
def nearest_tokens(
    model: LanguageModel, vectors: Float[Tensor, "row d_embed"], among: Int[Tensor, " token"]
) -> Int[Tensor, " row"]:
    """Return for each vector the token whose input embedding has the largest cosine with it.

    Args:
        model: whose table is searched.
        vectors: compared in float32.
        among: the tokens to choose from, at least one; the first of them where several are equally near.
    """
    rows = vectors.to(model.device).float()
    best = torch.full((len(rows),), -torch.inf, device=model.device)
    found = torch.zeros(len(rows), dtype=torch.long, device=model.device)
    for ids in among.to(model.device).split(max(1, AT_ONCE // max(1, len(rows)))):
        cosines, place = (rows @ torch.nn.functional.normalize(embed(model, ids), dim=1).T).max(dim=1)
        nearer = cosines > best
        best, found = torch.where(nearer, cosines, best), torch.where(nearer, ids[place], found)
    return found
