"""Diagnostics: shown beside a method, and never a baseline in a gap."""

import random
from collections.abc import Sequence
from dataclasses import replace

from lensbench.baselines.activation import derangement
from lensbench.baselines.common import in_place_of, without_part
from lensbench.errors import NotApplicableError
from lensbench.harness.bench import layers_shown
from lensbench.harness.crossfit import CrossFit, Outcome
from lensbench.inspectors.lenses.logit_lens import LogitLens
from lensbench.inspectors.scores import Scores
from lensbench.models.activations import Reading, tokens_read
from lensbench.models.language_model import LanguageModel
from lensbench.tasks.facts import N_FOLDS
from lensbench.tasks.items import Item


def control_task(method: CrossFit) -> list[Outcome]:
    """The method trained on random labels of subjects (Hewitt & Liang 2019).

    Three attempts: random labels of seen subjects in new phrasings (what it can memorise), random labels of held-out
    subjects (chance, or something leaks), true labels of seen subjects. Selectivity is the third minus the first.
    """
    bench = method.bench
    if not bench.subjects <= {item.subject for item in bench.train_items}:
        raise NotApplicableError("not every subject that is asked about is in the training texts")
    labels = _random_labels(bench.train_items, f"{bench.context.seed}/{bench.relation.name}")
    relabelled = tuple(replace(item, answer=labels[item.subject]) for item in bench.items)
    return [
        _regime(method, "random_labels_seen", labels, relabelled, held_out=False),
        _regime(method, "random_labels_held_out", labels, relabelled, held_out=True),
        _regime(method, "true_labels_seen", None, bench.items, held_out=False),
    ]


def _random_labels(items: tuple[Item, ...], seed: str) -> dict[str, str]:
    """Deal the answers of a choice set to its subjects at random."""
    labels: dict[str, str] = {}
    for choices in sorted({item.choices for item in items}):
        truth = {item.subject: item.answer for item in items if item.choices == choices}
        answers = [truth[subject] for subject in sorted(truth)]
        random.Random(f"{seed}/{choices}").shuffle(answers)
        labels.update(zip(sorted(truth), answers, strict=True))
    return labels


def _regime(
    method: CrossFit, name: str, labels: dict[str, str] | None, items: tuple[Item, ...], *, held_out: bool
) -> Outcome:
    parts, order = [], []
    for fold in range(N_FOLDS):
        # A seen subject is tested by the fold after its own, which learned from it, in other words.
        tested = fold if held_out else (fold - 1) % N_FOLDS
        if places := [i for i, item in enumerate(items) if item.fold == tested]:
            parts.append(method.scores_with(fold, labels, places))
            order += places
    # The control task asks what the method can memorise, not what the best of its attempts can.
    scores = Scores.concat(parts, order, axis="item").of_default_attempt(name)
    return Outcome(scores, method.bench.context.layers, items, zero_shot=False)


def splice(method: CrossFit) -> list[Outcome]:
    """The method where the token read is the item's own, and all before it is another subject's text."""
    bench = method.bench
    if bench.items[0].place != "subject":
        raise NotApplicableError("the token read is not part of a name: another subject's text ends with the same one")
    order = derangement([item.subject for item in bench.items], bench.context.seed)
    if order is None:
        raise NotApplicableError("one subject has half of the items or more, too many to give each another's text")
    own = bench.readings(bench.items)
    if len({reading.ids[-1] for reading in own}) == 1:
        raise NotApplicableError("all subjects end with the same token")
    spliced = [
        Reading(own[other].ids[:-1] + own[i].ids[-1:], min(own[i].count, own[other].position))
        for i, other in enumerate(order)
    ]
    return _at_readings(method, spliced)


def wrong_position(method: CrossFit) -> list[Outcome]:
    """The method on the last residual before the subject begins: later ones may hold the fact."""
    bench = method.bench
    return _at_readings(method, [before_subject(bench.context.model, item) for item in bench.items])


def before_subject(model: LanguageModel, item: Item) -> Reading:
    """Return the item's source up to the last token that ends before its subject begins.

    Raises:
        NotApplicableError: the source does not name the subject, or only token 0 comes before it.
    """
    begin, end = item.subject_span
    if begin == end:
        raise NotApplicableError("a source does not name its subject")
    encoding = model.tokens.encode(item.source)
    first = begin + encoding.begin
    # A token that covers no character is one of its model's own, such as BOS.
    before = [i for i, (start, stop) in enumerate(encoding.offsets) if start < stop <= first]
    if not before or before[-1] == 0:
        raise NotApplicableError(f"no token but the first comes before the subject of {item.source!r}")
    count = 1 if item.extent.kind == "span" else tokens_read(item, encoding, before[-1])
    return Reading(encoding.ids[: before[-1] + 1], count)


def _at_readings(method: CrossFit, readings: Sequence[Reading]) -> list[Outcome]:
    """The method on the residuals at the ends of other texts."""
    more = method.inspector.reads & {"components", "target", "text"}
    if more:
        raise NotApplicableError(f"the method reads {', '.join(sorted(more))} as well as the residual that is replaced")
    asked = method.bench.context.layers
    found = method.bench.capture(readings, layers_shown(method.inspector, asked)).as_several()
    return [method.with_activations(lambda captured: found.at_layers(captured.layers)).outcome()]


def untrained(method: CrossFit) -> list[Outcome]:
    """The method as it was before it was trained: its own prompt and vectors, in the plain verbalizer."""
    return [without_part(method, "training", "the method has not been trained beforehand").outcome()]


def skip_ahead(method: CrossFit) -> list[Outcome]:
    """The same residual, straight to the final norm and head: what is read without the method's prompt."""
    return [in_place_of(method, LogitLens).outcome()]
