"""Checkpoints that lack something, hold something else, or are of another kind of model: refused, or told."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from gguf import GGUFReader
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig

from lensbench.errors import LensbenchError
from lensbench.explore.doctor import examine_loading
from lensbench.models.architecture import ArchitectureError
from lensbench.models.language_model import LanguageModel
from lensbench.models.loading import load_model
from lensbench.models.sources import resolve
from lensbench.models.tokens import Tokens
from tests import tiny
from tests.models.test_sources import write_gguf

State = dict[str, torch.Tensor]
Break = Callable[[State], State]


def folder_of(folder: Path, change: Break = lambda state: state, **config: Any) -> Path:
    """A tiny Llama in a folder, its weights and its configuration changed."""
    tiny.module("llama").save_pretrained(folder)  # type: ignore[operator]
    tiny.tokenizer().save_pretrained(folder)
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors", {"format": "pt"})
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | config))
    return folder


def refusal(do: Callable[[], object]) -> str:
    """What an error of our own says; empty where there was none."""
    try:
        do()
    except LensbenchError as error:
        return str(error)
    return ""


def without(part: str) -> Break:
    return lambda state: {name: weight for name, weight in state.items() if part not in name}


INCOMPLETE: dict[str, Break] = {
    "a matrix": without("layers.2.mlp.down_proj"),
    "a layer": without("layers.3."),
    "the head": without("lm_head"),
    "the norm": without("model.norm"),
    "the embeddings": without("embed_tokens"),
    "all, under another prefix": lambda state: {f"wrapped.{name}": weight for name, weight in state.items()},
}


@pytest.mark.parametrize("change", INCOMPLETE.values(), ids=INCOMPLETE.keys())
def test_a_checkpoint_that_lacks_weights_is_refused(change: Break, tmp_path: Path):
    with pytest.raises(LensbenchError, match=r"lacks \d+ weights of its architecture") as told:
        load_model(str(folder_of(tmp_path / "m", change)))
    assert "\n" not in str(told.value)


def test_a_head_that_is_tied_is_not_missing(tmp_path: Path):
    model = load_model(str(folder_of(tmp_path / "m", without("lm_head"), tie_word_embeddings=True)))
    assert model.n_layers == 4


def test_weights_that_are_left_over_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    folder = folder_of(tmp_path / "m", num_hidden_layers=3)
    with caplog.at_level(logging.WARNING, "lensbench"):
        load_model(str(folder))
    assert "9 weights of the checkpoint have no place in the model and are not used" in caplog.text


@pytest.mark.parametrize("kept", [0, 7, 200, -100])
def test_a_truncated_file_is_refused(kept: int, tmp_path: Path):
    folder = folder_of(tmp_path / "m")
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:kept])
    with pytest.raises(LensbenchError, match="cannot be loaded") as told:
        load_model(str(folder))
    assert "\n" not in str(told.value)


FORMS = [
    "",
    "{",
    "[]",
    "null",
    '{"model_type": 3}',
    '{"model_type": "nothing"}',
    "[" * 100_000,
    '{"a": ' + "9" * 5000 + "}",
]


@pytest.mark.parametrize("content", FORMS, ids=range(len(FORMS)))
@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_whatever_stands_in_its_files_is_one_line(file: str, content: str, tmp_path: Path):
    folder = folder_of(tmp_path / "m")
    (folder / file).write_text(content)
    refused = refusal(lambda: load_model(str(folder)))
    assert refused or file == "tokenizer_config.json"  # some of its settings do not matter
    assert "\n" not in refused
    assert len(refused) < 600


def test_a_gguf_whose_tensors_would_be_left_out_is_refused(tmp_path: Path, isolated_cache: Path):
    gguf = write_gguf(tmp_path / "bias.gguf", more={"blk.0.attn_q.bias": (32,)})
    with pytest.raises(LensbenchError, match=r"its tensor blk\.0\.attn_q\.bias would be left out"):
        resolve(str(gguf))
    gguf = write_gguf(tmp_path / "freqs.gguf", more={"rope_freqs.weight": (4,)})
    with pytest.raises(LensbenchError, match=r"its tensor rope_freqs\.weight would be left out"):
        resolve(str(gguf))
    assert list((isolated_cache / "models").iterdir()) == []


def test_a_gguf_is_parsed_once(tmp_path: Path, isolated_cache: Path, monkeypatch: pytest.MonkeyPatch):
    """transformers and our own checks ask for the same file; the library is left as it was."""
    path, parsed = write_gguf(tmp_path / "tiny.gguf"), []

    class Counting(GGUFReader):
        def __init__(self, path: str) -> None:
            parsed.append(path)
            super().__init__(path)

    monkeypatch.setattr(gguf, "GGUFReader", Counting)
    resolve(str(path))
    assert parsed == [str(path)]
    assert gguf.GGUFReader is Counting


def test_a_gguf_with_a_stretched_context_is_honoured_or_refused(tmp_path: Path, isolated_cache: Path):
    gguf = write_gguf(tmp_path / "long.gguf", scaling=("yarn", 4.0))
    assert "llama.rope.scaling.factor" in GGUFReader(gguf).fields
    refused = refusal(lambda: resolve(str(gguf)))
    if refused:
        assert "rope.scaling" in refused
    else:
        folder = Path(resolve(str(gguf)).location)
        assert json.loads((folder / "config.json").read_text())["rope_parameters"]["rope_type"] == "yarn"


def test_flipped_bits_of_a_converted_model_are_seen(tmp_path: Path, isolated_cache: Path):
    gguf = write_gguf(tmp_path / "tiny.gguf")
    weights = Path(resolve(str(gguf)).location) / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-40] ^= 0x40
    weights.write_bytes(bytes(content))
    with pytest.raises(LensbenchError, match="delete the folder"):
        resolve(str(gguf))


def test_what_sees_later_tokens_is_no_decoder():
    class Seeing(torch.nn.Module):
        """A causal model's logits, and a little of the last token in all of them."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = tiny.module("llama")
            self.config = self.inner.config

        def __getattr__(self, name: str) -> Any:
            try:
                return super().__getattr__(name)
            except AttributeError:
                return getattr(super().__getattr__("inner"), name)

        def forward(self, ids: torch.Tensor, **given: Any) -> Any:
            found = self.inner(ids, **given)
            found.logits = found.logits + ids[:, -1:, None] / 10
            return found

    with pytest.raises(ArchitectureError, match="is not causal"):
        LanguageModel(Seeing(), Tokens(tiny.tokenizer()), "seeing")


def test_a_bidirectional_model_is_refused_by_name():
    config = LlamaConfig(**tiny.CONFIGS["llama"], attn_implementation="eager")
    module: Any = AutoModelForCausalLM.from_config(config).float().eval()
    for block in module.model.layers:
        block.self_attn.forward = _uncovered(block.self_attn.forward)
    with pytest.raises(ArchitectureError, match="both-ways is not causal"):
        LanguageModel(module, Tokens(tiny.tokenizer()), "both-ways")


def _uncovered(forward: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *given, **named: forward(*given, **{**named, "attention_mask": None})


def test_a_text_that_is_longer_than_the_positions_is_refused():
    model = tiny.model("gpt2")
    assert model.most_tokens == 256
    with pytest.raises(LensbenchError, match="a text has 300 tokens, tiny-gpt2 reads at most 256"):
        model.text_residuals(torch.arange(300)[None] % 500 + 3)
    with pytest.raises(LensbenchError, match="reads at most 256"):  # rotary positions go on, but were never trained
        tiny.model("llama").text_residuals(torch.arange(300)[None] % 500 + 3)


def test_doctor_tries_two_loads():
    """Whatever made weights random: two loads differ, and the model is not read correctly."""
    seeds = iter(range(9))
    checks = examine_loading(lambda: LanguageModel(tiny.module("llama", next(seeds)), Tokens(tiny.tokenizer()), "m"))
    assert [check.name for check in checks if not check.passed] == ["two loads have the same weights"]
    checks = examine_loading(lambda: LanguageModel(tiny.module("llama"), Tokens(tiny.tokenizer()), "m"))
    assert all(check.passed for check in checks)
