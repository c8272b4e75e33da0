"""What notebooks show of a run: a sentence for each task and site, and the methods at their best layers."""

import html
from collections.abc import Mapping
from typing import Any

import pandas as pd

from lensbench.report.sentences import asked, headline, result_sentences, verdict_in_words
from lensbench.report.wording import number, readable
from lensbench.results.records import ALL, CORRECTED
from lensbench.results.summary import accuracy_column
from lensbench.results.verdicts import VERDICTS


def best_as_html(best: pd.DataFrame, info: Mapping[str, Any], relations: Mapping[tuple[str, str], str]) -> str:
    """Return the best layers as HTML, everything from the data escaped.

    Args:
        best: as `best_layers` gives it.
        info: the run's `run.json`.
        relations: (task, relation) -> what leads to what.

    Returns:
        A sentence and a table for each task and site, on the totals or the only relation.
    """
    accuracy = accuracy_column(str(info.get("setting", {}).get("score", CORRECTED)))
    groups = {(str(task), str(site)): rows for (task, site), rows in best.groupby(["task", "site"], observed=True)}
    parts = []
    for one in result_sentences(best, info, relations):
        rows = headline(groups[one.task, one.site]).to_dict("records")
        table = pd.DataFrame([_line(row, accuracy) for row in rows]).fillna("")
        with pd.option_context("display.max_colwidth", None):
            shown = table.to_html(index=False, border=0, escape=True)
        where = html.escape(f"{readable(one.task)}, read at {readable(one.site)}")
        parts.append(f"<p><b>{where}.</b> {html.escape(one.sentence)}</p>{shown}")
    return "\n".join(parts) or "<p>There are no results.</p>"


def _line(row: Mapping[Any, Any], accuracy: str) -> dict[str, str]:
    """A method as a row of the table."""
    relations = {"relations": str(int(row["relations"]))} if row["relation"] == ALL and row["relations"] > 0 else {}
    return {
        "method": readable(str(row["inspector"])),
        "layer": "" if pd.isna(row["layer"]) else str(row["layer"]),
        "accuracy": number(row[accuracy]),
        "interval": f"[{number(row['ci_low'])}, {number(row['ci_high'])}]",
        **relations,
        "subjects": str(row["subjects"]),
        "items": str(row["n"]),
        **{f"{readable(VERDICTS[question])}?": verdict_in_words(row, question) for question in asked(row)},
    }
