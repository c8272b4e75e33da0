"""Tiny random models of many architectures, and a tokenizer trained on the packaged prose: nothing is downloaded."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from lensbench.models.corpus import PROSE
from lensbench.models.language_model import LanguageModel
from lensbench.models.loading import VOCAB, enlarge, train_tokenizer
from lensbench.models.tokens import Tokens

_COMMON = {"vocab_size": VOCAB, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
_LLAMA = {
    **_COMMON,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
_NEOX = {k: v for k, v in _LLAMA.items() if k != "num_key_value_heads"}
_GEMMA = {**_LLAMA, "head_dim": 8, "sliding_window": 4, "query_pre_attn_scalar": 8}

# Configurations by model type. Windows are short, so that sliding attention matters in prompts of a few tokens.
CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": {**_COMMON, "n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 256},
    "gpt_neox": {**_NEOX, "rotary_pct": 0.25},
    "gptj": {**_COMMON, "n_embd": 32, "n_layer": 4, "n_head": 4, "rotary_dim": 8, "n_positions": 256},
    "gpt_neo": {
        **_COMMON,
        "hidden_size": 32,
        "num_layers": 4,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 2]],
        "window_size": 4,
        "max_position_embeddings": 256,
    },
    "opt": {**_NEOX, "ffn_dim": 48, "word_embed_proj_dim": 32},
    "bloom": {**_COMMON, "hidden_size": 32, "n_layer": 4, "n_head": 4},
    "falcon": {**_NEOX, "alibi": True, "new_decoder_architecture": False, "multi_query": True},
    "llama": _LLAMA,
    "mistral": {**_LLAMA, "sliding_window": 4},
    "qwen2": _LLAMA,
    "qwen3": {**_LLAMA, "head_dim": 8},
    "gemma2": {**_GEMMA, "final_logit_softcapping": 5.0},
    "gemma3_text": _GEMMA,
    "phi3": {**_LLAMA, "original_max_position_embeddings": 256},
    "olmo2": _LLAMA,
    "cohere": {**_LLAMA, "logit_scale": 0.3},
    "granite": {**_LLAMA, "logits_scaling": 4.0},
    "mixtral": {**_LLAMA, "num_local_experts": 4, "sliding_window": None},
    "stablelm": _LLAMA,
    "phi": _LLAMA,
}
# State-space models keep another state than keys and values: prefixes cannot be shared.
HYBRIDS: dict[str, dict[str, Any]] = {
    "mamba": {**_COMMON, "hidden_size": 32, "num_hidden_layers": 4, "state_size": 8},
}


@cache
def tokenizer(*, bos: bool = False) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer of 600 tokens."""
    return train_tokenizer((PROSE / "heldout.txt").read_text(encoding="utf-8"), bos=bos)


def module(kind: str, seed: int = 0) -> torch.nn.Module:
    """Return a random transformers model; weights large enough that layers differ."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(kind, **(CONFIGS | HYBRIDS)[kind])
    model = AutoModelForCausalLM.from_config(config).float().eval()
    enlarge(model)
    return model


def roomy(keys: int) -> torch.nn.Module:
    """Return a random Llama whose MLPs have room for many keys, so that facts can be written into one (`write`).

    Args:
        keys: how wide its MLPs are.
    """
    torch.manual_seed(1)
    sizes = {"hidden_size": 64, "intermediate_size": keys, "num_hidden_layers": 4}
    config = AutoConfig.for_model("llama", **{**_LLAMA, **sizes})
    model = AutoModelForCausalLM.from_config(config).float().eval()
    enlarge(model)
    return model


def write(module: torch.nn.Module, block: int, texts: Sequence[Sequence[int]], values: torch.Tensor) -> None:
    """Have the MLP of a Llama's block (the output of which is layer `block`) add a vector at the end of each text."""
    down = module.model.layers[block - 1].mlp.down_proj
    keys: list[torch.Tensor] = []
    hook = down.register_forward_pre_hook(lambda _module, given: keys.append(given[0][0, -1]))
    with torch.no_grad():
        for ids in texts:
            module.model(torch.tensor([list(ids)]))
        hook.remove()
        down.weight += torch.linalg.lstsq(torch.stack(keys), values, driver="gelsd").solution.T


@cache
def model(kind: str = "llama", *, bos: bool = False) -> LanguageModel:
    """Return a tiny LanguageModel; shared between tests, which must not change it."""
    return LanguageModel(module(kind), Tokens(tokenizer(bos=bos)), f"tiny-{kind}")
