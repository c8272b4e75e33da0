"""Rivals to *target-specific*: other models in the target's place, which lack its facts."""

from dataclasses import replace

from lensbench.baselines.common import Outcome, asked_in, own_forms, reading, require_question
from lensbench.errors import NotApplicableError
from lensbench.harness.bench import CrossFit
from lensbench.harness.context import Facts
from lensbench.harness.returned import of_items
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
    told = facts_about(bench.relation.name, bench.lab.relatives.twin_facts)
    apart = [i for i, item in enumerate(bench.items) if told.get(item.subject, item.answer) != item.answer]
    if not apart:
        raise NotApplicableError("the twin was told nothing else about any of these subjects")
    (whole,) = reading(method, model)
    items = tuple(bench.items[i] for i in apart)
    pardoned = tuple(told[item.subject] for item in items)
    return [replace(whole, scores=of_items(whole.scores, apart), items=items, pardoned=pardoned)]


def facts_about(relation: str, facts: Facts) -> dict[str, str]:
    """Return what was told about a relation's subjects: of the attribute that it is named after.

    Relations of one attribute begin with its name: `city`, and `city_twin` with another world's answers.
    """
    named = [attribute for attribute in facts if relation == attribute or relation.startswith(f"{attribute}_")]
    return dict(facts[max(named, key=len)]) if named else {}


def reference_reader(method: CrossFit) -> list[Outcome]:
    """A model that lacks the fact asked in text, in every form in which `input_only` asks the verbalizer."""
    return asked_in(method, _relative(method, "reference"), own_forms(method))


def _relative(method: CrossFit, role: str) -> LanguageModel:
    require_question(method)
    models = method.bench.lab.relatives.models
    if role not in models:
        raise NotApplicableError(f"the run has no model for it; name one with --{role}")
    return models[role]
