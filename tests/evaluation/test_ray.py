"""Runs on a Ray cluster: the same bytes as here, and workers that die."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lensbench import evaluate
from lensbench.errors import UsageError
from lensbench.evaluation import ray as ray_executor
from lensbench.inspectors.evidence import Evidence
from lensbench.inspectors.lenses.logit_lens import LogitLens
from lensbench.inspectors.scores import Scores
from tests.evaluation.test_survival import TASKS, files

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def settings(tiny_llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LENSBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        methods = ("logit_lens", "probe", "patchscope")
        yield {
            "model": str(tiny_llama_folder), "tasks": TASKS, "limit": 20, "inspectors": methods, "sites": ("subject",)
        }  # fmt: skip


class DiesOnce(LogitLens):
    """Takes its process with it, the first time."""

    name = "dies_once"

    def inspect(self, evidence: Evidence) -> Scores:
        marker = Path(os.environ["LENSBENCH_TEST_MARKER"])
        if not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().inspect(evidence)


class AlwaysDies(LogitLens):
    """Takes its process with it, every time."""

    name = "always_dies"

    def inspect(self, evidence: Evidence) -> Scores:
        os.kill(os.getpid(), signal.SIGKILL)
        return super().inspect(evidence)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Two workers on a local Ray; what they see of the environment is fixed when it starts."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'lensbench[ray]'")
    marker = tmp_path_factory.mktemp("ray") / "died"
    environment = {"LENSBENCH_TEST_MARKER": str(marker), "LENSBENCH_CACHE": os.environ["LENSBENCH_CACHE"]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")  # else they wait for whatever else the machine does
        ray.init(
            num_cpus=2, include_dashboard=False, log_to_driver=False,
            runtime_env={"env_vars": {**environment, "PYTHONPATH": str(ROOT)}},
        )  # fmt: skip
    yield marker
    ray.shutdown()


@pytest.mark.filterwarnings("ignore")
def test_two_workers_write_the_same_bytes(settings, cluster: Path, tmp_path: Path) -> None:
    whole = evaluate(**settings, out=tmp_path / "local")
    evaluate(**settings, executor="ray", workers=2, out=tmp_path / "run")
    assert files(tmp_path / "run") == files(whole.path)


@pytest.mark.filterwarnings("ignore")
def test_the_cells_of_a_dead_worker_are_done_again(settings, cluster: Path, tmp_path: Path) -> None:
    asked = {**settings, "inspectors": ("tests.evaluation.test_ray:DiesOnce", "logit_lens"), "baselines": ("mean",)}
    run = evaluate(**asked, executor="ray", workers=1, out=tmp_path / "ray")
    assert cluster.exists(), "no worker died"
    assert not run.failed
    os.environ["LENSBENCH_TEST_MARKER"] = str(cluster)
    local = evaluate(**asked, out=tmp_path / "local")
    assert files(run.path) == files(local.path)


@pytest.mark.filterwarnings("ignore")
def test_a_cell_that_kills_its_workers_is_a_failed_cell(settings, cluster: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(ray_executor, "TRIES", 2)  # a worker takes seconds to start
    asked = {**settings, "inspectors": ("tests.evaluation.test_ray:AlwaysDies", "logit_lens"), "baselines": ()}
    run = evaluate(**asked, executor="ray", workers=1, out=tmp_path / "ray")
    assert len(run.failed) == 1
    assert set(run.records.inspector) == {"logit_lens"}


def test_workers_without_ray_are_refused(settings) -> None:
    with pytest.raises(UsageError, match="workers are for --executor ray"):
        evaluate(**settings, workers=2)
