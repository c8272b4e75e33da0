"""How often something is claimed that is not there."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import pandas as pd

from lensbench.calibration.findings import QUESTION, being_calibrated, judged
from lensbench.evaluation.config import RunConfig
from lensbench.evaluation.given import GivenInspector
from lensbench.evaluation.plan import check_job
from lensbench.evaluation.runner import Runner
from lensbench.harness.bench import Bench
from lensbench.inspectors.base import Inspector
from lensbench.results.crossed_files import CROSSED_SCHEMA
from lensbench.results.permutation import Refit, false_alarms
from lensbench.results.records import NO_BASELINE, frame_of
from lensbench.results.summary import summary_and_power
from lensbench.runs.run import Run
from lensbench.tasks import Item

AGAIN = ("shuffled", "unplanted")
# Rivals that read another model in the target's place, one that holds no planted fact.
WITHOUT = ("unplanted", "random_model")


@dataclass(frozen=True)
class Alarms:
    """False alarms of one method, family-wise: at any layer.

    Attributes:
        trial: whose records.
        method: the inspector's name.
        permutations: studies with permuted facts.
        rate: share of them in which the method was called privileged at some layer.
        low: of the 95 % interval.
        high: of it.
        refitted: whether it learned anew from the permuted labels each time.
    """

    trial: str
    method: str
    permutations: int
    rate: float
    low: float
    high: float
    refitted: bool


@dataclass(frozen=True)
class StandIn:
    """A model that holds no planted fact, judged as if it were the target, on stored records.

    Attributes:
        trial: whose records.
        method: the inspector's name.
        model: the baseline that read it: `unplanted` (the unedited model) or `random_model`.
        privileged: the layers with that verdict.
    """

    trial: str
    method: str
    model: str
    privileged: tuple[int, ...]


class Refitting:
    """A method that learns from labels, made to learn from others.

    Of its rivals only those of `AGAIN` are made again, which can only add to what is claimed: a verdict must hold over
    all rivals.

    Args:
        config: of the run whose items are asked.
        given: the method, as the configuration names it.
    """

    def __init__(self, config: RunConfig, given: GivenInspector) -> None:
        again = config.model_copy(update={"inspectors": (given,), "baselines": AGAIN})
        self._runner = Runner(check_job(again))

    def __call__(self, labels: Mapping[tuple[str, str, str], str]) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Return records and credit of the method and its baselines with these labels.

        Args:
            labels: (task, relation, subject) -> answer.
        """
        tables, crossed, fitted = [], [CROSSED_SCHEMA.empty_table()], dict[object, Inspector]()
        for cell in self._runner.plan.cells:
            benches = [_relabelled(bench, cell.task, labels) for bench in self._runner.benches[cell.place]]
            found, _ = self._runner.score(cell, benches, fitted)
            if found.records is not None:
                tables.append(found.records)
            if found.crossed is not None:
                crossed.append(found.crossed)
        return frame_of(tables), frame_of(crossed)


def _relabelled(bench: Bench, task: str, labels: Mapping[tuple[str, str, str], str]) -> Bench:
    """Return the bench with other answers."""

    def relabel(items: tuple[Item, ...]) -> tuple[Item, ...]:
        name = bench.relation.name
        return tuple(replace(item, answer=labels.get((task, name, item.subject), item.answer)) for item in items)

    return bench.with_answers(relabel(bench.items), relabel(bench.train_items))


def stand_ins(trial: str, run: Run, relation: str) -> list[StandIn]:
    """Judge what a method says of models without the fact as if it were what it says of the target.

    Args:
        trial: the implant's name.
        run: on it.
        relation: whose facts are planted.
    """
    found = []
    records = run.records[run.records["relation"] == relation]
    settings = replace(being_calibrated(run), due={})
    for method in map(str, records["inspector"].unique()):
        part = records[records["inspector"] == method]
        for model in WITHOUT:
            own = part[part["baseline"] == model]
            if own.empty:
                continue
            baselines = part[~part["baseline"].isin([NO_BASELINE, model])]
            both = pd.concat([own.assign(baseline=NO_BASELINE), baselines])
            questions = {name: question for name, question in settings.questions.items() if name != model}
            summary, _ = summary_and_power(both, replace(settings, questions=questions))
            layers = judged(summary, method, relation)
            found.append(StandIn(trial, method, model, layers))
    return found


def permuted(trial: str, run: Run, relation: str, permutations: int, refits: Mapping[str, Refit]) -> list[Alarms]:
    """Permute the planted facts, within balance, on stored records.

    Args:
        trial: the implant's name.
        run: on it.
        relation: whose facts are permuted.
        permutations: how many times; what learns from labels does so a twentieth as often.
        refits: method -> how it learns anew.
    """
    found = []
    records = run.records[run.records["relation"] == relation]
    for method in map(str, records["inspector"].unique()):
        part, settings, count = records[records["inspector"] == method], being_calibrated(run), permutations
        refit = refits.get(method)
        if refit is not None:
            part = part[part["baseline"].isin([NO_BASELINE, *AGAIN])]
            asked = {name: question for name, question in settings.questions.items() if name in AGAIN}
            settings, count = replace(settings, questions=asked, due={}), max(1, permutations // 20)
        table = false_alarms(part, settings, permutations=count, refit=refit, crossed=run.crossed)
        row = table[(table["question"] == QUESTION) & (table["relation"] == "any")]
        if len(row):
            rate, low, high = (float(row[name].iloc[0]) for name in ("rate", "ci_low", "ci_high"))
            found.append(Alarms(trial, method, count, rate, low, high, refit is not None))
    return found
