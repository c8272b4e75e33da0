"""The checks that every inspector must pass, ours or a stranger's.

`check_inspector(MyLens)` runs them all on a small random model; each is also a function of its own. A
failed check raises AssertionError and says what was found. `conformance(MyLens)` runs them all and returns what each
found.
"""

from collections.abc import Iterator

from lensbench.harness.bench import Bench
from lensbench.inspectors.base import Inspector
from lensbench.inspectors.lenses.tuned_lens import TunedLens
from lensbench.testing.benches import TOLERANCE, Check, Make, Subjects, make_bench, small_bench
from lensbench.testing.checks import (
    check_attempts,
    check_blind_to_activations,
    check_constant_activation,
    check_contract,
    check_folds_are_apart,
    check_labels_do_not_matter,
    check_layers_are_local,
    check_one_alone,
    check_order_of_items,
    check_same_twice,
    check_sources_are_withheld,
    check_state_is_own,
    check_target_is_not_run,
    check_untrained_tuned_lens,
)

__all__ = [
    "TOLERANCE",
    "Check",
    "Make",
    "Subjects",
    "check_attempts",
    "check_blind_to_activations",
    "check_constant_activation",
    "check_contract",
    "check_folds_are_apart",
    "check_inspector",
    "check_labels_do_not_matter",
    "check_layers_are_local",
    "check_one_alone",
    "check_order_of_items",
    "check_same_twice",
    "check_sources_are_withheld",
    "check_state_is_own",
    "check_target_is_not_run",
    "check_untrained_tuned_lens",
    "conformance",
    "make_bench",
    "small_bench",
]


def check_inspector(make: Make, bench: Bench | None = None) -> list[str]:
    """Run every check that makes sense for an inspector, and return their names.

    Args:
        make: makes the inspector, unfitted: its class will do.
        bench: from `make_bench`; by default `small_bench()`.

    Raises:
        AssertionError: a check failed.
    """
    bench = bench or small_bench()
    done = []
    for check in _checks(make()):
        check(make, bench)
        done.append(check.__name__)
    return done


def conformance(make: Make, bench: Bench | None = None) -> dict[str, str | None]:
    """Run every check that makes sense for an inspector, and do not stop at the first that fails.

    A method that fails `check_contract` cannot be checked further.

    Args:
        make: makes the inspector, unfitted: its class will do.
        bench: from `make_bench`; by default `small_bench()`.

    Returns:
        What each check found, in one line; None where it passed.
    """
    bench = bench or small_bench()
    found: dict[str, str | None] = {}
    for check in _checks(make()):
        try:
            check(make, bench)
        except Exception as error:  # whatever a method raises
            what = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
            found[check.__name__] = what + str(error).partition("\n")[0]
            if check is check_contract:
                break
        else:
            found[check.__name__] = None
    return found


def _checks(inspector: Inspector) -> Iterator[Check]:
    yield check_contract
    yield check_attempts
    yield check_state_is_own
    if inspector.learns_from == "labels":
        yield check_folds_are_apart
    yield check_same_twice
    yield check_order_of_items
    yield check_one_alone
    yield check_constant_activation
    if inspector.learns_from != "labels":
        yield check_labels_do_not_matter
    if "activation" in inspector.reads:
        yield check_layers_are_local
    else:
        yield check_blind_to_activations
    yield check_sources_are_withheld
    if not {"target", "components"} & inspector.reads:
        yield check_target_is_not_run
    if isinstance(inspector, TunedLens):
        yield check_untrained_tuned_lens
