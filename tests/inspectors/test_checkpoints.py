"""Checkpoints of the tuned-lens package: read, written, refused; and `lensbench fit`."""

import json
import logging
import os
import pickle
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import errors as hub_errors

from lensbench import testing
from lensbench.errors import LensbenchError, UsageError
from lensbench.evaluation.config import RunConfig
from lensbench.inspectors.base import Translator
from lensbench.inspectors.evidence import Training
from lensbench.inspectors.lenses.affine_lens import AffineLens
from lensbench.inspectors.lenses.tuned_lens import TunedLens
from lensbench.inspectors.target import Target
from lensbench.models import tuned_lens_files
from lensbench.models.corpus import Corpus
from lensbench.models.language_model import LanguageModel
from lensbench.models.loading import Loading, load_model
from lensbench.models.tokens import Tokens
from lensbench.training import fit as fitting
from tests import tiny
from tests.command import lensbench

PYTHON = "LENSBENCH_TUNED_LENS_PYTHON"


def fitted(lens: Translator, model: LanguageModel) -> Translator:
    lens.check(Target(model), model)
    return lens.fit(Target(model), model, Training(corpus=Corpus(model)))


def theirs(folder: Path, **changes: Any) -> dict[str, torch.Tensor]:
    """Write a checkpoint of random translators as the package does, and return its state."""
    generator = torch.Generator().manual_seed(1)
    shapes = {f"{i}.{part}": shape for i in range(4) for part, shape in (("weight", (32, 32)), ("bias", (32,)))}
    state = {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}
    settings = {"base_model_name_or_path": "org/name", "d_model": 32, "num_hidden_layers": 4, "bias": True}
    settings |= {"base_model_revision": None, "unembed_hash": None, "lens_type": "linear_tuned_lens", **changes}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    torch.save(state, folder / "params.pt")
    return state


def test_index_i_is_our_layer_i(tmp_path: Path) -> None:
    """U(N(h + W h + b)), written out; the input of block i is what we call layer i, and the last layer has none."""
    model = tiny.model("llama")
    state = theirs(tmp_path / "lens")
    lens = fitted(TunedLens(checkpoint=str(tmp_path / "lens")), model)
    hidden = torch.randn(5, 3, 32)
    for i in range(4):
        moved = hidden[i] + hidden[i] @ state[f"{i}.weight"].T + state[f"{i}.bias"]
        torch.testing.assert_close(lens.logits(i, hidden[i], 0), model.unembed(moved), rtol=1e-5, atol=1e-5)
    assert torch.equal(lens.translate((4,), hidden[4:])[0], hidden[4])


def test_what_is_read_keeps_the_contract(tmp_path: Path) -> None:
    theirs(tmp_path / "lens")
    assert len(testing.check_inspector(lambda: TunedLens(checkpoint=str(tmp_path / "lens")))) >= 7


@pytest.mark.parametrize("kind", [TunedLens, AffineLens])
def test_what_was_saved_is_read_as_it_was(kind: type[Translator], tmp_path: Path) -> None:
    model = tiny.model("gemma2")
    learned = fitted(kind(tokens=1024), model)
    learned.save(tmp_path / "lens")
    read = fitted(TunedLens(checkpoint=str(tmp_path / "lens")), model)
    hidden = torch.randn(4, 6, 32)
    torch.testing.assert_close(read.translate((0, 1, 2, 3), hidden), learned.translate((0, 1, 2, 3), hidden))
    settings = json.loads((tmp_path / "lens" / "config.json").read_text(encoding="utf-8"))
    assert settings["lensbench"]["inspector"] == kind.name
    assert settings["lensbench"]["parameters"]["tokens"] == 1024
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lens"]


@pytest.mark.parametrize("kind", tiny.CONFIGS | tiny.HYBRIDS)
def test_every_architecture_has_a_head_that_a_lens_is_tied_to(kind: str) -> None:
    model = LanguageModel(tiny.module(kind), Tokens(tiny.tokenizer()), kind)
    before = tuned_lens_files.identify_model(model)
    assert before == tuned_lens_files.identify_model(model)
    assert (before.n_layers, before.d_model, before.dtype) == (4, 32, "float32")
    for part in (model.module.get_output_embeddings(), model.parts.final):
        with torch.no_grad():
            part.weight.view(-1)[7] += 1e-3
        after = tuned_lens_files.identify_model(model)
        assert after.head != before.head
        before = after


def nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("residuals", "unembed", "score_tokens"):
        monkeypatch.setattr(LanguageModel, name, lambda *_: pytest.fail("the model was run"))


def params(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        state = torch.load(folder / "params.pt")
        torch.save(change(state), folder / "params.pt")

    return apply


def settings(**changes: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        found = {key: value for key, value in {**found, **changes}.items() if value != "gone"}
        (folder / "config.json").write_text(json.dumps(found), encoding="utf-8")

    return apply


def cut(folder: Path) -> None:
    whole = (folder / "params.pt").read_bytes()
    (folder / "params.pt").write_bytes(whole[: len(whole) // 2])


def _without(state: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in state.items() if key != "2.bias"}


class Touch:
    """What a hostile file would hold: a call that loading it makes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no params": (lambda folder: (folder / "params.pt").unlink(), "holds no params.pt"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "holds no config.json"),
    "config is no JSON": (lambda folder: (folder / "config.json").write_text("{"), "config.json cannot be read"),
    "config is a list": (lambda folder: (folder / "config.json").write_text("[]"), "holds list, expected an object"),
    "no depth": (settings(num_hidden_layers="gone"), "has no whole number num_hidden_layers"),
    "another depth": (settings(num_hidden_layers=5), "org/name with 5 blocks of width 32; tiny-llama has 4 of width"),
    "another width": (settings(d_model=64), "4 blocks of width 64; tiny-llama has 4 of width 32"),
    "another kind": (settings(lens_type="mlp"), "of type 'mlp'; expected 'linear_tuned_lens'"),
    "says no bias": (settings(bias=False), "without bias"),
    "cut off": (cut, "expected weights that torch loads"),
    "empty": (lambda folder: (folder / "params.pt").write_bytes(b""), "expected weights that torch loads"),
    "no bias": (params(_without), "has no 2.bias"),
    "one layer more": (params(lambda state: {**state, "4.bias": state["0.bias"]}), "has '4.bias' too"),
    "a tensor": (params(lambda state: state["0.bias"]), "holds Tensor, expected a state of tensors"),
    "wrong shape": (params(lambda state: {**state, "1.bias": torch.zeros(31)}), "1.bias is (31,) of torch.float32"),
    "whole numbers": (params(lambda state: {**state, "1.bias": torch.zeros(32).int()}), "(32,) of torch.int32"),
    "not finite": (params(lambda state: {**state, "3.bias": torch.full((32,), torch.nan)}), "3.bias holds numbers"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_checkpoints_are_refused_before_the_model_is_run(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny.model("llama")
    theirs(tmp_path / "lens")
    breaking, message = BROKEN[case]
    breaking(tmp_path / "lens")
    nothing_runs(monkeypatch)
    with pytest.raises(UsageError) as error:
        TunedLens(checkpoint=str(tmp_path / "lens")).check(Target(model), model)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_no_code_in_a_checkpoint_is_run(tmp_path: Path) -> None:
    model = tiny.model("llama")
    theirs(tmp_path / "lens")
    (tmp_path / "lens" / "params.pt").write_bytes(pickle.dumps({"0.weight": Touch(tmp_path / "touched")}))
    with pytest.raises(UsageError, match="expected weights that torch loads"):
        TunedLens(checkpoint=str(tmp_path / "lens")).check(Target(model), model)
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(
    ("lens", "message"),
    [
        (TunedLens(checkpoint="nowhere"), "checkpoint nowhere: no such folder"),
        (TunedLens(checkpoint=""), "expected a folder, or hub:MODEL_ID"),
        (TunedLens(checkpoint="hub:../../x"), "expected hub:MODEL_ID, such as hub:gpt2"),
        (TunedLens(checkpoint="nowhere", steps=3), "tuned_lens.steps is for fitting, and tuned_lens.checkpoint"),
        (TunedLens(checkpoint="nowhere", loss="mse"), "tuned_lens.loss is for fitting"),
    ],
)
def test_wrong_places_are_refused(lens: TunedLens, message: str) -> None:
    model = tiny.model("llama")
    with pytest.raises(UsageError) as error:
        lens.check(Target(model), model)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def another_head(model: LanguageModel, row: int) -> LanguageModel:
    """The same model, but for one number of its head where an abbreviated print of it shows nothing."""
    module = tiny.module("llama")
    with torch.no_grad():
        module.lm_head.weight[row, 16] += 0.5
    return LanguageModel(module, Tokens(tiny.tokenizer()), "another")


def test_our_fingerprint_sees_what_theirs_does_not(tmp_path: Path) -> None:
    model = tiny.model("llama")
    fitted(TunedLens(tokens=1024, steps=0), model).save(tmp_path / "lens")
    other = another_head(model, 300)
    homes = [tuned_lens_files.identify_model(one) for one in (model, other)]
    assert homes[0].unembed_hash == homes[1].unembed_hash
    with pytest.raises(UsageError, match=r"another norm and head .* load that model with that --dtype, or fit a lens"):
        TunedLens(checkpoint=str(tmp_path / "lens")).check(Target(other), other)


def test_a_fingerprint_of_theirs_is_a_hint_and_no_proof(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = tiny.model("llama")
    home = tuned_lens_files.identify_model(model)
    theirs(tmp_path / "same", unembed_hash=home.unembed_hash)
    theirs(tmp_path / "other", unembed_hash="0" * 64)
    with caplog.at_level(logging.INFO, "lensbench"):
        for name in ("same", "other"):
            TunedLens(checkpoint=str(tmp_path / name)).check(Target(model), model)
    assert [(record.levelname, "proves" in record.message) for record in caplog.records] == [
        ("INFO", True),
        ("WARNING", False),
    ]
    assert "it says that it is for org/name" in caplog.records[1].message


def test_half_precision_of_the_same_weights_is_the_same_head(tmp_path: Path) -> None:
    """Weights that bfloat16 holds exactly, loaded in either."""
    module = tiny.module("llama").to(torch.bfloat16)
    half = LanguageModel(module, Tokens(tiny.tokenizer()), "half")
    fingerprint = tuned_lens_files.identify_model(half).head
    assert (
        tuned_lens_files.identify_model(LanguageModel(module.float(), Tokens(tiny.tokenizer()), "whole")).head
        == fingerprint
    )


def test_saving_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model("llama")
    lens = fitted(TunedLens(tokens=0, steps=0), model)

    def fail(*_: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", fail)
        with pytest.raises(OSError, match="disk full"):
            lens.save(tmp_path / "lens")
    assert not list(tmp_path.iterdir())
    lens.save(tmp_path / "lens")
    with pytest.raises(UsageError, match="already exists; give the name of a new folder"):
        lens.save(tmp_path / "lens")
    read = fitted(TunedLens(checkpoint=str(tmp_path / "lens")), model)
    with pytest.raises(UsageError, match="which is already a checkpoint"):
        read.save(tmp_path / "again")


def test_the_hub_space_is_asked_for_the_lens_of_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model("llama")
    theirs(tmp_path / "lens")
    asked = []

    def download(repository: str, file: str, **how: Any) -> str:
        asked.append((repository, file, how))
        return str(tmp_path / "lens" / Path(file).name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    TunedLens(checkpoint="hub:org/name").check(Target(model), model)
    how = {"repo_type": "space", "local_files_only": False}
    space = "AlignmentResearch/tuned-lens"
    assert asked == [(space, f"lens/org/name/{file}", how) for file in ("config.json", "params.pt")]


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (hub_errors.LocalEntryNotFoundError("no"), LensbenchError, "the Hub was not reached; connect and leave out"),
        (hub_errors.EntryNotFoundError("no"), UsageError, "has no lens/gpt2/config.json; give a model that it has"),
        (OSError("broken\npipe"), LensbenchError, "could not be fetched from the Hub: broken; try again"),
    ],
)
def test_hub_errors_are_one_line(
    error: Exception, kind: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(*_: Any, **__: Any) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    model = tiny.model("llama")
    with pytest.raises(kind) as found:
        TunedLens(checkpoint="hub:gpt2").check(Target(model), model)
    assert type(found.value) is kind
    assert message in str(found.value)
    assert "\n" not in str(found.value)


def test_offline_goes_for_lenses_too(tiny_llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(*_: Any, local_files_only: bool, **__: Any) -> str:
        asked.append(local_files_only)
        raise hub_errors.LocalEntryNotFoundError("no")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    for offline in (True, False):
        model = load_model(str(tiny_llama_folder), Loading(offline=offline))
        with pytest.raises(LensbenchError, match="the Hub was not reached"):
            TunedLens(checkpoint="hub:gpt2").check(Target(model), model)
    assert asked == [True, False]


def test_fit_writes_what_evaluate_reads(tiny_llama_folder: Path, tmp_path: Path) -> None:
    given = ("--model", str(tiny_llama_folder), "--set", "tokens=1024", "--set", "steps=2", "--set", "loss=reverse_kl")
    done = lensbench("fit", "tuned_lens", *given, "--out", "lens", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "(1,024 tokens, " in done.stdout
    settings = json.loads((tmp_path / "lens" / "config.json").read_text(encoding="utf-8"))
    assert settings["lensbench"]["parameters"] == TunedLens(tokens=1024, steps=2, loss="reverse_kl").parameters()
    run = ("--model", str(tiny_llama_folder), "--tasks", "next_token", "--inspectors", "tuned_lens", "--limit", "2")
    done = lensbench(
        "evaluate", *run, "--set", "tuned_lens.checkpoint=lens", "--baselines", "none", "--out", "run", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr


REFUSALS = {
    ("logit_lens",): "logit_lens cannot be fitted into a folder: it learns nothing",
    ("probe",): "probe cannot be fitted into a folder: it learns the labels of each relation",
    ("tuned_lense",): "unknown inspector 'tuned_lense'; did you mean 'tuned_lens'",
    ("tuned_lens", "--model", "smollm2-135"): "did you mean 'smollm2-135m'?",
    ("tuned_lens", "--set", "steps"): "--set 'steps': expected PARAMETER=VALUE",
    ("tuned_lens", "--set", "epochs=3"): "inspector tuned_lens has no parameter 'epochs'",
    ("tuned_lens", "--out", "there"): "there already exists; give the name of a new folder",
    ("tuned_lens", "--out", "file/lens"): "is not a folder that can be written to",
}


@pytest.mark.parametrize("given", REFUSALS, ids=" ".join)
def test_fit_refuses_before_the_model_is_loaded(
    given: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from lensbench import cli

    (tmp_path / "there").mkdir()
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fitting, "load_model", lambda *_: pytest.fail("the model was loaded"))
    rest = () if "--out" in given else ("--out", "lens")
    monkeypatch.setattr("sys.argv", ["lensbench", "fit", *given, *rest])
    monkeypatch.setattr("sys.path", ["", *__import__("sys").path])
    with pytest.raises(SystemExit) as done:
        cli.main()
    said = capsys.readouterr().err
    assert done.value.code == 2
    assert REFUSALS[given] in said
    assert said.count("\n") == 1
    assert not (tmp_path / "lens").exists()


def test_a_learner_without_save_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "unsaved.py").write_text(
        "from lensbench.inspectors.lenses.affine_lens import AffineLens\n"
        "class Unsaved(AffineLens):\n    name = 'unsaved'\n    save = None\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(fitting, "load_model", lambda *_: pytest.fail("the model was loaded"))
    with pytest.raises(UsageError, match=r"unsaved cannot be fitted .* but has no save\(folder\)"):
        fitting.fit(RunConfig(inspectors=("unsaved:Unsaved",)), tmp_path / "lens")


WITH_PACKAGE = """
import sys, torch
from transformers import AutoModelForCausalLM
from tuned_lens.nn.lenses import TunedLens
model_folder, ours, theirs, hidden_file, out = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(model_folder)
hidden = torch.load(hidden_file)
found = {}
lens = TunedLens.from_model_and_pretrained(model, ours)
found["ours"] = torch.stack([lens(h, i) for i, h in enumerate(hidden)]).detach()
lens = TunedLens.from_model(model)
torch.manual_seed(1)
for translator in lens.layer_translators:
    torch.nn.init.normal_(translator.weight, std=0.2)
    torch.nn.init.normal_(translator.bias)
lens.save(theirs)
found["theirs"] = torch.stack([lens(h, i) for i, h in enumerate(hidden)]).detach()
found["hash"] = lens.config.unembed_hash
torch.save(found, out)
"""


@pytest.mark.skipif(PYTHON not in os.environ, reason=f"{PYTHON} names no python with the package tuned-lens")
def test_the_package_reads_ours_and_we_read_the_packages(tiny_llama_folder: Path, tmp_path: Path) -> None:
    model = load_model(str(tiny_llama_folder))
    lens = fitted(TunedLens(tokens=2048, steps=3), model)
    lens.save(tmp_path / "ours")
    hidden = torch.cat(list(Corpus(model).residuals(256)), dim=1)[:-1, ::16]
    torch.save(hidden, tmp_path / "hidden.pt")
    places = (tiny_llama_folder, *(tmp_path / name for name in ("ours", "theirs", "hidden.pt", "found.pt")))
    command = [os.environ[PYTHON], "-c", WITH_PACKAGE, *map(str, places)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "hash does not match" not in done.stderr
    found = torch.load(tmp_path / "found.pt")
    assert tuned_lens_files.identify_model(model).unembed_hash == found["hash"]
    read = fitted(TunedLens(checkpoint=str(tmp_path / "theirs")), model)
    for own, kind in ((lens, "ours"), (read, "theirs")):
        logits = torch.stack([own.logits(i, h, 0) for i, h in enumerate(hidden)])
        off = float((logits - found[kind]).abs().max())
        print(f"{kind}: logits up to {float(found[kind].abs().max()):.2f}, off by at most {off:.1e}")
        assert off < 1e-5
    assert float((found["ours"] - found["theirs"]).abs().max()) > 0.1
