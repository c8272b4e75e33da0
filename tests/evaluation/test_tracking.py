"""A finished run told to an experiment tracker: what is told, and that a run outlives a tracker that fails."""

import logging
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest

from lensbench.errors import UsageError
from lensbench.evaluation import config as config_module
from lensbench.evaluation.config import make_config
from lensbench.evaluation.evaluate import evaluate
from lensbench.evaluation.tracking import track
from lensbench.runs.run import Run, finish
from tests.made_run import Made, write_run

MADE = Made(subjects=12, layers=(0, 1, 2))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = write_run(tmp_path_factory.mktemp("made") / "run", MADE)
    finish(folder)
    return Run(folder)


class FakeTracker(ModuleType):
    """A module with the functions of wandb that are used."""

    def __init__(self, name: str, breaks: str | None = None) -> None:
        super().__init__(name)
        self.told: list[tuple[str, Any]] = []
        self.breaks = breaks

    def _note(self, what: str, given: Any) -> None:
        if what == self.breaks:
            raise SystemExit("no\nlogin")
        self.told.append((what, given))

    def init(self, *, project: str, name: str, config: dict[str, Any]) -> None:
        print("a greeting")
        self._note("init", (project, name, config))

    def log(self, values: dict[str, Any], step: int | None = None) -> None:
        self._note("log", (step, values))

    def finish(self) -> None:
        self._note("finish", None)

    class Table:
        def __init__(self, *, dataframe: pd.DataFrame) -> None:
            self.dataframe = dataframe


@pytest.fixture
def tracker(monkeypatch: pytest.MonkeyPatch) -> FakeTracker:
    fake = FakeTracker("wandb")
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def test_settings_layers_and_verdicts_are_told(run: Run, tracker: FakeTracker, capsys: pytest.CaptureFixture[str]):
    track(run, "wandb")
    assert capsys.readouterr().out == ""  # which may be JSON
    (_, (project, name, settings)), *logged, (last, _) = tracker.told
    assert (project, name, last) == ("lensbench", "run", "finish")
    assert settings["layers"] == list(MADE.layers)
    steps = {step: values for _, (step, values) in logged if step is not None}
    assert list(steps) == list(MADE.layers)
    summary = run.summary
    for row in summary[(summary["baseline"] == "none") & (summary["rule"] == "fixed")].to_dict("records"):
        key = f"{row['task']}/{row['relation']}/{row['site']}/{row['inspector']}"
        assert steps[int(row["layer"])][key] == row["accuracy_corrected"]
    assert any(key.endswith("/patchscope/shuffled") for key in steps[0])
    table = logged[-1][1][1]["best"].dataframe
    assert list(table["uses_activation_verdict"]) == list(run.best["uses_activation_verdict"].fillna(""))
    texts = [name for name in table if not pd.api.types.is_numeric_dtype(table[name])]
    assert texts
    assert not table[texts].isna().any().any()


@pytest.mark.parametrize("breaks", ["init", "log", "finish"])
def test_a_tracker_that_fails_is_warned_of_in_a_line(
    breaks: str, run: Run, tracker: FakeTracker, caplog: pytest.LogCaptureFixture
):
    tracker.breaks = breaks
    with caplog.at_level(logging.WARNING, "lensbench"):
        track(run, "wandb")
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.startswith("wandb was not told of this run (no login); the run itself is complete")
    assert str(run.path) in warning
    if breaks == "log":
        assert tracker.told[-1][0] == "finish"


def test_evaluate_tells_it_and_outlives_it(
    tiny_llama_folder: Path, tmp_path: Path, tracker: FakeTracker, monkeypatch: pytest.MonkeyPatch, isolated_cache: Path
):
    monkeypatch.setattr(config_module, "find_spec", lambda name: name)
    asked: dict[str, Any] = {
        "tasks": ("attribute_extraction/country_capital",), "inspectors": ("logit_lens",), "baselines": "none",
        "sites": ("subject",), "limit": 5, "layers": "0", "out": tmp_path / "run", "log": "wandb",
    }  # fmt: skip
    done = evaluate(str(tiny_llama_folder), **asked)
    assert [what for what, _ in tracker.told] == ["init", "log", "log", "finish"]
    tracker.breaks = "init"
    assert evaluate(str(tiny_llama_folder), **asked).summary.equals(done.summary)


def test_a_tracker_that_is_missing_is_named_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(config_module, "find_spec", lambda _name: None)
    for name in ("wandb", "trackio"):
        with pytest.raises(UsageError, match=rf"--log {name} needs the package {name}.*lensbench\[{name}\]"):
            make_config({"log": name})


@pytest.mark.filterwarnings("default")  # of a package that is not ours
def test_real_wandb_offline(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    if find_spec("wandb") is None:
        pytest.skip("wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    track(run, "wandb")
    assert caplog.records == []
    (written,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    assert b"facts/all/subject/patchscope" in written.read_bytes()
