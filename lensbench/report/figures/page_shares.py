"""Whose facts the answers follow, where target and verbalizer hold different ones; only pages show it."""

import pandas as pd

from lensbench.report.coding import SCALE, encode_table, numbers, words
from lensbench.report.content import PageRun
from lensbench.report.figure import Figure


def coded_shares(shares: pd.DataFrame) -> str:
    """Code the shares of answers that follow the target's facts, the verbalizer's, or neither."""
    names = ("task", "site", "relation", "inspector", "baseline", "attempt", "follows")
    columns = {name: words(shares[name]) for name in names}
    columns |= {name: numbers(shares[name], SCALE) for name in ("share", "ci_low", "ci_high")}
    columns |= {name: numbers(shares[name]) for name in ("layer", "n", "subjects")}
    return encode_table(columns)


def _page_table(run: PageRun) -> str:
    return "" if run.shares is None or run.shares.empty else coded_shares(run.shares)


FIGURE = Figure(
    title="Whose knowledge?",
    about="Whether answers follow the facts of the target or of the verbalizer.",
    anchor="shares",
    label="Whose facts",
    order=50,
    table=_page_table,
)
