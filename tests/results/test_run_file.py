"""`run.json` in forms that nobody wrote: one line each, and no file is touched that is not a shard."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lensbench.errors import LensbenchError
from lensbench.results.run_file import changed_file, read_run
from lensbench.runs.run import Run, finish
from lensbench.utils.cache import sha256_of
from tests.command import lensbench
from tests.made_run import Made, write_run

Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", Made())


def first(info: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = next(iter(info["cells"].values()))
    return found


def renamed(name: str) -> Change:
    return lambda info: info["cells"].update({name: first(info)})


BROKEN: dict[str, Change] = {
    "null setting": lambda info: info.update(setting=None),
    "null cells": lambda info: info.update(cells=None),
    "list of cells": lambda info: info.update(cells=[]),
    "null cell": lambda info: info["cells"].update({next(iter(info["cells"])): None}),
    "no status": lambda info: first(info).pop("status"),
    "null status": lambda info: first(info).update(status=None),
    "no method": lambda info: first(info).pop("method"),
    "number as task": lambda info: first(info).update(task=3),
    "text as relations": lambda info: first(info).update(relations="all"),
    "number in not applicable": lambda info: first(info).update(not_applicable={"x": 1}),
    "text as plan": lambda info: info.update(plan="all"),
    "null due": lambda info: info.update(due=None),
    "list of methods": lambda info: info.update(methods=["probe"]),
    "number of a calibration": lambda info: info.update(calibration={"probe": 3}),
    "a path": renamed("../../../x.parquet"),
    "an absolute path": renamed("/tmp/x.parquet"),
    "a hidden file": renamed(".x.parquet"),
    "another file": renamed("run.json"),
    "a line": renamed("a\nb.parquet"),
    "a long name": renamed("x" * 300 + ".parquet"),
}
TEXTS = ["", "{", "[]", "null", "3", '"cells"', "{}", "[" * 100_000, '{"cells": ' + "9" * 5000 + "}", "\ufeff{}"]


@pytest.mark.parametrize("change", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_run_file_is_one_line(change: Change, folder: Path):
    info = json.loads((folder / "run.json").read_text())
    change(info)
    (folder / "run.json").write_text(json.dumps(info))
    with pytest.raises(LensbenchError, match=r"run\.json (is damaged|names no cells)") as told:
        Run(folder)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_whatever_stands_in_it_is_one_line(text: str, folder: Path):
    (folder / "run.json").write_text(text)
    with pytest.raises(LensbenchError, match=r"run\.json") as told:
        read_run(folder)
    assert "\n" not in str(told.value)


def test_what_is_no_run_folder_says_so(tmp_path: Path):
    with pytest.raises(LensbenchError, match="it has no run"):
        read_run(tmp_path)
    with pytest.raises(LensbenchError, match="it is not there"):
        read_run(tmp_path / "nothing")
    (tmp_path / "run.json").mkdir()
    with pytest.raises(LensbenchError, match="it is a folder"):
        read_run(tmp_path)


@pytest.mark.parametrize("key", ["setting", "plan", "baselines", "due"])
def test_a_key_that_is_missing_is_missed_in_one_line(key: str, folder: Path):
    info = json.loads((folder / "run.json").read_text())
    del info[key]
    (folder / "run.json").write_text(json.dumps(info))
    with pytest.raises(LensbenchError, match=rf"run\.json has no '{key}'"):
        _ = Run(folder).failed if key == "plan" else finish(folder)
    assert "Traceback" not in lensbench("verdict", folder, cwd=folder.parent).stderr


def test_keys_that_earlier_versions_did_not_write_may_be_missing(folder: Path):
    info = json.loads((folder / "run.json").read_text())
    for key in ("prose", "selected", "short_answers", "calibration", "knowledge"):
        info.pop(key, None)
    (folder / "run.json").write_text(json.dumps(info))
    assert Run(folder).done


def test_a_file_is_known_by_its_content(folder: Path):
    file = Run(folder).done[0]
    path = folder / "records" / file
    entry = {"sha256": {"records": sha256_of(path)}}
    assert changed_file(folder, file, entry) is None
    assert changed_file(folder, file, {}) is None
    path.write_bytes(path.read_bytes() + b"0")
    assert changed_file(folder, file, entry) == path
    path.unlink()
    assert changed_file(folder, file, entry) == path


def test_records_of_another_run_are_not_read(folder: Path):
    info = json.loads((folder / "run.json").read_text())
    for file, cell in info["cells"].items():
        cell["sha256"] = {"records": sha256_of(folder / "records" / file)}
    (folder / "run.json").write_text(json.dumps(info))
    assert len(Run(folder).records)
    one, other = (folder / "records" / file for file in Run(folder).done[:2])
    one.write_bytes(other.read_bytes())
    with pytest.raises(LensbenchError, match="is not the file that this run wrote"):
        _ = Run(folder).records
