"""What a model's head looks for: the directions along which its logits grow."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lensbench.models.architecture import probe_ids
from lensbench.models.language_model import LanguageModel

# Where a model keeps the directions that it has been asked for.
KEPT = "directions"


def token_directions(model: LanguageModel, token_ids: Sequence[int]) -> Float[Tensor, "token d_model"]:
    """Return the gradient of each token's logit with respect to the final norm's output, at zero.

    That is the head's row for the token, times the model's logit scale; a soft-cap has the slope 1 at zero. Taken by a
    backward pass, so that a head without a plain weight (packed, quantised, a projection before it) gives its
    directions too. A model without a final norm has them with respect to the residual stream itself.
    """
    return _heads_of_tokens(model, token_ids)[:, :-1]


def token_biases(model: LanguageModel, token_ids: Sequence[int]) -> Float[Tensor, " token"]:
    """Return each token's logit where the final norm's output is zero: the head's bias."""
    return _heads_of_tokens(model, token_ids)[:, -1]


def _heads_of_tokens(model: LanguageModel, token_ids: Sequence[int]) -> Float[Tensor, "token d_model_and_bias"]:
    kept: dict[int, Tensor] = model.companions.setdefault(KEPT, {})
    missing = sorted(set(token_ids) - set(kept))
    # A backward pass holds the logits of a row, their gradient, and what it keeps of them on the way.
    parts = model.budget.in_batches(
        len(missing), lambda _begin: max(1, model.head_rows // 4), lambda rows: _gradients(model, missing[rows])
    )
    kept.update(zip(missing, (row for part in parts for row in part), strict=True))
    return torch.stack([kept[token] for token in token_ids])


def _gradients(model: LanguageModel, token_ids: Sequence[int]) -> Float[Tensor, "token d_model_and_bias"]:
    """Run the model without its blocks, zeros in place of the final norm's output, and go back from the logits.

    Returns:
        The gradients, and last the logits at zero.
    """
    zeros = torch.zeros(len(token_ids), 1, model.d_model, dtype=model.dtype, device=model.device, requires_grad=True)

    def before(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if args:
            return (zeros.to(args[0]), *args[1:]), kwargs
        name = next(iter(kwargs))
        return args, {**kwargs, name: zeros.to(kwargs[name])}

    def after(_module: nn.Module, _args: Any, output: Any) -> Any:
        # What changes the width is no norm: a projection, or the head itself.
        same = isinstance(output, Tensor) and output.shape[-1] == model.d_model
        return zeros.to(output) if same else output

    final = model.parts.final
    handles = [final.register_forward_pre_hook(before, with_kwargs=True), final.register_forward_hook(after)]
    try:
        with torch.enable_grad(), model.parts.without_blocks():
            ids = probe_ids(model.module)[:, :1].expand(len(token_ids), 1)
            logits = model.module(ids, use_cache=False).logits[:, 0]
            asked = logits.gather(1, torch.tensor(token_ids, device=logits.device)[:, None])
            (gradient,) = torch.autograd.grad(asked.float().sum(), zeros)
    finally:
        for handle in handles:
            handle.remove()
    return torch.cat([gradient[:, 0].float(), asked.detach().float().to(gradient.device)], dim=1)
