"""A Llama in another basis: the same function of its tokens, every residual rotated."""

import copy

import torch
from torch import Tensor, nn

from lensbench.model.language_model import LanguageModel


def rotation(width: int, seed: int = 0) -> Tensor:
    """Return a random rotation, in float64."""
    generator = torch.Generator().manual_seed(seed)
    q, r = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))
    q = q * r.diagonal().sign()
    q[:, 0] *= torch.linalg.det(q).sign()
    return q


@torch.no_grad()
def rotated(model: LanguageModel, seed: int = 0) -> tuple[LanguageModel, Tensor]:
    """Return a copy of a Llama whose residuals are R h in place of h at every layer and position, and R.

    RMSNorm divides by a length, which a rotation keeps, and multiplies by gains, which it does not commute with: they
    are moved into the weights that read behind them first.
    """
    exact = rotation(model.d_model, seed)
    turn = exact.float()
    module = copy.deepcopy(model.module)
    inner = module.model
    # A head that is tied to the embeddings takes gains that the embeddings do not.
    module.lm_head.weight = nn.Parameter(module.lm_head.weight.detach().clone(), requires_grad=False)
    module.config.tie_word_embeddings = False
    for block in inner.layers:
        attention, mlp = block.self_attn, block.mlp
        _reads(block.input_layernorm, [attention.q_proj, attention.k_proj, attention.v_proj], turn)
        _reads(block.post_attention_layernorm, [mlp.gate_proj, mlp.up_proj], turn)
        for linear in (attention.o_proj, mlp.down_proj):
            linear.weight.copy_(turn @ linear.weight)
            assert linear.bias is None
    _reads(inner.norm, [module.lm_head], turn)
    embeddings = inner.embed_tokens.weight
    embeddings.copy_(embeddings @ turn.T)
    return LanguageModel(module, model.tokens, f"{model.name}-rotated"), exact


def _reads(norm: nn.Module, linears: list[nn.Module], turn: Tensor) -> None:
    for linear in linears:
        linear.weight.copy_((linear.weight * norm.weight) @ turn.T)
    norm.weight.fill_(1.0)
