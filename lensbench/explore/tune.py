"""A search over a method's configurations, with the same search for every baseline."""

from dataclasses import dataclass
from typing import Any

import pandas as pd

from lensbench.errors import LensbenchError
from lensbench.evaluation.config import RunConfig
from lensbench.evaluation.evaluate import run_config
from lensbench.harness.bench import forms_of
from lensbench.inspectors.patchscopes.patchscope_search import PatchscopeSearch
from lensbench.results.records import NO_BASELINE
from lensbench.runs.run import Run
from lensbench.tasks import load_tasks
from lensbench.utils.cache import atomic_file
from lensbench.utils.progress import Progress, silent

SEARCHES = {"patchscope": PatchscopeSearch}
"""The methods that can be tuned, and what searches for them."""
TUNED = "tuned.csv"
"""The file of a run folder that holds the best configurations."""


@dataclass(frozen=True)
class Tuned:
    """What a search found.

    Attributes:
        run: the run folder, with every configuration's predictions.
        best: the run's best layers, under the rule `selected`: at each layer the configuration is chosen on the
            other folds, for the method and for each rival.
        chosen: relation, site, layer, the configuration that is best on all items, and its accuracy there: to be used,
            not to be reported.
    """

    run: Run
    best: pd.DataFrame
    chosen: pd.DataFrame


def tune(method: str, settings: dict[str, Any], config: RunConfig, progress: Progress = silent) -> Tuned:
    """Search over a method's configurations on the training folds, and report on the test fold.

    Args:
        method: a key of `SEARCHES`.
        settings: of the search, such as its budget.
        config: tasks, model, layers... of the run; its inspectors are replaced.
        progress: is told of each cell.

    Raises:
        UsageError: settings that the search refuses.
        LensbenchError: a cell failed.
    """
    name = SEARCHES[method].name
    searched = config.model_copy(update={"inspectors": (name,), "parameters": {name: settings}})
    run = run_config(searched, progress)
    if run.failed:
        file, error = next(iter(run.failed.items()))
        raise LensbenchError(f"{file}: {error.splitlines()[0]}; run again with --out {run.path} to go on")
    chosen = _chosen(run, PatchscopeSearch(**settings), searched)
    with atomic_file(run.path / TUNED) as written:
        written.write(chosen.to_csv(index=False).encode())
    return Tuned(run, run.best, chosen)


def _chosen(run: Run, search: PatchscopeSearch, config: RunConfig) -> pd.DataFrame:
    """Find the best configuration of each relation and site over all items, at its best layer."""
    records = run.records
    own = records[records["baseline"] == NO_BASELINE]
    keys = ["task", "relation", "site", "layer", "attempt"]
    means = own.groupby(keys, observed=True, sort=False)["correct_corrected"].mean().reset_index()
    means = means.sort_values(["correct_corrected", "layer"], ascending=[False, True], kind="stable")
    best = means.drop_duplicates(["task", "relation", "site"])
    forms = {
        (task.name, relation.name): forms_of(relation)
        for task in load_tasks(config.tasks, offline=config.offline)
        for relation in task.relations.values()
    }
    rows = []
    for row in best.to_dict("records"):
        found = search.named(str(row["attempt"]), forms[str(row["task"]), str(row["relation"])])
        place = {name: row[name] for name in ("task", "relation", "site", "layer")}
        rows.append({**place, "accuracy": row["correct_corrected"], **found.settings()})
    return pd.DataFrame(rows)
