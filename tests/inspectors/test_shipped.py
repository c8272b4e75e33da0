"""Every method that ships passes every check with its default settings: a run need not check it again."""

from functools import partial
from typing import Any

import pytest

from lensbench import testing
from lensbench.inspectors.catalog import find_inspectors, load_inspector

# Trained verbalizers have no default: test_oracle.py, test_verbalizers.py and test_selfie_adapter.py check them.
TRAINED = {"oracle", "activation_oracle", "latentqa", "selfie_adapter", "nla"}
SHIPPED = sorted(set(find_inspectors()) - TRAINED)
# What takes long even on a small model.
FEWER: dict[str, dict[str, Any]] = {"jacobian_lens": {"prompts": 4}}
CHAINS = ("back_patching", "chain_of_thought_patchscope")


@pytest.mark.parametrize("name", SHIPPED)
def test_it_passes_all_checks(name: str) -> None:
    bench = testing.small_bench(site="t2" if name in CHAINS else "subject")
    done = testing.check_inspector(partial(load_inspector(name), **FEWER.get(name, {})), bench)
    assert "check_state_is_own" in done
