"""The log of a run, kept in its folder: what was done and said, and the warnings of libraries."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

RUN_LOG = "run.log"
_OURS = "lensbench"


@contextmanager
def kept_log(out: Path) -> Iterator[None]:
    """Write all that lensbench logs to `run.log` of a run folder, and what libraries warn of.

    Others hear of lensbench what they would have heard without it.
    """
    file = logging.FileHandler(out / RUN_LOG, encoding="utf-8", delay=True)
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    ours, root = logging.getLogger(_OURS), logging.getLogger()
    level, heard = ours.level, ours.getEffectiveLevel()
    passing = _Passing(heard)
    others = logging.FileHandler(out / RUN_LOG, encoding="utf-8", delay=True)
    others.setFormatter(file.formatter)
    others.setLevel(logging.WARNING)
    others.addFilter(lambda record: not _is_ours(record))
    ours.addHandler(file)
    ours.addHandler(passing)
    root.addHandler(others)
    ours.setLevel(logging.DEBUG)
    ours.propagate = False
    try:
        yield
    finally:
        ours.propagate = True
        ours.setLevel(level)
        for logger, handler in ((ours, file), (ours, passing), (root, others)):
            logger.removeHandler(handler)
            handler.close()


def _is_ours(record: logging.LogRecord) -> bool:
    return record.name.partition(".")[0] == _OURS


class _Passing(logging.Handler):
    """Hands records on to those who listen at the root, from the level on that they would have heard before."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= self.level:
            logging.getLogger().callHandlers(record)
