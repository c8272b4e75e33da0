"""Lenses by name, fitted for a model."""

from collections.abc import Sequence

from lensbench.errors import UsageError
from lensbench.inspectors.base import Lens
from lensbench.inspectors.catalog import find_inspectors, load_inspector
from lensbench.inspectors.evidence import Training
from lensbench.inspectors.target import Target
from lensbench.models.corpus import Corpus, lens_cache
from lensbench.models.language_model import LanguageModel


def load_lens(name: str) -> type[Lens]:
    """Import a lens that predicts the next token and needs no labels.

    Raises:
        UsageError: no inspector of that name, or one that is no such lens.
    """
    found = load_inspector(name)
    if not issubclass(found, Lens) or found.learns_from == "labels" or 0 not in found().ahead:
        raise UsageError(
            f"inspector {name!r} gives no distribution of the next token at each layer; name lenses, such as "
            f"{', '.join(one for one in ('logit_lens', 'tuned_lens') if one in find_inspectors())}"
        )
    return found


def fit_lenses(model: LanguageModel, names: Sequence[str]) -> dict[str, Lens]:
    """Fit lenses on the training prose, or take them from the cache."""
    target, corpus = Target(model), Corpus(model, cache=lens_cache())
    lenses: dict[str, Lens] = {}
    for name in names:
        kind = load_lens(name)
        lens = kind()
        lens.check(target, model)
        fitted = lens.fit(target, model, Training(corpus=corpus if kind.learns_from == "corpus" else None))
        assert isinstance(fitted, Lens)
        lenses[kind.name] = fitted
    return lenses
