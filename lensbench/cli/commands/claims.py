"""`lensbench claims`: what a study says about claims of the literature."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from lensbench.cli.application import app
from lensbench.cli.options import Json, Quiet, names_in, print_json

if TYPE_CHECKING:
    import pandas as pd

BEFORE = "Each rule was written down before its runs were looked at (docs/decisions/0016-study.md)."


@app.command()
def claims(
    folder: Annotated[Path, typer.Argument(help="A folder of runs, such as the one that `make reference` writes.")],
    rules: Annotated[
        Path | None, typer.Option(help="A TOML file of rules. [default: the rules that ship with lensbench]")
    ] = None,
    only: Annotated[
        str, typer.Option(help="Only these claims; names, separated by commas. Without --out, no page is written.")
    ] = "",
    out: Annotated[
        Path | None,
        typer.Option(
            help="The page to write; its table is written beside it. [default: FOLDER/claims.md; none with --only]"
        ),
    ] = None,
    title: Annotated[str, typer.Option(help="The title of the page.")] = "What the runs say about published claims",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Use the runs of a study to evaluate claims about methods that read hidden states, and write a page about them.

    A claim is a rule: values of methods at some layers, what must hold of them, and controls without which nothing can
    be told. No model is loaded.

    Example: `lensbench claims reports/reference --only tuned_lens_kl,back_patch_exists`
    """
    from lensbench.errors import UsageError
    from lensbench.report.claims import claims_page, claims_table
    from lensbench.results.claim_rules import choose, read_claims
    from lensbench.results.summary import rows_of
    from lensbench.runs.claims import RULES, tell_claims

    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder; give the one that `make reference` wrote, or one like it")
    names = tuple(names_in(only))
    if only and not names:
        raise UsageError(f"--only {only!r} is empty; name at least one claim, such as tuned_lens_kl")
    # A page of some claims must not take the place of the whole one.
    page = out if out or names else folder / "claims.md"
    if page and page.suffix != ".md":
        raise UsageError(f"--out {page}: expected a file that ends in .md")
    if page and not page.parent.is_dir():
        raise UsageError(f"--out {page}: there is no folder {page.parent}; make it, or choose another place")
    told = list(tell_claims(choose(read_claims(rules or RULES), names), folder))
    table = claims_table(told)
    if page:
        _write(page, claims_page(told, title, BEFORE if rules is None else ""), table)
    if as_json:
        print_json({"page": str(page) if page else None, "claims": rows_of(table)})
        return
    console = Console(soft_wrap=True)
    for one in told:
        because = f" ({one.reason})" if one.reason else ""
        console.print(f"{one.name} ({one.run}): {one.verdict}{because}", highlight=False, markup=False)
    if not quiet:
        counts = Counter(one.verdict for one in told)
        said = ", ".join(f"{count} {verdict}" for verdict, count in counts.most_common())
        console.print(f"{said}; page and table: {page}" if page else said, highlight=False, markup=False)


def _write(page: Path, text: str, table: "pd.DataFrame") -> None:
    from lensbench.errors import UsageError
    from lensbench.runs.csv_tables import write_csv
    from lensbench.utils.cache import atomic_file

    try:
        with atomic_file(page) as file:
            file.write(text.encode())
        write_csv(table, page.with_suffix(".csv"))
    except OSError as error:
        raise UsageError(f"--out {page} cannot be written to: {error.strerror}; choose another place") from None
