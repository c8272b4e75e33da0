"""Runs that survive: killed, cut off, out of room, two at once, on several workers; and what a dry run says."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lensbench import evaluate
from lensbench.errors import LensbenchError, UsageError
from lensbench.evaluation import journal
from lensbench.evaluation.config import make_config
from lensbench.evaluation.dry_run import dry_run
from lensbench.evaluation.journal import hold_folder
from lensbench.inspectors.evidence import Evidence
from lensbench.inspectors.lenses.logit_lens import LogitLens
from lensbench.inspectors.scores import Scores
from lensbench.runs.run import Run
from tests.command import lensbench, refused

FIGURES = True

TASKS = ("attribute_extraction/country_capital", "attribute_extraction/country_continent")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def settings(tiny_llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LENSBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield {
            "model": str(tiny_llama_folder),
            "tasks": TASKS,
            "limit": 20,
            "inspectors": ("logit_lens", "probe", "patchscope"),
            "sites": ("subject",),
        }


@pytest.fixture(scope="module")
def whole(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that nothing happened to."""
    return evaluate(**settings, out=tmp_path_factory.mktemp("whole") / "run")


def files(run: Path) -> dict[str, bytes]:
    """Everything that must not depend on what happened on the way."""
    names = [*sorted((run / "records").iterdir()), run / "summary.csv", run / "metrics.csv"]
    return {path.name: path.read_bytes() for path in names}


def command(settings: dict[str, Any], out: Path) -> list[str]:
    pairs = {name: ",".join(value) if isinstance(value, tuple) else str(value) for name, value in settings.items()}
    options = [part for name, value in pairs.items() for part in (f"--{name}", value)]
    return [sys.executable, "-m", "lensbench", "evaluate", *options, "--out", str(out)]


def wait_for_shards(out: Path, number: int, process: subprocess.Popen[str]) -> None:
    while len(list((out / "records").glob("[!.]*"))) < number and process.poll() is None:
        time.sleep(0.005)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_killed_at_any_moment_it_goes_on_and_ends_the_same(settings, whole: Run, tmp_path: Path) -> None:
    out = tmp_path / "run"
    for shards in (1, 9):
        process = subprocess.Popen(command(settings, out), cwd=ROOT, text=True, stderr=subprocess.DEVNULL)
        wait_for_shards(out, shards, process)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it ended before it was killed"
    finished = {path.name: path.stat().st_mtime_ns for path in (out / "records").glob("[!.]*")}
    evaluate(**settings, out=out)
    assert files(out) == files(whole.path)
    again = [name for name, stamp in finished.items() if (out / "records" / name).stat().st_mtime_ns != stamp]
    assert len(again) <= 1, "only the cell in hand is done again"


def test_a_shard_that_the_journal_does_not_know_is_done_again(settings, whole: Run, tmp_path: Path) -> None:
    """Killed between shard and journal: the shard is there, what the journal would have said of it is not."""
    out = tmp_path / "run"
    evaluate(**settings, out=out)
    before = json.loads((out / "run.json").read_text())
    cut = next(file for file in before["cells"] if "-probe-none-" in file)
    before["cells"][cut] = {
        **{k: before["cells"][cut][k] for k in ("task", "site", "inspector", "baseline", "method", "relations")},
        "status": "missing",
    }
    (out / "run.json").write_text(json.dumps(before))
    assert "country_capital" in evaluate(**settings, out=out).info["cells"][cut]["not_applicable"]
    assert files(out) == files(whole.path)


def test_half_written_files_of_a_killed_process_are_swept(settings, tmp_path: Path) -> None:
    out = tmp_path / "run"
    (out / "records").mkdir(parents=True)
    (out / "records" / ".a.parquet.1234.tmp").write_bytes(b"half")
    evaluate(**{**settings, "inspectors": ("logit_lens",), "baselines": ()}, out=out)
    assert not list(out.rglob("*.tmp"))


def test_a_second_process_is_refused(settings, tmp_path: Path) -> None:
    with hold_folder(tmp_path / "run"), pytest.raises(UsageError, match="another process is using --out"):
        evaluate(**settings, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("held", [[], ["run.json", "summary.csv"]])
def test_a_folder_that_nothing_is_written_into_stays_as_it_was(held: list[str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    for name in held:
        out.mkdir(exist_ok=True)
        (out / name).write_text("{}")
    with pytest.raises(UsageError, match="refused"), hold_folder(out):
        raise UsageError("refused")
    assert sorted(path.name for path in out.parent.rglob("*")) == sorted([*held, *(["run"] if held else [])])


def test_verdicts_that_cannot_be_made_leave_the_folder_as_it_was(whole: Run, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    for name in ("run.json", "summary.csv"):
        shutil.copy(whole.path / name, tmp_path / "run")
    (tmp_path / "run" / "run.json").write_text((whole.path / "run.json").read_text() + "\n")  # as nobody writes it
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    done = lensbench("verdict", "run", cwd=tmp_path)
    assert "is missing" in refused(done, 1)
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_two_processes_at_once_do_not_corrupt(settings, whole: Run, tmp_path: Path) -> None:
    out = tmp_path / "run"
    both = [subprocess.Popen(command(settings, out), cwd=ROOT, text=True, stderr=subprocess.PIPE) for _ in range(2)]
    said = [process.communicate()[1] for process in both]
    assert sorted(process.returncode for process in both) in ([0, 2], [0, 0])
    assert all("another process" in text for process, text in zip(both, said, strict=True) if process.returncode)
    assert files(out) == files(whole.path)


def test_a_full_disk_is_a_failed_cell_and_the_next_run_mends_it(settings, whole, tmp_path: Path, monkeypatch) -> None:
    original = journal.write_shard

    def full(path: Path, table: Any) -> None:
        if "-logit_lens-mean-" in path.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(path, table)

    with monkeypatch.context() as patch:
        patch.setattr(journal, "write_shard", full)
        broken = evaluate(**settings, out=tmp_path / "run")
    assert [error.partition(":")[0] for error in broken.failed.values()] == ["OSError"]
    assert not evaluate(**settings, out=tmp_path / "run").failed
    assert files(tmp_path / "run") == files(whole.path)


def test_a_journal_that_cannot_be_written_ends_in_one_line(settings, tmp_path: Path, monkeypatch) -> None:
    small = {**settings, "inspectors": ("logit_lens",), "baselines": ()}
    evaluate(**small, out=tmp_path)
    before = (tmp_path / "run.json").read_bytes()

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(journal, "write_json_atomic", full)
    with pytest.raises(LensbenchError, match=r"run\.json cannot be written: No space left on device; finished cells"):
        evaluate(**small, out=tmp_path)
    assert (tmp_path / "run.json").read_bytes() == before


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mount file systems of so many kB; where this is not allowed, tests are skipped."""
    mounted = []

    def mount(size: int) -> Path:
        folder = tmp_path / f"disk{size}"
        folder.mkdir()
        options = ["-o", f"size={size}k", "tmpfs", str(folder)]
        if shutil.which("mount") is None or subprocess.run(["mount", "-t", "tmpfs", *options], check=False).returncode:
            pytest.skip("mounting a small file system is not allowed here")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("size", [8, 24, 60, 140, 300, 340, 420, 520])
def test_a_full_disk_loses_nothing(size: int, settings, whole: Run, tmp_path: Path, small_disk) -> None:
    """However early it is full: one line or failed cells, what is done stays, and with room the bytes are the same."""
    disk = small_disk(size)
    arguments = [*command(settings, disk / "run")[3:], "--quiet"]
    done = lensbench(*arguments, cwd=tmp_path, cache=Path(os.environ["LENSBENCH_CACHE"]))
    told = done.stderr.strip().splitlines()
    assert "Traceback" not in done.stderr
    assert done.returncode in (0, 1, 2)
    assert done.returncode == 0 or 0 < len(told) < 20
    assert not list(disk.rglob("*.partial"))
    if (disk / "run" / "run.json").exists():
        kept = {path.name: path.read_bytes() for path in (disk / "run" / "records").glob("[!.]*.parquet")}
        entries = json.loads((disk / "run" / "run.json").read_text())["cells"]
        assert {file for file, cell in entries.items() if cell["status"] == "done"} <= kept.keys()
        shutil.copytree(disk / "run", tmp_path / "run")
    assert not evaluate(**settings, out=tmp_path / "run").failed
    assert files(tmp_path / "run") == files(whole.path)


def test_a_shard_of_another_run_is_made_again(settings, whole: Run, tmp_path: Path, caplog) -> None:
    other = evaluate(**{**settings, "seed": 1}, out=tmp_path / "other")
    shutil.copytree(whole.path, tmp_path / "run")
    first = next(file for file in whole.done if "-logit_lens-none-" in file)
    theirs = next(file for file in other.done if "-logit_lens-none-" in file)
    shutil.copy(other.path / "records" / theirs, tmp_path / "run" / "records" / first)
    with pytest.raises(LensbenchError, match="is not the file that this run wrote"):
        _ = Run(tmp_path / "run").records
    evaluate(**settings, out=tmp_path / "run")
    assert "is not the file that this run wrote: its cell is made again" in caplog.text
    assert files(tmp_path / "run") == files(whole.path)


class Greedy(LogitLens):
    """Asks for more memory than there is."""

    name = "greedy"

    def inspect(self, evidence: Evidence) -> Scores:
        self.kept_ = torch.ones(2**36)
        return super().inspect(evidence)


def test_memory_that_is_not_there_is_a_failed_cell(settings, tmp_path: Path) -> None:
    """In a process that may have no more than 12 GiB, whatever the machine has."""
    given = {**settings, "inspectors": ("tests.evaluation.test_survival:Greedy", "logit_lens"), "baselines": "none"}
    limit = "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_AS, (12 << 30, 12 << 30)); "
    run = "sys.argv[0] = 'lensbench'; runpy.run_module('lensbench', run_name='__main__')"
    arguments = command(given, tmp_path / "run")[3:]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", limit + run, *arguments], capture_output=True, text=True, check=False, env=environment
    )
    found = Run(tmp_path / "run")
    assert done.returncode == 1, done.stderr
    assert ["alloc" in error for error in found.failed.values()] == [True]
    assert set(found.records["inspector"]) == {"logit_lens"}


def test_out_of_memory_is_a_failed_cell(settings, tmp_path: Path, monkeypatch) -> None:
    def greedy(*_: Any) -> None:
        raise torch.OutOfMemoryError("out of memory")

    small = {**settings, "inspectors": ("logit_lens", "patchscope"), "baselines": ()}
    with monkeypatch.context() as patch:
        patch.setattr(LogitLens, "inspect", greedy)
        broken = evaluate(**small, out=tmp_path)
    assert list(broken.failed.values()) == ["OutOfMemoryError: out of memory"]
    assert set(broken.records.inspector) == {"patchscope"}
    assert not evaluate(**small, out=tmp_path).failed


def test_a_smaller_memory_budget_changes_no_choice(settings, whole: Run, tmp_path: Path) -> None:
    small = evaluate(**settings, memory="200KB", out=tmp_path)
    assert small.info["memory_budget"] == 200 * 1024
    keys = ["inspector", "baseline", "relation", "layer", "attempt", "item"]
    one, other = (run.records.sort_values(keys).reset_index(drop=True) for run in (whole, small))
    assert (one["gold_log_prob"] - other["gold_log_prob"]).abs().max() < 5e-4
    assert (one["predicted"] == other["predicted"]).mean() > 0.99
    again = evaluate(**settings, out=tmp_path)
    assert again.info["memory_budget"] == 200 * 1024, "a resumed run forms the same batches"


def test_a_dry_run_writes_nothing_and_knows_what_is_done(settings, tmp_path: Path) -> None:
    first = {**settings, "inspectors": ("logit_lens",), "out": tmp_path / "run"}
    fresh = dry_run(make_config(first))
    assert not (tmp_path / "run").exists()
    assert len(fresh.missing) == len(fresh.cells) == len(fresh.estimate.cells) == 6
    evaluate(**first)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    more = dry_run(make_config({**first, "inspectors": ("logit_lens", "probe")}))
    assert {cell.inspector for cell in more.missing} == {"probe"}
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before
    assert more.estimate.seconds > 0
    assert more.estimate.disk > 0


def test_a_dry_run_tells_of_a_method_that_fails_in_one_line(settings, tmp_path: Path, monkeypatch) -> None:
    asked = make_config({**settings, "inspectors": ("logit_lens",), "out": tmp_path / "run"})
    monkeypatch.setattr(LogitLens, "inspect", lambda *_: 1 / 0)
    with pytest.raises(LensbenchError, match=r"logit_lens \(none\) fails on 2 items of .*: ZeroDivisionError"):
        dry_run(asked)
    assert not (tmp_path / "run").exists()


def test_wrong_sizes_are_refused_before_a_model_is_loaded(settings, tmp_path: Path, monkeypatch) -> None:
    for memory in (0, -5, "0", "lots"):
        with pytest.raises(UsageError, match=r"^memory = "):
            evaluate(**settings, memory=memory, out=tmp_path / "run")
    monkeypatch.setenv("LENSBENCH_CACHE_LIMIT", "plenty")
    monkeypatch.setattr("lensbench.evaluation.models.load_source", lambda *_: pytest.fail("a model is loaded"))
    with pytest.raises(UsageError, match="LENSBENCH_CACHE_LIMIT = 'plenty'"):
        evaluate(**settings, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
