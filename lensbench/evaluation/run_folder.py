"""The run folder as a place of work: made, proven to be writable, and held by one process at a time."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from lensbench.errors import UsageError
from lensbench.evaluation.config import RunConfig
from lensbench.results.records import MEASURES, RECORDS, RUN_FILE
from lensbench.utils.cache import TEMPORARY
from lensbench.utils.logs import RUN_LOG

LOCK = ".lock"


def name_folder(config: RunConfig) -> Path:
    """Return the folder that was asked for, or `reports/TIME-MODEL`."""
    return config.out or Path("reports") / f"{time.strftime('%Y%m%d-%H%M%S')}-{Path(config.model).name}"


@contextmanager
def held(out: Path) -> Iterator[None]:
    """Make a run folder and hold it, so that a second process cannot work in it at the same time.

    The lock is the operating system's and ends with the process, however that ends. A run that does not begin leaves
    no folder behind.

    Raises:
        UsageError: it cannot be written to, or another process is at work in it.
    """
    try:
        (out / RECORDS).mkdir(parents=True, exist_ok=True)
        lock = FileLock(out / LOCK)
        lock.acquire(timeout=0)
    except Timeout:
        raise UsageError(
            f"another process is at work in --out {out}; wait until it has ended, or choose another folder"
        ) from None
    except OSError as error:
        raise UsageError(f"--out {out} cannot be written to: {error.strerror}; choose another folder") from None
    try:
        _sweep(out)
        yield
    finally:
        if not (out / RUN_FILE).exists():
            _remove(out)
        lock.release()


def _sweep(out: Path) -> None:
    """Remove half-written files of a process that was killed."""
    for folder in (out, out / RECORDS, out / MEASURES):
        for path in folder.glob(TEMPORARY):
            path.unlink(missing_ok=True)


def _remove(out: Path) -> None:
    for file in (LOCK, RUN_LOG):
        (out / file).unlink(missing_ok=True)
    for folder in (out / RECORDS, out):
        with suppress(OSError):  # something else is in it
            folder.rmdir()
