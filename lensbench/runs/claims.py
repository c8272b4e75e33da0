"""Claims evaluated on the run folders of a study."""

import json
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path

import pandas as pd

from lensbench.errors import LensbenchError, UsageError
from lensbench.results.claim_rules import Claim
from lensbench.results.claim_values import StudyRun, values_of
from lensbench.results.claims import NoValueError, Told, tell, untold
from lensbench.results.records import read_measures
from lensbench.results.run_file import SETTLED
from lensbench.results.samples import SummarySettings
from lensbench.runs.csv_tables import read_csv
from lensbench.runs.run import Run
from lensbench.utils.foreign import read_text, reading

RULES = Path(__file__).parents[1] / "assets" / "claims.toml"
"""The rules that ship."""
_ANALYSIS = "analysis.json"


def tell_claims(claims: Mapping[str, Claim], folder: Path, seed: int = 0) -> Iterator[Told]:
    """Give the verdicts of a study on claims: one for each claim and each run that it names.

    Args:
        claims: the rules.
        folder: holds the runs, folders that `lensbench evaluate` or `lensbench analyze` wrote, by their names.
        seed: of the bootstrap.

    Raises:
        UsageError: the folder holds no run.
        LensbenchError: a run is damaged.
    """
    if not any(path for file in ("run.json", _ANALYSIS) for path in folder.glob(f"*/{file}")):
        raise UsageError(f"{folder} holds no run folders; give the folder that `make reference` wrote, or one like it")

    @cache
    def study(name: str) -> StudyRun:
        return read_study(folder / name)

    for name, claim in claims.items():
        for run in claim.runs:
            model = ""
            try:
                model = study(run).model
                yield tell(name, claim, run, model, values_of(claim, run, study), seed)
            except NoValueError as error:
                yield untold(name, claim, run, model, str(error))


def read_study(path: Path) -> StudyRun:
    """Read a run folder, or a folder of analyses, for claims.

    Raises:
        NoValueError: there is no such folder.
        LensbenchError: it is damaged, or of a version that did not note how many layers the model has.
    """
    if (path / _ANALYSIS).is_file():
        with reading(path / _ANALYSIS, "repeat `lensbench analyze`"):
            described = json.loads(read_text(path / _ANALYSIS))
        empty = pd.DataFrame()
        if not isinstance(described.get("n_layers"), int):
            raise LensbenchError(f"{path} does not say how many layers its model has; repeat `lensbench analyze`")
        return StudyRun(
            path.name, described["model"], described["n_layers"], empty, empty, SummarySettings({}), _reader(path)
        )
    if not (path / "run.json").is_file():
        raise NoValueError(f"there is no run {path.name}")
    run = Run(path)
    if not isinstance(run.info.get("n_layers"), int):
        raise LensbenchError(f"{path} does not say how many layers its model has; repeat `lensbench evaluate` with it")
    cells = run.info["cells"]
    if any(cells.get(file, {}).get("status") not in SETTLED for file in run.info["plan"]):
        raise NoValueError(f"the run {path.name} is not finished")
    measures = read_measures(path, run.done)
    setting = run.info["setting"]
    return StudyRun(
        path.name, setting["model"], run.info["n_layers"], run.records, measures, run.settings, _reader(path)
    )


def _reader(path: Path) -> Callable[[str], pd.DataFrame]:
    def table(name: str) -> pd.DataFrame:
        if not (path / name).is_file():
            raise NoValueError(f"{path.name} has no {name}")
        return read_csv(path / name)

    return table
