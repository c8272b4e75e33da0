"""Every wrong command is answered in one line, with its exit status, before a model is loaded, and leaves nothing."""

import logging
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lensbench.cli import main

CASES = [
    tuple(line.split(" | ", 2))
    for line in (Path(__file__).parent / "wrong_inputs.txt").read_text(encoding="utf-8").splitlines()
]
FILES = {
    "afile": "", "broken.toml": "x = [", "wrong.toml": 'limit = "many"', "unknown.toml": "colour = 3",
    "mine.py": "class A: ...", "breaks.py": "1 / 0", "adir/other.txt": "",
}  # fmt: skip


@pytest.fixture(autouse=True)
def as_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Undo what a command sets for its process: nothing is run, so it need not be one, which would take long."""
    handlers, level = list(logging.root.handlers), logging.root.level
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    yield
    logging.captureWarnings(capture=False)
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)
    for name in ("mine", "breaks", "adir"):
        sys.modules.pop(name, None)


def test_there_are_many() -> None:
    assert len({arguments for _, arguments, _ in CASES}) == len(CASES) > 85


@pytest.mark.parametrize(("status", "arguments", "told"), CASES, ids=[arguments for _, arguments, _ in CASES])
def test_a_wrong_command_is_one_line(
    status: str,
    arguments: str,
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("LENSBENCH_CACHE", str(tmp_path.parent / "cache"))
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    before = set(tmp_path.rglob("*"))
    monkeypatch.setattr(sys, "argv", ["lensbench", *shlex.split(arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lensbench: ")]
    assert len(lines) == 1
    assert told in lines[0]
    assert ended.value.code == int(status)
    assert {one for one in tmp_path.rglob("*") if "__pycache__" not in one.parts} == before
