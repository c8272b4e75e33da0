"""Baselines of relations whose sources state the answer: the same visible text after another answer, or no other text.

They do not apply where the answer is not given: nothing that was said can then be said otherwise.
"""

import random
from dataclasses import replace

from lensbench.baselines.common import asked_in_text, own_forms
from lensbench.errors import NotApplicableError
from lensbench.harness.crossfit import CrossFit, Outcome
from lensbench.tasks.facts import ANSWER_SLOT, Relation
from lensbench.tasks.items import Item, filled


def matched_twin(method: CrossFit) -> list[Outcome]:
    """The method on the same source with another answer of the choice set in place of the item's own.

    Everything that it is shown is the twin's, the text and the target's runs too. It has its own fits, and is scored
    against the item's own answer, which the twin does not hold.
    """
    bench = method.bench
    twins = tuple(twin_of(item, bench.relation, bench.context.seed) for item in bench.items)
    outcome = method.with_bench(replace(bench, items=twins)).outcome()
    return [replace(outcome, items=bench.items)]


def twin_of(item: Item, relation: Relation, seed: int) -> Item:
    """Return an item with another answer in its source, drawn from its choices; a subject has the same in all texts.

    Raises:
        NotApplicableError: the source does not state the answer in a slot.
    """
    text = next(texts.get(item.template, "") for site, texts in relation.sources.items() if site == item.place)
    if ANSWER_SLOT not in text:
        raise NotApplicableError("the sources do not state the answer, so there is none to be exchanged in them")
    others = [choice for choice in item.choices if choice != item.answer]
    other = random.Random(f"{seed}/{relation.name}/{item.subject}").choice(others)
    source, span = filled(text, item.subject, other)
    return replace(item, source=source, subject_span=span)


def visible_text(method: CrossFit) -> list[Outcome]:
    """The verbalizer asked in text about the subject alone, in every form that does not hold the source."""
    if not method.bench.relation.given:
        raise NotApplicableError("the sources do not state the answer: input_only shows the verbalizer all there is")
    forms = [form for form in own_forms(method) if "{source}" not in str(form)]
    return [asked_in_text(method, method.bench.context.verbalizer, forms)]
