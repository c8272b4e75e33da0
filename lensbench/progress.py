"""Progress of a run, on stderr."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

Advance = Callable[[str | None], None]
Progress = Callable[[int], AbstractContextManager[Advance]]


@contextmanager
def silent(_total: int) -> Iterator[Advance]:
    """Say nothing."""
    yield lambda _what: None


@contextmanager
def bar(total: int) -> Iterator[Advance]:
    """Draw a bar with the time left: a text names the cell that begins, None ends it."""
    from rich.console import Console
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
    with Bar(*columns, console=Console(stderr=True), transient=True) as drawn:
        task = drawn.add_task("", total=total)

        def advance(what: str | None) -> None:
            if what is None:
                drawn.advance(task)
            else:
                drawn.update(task, description=what)

        yield advance
