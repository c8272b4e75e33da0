"""`lensbench list`: what models, tasks, inspectors and baselines there are."""

from typing import Annotated

import typer
from rich.console import Console

from lensbench.cli.application import app
from lensbench.cli.options import Json, print_json


def _complete(incomplete: str) -> list[str]:
    from lensbench.cli.listings import LISTINGS, names

    known = [*LISTINGS, *(name for kind in names().values() for name in kind)]
    return [name for name in known if name.startswith(incomplete)]


@app.command("list")
def list_(
    what: Annotated[
        str | None,
        typer.Argument(
            help="models, tasks, inspectors (or methods), baselines; or the name of one. [default: all names]",
            show_default=False,
            autocompletion=_complete,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """List models, tasks, inspectors (methods) and baselines, or show all about one of them.

    Examples: `lensbench list`; `lensbench list methods`; `lensbench list patchscope`; `lensbench list models --json`
    """
    from lensbench.cli.listings import LISTINGS, SAME, details, in_one_line, names, objects
    from lensbench.report.tables import print_rows

    kind = SAME.get(what, what) if what else None
    if as_json:
        print_json(objects([kind], None) if kind in LISTINGS else objects(list(LISTINGS), kind))
        return
    if kind in LISTINGS:
        print_rows(*in_one_line(kind))
    elif kind:
        for rows in details(kind).values():
            print_rows(*rows)
        return
    else:
        for title, found in names().items():
            _say(f"{title}: {', '.join(found)}")
    _say("`lensbench list KIND` says what each is, `lensbench list NAME` all about one of them.")


def _say(line: str) -> None:
    console = Console()
    console.print(line, highlight=False, markup=False, soft_wrap=not console.is_terminal)
