"""Foreign files: whatever is in them is one line, and what never ends is not read."""

import os
import signal
import time
from pathlib import Path

import pytest

from lensbench.errors import LensbenchError, UsageError
from lensbench.utils.foreign import read_text, reading, time_limit

RAISED = [
    OSError(2, "No such file"), ValueError("of many\nlines"), KeyError("x"), TypeError("t"), RecursionError("deep"),
    MemoryError(), RuntimeError("r" * 5000), UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), AssertionError(),
]  # fmt: skip


@pytest.mark.parametrize("error", RAISED, ids=[type(error).__name__ for error in RAISED])
def test_whatever_a_parse_raises_is_one_line(error: Exception):
    with (
        pytest.raises(UsageError, match=r"^FILE cannot be read \(.+\); get it again$") as told,
        reading("FILE", "get it again", UsageError),
    ):
        raise error
    assert "\n" not in str(told.value)
    assert len(str(told.value)) < 260


def test_our_own_errors_pass_as_they_are():
    with pytest.raises(LensbenchError, match=r"^mine$"), reading("FILE", "get it again"):
        raise LensbenchError("mine")


def test_only_regular_files_of_a_size_are_read(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "large").write_text("12345")
    for name, why in (
        ("pipe", "no regular file"),
        ("zero", "no regular file"),
        (".", "a folder"),
        ("large", "5 bytes"),
    ):
        with pytest.raises(OSError, match=why):
            read_text(tmp_path / name, most=4)


def endless() -> None:
    with time_limit(0.2, "it"):
        while True:
            pass


def test_what_does_not_end_is_stopped():
    begun = time.monotonic()
    with pytest.raises(LensbenchError, match=r"it took more than 0\.2 seconds and was stopped"):
        endless()
    assert time.monotonic() - begun < 5
    with time_limit(5.0, "it"):
        pass


def test_an_alarm_of_somebody_else_goes_on():
    rung: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda *_: rung.append(1))
    try:
        old = signal.setitimer(signal.ITIMER_REAL, 0.3)
        with time_limit(5.0, "it"):
            time.sleep(0.05)
        time.sleep(0.5)
    finally:
        signal.setitimer(signal.ITIMER_REAL, *old)
        signal.signal(signal.SIGALRM, before)
    assert rung == [1]
