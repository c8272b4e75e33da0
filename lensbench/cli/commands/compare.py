"""`lensbench compare`: two runs side by side."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from lensbench.cli.application import app
from lensbench.cli.options import Json, Quiet, print_json
from lensbench.errors import UsageError

if TYPE_CHECKING:
    from lensbench.runs.compare import Comparison

_FOOTNOTE = (
    "Differences are second minus first, in prior-corrected accuracy over the items that both answered, each "
    "run at its best layer. Intervals are of 95 %, whichever layers are chosen; p is corrected for all places looked "
    "at, too (Holm). The last column names layers at which the two differ, all layers considered at once."
)


@app.command()
def compare(
    run: Annotated[Path, typer.Argument(help="A run folder, written by `lensbench evaluate`.", show_default=False)],
    other: Annotated[Path, typer.Argument(help="Another run folder.", show_default=False)],
    pair: Annotated[
        list[str] | None, typer.Option(help="FIRST=SECOND: compare these methods; can be repeated.")
    ] = None,
    items: Annotated[int, typer.Option(min=0, help="How many changed items to show.")] = 8,
    out: Annotated[
        Path | None, typer.Option(help="Write all differences to this .csv file, and changed items to one beside it.")
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compare two runs: paired differences over the items that both answered, and what changed item by item.

    Methods with the same name are compared; the runs may differ in model, dtype, settings or commit.

    Examples: `lensbench compare reports/BEFORE reports/AFTER`;
    `lensbench compare reports/RUN reports/RUN --pair logit_lens=tuned_lens --out differences.csv`
    """
    if out is not None and out.suffix != ".csv":
        raise UsageError(f"--out {out}: expected a file that ends in .csv")
    from lensbench.runs import compare as comparing

    found = comparing.compare(run, other, _pairs(pair) if pair else None)
    if out is not None:
        written = _write(found, out)
        if not quiet:
            Console(stderr=True, soft_wrap=True).print(written, highlight=False, markup=False)
    if as_json:
        print_json(comparing.as_json(found))
        return
    from lensbench.report.tables import show_comparison

    show_comparison(found.settings, found.differences, found.changed.head(items), found.unpaired)
    console = Console(soft_wrap=True)
    if len(found.changed) > items:
        console.print(f"{len(found.changed) - items} more items have another answer: --items N, --out FILE.csv")
    console.print(_FOOTNOTE, highlight=False, markup=False)


def _pairs(given: list[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for entry in given:
        first, equals, second = entry.partition("=")
        if not (first and equals and second):
            raise UsageError(f"--pair {entry!r}: expected FIRST=SECOND, such as logit_lens=tuned_lens")
        if first in pairs:
            raise UsageError(
                f"--pair {entry!r}: {first} is already compared with {pairs[first]}; compare again for both"
            )
        pairs[first] = second
    return pairs


def _write(found: "Comparison", out: Path) -> str:
    changed = out.with_name(f"{out.stem}-items.csv")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        found.differences.to_csv(out, index=False)
        found.changed.to_csv(changed, index=False)
    except OSError as error:
        raise UsageError(f"--out {out} cannot be written to: {error.strerror}; choose another place") from None
    return f"{out}, {changed}"
