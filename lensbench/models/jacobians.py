"""Jacobians of the model: how its last residual moves with the residual of any layer at one position."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lensbench.errors import LensbenchError
from lensbench.models.budget import is_out_of_memory
from lensbench.models.language_model import LanguageModel
from lensbench.models.patching import Prompt, fastest_mode, patcher_of
from lensbench.models.patching.passes import Mode
from lensbench.models.prefix_cache import shared_prefix

# On a CPU, more rows of a backward pass at once are no faster, and leave its caches.
CPU_ROWS = 1152


@dataclass(frozen=True)
class Jacobian:
    """The last residual of a text to first order in the residual at one position: h_L ≈ end + J_l (h_l - start_l).

    Attributes:
        weight: J_l = ∂h_L(last token) / ∂h_l(position) at layers 0 to L, other positions of layer l held fixed. At
            layer L the identity where the position is the last token, else zero.
        start: h_l at the position.
        end: h_L at the last token, before the final norm.
    """

    weight: Float[Tensor, "layer d_model d_model"]
    start: Float[Tensor, "layer d_model"]
    end: Float[Tensor, " d_model"]


def jacobian(model: LanguageModel, ids: tuple[int, ...], position: int, mode: Mode | None = None) -> Jacobian:
    """Differentiate the last residual of a text in the residual at one position, at all layers in one backward pass.

    The tokens before the position do not move: where patched passes may share a prefix, they are run once, outside of
    the graph. Half precision gives Jacobians in float32 of derivatives in half precision.

    Args:
        model: the model to differentiate.
        ids: the text.
        position: of the token whose residual moves.
        mode: of patched passes; proved on this text, once a model, where it is None.

    Raises:
        LensbenchError: no such position.
    """
    if not 0 <= position < len(ids):
        raise LensbenchError(f"position {position} of a text of {len(ids)} tokens; choose one from 0 to {len(ids) - 1}")
    skip = position if position and (mode or _proved_mode(model, ids, position)) == "shared" else 0
    text = torch.tensor([ids], device=model.device)
    prefix = shared_prefix(model, text[:, :skip]) if skip else None
    hidden = _graph(model, text[:, skip:], prefix)
    place, kept = position - skip, torch.promote_types(model.dtype, torch.float32)
    seeds = torch.eye(model.d_model, dtype=hidden[-1].dtype, device=hidden[-1].device)

    with torch.enable_grad():  # whoever calls may have switched it off
        end = hidden[-1][0, -1]

    def pull_back(rows: slice) -> Float[Tensor, "layer row d_model"]:
        gradients = _gradients(end, hidden, seeds[rows])
        return torch.stack([one[:, 0, place].to(model.device, kept) for one in gradients])

    # A backward pass holds about twice what a forward pass holds of as many tokens.
    token_bytes, tokens = model.token_bytes, text.shape[1] - skip
    at_once = max(1, CPU_ROWS // tokens)
    parts = model.budget.in_batches(
        len(seeds), lambda _begin: model.budget.rows(2 * token_bytes * tokens, cpu_most=at_once), pull_back
    )
    start = torch.stack([one[0, place].detach().to(model.device, kept) for one in hidden])
    return Jacobian(torch.cat(parts, dim=1), start, end.detach().to(model.device, kept))


def _proved_mode(model: LanguageModel, ids: tuple[int, ...], position: int) -> Mode:
    """Return the mode of the model's patched passes, which are proved once."""
    patcher = patcher_of(model)
    if patcher.mode is None:
        patcher.mode = fastest_mode(model, Prompt(ids, position))
    return patcher.mode


def _graph(model: LanguageModel, ids: Int[Tensor, "1 token"], prefix: Any) -> list[Tensor]:
    """Run tokens with a graph from layer 0 on, and return the residual stream at every layer as tensors in it."""
    hidden: list[Tensor] = []

    def keep(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        name = None if args else "hidden_states" if "hidden_states" in kwargs else next(iter(kwargs))
        given = kwargs[name] if name else args[0]
        hidden.append(given if hidden else given.detach().requires_grad_(True))
        # A copy for the block: one that writes into its input would change what is differentiated in.
        passed = hidden[-1].clone()
        return (args, {**kwargs, name: passed}) if name else ((passed, *args[1:]), kwargs)

    places = [*model.parts.blocks, model.parts.final]
    handles = [place.register_forward_pre_hook(keep, with_kwargs=True) for place in places]
    try:
        with torch.enable_grad():
            model.module(ids, past_key_values=prefix, use_cache=prefix is not None)
    finally:
        for handle in handles:
            handle.remove()
    return hidden


def _gradients(
    end: Float[Tensor, " d_model"], hidden: list[Tensor], seeds: Float[Tensor, "row d_model"]
) -> tuple[Tensor, ...]:
    """Return the gradient of each seed's product with `end` in every layer: [row, 1, token, d_model] each."""
    try:
        return torch.autograd.grad(end, hidden, seeds, retain_graph=True, is_grads_batched=True)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
    # Model code of others may hold an operation that vmap has no rule for: then one seed at a time. What else is
    # wrong is raised again here.
    rows = [torch.autograd.grad(end, hidden, seed, retain_graph=True) for seed in seeds]
    return tuple(torch.stack(layer) for layer in zip(*rows, strict=True))
