"""Jacobians: derivatives of a later layer's residual stream in that of earlier ones."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lensbench.errors import LensbenchError
from lensbench.models.architecture import on_input
from lensbench.models.language_model import LanguageModel
from lensbench.models.memory import is_out_of_memory
from lensbench.models.patching.passes import Mode, Prompt
from lensbench.models.patching.patcher import patcher_of
from lensbench.models.replay import shared_prefix

# On a CPU, more rows of a backward pass at once are no faster, and leave its caches.
CPU_ROWS = 1152


@dataclass(frozen=True)
class Jacobian:
    """The last residual of a text to first order in the residual at one position: h_L ≈ end + J_l (h_l - start_l).

    Attributes:
        weight: J_l = ∂h_L(last token) / ∂h_l(position) at layers 0 to L, other positions of layer l held fixed. At
            layer L the identity where the position is the last token, else zero. A row is a coordinate of h_L: all of
            them, or those that were asked for.
        start: h_l at the position.
        end: h_L at the last token, before the final norm.
    """

    weight: Float[Tensor, "layer row d_model"]
    start: Float[Tensor, "layer d_model"]
    end: Float[Tensor, " d_model"]


def jacobian(
    model: LanguageModel,
    ids: tuple[int, ...],
    position: int,
    mode: Mode | None = None,
    rows: Int[Tensor, " row"] | None = None,
) -> Jacobian:
    """Differentiate the last residual of a text in the residual at one position, at all layers in one backward pass.

    The tokens before the position do not move: where patched passes may share a prefix, they are run once, outside of
    the graph. Half precision gives Jacobians in float32 of derivatives in half precision.

    Args:
        model: the model to differentiate.
        ids: the text.
        position: of the token whose residual moves.
        mode: of patched passes; proved on this text, once a model, where it is None.
        rows: the coordinates of h_L to differentiate, which are the rows that `weight` has; None for all.

    Raises:
        LensbenchError: no such position.
    """
    if not 0 <= position < len(ids):
        raise LensbenchError(f"position {position} of a text of {len(ids)} tokens; choose one from 0 to {len(ids) - 1}")
    skip = 0
    if position and (mode or patcher_of(model).proved_mode(Prompt(ids, position))) == "shared":
        skip = position
    text = torch.tensor([ids], device=model.device)
    prefix = shared_prefix(model, text[:, :skip]) if skip else None
    hidden = _graph_from_embeddings(model, text[:, skip:], prefix)
    place, kept = position - skip, torch.promote_types(model.dtype, torch.float32)

    with torch.enable_grad():  # whoever calls may have switched it off
        end = hidden[-1][0, -1]
    gradients = _rows_of_jacobian(
        model, end, hidden, rows, lambda one: one[:, 0, place].to(model.device, kept), text.shape[1] - skip
    )
    start = torch.stack([one[0, place].detach().to(model.device, kept) for one in hidden])
    return Jacobian(gradients, start, end.detach().to(model.device, kept))


def later_jacobian(
    model: LanguageModel,
    ids: tuple[int, ...],
    places: Int[Tensor, " place"],
    rows: Int[Tensor, " row"],
    target_layer: int,
) -> Float[Tensor, "layer row d_model"]:
    """Differentiate a layer's residuals at some positions in earlier layers' at the same: sums of these, meaned.

    J_l = 1/|V| Σ_{p∈V} Σ_{p'∈V} ∂h_target(p') / ∂h_l(p), at layers 0 to target - 1; in a causal model only p' ≥ p
    count. One vector a layer is added at all positions of V: the derivative in it is the double sum, so that no
    gradient of every position is ever kept.

    Args:
        model: the model to differentiate.
        ids: the text.
        places: V.
        rows: the coordinates of h_target to differentiate.
        target_layer: 1 to L.
    """
    moves: list[Tensor] = []
    ends: list[Tensor] = []
    kept = torch.promote_types(model.dtype, torch.float32)
    chosen = torch.zeros(len(ids), 1, dtype=kept)
    chosen[places] = 1.0

    def move(place: int, given: Tensor) -> Tensor | None:
        if place == target_layer:
            # A copy: what is called next may write into what it is given.
            ends.append(given.clone()[0, places.to(given.device)].sum(0))
            return None
        moves.append(torch.zeros(model.d_model, dtype=kept, device=given.device, requires_grad=True))
        return given + (chosen.to(given.device) * moves[-1]).to(given.dtype)

    with on_input(model.stops[: target_layer + 1], move), torch.enable_grad():
        model.module(torch.tensor([ids], device=model.device), use_cache=False)
    found = _rows_of_jacobian(model, ends[0], moves, rows, lambda one: one.to(model.device), len(ids))
    return found / len(places)


def _rows_of_jacobian(
    model: LanguageModel,
    end: Float[Tensor, " d_model"],
    inputs: list[Tensor],
    rows: Int[Tensor, " row"] | None,
    keep: Callable[[Tensor], Float[Tensor, "row d_model"]],
    tokens: int,
) -> Float[Tensor, "layer row d_model"]:
    """Pull unit vectors back from `end` to each input, as many at once as memory lets; `keep` takes what is wanted."""
    seeds = torch.eye(model.d_model, dtype=end.dtype, device=end.device)
    seeds = seeds if rows is None else seeds[rows.to(end.device)]
    # A backward pass holds about twice what a forward pass holds of as many tokens.
    row_bytes, at_once = 2 * model.token_bytes * tokens, max(1, CPU_ROWS // tokens)
    parts = model.budget.in_batches(
        len(seeds),
        lambda _begin: model.budget.rows(row_bytes, cpu_most=at_once),
        lambda part: torch.stack([keep(one) for one in _pulled_back(end, inputs, seeds[part])]),
    )
    return torch.cat(parts, dim=1)


def _graph_from_embeddings(model: LanguageModel, ids: Int[Tensor, "1 token"], prefix: Any) -> list[Tensor]:
    """Run tokens with a graph from layer 0 on, and return the residual stream at every layer as tensors in it."""
    hidden: list[Tensor] = []

    def keep(_place: int, given: Tensor) -> Tensor:
        hidden.append(given if hidden else given.detach().requires_grad_(True))
        # A copy for the block: one that writes into its input would change what is differentiated in.
        return hidden[-1].clone()

    with on_input(model.stops, keep), torch.enable_grad():
        model.module(ids, past_key_values=prefix, use_cache=prefix is not None)
    return hidden


def _pulled_back(
    end: Float[Tensor, " d_model"], inputs: list[Tensor], seeds: Float[Tensor, "row d_model"]
) -> tuple[Tensor, ...]:
    """Return the gradient of each seed's product with `end` in every input: [row, *input] each."""
    try:
        return torch.autograd.grad(end, inputs, seeds, retain_graph=True, is_grads_batched=True)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
    # Model code of others may hold an operation that vmap has no rule for: then one seed at a time. What else is
    # wrong is raised again here.
    rows = [torch.autograd.grad(end, inputs, seed, retain_graph=True) for seed in seeds]
    return tuple(torch.stack(layer) for layer in zip(*rows, strict=True))
