"""Try every decoder of transformers at tiny size: is it read right, or refused by name?

    python tools/architectures.py          prints the table of docs/adding-a-model.md
    python tools/architectures.py llama    tries some types, with tracebacks
    python tools/architectures.py qwen2:   tries this type and those after it in the alphabet

Each type is made with random weights from its own configuration, shrunk. `doctor` must find it right, or the model must
be refused in one line; whatever else is raised is a fault of ours, and ends with status 1.
"""

import multiprocessing
import sys
import traceback
from collections import defaultdict
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from lensbench.errors import LensbenchError
from lensbench.explore.doctor import examine
from lensbench.models.language_model import LanguageModel
from lensbench.models.loading import VOCAB, enlarge
from lensbench.models.tokens import Tokens
from tests import tiny

SECONDS = 45.0
# What sizes are called, and how small each is made.
SMALL: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "dim", "word_embed_proj_dim", "attention_hidden_size"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers", "n_layers", "decoder_layers"), 4),
    **dict.fromkeys(("num_attention_heads", "n_head", "num_heads", "n_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "n_kv_heads"), 2),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "decoder_ffn_dim", "d_ff", "ffn_hidden_size", "n_inner"), 48),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "d_inner"), 48),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "moe_topk"), 2),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"), 256),
    **dict.fromkeys(("head_dim", "rotary_dim", "state_size", "query_pre_attn_scalar"), 8),
    **dict.fromkeys(("bos_token_id", "eos_token_id"), 1),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"), 8),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 16),
    "vocab_size": VOCAB, "vocab_size_per_layer_input": VOCAB, "pad_token_id": 2, "is_decoder": True,
}  # fmt: skip


def main(kinds: list[str]) -> int:
    """Try types, or all, and print what came of them; return the exit status."""
    found: dict[str, list[str]] = defaultdict(list)
    every = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    from_there = len(kinds) == 1 and kinds[0].endswith(":")
    wanted = [kind for kind in every if kind >= kinds[0].rstrip(":")] if from_there else kinds or every
    for kind in wanted:
        outcome = tried(kind, loud=True) if kinds and not from_there else tried_apart(kind)
        found[outcome].append(kind)
        print(f"{kind}: {outcome}", file=sys.stderr, flush=True)
    print("| what came of it | model types |\n|---|---|")
    for outcome, names in sorted(found.items(), key=lambda pair: -len(pair[1])):
        print(f"| {outcome} ({len(names)}) | {', '.join(f'`{name}`' for name in names)} |")
    return int(any(outcome.startswith("FAULT") for outcome in found))


def tried_apart(kind: str) -> str:
    """Return what came of a type, tried in a process of its own: some take minutes without their compiled parts."""
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=lambda: theirs.send(tried(kind, loud=False)))
    child.start()
    found = ours.recv() if ours.poll(SECONDS) else "not tried: it takes too long here"
    child.kill()
    child.join()
    return str(found)


def tried(kind: str, *, loud: bool) -> str:
    """Return what came of a type: read right, refused, or not to be made this small."""
    try:
        module = made(kind)
    except Exception as error:  # configurations have rules of many kinds
        if loud:
            traceback.print_exc()
        return (
            "not tried: its configuration cannot be shrunk" if "transformers" not in str(type(error)) else "not tried"
        )
    try:
        model = LanguageModel(module, Tokens(tiny.tokenizer()), f"tiny-{kind}")
        wrong = [check.name for check in examine(model) if not check.passed]
    except LensbenchError as error:
        return f"refused: {reason(str(error), kind)}"
    except Exception as error:
        if loud:
            traceback.print_exc()
        return f"FAULT {type(error).__name__}"
    return f"`doctor` finds a fault: {', '.join(wrong)}" if wrong else "read right"


def reason(message: str, kind: str) -> str:
    """Return a message without what differs between models that are refused alike."""
    for sign, text in (
        ("is not causal", "it is not causal"),
        ("has no list of", "its blocks are not found"),
        ("takes the last block's output", "no final norm is found"),
        ("before the blocks as well", "its final norm is called before the blocks as well"),
        ("gives logits off by", "its head cannot be reproduced"),
    ):
        if sign in message:
            return text
    return message.replace(f"tiny-{kind}", "the model")[:80]


def made(kind: str) -> torch.nn.Module:
    """Return a random model of a type, made small."""
    torch.manual_seed(0)
    default = AutoConfig.for_model(kind).get_text_config()
    keys = default.to_dict()
    small = {key: value for key, value in SMALL.items() if key in keys or key in default.attribute_map}
    config = type(default)(**small)
    module = AutoModelForCausalLM.from_config(config).float().eval()
    if sum(weight.numel() for weight in module.parameters()) > 30_000_000:
        raise ValueError("not small")
    with torch.no_grad():
        module(torch.arange(3, 20)[None], use_cache=False)  # sizes that do not go together fail here
    enlarge(module)
    return module


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
