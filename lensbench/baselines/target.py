"""Rivals to *target-specific*: other models in the target's place, which lack its facts."""

from dataclasses import replace

from lensbench.baselines.common import Outcome, asked_in, own_forms, reading, require_question
from lensbench.errors import NotApplicableError
from lensbench.harness.bench import CrossFit
from lensbench.harness.returned import of_items
from lensbench.models.edit_folders import facts_about
from lensbench.models.language_model import LanguageModel


def unplanted(method: CrossFit) -> list[Outcome]:
    """The method on the activations of the same model without the fact.

    Below the layer where a fact was planted both models are the same, and so are these records and the method's.
    """
    return reading(method, _relative(method, "unplanted"))


def twin(method: CrossFit) -> list[Outcome]:
    """The method on the activations of a model with the same names and other facts, against the target's facts.

    Only items whose fact is another in the twin's world. The twin's own fact counts as chance: a rival that reads its
    world well would else be far below chance, and easily beaten.
    """
    model, bench = _relative(method, "twin"), method.bench
    twin_facts = facts_about(bench.relation.name, bench.lab.relatives.twin_facts)
    apart = [i for i, item in enumerate(bench.items) if twin_facts.get(item.subject, item.answer) != item.answer]
    if not apart:
        raise NotApplicableError("the twin was told nothing else about any of these subjects")
    (whole,) = reading(method, model)
    items = tuple(bench.items[i] for i in apart)
    pardoned = tuple(twin_facts[item.subject] for item in items)
    return [replace(whole, scores=of_items(whole.scores, apart), items=items, pardoned=pardoned)]


def reference_reader(method: CrossFit) -> list[Outcome]:
    """A model that lacks the fact asked in text, in every form in which `input_only` asks the verbalizer."""
    return asked_in(method, _relative(method, "reference"), own_forms(method))


def _relative(method: CrossFit, role: str) -> LanguageModel:
    require_question(method)
    models = method.bench.lab.relatives.models
    if role not in models:
        raise NotApplicableError(f"the run has no model for it; name one with --{role}")
    return models[role]
