"""Files that others wrote: what reading them may raise, which are read at all, and for how long."""

import os
import signal
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from lensbench.errors import LensbenchError

FOREIGN = (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError, MemoryError)
"""What a parse of a foreign file may raise, whatever the format: JSON that is nested deep, integers of thousands of
digits, values of another type than expected. Decoding errors are ValueErrors."""
LARGEST = 2**31
"""Bytes that are read of one file as text."""


def read_text(path: Path, most: int = LARGEST) -> str:
    """Read a regular file as UTF-8.

    Raises:
        OSError: it cannot be read, is no regular file (a pipe or a device would never end), or is too large.
        UnicodeDecodeError: it is no UTF-8.
    """
    return read_bytes(path, most).decode("utf-8")


def read_bytes(path: Path, most: int = LARGEST) -> bytes:
    """Read a regular file.

    Raises:
        OSError: it cannot be read, is no regular file (a pipe or a device would never end), or is too large.
    """
    size = regular(path).st_size
    if size > most:
        raise OSError(0, f"it has {size} bytes, more than {most}")
    return path.read_bytes()


def regular(path: Path) -> os.stat_result:
    """Return the state of a regular file.

    Raises:
        OSError: it is not there, or is something that would never end when it is read.
    """
    state = path.stat()
    if not stat.S_ISREG(state.st_mode):
        raise OSError(0, "it is a folder" if path.is_dir() else "it is no regular file")
    return state


def reason_of(error: BaseException) -> str:
    """Return in a line, and not a long one, why something could not be read."""
    text = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
    return str(text)[:200]


@contextmanager
def reading(
    what: object, remedy: str, kind: type[LensbenchError] = LensbenchError, seconds: float = 60.0
) -> Iterator[None]:
    """Turn whatever the parse of a foreign file raises into one line, and end a parse that does not end.

    Args:
        what: the file.
        remedy: what to do.
        kind: of the error.
        seconds: how long it may take.

    Raises:
        LensbenchError: of the kind; errors of our own pass as they are.
    """
    try:
        with time_limit(seconds, f"reading {what}"):
            yield
    except LensbenchError:
        raise
    except Exception as error:  # parsers raise whatever a damaged file leads them to
        raise kind(f"{what} cannot be read ({reason_of(error)}); {remedy}") from None


@contextmanager
def time_limit(seconds: float, what: str) -> Iterator[None]:
    """End foreign code that does not end by itself; in the main thread of systems that have a timer.

    Raises:
        LensbenchError: the time is over.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise LensbenchError(f"{what} took more than {seconds:g} seconds and was stopped")

    before, begun = signal.signal(signal.SIGALRM, stop), time.monotonic()
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if left:  # an alarm of somebody else goes on
            signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - begun), 0.001), interval)
