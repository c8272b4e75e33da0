"""The log of a run, kept in its folder: what was done and said, and the warnings of libraries."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from logging.handlers import MemoryHandler
from pathlib import Path

RUN_LOG = "run.log"
# Messages before a run begins.
_MANY = 100_000
_OURS = "lensbench"


@contextmanager
def kept_log(out: Path) -> Iterator[Callable[[], None]]:
    """Write all that lensbench logs to `run.log` of a run folder, and what libraries warn of.

    Nothing is written before the function that is yielded has been called: a run that is refused leaves no trace in
    the log of the run that the folder holds. Others hear of lensbench what they would have heard without it.
    """
    file = logging.FileHandler(out / RUN_LOG, encoding="utf-8", delay=True)
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    waiting, others = (_Kept(_MANY, logging.CRITICAL + 1, file, flushOnClose=False) for _ in range(2))
    others.setLevel(logging.WARNING)
    others.addFilter(lambda record: not _is_ours(record))
    ours, root = logging.getLogger(_OURS), logging.getLogger()
    level, heard = ours.level, ours.getEffectiveLevel()
    passing = _Passing(heard)
    ours.addHandler(waiting)
    ours.addHandler(passing)
    root.addHandler(others)
    ours.setLevel(logging.DEBUG)
    ours.propagate = False

    def begin() -> None:
        for handler in (others, waiting):
            handler.flush()
            handler.capacity = 0

    try:
        yield begin
    finally:
        ours.propagate = True
        ours.setLevel(level)
        for logger, handler in ((ours, waiting), (ours, passing), (root, others)):
            logger.removeHandler(handler)
            handler.close()
        file.close()


def _is_ours(record: logging.LogRecord) -> bool:
    return record.name.partition(".")[0] == _OURS


class _Kept(MemoryHandler):
    """Keeps records for the log until the run begins."""


class _Passing(logging.Handler):
    """Hands records on to those who listen at the root, from the level on that they would have heard before."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno < self.level:
            return
        listening = [one for one in logging.getLogger().handlers if not isinstance(one, _Kept)]
        # Nobody has set logging up, as in a notebook: warnings are heard all the same, as Python has it.
        for handler in listening or filter(None, [logging.lastResort]):
            if record.levelno >= handler.level:
                handler.handle(record)
