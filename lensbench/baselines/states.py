"""The method on other sources about the same items: another answer stated in them, none, or another style."""

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from lensbench.baselines.common import asked_in_text, own_forms
from lensbench.errors import LensbenchError, NotApplicableError
from lensbench.harness.crossfit import CrossFit, Outcome
from lensbench.tasks.facts import ANSWER_SLOT, SLOT, Relation
from lensbench.tasks.items import Item, filled


def matched_twin(method: CrossFit) -> list[Outcome]:
    """The method on the same source with another answer of the choice set in place of the item's own.

    Everything that it is shown is the twin's, the text and the target's runs too. It has its own fits, and is scored
    against the item's own answer, which the twin does not hold.
    """
    relation, seed = method.bench.relation, method.bench.context.seed
    return [_on_other_sources(method, lambda item: twin_of(item, relation, seed))]


def twin_of(item: Item, relation: Relation, seed: int) -> Item:
    """Return an item with another answer in its source, drawn from its choices; a subject has the same in all texts.

    Raises:
        NotApplicableError: the source does not state the answer in a slot.
    """
    text = _stating(item, relation)
    others = [choice for choice in item.choices if choice != item.answer]
    other = random.Random(f"{seed}/{relation.name}/{item.subject}").choice(others)
    return _with_source(item, text, other)


def without_evidence(method: CrossFit) -> list[Outcome]:
    """The method on the item's source without the sentence that states the answer.

    What it still answers, it has not read from what was said.
    """
    return [_on_other_sources(method, lambda item: without_statement(item, method.bench.relation))]


def without_statement(item: Item, relation: Relation) -> Item:
    """Return an item whose source lacks the sentences that state the answer.

    Raises:
        NotApplicableError: the source does not state the answer in a slot, or not in a sentence apart from its subject.
    """
    sentences = re.split(r"(?<=[.!?])(?=\s)", _stating(item, relation))
    rest = "".join(one for one in sentences if ANSWER_SLOT not in one).strip()
    if SLOT not in rest or rest.startswith(SLOT):
        raise NotApplicableError("without the sentence that states the answer, no text before the subject is left")
    return _with_source(item, rest, "")


def restyled(method: CrossFit, texts: Sequence[str]) -> list[Outcome]:
    """The method on texts of other registers and lengths that end with the subject; its fits stay as they are.

    Args:
        method: the method.
        texts: each with the slot `{subject}` at its end; a subject has the same one in all its items.
    """
    bench = method.bench
    if bench.items[0].place != "subject":
        raise NotApplicableError("only at the subject can another text be put in the place of the item's own")
    if bench.relation.given:
        raise NotApplicableError("the sources state the answer, which another text would not")
    if not texts or not all(text.endswith(SLOT) and text != SLOT and text.count(SLOT) == 1 for text in texts):
        raise LensbenchError(f"restyled: texts = {list(texts)!r:.80}; expected one or more that end with {SLOT}")

    def told_otherwise(item: Item) -> Item:
        return _with_source(item, random.Random(f"{bench.context.seed}/{item.subject}/restyled").choice(texts), "")

    return [_on_other_sources(method, told_otherwise)]


def _on_other_sources(method: CrossFit, change: Callable[[Item], Item]) -> Outcome:
    """The method's answers, with its own fits, to changed items; scored as answers to the items themselves."""
    bench = method.bench
    if bench.relation.by_token:
        raise NotApplicableError("names are cut after each of their tokens, which another text has not")
    outcome = method.with_bench(replace(bench, items=tuple(map(change, bench.items)))).outcome()
    return replace(outcome, items=bench.items)


def _stating(item: Item, relation: Relation) -> str:
    text = next(texts.get(item.template, "") for site, texts in relation.sources.items() if site == item.place)
    if ANSWER_SLOT not in text:
        raise NotApplicableError("the sources do not state the answer, so there is none to be exchanged in them")
    return text


def _with_source(item: Item, text: str, answer: str) -> Item:
    source, span = filled(text, item.subject, answer)
    return replace(item, source=source, subject_span=span)


def visible_text(method: CrossFit) -> list[Outcome]:
    """The verbalizer asked in text about the subject alone, in every form that does not hold the source."""
    if not method.bench.relation.given:
        raise NotApplicableError("the sources do not state the answer: input_only shows the verbalizer all there is")
    forms = [form for form in own_forms(method) if "{source}" not in str(form)]
    return [asked_in_text(method, method.bench.context.verbalizer, forms)]
