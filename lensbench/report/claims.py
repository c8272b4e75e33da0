"""What a study says about claims: as a page of Markdown, and as rows of a table."""

from collections.abc import Iterator, Sequence
from itertools import groupby

import pandas as pd

from lensbench.results.claims import CANNOT_BE_TOLD, DOES_NOT_HOLD, HOLDS, CheckedInequality, Told

COLUMNS = (
    "claim", "run", "model", "verdict", "kind", "comparison", "estimate", "low", "high", "holds", "subjects", "layers",
)  # fmt: skip
_VERDICTS = (HOLDS, DOES_NOT_HOLD, CANNOT_BE_TOLD)


def claims_table(told: Sequence[Told]) -> pd.DataFrame:
    """Return a row for each comparison of each claim and run; one without figures where there are none."""
    rows: list[dict[str, object]] = []
    for one in told:
        key: dict[str, object] = {"claim": one.name, "run": one.run, "model": one.model, "verdict": one.verdict}
        sides = [("holds_if", row) for row in one.compared] + [("control", row) for row in one.controls]
        for kind, row in sides:
            figures = {"estimate": row.estimate, "low": row.low, "high": row.high, "holds": row.verdict}
            counts = {"subjects": row.subjects, "layers": row.layers}
            rows.append({**key, "kind": kind, "comparison": row.comparison.text, **figures, **counts})
        if not sides:
            rows.append(key)
    return pd.DataFrame(rows, columns=list(COLUMNS))


def claims_page(told: Sequence[Told], title: str, before: str = "") -> str:
    """Return the page: how many claims hold, each with its verdicts, and then the figures that decided.

    Args:
        told: what each run told of each claim, claims together.
        title: of the page.
        before: a sentence on when the rules were written.
    """
    models = list(dict.fromkeys(one.model for one in told if one.model))
    counts = ", ".join(f"{sum(one.verdict == name for one in told)} {name}" for name in _VERDICTS)
    names = list(dict.fromkeys(one.name for one in told))
    lines = [
        f"# {title}", "",
        "This page was written by `lensbench claims`. It says of each claim whether it holds **in these models**: "
        f"{', '.join(models)}. Rules, intervals and verdicts are explained in docs/claims.md. {before}".rstrip(), "",
        f"{len(names)} claims, {len(told)} verdicts: {counts}.", "",
        "| claim | run | model | verdict |", "|---|---|---|---|",
    ]  # fmt: skip
    for one in told:
        because = f" ({_escaped(one.reason)})" if one.reason else ""
        lines.append(f"| [{one.name}](#{one.name}) | {one.run} | {one.model} | **{one.verdict}**{because} |")
    for name, group in groupby(told, key=lambda one: one.name):
        lines += ["", *_section(name, list(group))]
    return "\n".join(lines) + "\n"


def _section(name: str, told: Sequence[Told]) -> Iterator[str]:
    claim = told[0].claim
    yield from (f"## {name}", "", f"{claim.says}", "", f"*Source:* {claim.source}.")
    if claim.note:
        yield from ("", claim.note)
    yield from ("", "| run | comparison | figure | 95 % interval | subjects | |", "|---|---|---|---|---|---|")
    for one in told:
        for kind, rows in (("", one.compared), ("control: ", one.controls)):
            for row in rows:
                yield f"| {one.run} | {kind}`{row.comparison.text}` | {_figures(row)} |"
        yield f"| {one.run} | **{one.verdict}** | {_escaped(one.reason)} | | | |"


def _figures(row: CheckedInequality) -> str:
    said = {True: "yes", False: "no", None: "open"}[row.verdict]
    where = "" if row.layers == 1 else f", at the least favourable of {row.layers} layers"
    if row.verdict is False and row.layers > 1:
        where = f", at the layer of {row.layers} that refutes it most clearly"
    interval = "none" if row.low == row.high else f"[{_number(row.low)}, {_number(row.high)}]"
    return f"{_number(row.estimate)}{where} | {interval} | {row.subjects or ''} | {said}"


def _number(value: float) -> str:
    """Three decimals, as thresholds lie close to some limits."""
    return f"{value:.3f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.2f}"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*")
