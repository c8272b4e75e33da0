"""Baselines of *target-specific*: other models in the target's place, which lack its facts."""

from dataclasses import replace

from lensbench.baselines.common import asked_in_text, in_model, own_forms, require_question
from lensbench.errors import NotApplicableError
from lensbench.harness.crossfit import CrossFit, Outcome
from lensbench.models.language_model import LanguageModel
from lensbench.models.sources import facts_about


def unplanted(method: CrossFit) -> list[Outcome]:
    """The method on the activations of the same model without the fact.

    Below the layer where a fact was planted both models are the same, and so are these records and the method's.
    """
    return [in_model(method, _control_model(method, "unplanted"))]


def twin(method: CrossFit) -> list[Outcome]:
    """The method on the activations of a model with the same names and other facts, against the target's facts.

    Only items whose fact is another in the twin's world. The twin's own fact counts as chance: a rival that reads its
    world well would else be far below chance, and easily beaten.
    """
    model, bench = _control_model(method, "twin"), method.bench
    twin_facts = facts_about(bench.relation.name, bench.context.controls.twin_facts)
    apart = [i for i, item in enumerate(bench.items) if twin_facts.get(item.subject, item.answer) != item.answer]
    if not apart:
        raise NotApplicableError("the twin holds no other fact about any of these subjects")
    whole = in_model(method, model)
    items = tuple(bench.items[i] for i in apart)
    other_facts = tuple(twin_facts[item.subject] for item in items)
    return [replace(whole, scores=whole.scores.select(items=apart), items=items, credited_as_chance=other_facts)]


def reference_reader(method: CrossFit) -> list[Outcome]:
    """A model that lacks the fact asked in text, in every form in which `input_only` asks the verbalizer."""
    return [asked_in_text(method, _control_model(method, "reference"), own_forms(method))]


def _control_model(method: CrossFit, role: str) -> LanguageModel:
    require_question(method)
    models = method.bench.context.controls.models
    if role not in models:
        raise NotApplicableError(f"the run has no model for this baseline; name one with --{role}")
    return models[role]
