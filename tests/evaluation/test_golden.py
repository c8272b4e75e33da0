"""Numbers of a run over every method, baseline and kind of task: a change that should alter none shows here.

The numbers are of a tiny random model, and mean nothing. After a change that should alter some,
`pytest tests/evaluation/test_golden.py --write-golden` writes them anew; read the difference before you commit it.
"""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from lensbench import evaluate
from lensbench.baselines.spec import find_baselines
from lensbench.inspectors.catalog import find_inspectors
from tests.inspectors.test_shipped import TRAINED

FIGURES = True

GOLDEN = Path(__file__).with_name("golden.json")
SMALL: dict[str, dict[str, Any]] = {
    "tuned_lens": {"tokens": 512, "steps": 1}, "affine_lens": {"tokens": 512},
    "future_lens": {"tokens": 512, "beyond": [1]}, "jacobian_lens": {"prompts": 2, "rows": 16},
    "relearned_unembedding": {"tokens": 512, "steps": 1, "rank": 2}, "inversion": {"tokens": 512},
    "mapped_patchscope": {"tokens": 512}, "mlp_probe": {"steps": 3}, "patchscope_search": {"budget": 3},
    "patchscope": {"target_layers": [1, 0]}, "superscopes": {"components": ["hidden", "mlp"], "amplifiers": [1, 3]},
    "attribute_lens": {"n": 2, "betas": [1.0, 2.0], "rank": 4},
}  # fmt: skip
CHAINS = ("back_patching", "chain_of_thought_patchscope")
# A trained verbalizer needs an adapter, and has tests of its own.
FACTS = sorted(set(find_inspectors()) - {*CHAINS, *TRAINED})
# Those of the third question need models of their own; tests/baselines has them.
BASELINES = sorted(name for name, one in find_baselines().items() if not one.needs)
RUNS: dict[str, dict[str, Any]] = {
    "facts": {
        "tasks": ["attribute_extraction/country_continent"], "sites": ["subject"], "inspectors": FACTS,
        "baselines": BASELINES, "limit": 15,
    },
    "open": {
        "tasks": ["attribute_extraction/country_capital"], "sites": ["answer"],
        "inspectors": ["logit_lens", "linear_probe", "patchscope"], "baselines": BASELINES, "limit": 15,
    },
    "chains": {"tasks": ["multi_hop/person_capital"], "sites": ["t2"], "inspectors": CHAINS, "limit": 10},
    "names": {
        "tasks": ["entity_resolution/description", "entity_resolution/kind_by_token"],
        "inspectors": ["patchscope"], "baselines": ["input_only", "shuffled"], "limit": 8,
    },
    "prose": {"tasks": ["next_token"], "inspectors": ["logit_lens", "future_lens"], "limit": 4},
}  # fmt: skip
KEYS = ["task", "relation", "site", "inspector", "baseline", "attempt"]


def numbers(records: pd.DataFrame) -> dict[str, list[float]]:
    """Return, by cell, relation and attempt: rows, mean credit, raw and corrected, and mean log-probability."""
    groups = records.groupby(KEYS, observed=True, sort=True)
    means = groups[["correct", "correct_corrected", "gold_log_prob"]].mean().round(4).fillna(0.0)
    return {
        " | ".join(map(str, key)): [int(size), *map(float, row)]
        for (key, row), size in zip(means.iterrows(), groups.size(), strict=True)
    }


@pytest.mark.parametrize("name", RUNS)
def test_numbers_are_what_they_were(
    name: str, tiny_llama_folder: Path, tmp_path: Path, isolated_cache: Path, request: pytest.FixtureRequest
) -> None:
    run = RUNS[name]
    parameters = {method: SMALL[method] for method in run["inspectors"] if method in SMALL}
    done = evaluate(str(tiny_llama_folder), **run, parameters=parameters, out=tmp_path / "run")
    assert not done.failed
    found = numbers(done.records)
    if request.config.getoption("--write-golden"):
        kept = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
        GOLDEN.write_text(json.dumps({**kept, name: found}, indent=0, sort_keys=True) + "\n")
    expected = json.loads(GOLDEN.read_text())[name]
    assert found.keys() == expected.keys()
    for key, row in found.items():
        assert row[0] == expected[key][0], key
        # One prediction in twenty may tip at a tie that another processor rounds otherwise.
        assert row[1:3] == pytest.approx(expected[key][1:3], abs=0.05), key
        assert row[3] == pytest.approx(expected[key][3], abs=5e-3), key
