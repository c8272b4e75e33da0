"""A finished run, told to an experiment tracker: Weights & Biases, or Trackio, which has the same functions."""

import importlib
import json
import logging
import os
import sys
from contextlib import redirect_stdout
from typing import Any

import pandas as pd

from lensbench.results.records import ALL, NO_BASELINE
from lensbench.results.run_file import rules_of
from lensbench.results.summary import accuracy_column, by_their_rules
from lensbench.runs.run import Run
from lensbench.utils.foreign import reason_of

LOG = logging.getLogger("lensbench")
PROJECT = "lensbench"
KEYS = ["task", "relation", "site", "inspector", "baseline"]


def track(run: Run, name: str) -> None:
    """Tell a tracker of a run: its settings, accuracy by layer, and each method's best layer with the verdicts.

    Steps are layers. A tracker that fails is warned of in a line: the run is in its folder, whatever becomes of this.

    Args:
        run: with at least one cell that is done, or nothing is told.
        name: `wandb` or `trackio`.
    """
    if not run.done:
        return
    # What the user has set in the environment stays.
    os.environ.setdefault("WANDB_SILENT", "true")
    try:
        with redirect_stdout(sys.stderr):  # the output is ours, and may be JSON
            _tell(run, importlib.import_module(name))
    except (Exception, SystemExit) as error:  # of the network, of the login, of the tracker
        LOG.warning(
            "%s was not told of this run (%s); the run itself is complete: to try again, run the same command with "
            "--out %s",
            *(name, reason_of(error), run.path),
        )


def _tell(run: Run, tracker: Any) -> None:
    tracker.init(project=PROJECT, name=run.path.resolve().name, config=_settings(run))
    try:
        for layer, values in _by_layer(run).items():
            tracker.log({"layer": layer, **values}, step=layer)
        tracker.log({**_without_layer(run), "best": tracker.Table(dataframe=_best(run))})
    finally:
        tracker.finish()


def _settings(run: Run) -> dict[str, Any]:
    """What was asked, what all records depend on, and the versions, as plain values."""
    told = {**run.info.get("config", {}), **run.info["setting"], "versions": run.info.get("versions", {})}
    plain: dict[str, Any] = json.loads(json.dumps(told, default=str))
    return plain


def _curves(run: Run) -> pd.DataFrame:
    """The accuracy of each method at each layer, on totals and on each relation; of baselines on totals alone."""
    summary = by_their_rules(run.summary, rules_of(run.info))
    shown = (summary["relation"] == ALL) | (summary["baseline"] == NO_BASELINE)
    return summary[shown].drop_duplicates([*KEYS, "layer"])


def _named(row: dict[Any, Any]) -> str:
    rival = "" if row["baseline"] == NO_BASELINE else f"/{row['baseline']}"
    return f"{row['task']}/{row['relation']}/{row['site']}/{row['inspector']}{rival}"


def _by_layer(run: Run) -> dict[int, dict[str, float]]:
    column, found = accuracy_column(run.score), dict[int, dict[str, float]]()
    rows = _curves(run)
    for row in rows[rows["layer"].notna()].sort_values("layer").to_dict("records"):
        found.setdefault(int(row["layer"]), {})[_named(row)] = float(row[column])
    return found


def _without_layer(run: Run) -> dict[str, float]:
    column, rows = accuracy_column(run.score), _curves(run)
    return {_named(row): float(row[column]) for row in rows[rows["layer"].isna()].to_dict("records")}


def _best(run: Run) -> pd.DataFrame:
    """The best layers, in types that a tracker's tables have: text, and numbers that may be missing."""
    best = run.best
    numbers = {str(name) for name in best if pd.api.types.is_numeric_dtype(best[name])}
    plain = {
        str(name): best[name].astype("float64") if name in numbers else best[name].fillna("").astype(str)
        for name in best
    }
    return pd.DataFrame(plain)
