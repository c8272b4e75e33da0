"""Adapters of every kind that PEFT writes: merged they are what PEFT computes, or they are refused in one line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from lensbench.errors import UsageError
from lensbench.models import adapters
from lensbench.models.adapters import adapted, merge_adapter, read_adapter
from lensbench.models.sources import ADAPTER
from tests import tiny

LINEAR = ["q_proj", "v_proj", "down_proj"]
Change = Callable[[Path], None]


def tied(kind: str) -> torch.nn.Module:
    """A tiny model whose head is its embeddings."""
    module: Any = tiny.module(kind)
    module.config.tie_word_embeddings = True
    module.get_output_embeddings().weight = module.get_input_embeddings().weight
    return module


def setting(**changes: object) -> Change:
    def change(folder: Path) -> None:
        settings = json.loads((folder / ADAPTER).read_text())
        (folder / ADAPTER).write_text(json.dumps(settings | changes))

    return change


def save(folder: Path, module: torch.nn.Module, **config: Any) -> torch.nn.Module:
    """Write an adapter with random weights; return the live model, as PEFT loads it again."""
    with adapters._quiet_peft():
        torch.manual_seed(3)
        plain = {"r": 4, "lora_alpha": 6, "target_modules": LINEAR, "task_type": "CAUSAL_LM"}
        wrapped: Any = peft.get_peft_model(module, peft.LoraConfig(**{**plain, **config}))
        for name, weight in wrapped.named_parameters():
            if ".lora_B" in name or "lora_magnitude" in name:
                torch.nn.init.normal_(weight, std=0.2)
        wrapped.save_pretrained(str(folder), save_embedding_layers=False)
    return wrapped


RIGHT = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "ranks of their own": {"rank_pattern": {"q_proj": 2}},
    "alphas of their own": {"alpha_pattern": {"layers.1.self_attn.q_proj": 20, "down_proj": 1}},
    "some layers": {"layers_to_transform": [1], "layers_pattern": "layers"},
    "all linear": {"target_modules": "all-linear"},
    "gaussian beginnings": {"init_lora_weights": "gaussian"},
    "head, not tied": {"target_modules": [*LINEAR, "lm_head"]},
}
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "dora": ({"use_dora": True}, "no LoRA matrix|use_dora is True"),
    "pissa": ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
    "olora": ({"init_lora_weights": "olora"}, "init_lora_weights is 'olora'"),
    "bias": ({"bias": "lora_only"}, "bias is 'lora_only'|no LoRA matrix"),
    "saved modules": ({"modules_to_save": ["norm"]}, "modules_to_save|no LoRA matrix"),
    "activated": ({"alora_invocation_tokens": [5, 6]}, r"alora_invocation_tokens is \[5, 6\]"),
}


def logits(module: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = module(torch.arange(3, 40)[None]).logits
    return found


@pytest.mark.parametrize("config", RIGHT.values(), ids=RIGHT.keys())
def test_merged_is_live_at_both_entrances(config: dict[str, Any], tmp_path: Path):
    save(tmp_path / "lora", tiny.module("llama"), **config)
    with adapters._quiet_peft():
        live: Any = peft.PeftModel.from_pretrained(tiny.module("llama"), tmp_path / "lora").eval()
    expected = logits(live)
    assert float((expected - logits(tiny.module("llama"))).abs().max()) > 1e-3
    target = tiny.module("llama")
    merge_adapter(target, tmp_path / "lora")
    verbalizer = adapted(tiny.model("llama"), read_adapter(tmp_path / "lora"))
    for module in (target, verbalizer.module):
        torch.testing.assert_close(logits(module), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def refused(folder: Path, make: Callable[[], torch.nn.Module], says: str) -> None:
    with pytest.raises(UsageError, match=says) as told:
        merge_adapter(make(), folder)
    assert "\n" not in str(told.value)
    with pytest.raises(UsageError, match=says):
        merge_adapter(make(), folder, "the model", "--verbalizer")


@pytest.mark.parametrize(("config", "says"), WRONG.values(), ids=WRONG.keys())
def test_what_is_no_plain_lora_is_refused(config: dict[str, Any], says: str, tmp_path: Path):
    save(tmp_path / "lora", tiny.module("llama"), **config)
    refused(tmp_path / "lora", lambda: tiny.module("llama"), says)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (setting(lora_alpha=None), "lora_alpha is None; expected numbers"),
        (setting(alpha_pattern={"q_proj": "much"}), "alpha_pattern is .*; expected numbers"),
        (setting(alpha_pattern=[1]), "expected values by pattern"),
        (setting(rank_pattern={"(": 4}), "cannot be read"),
        (setting(r=5), "has rank 5, adapter_model.safetensors has 4"),
        (setting(something_of_next_year={"on": True}), "something_of_next_year is"),
        (setting(use_qalora=True), "use_qalora is True"),
    ],
)
def test_settings_that_are_not_understood_are_refused(change: Change, says: str, tmp_path: Path):
    save(tmp_path / "lora", tiny.module("llama"))
    change(tmp_path / "lora")
    refused(tmp_path / "lora", lambda: tiny.module("llama"), says)


def test_settings_that_say_nothing_are_those_of_any_adapter(tmp_path: Path):
    save(tmp_path / "lora", tiny.module("llama"))
    setting(something_of_next_year=None, another=False, third={})(tmp_path / "lora")
    merge_adapter(tiny.module("llama"), tmp_path / "lora")


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.parametrize(("kind", "modules"), [("llama", ["q_proj", "lm_head"]), ("gpt2", ["c_attn", "lm_head"])])
def test_an_adapter_of_a_tied_head_is_refused(kind: str, modules: list[str], tmp_path: Path):
    save(tmp_path / "lora", tied(kind), target_modules=modules)
    refused(tmp_path / "lora", lambda: tied(kind), "embeddings as well")
