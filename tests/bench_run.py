"""One method beside baselines on one bench, as a summary: what a run would say, without a run folder."""

from collections.abc import Callable, Sequence

import pandas as pd

from lensbench.baselines.spec import find_baselines
from lensbench.harness.bench import Bench
from lensbench.harness.crossfit import CrossFit
from lensbench.harness.scoring import prediction_columns
from lensbench.inspectors.base import Inspector
from lensbench.results.samples import SummarySettings
from lensbench.results.summary import summarise


def bench_summary(bench: Bench, make: Callable[[], Inspector], rivals: Sequence[str]) -> pd.DataFrame:
    """The summary of one method on one bench, beside the rivals named."""
    method, known = CrossFit(make, bench), find_baselines()
    outcomes = {"none": [method.outcome()]} | {name: known[name].run(method) for name in rivals}
    parts = []
    for name, found in outcomes.items():
        for one in found:
            columns = prediction_columns(one.items, bench.answers, one.scores, one.layers, correct_prior=one.zero_shot)
            parts.append(pd.DataFrame(columns).assign(baseline=name))
    who = {"model": "m", "verbalizer": "v", "task": "made_up", "inspector": make().name, "seed": 0}
    records = pd.concat(parts, ignore_index=True).assign(**who)
    return summarise(records, SummarySettings({name: known[name].question for name in rivals}))
