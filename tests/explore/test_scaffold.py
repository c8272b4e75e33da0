"""What `lensbench new` writes passes the checks as it is, and can be evaluated at once."""

import json
import sys
from pathlib import Path

import pytest

from lensbench.errors import UsageError
from lensbench.explore.scaffold import KINDS, new
from lensbench.runs.run import load_run
from tests.command import lensbench, refused


def test_a_new_method_task_and_rival_evaluate_together(tiny_llama_folder: Path, tmp_path: Path) -> None:
    for kind, name in (("inspector", "my_lens"), ("task", "my_task"), ("baseline", "my_rival")):
        done = lensbench("new", kind, name, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert all((tmp_path / line).is_file() for line in done.stdout.splitlines())
        assert "Try it:" in done.stderr
    chosen = ("--inspectors", "my_lens:MyLens", "--tasks", "./my_task", "--baselines", "./my_rival.toml", "--limit", 20)
    done = lensbench("evaluate", "--model", tiny_llama_folder, *chosen, "--out", "run", "--quiet", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    run = load_run(tmp_path / "run")
    assert not run.failed
    assert set(run.records["baseline"]) == {"none", "my_rival"}
    assert set(run.records["site"]) == {"subject", "answer"}


def test_a_new_method_passes_the_checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new("inspector", "a_new_lens", tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    from test_a_new_lens import test_a_new_lens

    try:
        test_a_new_lens()
    finally:
        for name in ("a_new_lens", "test_a_new_lens"):
            sys.modules.pop(name)


def test_a_new_task_gives_nothing_away(tiny_llama_folder: Path, tmp_path: Path) -> None:
    new("task", "my_task", tmp_path)
    done = lensbench("audit", "./my_task", "--model", tiny_llama_folder, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["passed"]
    assert {one["ok"] for one in found["findings"]} == {True}
    assert "token collisions" in {one["check"] for one in found["findings"]}
    from lensbench.tasks import load_task

    task = load_task(str(tmp_path / "my_task"))
    assert len(task.facts) == len({fact.subject for fact in task.facts}) >= 40
    assert f"{len(task.facts)} facts" in (tmp_path / "my_task" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["My Lens", "1st", "a-b", "", "../up"])
def test_names_that_cannot_be_used(kind: str, name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="lower-case letters, digits and _"):
        new(kind, name, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["class", "none"])
def test_names_that_mean_something_else_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="means something else"):
        new("inspector", name, tmp_path)


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("inspector", "logit_lens", "already an inspector"),
        ("task", "personas", "already a task"),
        ("baseline", "shuffled", "already a baseline"),
        ("inspector", "json", "Python module of this name"),
        ("baseline", "torch", "Python module of this name"),
    ],
)
def test_names_that_are_taken(kind: str, name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        new(kind, name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    new("inspector", "mine", tmp_path)
    (tmp_path / "mine.py").unlink()
    with pytest.raises(UsageError, match=r"test_mine\.py is already there"):
        new("inspector", "mine", tmp_path)
    assert not (tmp_path / "mine.py").exists()
    (tmp_path / "taken").write_text("")
    assert "cannot be written to" in refused(lensbench("new", "task", "t", "--out", "taken", cwd=tmp_path), 2)
    assert "'probe' is not one of" in refused(lensbench("new", "probe", "t", cwd=tmp_path), 2)
