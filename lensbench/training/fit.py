"""Learning a lens once, and writing it into a folder of its own: what `lensbench fit` does."""

import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from lensbench.errors import UsageError
from lensbench.evaluation.config import RunConfig
from lensbench.evaluation.plan import make_inspectors
from lensbench.inspectors.base import Inspector
from lensbench.inspectors.evidence import Training
from lensbench.inspectors.target import Target
from lensbench.inspectors.verbalizers.nla import NLA
from lensbench.inspectors.verbalizers.oracle import Oracle
from lensbench.inspectors.verbalizers.selfie_adapter import SelfIEAdapter
from lensbench.models.architecture import ModulePaths
from lensbench.models.corpus import Corpus, Spent, lens_cache
from lensbench.models.language_model import LanguageModel
from lensbench.models.loading import Loading, load_model
from lensbench.models.tuned_lens_files import check_new
from lensbench.training import nla, selfie, verbalizers

LOG = logging.getLogger("lensbench")

# Why there is nothing to fit, by what a method learns from.
NOTHING_TO_FIT = {
    "nothing": "it learns nothing; evaluate it as it is",
    "labels": "it learns the labels of each relation, inside `lensbench evaluate`",
}


# Verbalizers are trained on facts, not on a corpus alone, and with settings of their own, which are checked first.
TRAININGS: Mapping[str, Callable[[Mapping[str, Any]], Callable[..., Spent]]] = {
    Oracle.name: lambda given: partial(verbalizers.train, settings=verbalizers.make_settings(given)),
    NLA.name: lambda given: partial(nla.train, settings=nla.make_settings(given)),
    SelfIEAdapter.name: lambda given: partial(selfie.train, settings=selfie.make_settings(given)),
}


@runtime_checkable
class Savable(Protocol):
    """A method that can write what it has learned."""

    def save(self, folder: Path) -> None:
        """Write it into a new folder, whole or not at all."""


def fit(config: RunConfig, out: Path) -> Spent:
    """Fit the one inspector of a configuration on the packaged prose, and have it save what it learned.

    Verbalizers (`oracle`, `selfie_adapter`, `nla`) are trained instead, with the settings of `OracleTraining`,
    `SelfIETraining` and `NLATraining` in place of the inspector's parameters.

    What was fitted before with the same settings is taken from the cache; interrupted learning is resumed.

    Args:
        config: the model, one inspector and its parameters; tasks are not looked at.
        out: the folder to write.

    Returns:
        What learning has taken.

    Raises:
        UsageError: the inspector does not learn from a corpus or cannot be saved, its parameters are wrong, or the
            folder cannot be made. The first three are found before the model is loaded.
        LensbenchError: the model cannot be loaded.
    """
    check_new(out)
    (name,) = config.inspectors
    if isinstance(name, str) and name in TRAININGS:
        train = TRAININGS[name](config.parameters.get(name, {}))
        model = _load(config)
        return train(model, Corpus(model), out=out)
    make = _learner(config)
    model = _load(config)
    target, inspector = Target(model), make()
    inspector.check(target, model)
    corpus = Corpus(model, cache=lens_cache())
    LOG.info("learning %s on prose", inspector.name)
    fitted = inspector.fit(target, model, Training(corpus=corpus))
    assert isinstance(fitted, Savable)
    fitted.save(out)
    return corpus.spent


def _load(config: RunConfig) -> LanguageModel:
    paths = ModulePaths(**config.module_paths) if config.module_paths else None
    args = config.model_args or {}
    how = Loading(config.device, config.dtype, config.revision, config.offline, paths=paths, model_args=args)
    return load_model(config.model, how) if isinstance(config.model, str) else config.model


def _learner(config: RunConfig) -> Callable[[], Inspector]:
    """Return what makes the inspector."""
    ((name, make),) = make_inspectors(config).items()
    inspector = make()
    reason = NOTHING_TO_FIT.get(inspector.learns_from)
    if reason is None and not isinstance(inspector, Savable):
        reason = "it learns from a corpus, but has no save(folder); evaluations keep what it learns in the cache"
    if reason is not None:
        raise UsageError(f"{name} cannot be fitted into a folder: {reason}")
    return make
