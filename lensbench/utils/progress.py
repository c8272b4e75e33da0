"""Progress of a run, on stderr."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

EVERY = 30.0
"""Seconds between two lines where no bar can be drawn."""
Advance = Callable[[str | None], None]
Progress = Callable[[int], AbstractContextManager[Advance]]


@contextmanager
def silent(_total: int) -> Iterator[Advance]:
    """Say nothing."""
    yield lambda _what: None


@contextmanager
def bar(total: int) -> Iterator[Advance]:
    """Draw a bar with the time left: a text names the cell that begins, None ends it.

    Where the error stream is no terminal, a line is written each half minute.
    """
    from rich.console import Console

    console = Console(stderr=True)
    with _drawn(total, console) if console.is_terminal else _lines(total, console) as advance:
        yield advance


@contextmanager
def _lines(total: int, console: "Console") -> Iterator[Advance]:
    begun = told = time.monotonic()
    done = 0

    def advance(what: str | None) -> None:
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
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("elapsed,"),
        TimeRemainingColumn(elapsed_when_finished=False),
        TextColumn("left"),
        TextColumn("{task.description}"),
    )
    with Bar(*columns, console=console, transient=True) as drawn:
        task = drawn.add_task("", total=total)

        def advance(what: str | None) -> None:
            if what is None:
                drawn.advance(task)
            else:
                drawn.update(task, description=what)

        yield advance
