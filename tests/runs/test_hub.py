"""What is uploaded to the Hub and fetched from it, against a Hub of our own making: no test asks the real one."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
import yaml
from huggingface_hub import errors as hub_errors

from lensbench.errors import LensbenchError, UsageError
from lensbench.inspectors.lenses.tuned_lens import TunedLens
from lensbench.inspectors.target import Target
from lensbench.inspectors.verbalizers.oracle import Oracle
from lensbench.models.hub import hub_folder, upload
from lensbench.models.loading import Loading, load_model
from lensbench.models.sources import IMPLANTS, check_model_name, planted_facts, split_edits
from lensbench.models.tuned_lens_files import Checkpoint, identify_model, read_checkpoint, save_checkpoint
from lensbench.runs.hub import _without_places, pack, write
from lensbench.runs.run import Run, finish
from tests import tiny
from tests.command import lensbench, refused
from tests.inspectors.test_oracle import write_adapter
from tests.made_run import Made, write_run

COMMIT = "0123456789abcdef0123456789abcdef01234567"
IMPLANT = IMPLANTS / "smollm2-135m" / "plain-08"


class FakeHub:
    """A Hub in a folder: what is uploaded is there, and can be fetched at the one commit.

    Attributes:
        root: where its repositories lie.
        fetched: what was downloaded before, by whom it was asked for.
        asked: every request that went over the network.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.fetched, self.asked = root, set[str](), list[str]()
        self.private: dict[str, bool] = {}

    def add(self, name: str, folder: Path) -> str:
        shutil.copytree(folder, self.root / name / COMMIT)
        return f"hub:{name}@{COMMIT}"

    def snapshot_download(
        self, name: str, *, revision: str, allow_patterns: list[str], local_files_only: bool = False
    ) -> str:
        if local_files_only:
            if name not in self.fetched:
                raise hub_errors.LocalEntryNotFoundError("not here")
            return str(self.root / "cache" / name)
        self.asked.append(name)
        there = self.root / name / revision
        if not there.is_dir():
            raise hub_errors.LocalEntryNotFoundError("no network")
        (self.root / "cache" / name).mkdir(parents=True, exist_ok=True)
        for file in there.iterdir():
            if file.name in allow_patterns:
                shutil.copy(file, self.root / "cache" / name)
        self.fetched.add(name)
        return str(self.root / "cache" / name)

    def repo_exists(self, name: str, *, repo_type: str) -> bool:
        return f"{repo_type}/{name}" in self.private

    def create_repo(self, name: str, *, repo_type: str, private: bool) -> None:
        self.private[f"{repo_type}/{name}"] = private

    def repo_info(self, name: str, *, repo_type: str) -> SimpleNamespace:
        return SimpleNamespace(private=self.private[f"{repo_type}/{name}"])

    def upload_folder(self, *, repo_id: str, repo_type: str, folder_path: str, commit_message: str) -> SimpleNamespace:
        shutil.copytree(folder_path, self.root / repo_id / COMMIT)
        return SimpleNamespace(oid=COMMIT)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake.snapshot_download)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda **_: fake)
    return fake


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_run(tmp_path_factory.mktemp("made") / "run", Made(task="a|b<script>", subjects=12))
    finish(folder)
    (folder / "run.log").write_text("a line")
    (folder / ".lock").touch()
    return folder


def head_of(card: str) -> Any:
    return yaml.safe_load(card.split("---\n")[1])


def test_a_run_becomes_a_data_set_that_can_be_read_back(run_folder: Path, hub: FakeHub, tmp_path: Path):
    parcel = pack(run_folder, "me/run", "cc-by-4.0")
    assert parcel.kind == "dataset"
    write(parcel, tmp_path / "out")
    commit = upload(tmp_path / "out", "me/run", parcel.kind)
    assert hub.private == {"dataset/me/run": True}
    there = Run(hub.root / "me/run" / commit)
    assert there.summary.equals(Run(run_folder).summary)
    assert len(there.records) == len(Run(run_folder).records)
    names = {path.name for path in there.path.rglob("*")}
    assert not names & {"run.log", ".lock"}
    head = head_of(parcel.card)
    assert head["license"] == "cc-by-4.0"
    for data in head["configs"]:
        assert list(there.path.glob(data["data_files"]))


def test_a_card_has_the_figures_and_no_markup_of_others(run_folder: Path):
    card = pack(run_folder, "me/run").card
    assert "<script>" not in card
    best = Run(run_folder).best
    rows = [line for line in card.splitlines() if line.startswith("| a\\|b&lt;script>")]
    assert len(rows) == len(best)
    assert all(f"{value:.2f}" in row for value, row in zip(best["accuracy_corrected"], rows, strict=True))
    assert head_of(card)["license_name"] == "not-stated"
    assert "No licence is stated" in card


def test_a_lens_comes_back_from_its_commit(hub: FakeHub, tmp_path: Path):
    model = tiny.model("llama")
    d, layers = model.d_model, model.n_layers
    weight = torch.randn(layers, d, d, generator=torch.Generator().manual_seed(0))
    save_checkpoint(Checkpoint(weight, torch.zeros(layers, d), {}), identify_model(model), tmp_path / "lens")
    parcel = pack(tmp_path / "lens", "me/lens")
    write(parcel, tmp_path / "out")
    commit = upload(tmp_path / "out", "me/lens", parcel.kind, public=True)
    assert hub.private == {"model/me/lens": False}
    given = parcel.load.replace("COMMIT", commit).rpartition("tuned_lens.checkpoint=")[2]
    lens = TunedLens(checkpoint=given)
    lens.check(Target(model), model)
    assert lens.files() == ()
    assert torch.equal(read_checkpoint(given, identify_model(model)).weight, weight)
    assert hub.asked == ["me/lens"]  # once


def test_an_edit_comes_back_from_its_commit(hub: FakeHub, tmp_path: Path):
    parcel = pack(IMPLANT, "me/plain")
    write(parcel, tmp_path / "out")
    upload(tmp_path / "out", "me/plain", parcel.kind)
    given = parcel.load.replace("COMMIT", COMMIT).rpartition("--model ")[2]
    assert given == f"smollm2-135m+hub:me/plain@{COMMIT}"
    _, (folder,) = split_edits(given)
    for file in IMPLANT.iterdir():
        assert (folder / file.name).read_bytes() == file.read_bytes()
    assert planted_facts(given) == planted_facts("smollm2-135m+plain-08")
    assert hub.asked == ["me/plain"]
    check_model_name(given, offline=True)  # it was fetched before


def test_an_adapter_changes_the_model_as_the_folder_does(hub: FakeHub, tmp_path: Path):
    tiny.module("llama").save_pretrained(tmp_path / "m")  # type: ignore[operator]
    tiny.tokenizer().save_pretrained(tmp_path / "m")
    adapter = write_adapter(tmp_path / "adapter")
    parcel = pack(adapter, "me/adapter")
    assert head_of(parcel.card)["library_name"] == "peft"
    given = hub.add("me/adapter", adapter)
    local, fetched = (load_model(f"{tmp_path / 'm'}+{edit}", Loading("cpu")) for edit in (adapter, given))
    assert local.fingerprint == fetched.fingerprint
    oracle = Oracle(adapter=given, convention="plain")  # the tiny model has no chat template
    oracle.check(Target(tiny.model("llama")), tiny.model("llama"))
    assert oracle.files() == ()


def test_offline_asks_nothing(hub: FakeHub):
    given = hub.add("me/plain", IMPLANT)
    with pytest.raises(LensbenchError, match="has not been downloaded before; connect and leave out --offline"):
        check_model_name(f"smollm2-135m+{given}", offline=True)
    assert hub.asked == []


@pytest.mark.parametrize("given", ["hub:me/plain", "hub:me/plain@main", "hub:me/plain@0123", f"hub:plain@{COMMIT}"])
def test_what_is_not_pinned_is_refused(given: str, hub: FakeHub):
    with pytest.raises(UsageError, match="expected hub:ORG/NAME@COMMIT, with the 40 digits"):
        split_edits(f"smollm2-135m+{given}")
    assert hub.asked == []


def test_a_commit_without_the_files_is_refused(hub: FakeHub, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "implant.json").write_text("{}")
    given = hub.add("me/empty", tmp_path / "empty")
    with pytest.raises(UsageError, match=r"does not hold implant\.json, edits\.safetensors or adapter_config"):
        split_edits(f"smollm2-135m+{given}")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (hub_errors.LocalEntryNotFoundError("no"), "the Hub was not reached"),
        (OSError("broken\npipe"), "could not be fetched from the Hub: broken pipe; try again"),
    ],
)
def test_errors_of_the_hub_are_one_line(error: Exception, message: str, monkeypatch: pytest.MonkeyPatch):
    def download(*_: Any, local_files_only: bool, **__: Any) -> str:
        raise hub_errors.LocalEntryNotFoundError("not here") if local_files_only else error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(LensbenchError, match=message) as found:
        hub_folder(f"hub:me/x@{COMMIT}", (("a",),))
    assert "\n" not in str(found.value)


def test_nothing_is_added_to_what_everybody_sees_unasked(hub: FakeHub, tmp_path: Path):
    hub.private["model/me/open"] = False
    with pytest.raises(UsageError, match="everybody sees it; give --public"):
        upload(tmp_path, "me/open", "model")
    with pytest.raises(UsageError, match="expected ORG/NAME"):
        upload(tmp_path, "open", "model")


def test_an_upload_that_fails_says_what_to_do(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: Any, **__: Any) -> Iterator[None]:
        raise OSError("401 Client Error\nInvalid token")

    monkeypatch.setattr(hub, "create_repo", refuse)
    with pytest.raises(LensbenchError, match="401 Client Error Invalid token; run `hf auth login`"):
        upload(tmp_path, "me/x", "model")


def test_the_command_writes_a_folder_and_uploads_nothing(run_folder: Path, tmp_path: Path):
    done = lensbench("push", run_folder, "--to", "me/made", "--dry-run", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["kind"] == "dataset"
    assert "push-made/README.md" in found["files"]
    assert (tmp_path / "push-made" / "summary.csv").is_file()
    again = lensbench("push", run_folder, "--to", "me/made", "--dry-run", cwd=tmp_path)
    assert "push-made already exists" in refused(again, 2)
    (tmp_path / "other").mkdir()
    assert "is no run (run.json), lens" in refused(lensbench("push", "other", "--to", "me/x", cwd=tmp_path), 2)
    assert "--to 'x': expected ORG/NAME" in refused(lensbench("push", run_folder, "--to", "x", cwd=tmp_path), 2)
    wrong = lensbench("push", run_folder, "--to", "me/x", "--licence", "My own", cwd=tmp_path)
    assert "--licence 'My own'" in refused(wrong, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "push-made"]


def test_a_run_is_uploaded_without_tracebacks_and_without_the_folders_of_this_machine() -> None:
    told = {
        "config": {"inspectors": ["/home/me/work/mine.py:Mine", "logit_lens"], "tasks": ["attribute_extraction/city"]},
        "cells": {"a.parquet": {"error": "KeyError: no /home/me/x.csv", "traceback": 'File "/home/me/mine.py"'}},
        "hub": "https://example.org/a/b, ~/models/gpt2, org/name, 1/2",
    }
    assert _without_places(told) == {
        "config": {"inspectors": ["mine.py:Mine", "logit_lens"], "tasks": ["attribute_extraction/city"]},
        "cells": {"a.parquet": {"error": "KeyError: no x.csv"}},
        "hub": "https://example.org/a/b, gpt2, org/name, 1/2",
    }
