"""`lensbench verdict`: verdicts made again from stored records."""

import json
from pathlib import Path

import pytest

from lensbench.errors import LensbenchError
from lensbench.results.calibrations import Calibrated, keep_calibration
from lensbench.runs.run import Run, finish
from tests.command import lensbench, refused
from tests.made_run import Made, write_run


def test_verdicts_are_made_again_from_records(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", Made())
    finish(folder)
    before = (folder / "summary.csv").read_bytes()
    (folder / "summary.csv").unlink()
    done = lensbench("verdict", str(folder), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (folder / "summary.csv").read_bytes() == before
    assert "facts / capital, read at subject" in done.stdout
    assert "Methods compared" in done.stdout


def test_what_was_calibrated_since_is_taken_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LENSBENCH_CACHE", str(tmp_path / "cache"))
    folder = write_run(tmp_path / "run", Made())
    info = json.loads((folder / "run.json").read_text())
    info["methods"] = {"patchscope": {"summary": "", "reads": [], "learns_from": "labels", "version": "abc"}}
    (folder / "run.json").write_text(json.dumps(info))
    assert Run(folder).settings.uncalibrated == {"patchscope"}
    keep_calibration(Calibrated("abc", "tiny", 1, 1, 1, 0, 0, 0))
    lensbench("verdict", str(folder), "--quiet", cwd=tmp_path)
    assert Run(folder).settings.uncalibrated == frozenset()


@pytest.mark.parametrize("command", [("verdict",), ("compare", "run"), ("export", "--out", "tables")])
def test_a_file_that_is_not_of_a_run_is_refused_in_one_line(tmp_path: Path, command: tuple[str, ...]) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    done = lensbench(command[0], "run", *command[1:], cwd=tmp_path)
    assert "run/run.json names no cells: it is not of a run" in refused(done, 1)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["run.json"]


def test_a_missing_table_of_a_permutation_test_is_not_passed_over(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", Made())
    info = json.loads((folder / "run.json").read_text())
    file = next(iter(info["cells"]))
    info["cells"][file]["crossed"] = True
    (folder / "run.json").write_text(json.dumps(info))
    with pytest.raises(LensbenchError, match=r"crossed/.* is missing: run `lensbench evaluate` again"):
        finish(folder)
