"""A run checks the methods that it runs, and says nothing good of one that fails."""

import json
import os
import signal
from pathlib import Path

import pytest

from lensbench import evaluate
from lensbench.cli.terminal import run_as_json, show_run
from lensbench.evaluation import checking
from lensbench.evaluation.checking import check_methods, is_shipped
from lensbench.evaluation.config import RunConfig
from lensbench.inspectors.catalog import find_inspectors, load_inspector
from lensbench.inspectors.evidence import Evidence
from lensbench.inspectors.lenses.logit_lens import LogitLens
from lensbench.inspectors.patchscopes.own_prompts import BackPatching
from lensbench.inspectors.scores import Scores
from lensbench.results.method_checks import MethodChecks, checks_of, keep_checks
from lensbench.runs.pages import read_page_run
from lensbench.runs.run import Run

CHEAT = "lensbench.calibration.cheats:SharedIndex"


class Strange(LogitLens):
    """A stranger's logit lens."""

    name = "strange"


class Deep(LogitLens):
    """Can be run on deep models alone."""

    name = "deep"

    def inspect(self, evidence: Evidence) -> Scores:
        if self.target_.n_layers < 6:
            raise ValueError("no layer 6")
        return super().inspect(evidence)


class Chained(BackPatching):
    """A stranger's back-patching, which reads chains alone."""

    name = "chained"


class Dies(LogitLens):
    """Takes its process with it."""

    name = "dies"

    def inspect(self, evidence: Evidence) -> Scores:
        os.kill(os.getpid(), signal.SIGKILL)
        return super().inspect(evidence)


class Claims(Strange):
    """Says that it is one of ours."""

    name = "claims"


Claims.__module__ = "lensbench.inspectors.lenses.logit_lens"


@pytest.fixture
def deep(isolated_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache, and a target of eight layers."""
    monkeypatch.setattr(checking, "depth_of", lambda _: 8)


def of(*names: str) -> dict[str, MethodChecks]:
    """What is found of classes of this module, all of one version."""
    config = RunConfig(inspectors=tuple(f"{__name__}:{name}" for name in names))
    return check_methods(config, {name.lower(): name for name in names})


@pytest.fixture(scope="module")
def run(tiny_llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("checked")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LENSBENCH_CACHE", str(folder / "cache"))
        return evaluate(
            str(tiny_llama_folder), tasks=("attribute_extraction/country_continent",), sites=("subject",), limit=20,
            inspectors=(CHEAT, f"{__name__}:Strange", "logit_lens"), baselines=("shuffled", "gaussian", "mean"),
            out=folder / "run",
        )  # fmt: skip


def test_a_method_that_fails_keeps_its_accuracy_and_gets_no_verdict(run: Run) -> None:
    assert not run.failed
    methods = json.loads((run.path / "run.json").read_text())["methods"]
    assert methods["strange"]["checks"] == methods["logit_lens"]["checks"] == {"passed": True}
    checks = methods["cheat_shared_index"]["checks"]
    assert checks["passed"] is False
    assert [line.partition(":")[0] for line in checks["failed"]] == ["check_state_is_own", "check_folds_are_apart"]
    assert run.settings.unfit == {"cheat_shared_index": "check_state_is_own"}
    own = run.summary[run.summary.baseline == "none"]
    assert set(own[own.inspector == "cheat_shared_index"].verdict) == {"no verdict (fails check_state_is_own)"}
    assert own[own.inspector == "cheat_shared_index"].accuracy.notna().all()
    assert own[own.inspector == "cheat_shared_index"].gap.notna().all()
    assert not own[own.inspector != "cheat_shared_index"].verdict.str.contains("fails").any()


def test_the_failure_is_named_where_the_result_is_shown(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    show_run(run)
    said = capsys.readouterr().out
    assert "cheat_shared_index fails check_state_is_own: cheat_shared_index: a fit scores otherwise" in said
    assert run_as_json(run)["checks"]["strange"] == {"passed": True}
    problems = read_page_run(run.path).problems
    assert any(line.startswith("cheat_shared_index gets no verdict: it fails") for line in problems)


def test_a_version_is_checked_once(isolated_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = of("Strange")
    assert first == {"strange": MethodChecks()}
    assert len(list((isolated_cache / "checks").iterdir())) == 1
    monkeypatch.setattr(checking, "Process", None)
    assert of("Strange") == first
    with pytest.raises(TypeError):
        of("Dies")


def test_what_cannot_be_run_on_a_shallow_model_is_checked_on_a_deep_one(deep: None) -> None:
    assert of("Deep")["deep"].passed


def test_what_reads_chains_alone_is_checked_on_chains(deep: None) -> None:
    assert of("Chained")["chained"].passed


def test_a_method_that_ends_its_process_fails(deep: None) -> None:
    found = of("Dies")["dies"]
    assert found.first == "check_contract"
    assert "ended before it had answered" in found.failed[0]


def test_ours_are_not_checked_again_and_nobody_else_is_ours() -> None:
    assert all(is_shipped(load_inspector(name)()) for name in find_inspectors() if name != "oracle")
    assert not is_shipped(Strange())
    assert not is_shipped(Claims())


def test_a_damaged_file_counts_as_not_checked(isolated_cache: Path) -> None:
    found = MethodChecks(("check_contract: x",))
    keep_checks("v", found)
    assert checks_of("v") == found
    (isolated_cache / "checks" / "v.json").write_text("[1]")
    assert checks_of("v") is None
    assert checks_of("w") is None
