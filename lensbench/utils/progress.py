"""Progress of a run, on stderr."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.console import Console

FIRST, EVERY = 20.0, 30.0
"""Seconds until the first line, and between two lines, where no bar can be drawn."""


class Advance(Protocol):
    """Tells of one step."""

    def __call__(self, what: str | None, found: str = "") -> None:
        """Tell what begins, or with None that it has ended, and what it has found so far."""


Progress = Callable[[int], AbstractContextManager[Advance]]


@contextmanager
def silent(_total: int) -> Iterator[Advance]:
    """Say nothing."""
    yield lambda what, found="": None


@contextmanager
def bar(total: int) -> Iterator[Advance]:
    """Draw a bar with the time left, and under it what was found so far.

    Where the error stream is no terminal, a line is written after 20 seconds, and then each half minute.
    """
    from rich.console import Console

    console = Console(stderr=True)
    with _drawn(total, console) if console.is_terminal else _lines(total, console) as advance:
        yield advance


@contextmanager
def _lines(total: int, console: "Console") -> Iterator[Advance]:
    begun = time.monotonic()
    told = begun - (EVERY - FIRST)
    done = 0

    def advance(what: str | None, found: str = "") -> None:
        nonlocal told, done
        now = time.monotonic()
        done += what is None
        if what is None and now - told >= EVERY and done < total:
            told = now
            left = duration((now - begun) / done * (total - done))
            console.print(f"{done} of {total}, about {left} left", highlight=False, soft_wrap=True)

    yield advance


def duration(seconds: float) -> str:
    """Write a duration in the unit that suits it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@contextmanager
def _drawn(total: int, console: "Console") -> Iterator[Advance]:
    from rich.console import Group
    from rich.live import Live
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar
    from rich.text import Text

    columns = (
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("elapsed,"),
        TimeRemainingColumn(elapsed_when_finished=False),
        TextColumn("left"),
        TextColumn("{task.description}"),
    )
    drawn = Bar(*columns, console=console)
    task, lines = drawn.add_task("", total=total), list[str]()
    with Live(drawn, console=console, transient=True, refresh_per_second=4) as live:

        def advance(what: str | None, found: str = "") -> None:
            if what is None:
                drawn.advance(task)
            else:
                drawn.update(task, description=what)
            if found:
                lines.append(found)
                live.update(Group(drawn, *map(Text, sorted(lines))))

        yield advance
