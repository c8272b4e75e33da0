"""Plain rows of text as a table."""

from collections.abc import Iterable, Sequence

from rich import box
from rich.markup import escape
from rich.table import Table

from lensbench.report.tables import print_table


def print_rows(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows as a table, never cut where the output is piped."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for place, name in enumerate(columns):
        table.add_column(name, no_wrap=place == 0)  # names are to be typed
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    print_table(table)
