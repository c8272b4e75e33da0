"""A model in another basis: the same function of its tokens, every residual rotated."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lensbench.errors import LensbenchError

# How far logits may move, relative to the largest: the rounding of a rotation in each precision.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 1e-1, torch.float16: 2e-2}
_TOKENS = 16


def rotation(width: int, seed: int = 0) -> Float[Tensor, "width width"]:
    """Return a random rotation, in float64."""
    generator = torch.Generator().manual_seed(seed)
    q, r = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))
    q = q * r.diagonal().sign()
    q[:, 0] *= torch.linalg.det(q).sign()
    result: Tensor = q
    return result


@torch.no_grad()
def rotate(module: nn.Module, seed: int) -> Float[Tensor, "d_model d_model"]:
    """Rotate a model of Llama's shape in place: its residuals become R h in place of h, its logits stay; return R.

    RMSNorm divides by a length, which a rotation keeps, and multiplies by gains, which it does not commute with: they
    are moved into the weights that read behind them first.

    Raises:
        LensbenchError: a model of another shape, or one whose logits do not stay.
    """
    model: Any = module
    try:
        inner, head = model.model, model.lm_head
        reads = [*((block.input_layernorm, _attention(block)) for block in inner.layers)]
        reads += [(block.post_attention_layernorm, [block.mlp.gate_proj, block.mlp.up_proj]) for block in inner.layers]
        writes = [linear for block in inner.layers for linear in (block.self_attn.o_proj, block.mlp.down_proj)]
    except AttributeError as error:
        raise LensbenchError(f"only models of Llama's shape can be rotated: {error}; use another design") from None
    if any(linear.bias is not None for linear in writes):
        raise LensbenchError("only models without biases on what they write can be rotated; use another design")
    ids = torch.arange(_TOKENS)[None].to(inner.embed_tokens.weight.device) + 100
    ids %= inner.embed_tokens.num_embeddings
    before = model(ids, use_cache=False).logits.float()
    exact = rotation(inner.embed_tokens.weight.shape[1], seed)
    turn = exact.to(head.weight.device)
    # A head that is tied to the embeddings takes gains that the embeddings do not.
    head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    model.config.tie_word_embeddings = False
    for norm, linears in (*reads, (inner.norm, [head])):
        _turn_reading(norm, linears, turn)
    for linear in writes:
        linear.weight.copy_((turn @ linear.weight.double()).to(linear.weight.dtype))
    embeddings = inner.embed_tokens.weight
    embeddings.copy_((embeddings.double() @ turn.T).to(embeddings.dtype))
    off = float((model(ids, use_cache=False).logits.float() - before).abs().max() / before.abs().max())
    if not off < _TOLERANCE[embeddings.dtype]:
        raise LensbenchError(
            f"the model in another basis is another model (logits off by {off:.0e}); use another design"
        )
    return exact


def _attention(block: Any) -> list[nn.Module]:
    return [block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj]


def _turn_reading(norm: Any, linears: list[Any], turn: Tensor) -> None:
    for linear in linears:
        linear.weight.copy_(((linear.weight.double() * norm.weight.double()) @ turn.T).to(linear.weight.dtype))
    norm.weight.fill_(1.0)
