"""A run checks the methods that it runs, before it runs them: those of strangers, each version once."""

import logging
import sys
from collections.abc import Mapping
from typing import Any

from lensbench.errors import LensbenchError
from lensbench.evaluation.config import RunConfig
from lensbench.evaluation.models import depth_of
from lensbench.evaluation.plan import Make, make_inspectors
from lensbench.harness.processes import Process
from lensbench.inspectors.base import Inspector
from lensbench.results.method_checks import MethodChecks, checks_of, keep_checks
from lensbench.tasks import Site
from lensbench.testing import check_contract, conformance, small_bench
from lensbench.testing.benches import CHAIN, LAYERS
from lensbench.utils.code import code_digest

LOG = logging.getLogger("lensbench")
SHIPPED = "lensbench.inspectors."
CONTRACT = check_contract.__name__


def is_shipped(inspector: Inspector) -> bool:
    """Whether a method is lensbench's own, whose checks are tests of lensbench (tests/inspectors/test_shipped.py)."""
    kind = type(inspector)
    module = sys.modules.get(kind.__module__)  # what a class says of its module is believed where the module has it
    return kind.__module__.startswith(SHIPPED) and getattr(module, kind.__name__, None) is kind


def check_methods(config: RunConfig, versions: Mapping[str, str]) -> dict[str, MethodChecks]:
    """Return what the checks find of each method of a run; of a version that was checked before, what they found then.

    A method is checked on made-up items in a process of its own, on a random model of four layers. One that cannot be
    run there is checked on a model as deep as the target, and on chains.

    Args:
        config: names the methods, and their parameters.
        versions: of the methods, by name, as `method_version` gives them.
    """
    found = {}
    for name, make in make_inspectors(config).items():
        if is_shipped(make()):
            found[name] = MethodChecks()
            continue
        version = f"{versions[name]}-{code_digest(conformance)}"
        known = checks_of(version)
        if known is None:
            LOG.info("checking %s, once for this version", name)
            known = _check(make, config)
            keep_checks(version, known)
        if not known.passed:
            LOG.warning("%s fails %s: it gets no verdict", name, known.failed[0])
        found[name] = known
    return found


def _check(make: Make, config: RunConfig) -> MethodChecks:
    failed = _failed(make)
    if set(failed) == {CONTRACT}:
        # It may have settings for deep models, such as layers to write at, or need a text that asks.
        depth = depth_of(config)
        others = (_failed(make, *other) for other in ((depth,), (LAYERS, CHAIN), (depth, CHAIN)))
        failed = next((found for found in others if set(found) != {CONTRACT}), failed)
    return MethodChecks(tuple(f"{check}: {what}" for check, what in failed.items()))


def _failed(make: Make, *bench: int | Site) -> dict[str, str]:
    """Run the checks in a process that has met no method; return what those say that fail."""
    process = Process()
    try:
        found = process.call(_conformance, make, *bench)
    except LensbenchError as error:
        return {CONTRACT: str(error)}
    finally:
        process.close()
    return {check: what for check, what in found.items() if what is not None}


def _conformance(make: Make, *bench: Any) -> dict[str, str | None]:
    """What is called in that process."""
    return conformance(make, small_bench(*bench))
