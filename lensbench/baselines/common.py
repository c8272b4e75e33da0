"""What rivals are made of: their outcomes, and the ways in which a method is given something else."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from lensbench.baselines.readers import TextReader
from lensbench.errors import NotApplicableError
from lensbench.harness.bench import NO_QUESTION, CrossFit
from lensbench.harness.returned import of_layers, stacked
from lensbench.inspectors.access import Change
from lensbench.inspectors.base import Inspector
from lensbench.inspectors.evidence import Scores
from lensbench.models.language_model import LanguageModel
from lensbench.tasks import Item


@dataclass(frozen=True)
class Outcome:
    """What a baseline answered.

    Attributes:
        scores: as a method returns them.
        layers: the layers of their first axis; (None,) for what reads no layer.
        items: the items scored, their `answer` changed where the baseline asks for another.
        zero_shot: whether it learned no labels, and is corrected for its prior.
        pardoned: for each item an answer that counts as chance instead of as wrong; None where every answer counts.
    """

    scores: Scores
    layers: tuple[int | None, ...]
    items: tuple[Item, ...]
    zero_shot: bool
    pardoned: tuple[str, ...] | None = None


Rival = Callable[..., list[Outcome]]


def require_question(method: CrossFit) -> None:
    """Refuse prose, where the gold answer is what the target itself would say next.

    Raises:
        NotApplicableError: the relation asks no question.
    """
    if not method.bench.relation.inspection:
        raise NotApplicableError(NO_QUESTION)


def zero_shot(method: CrossFit) -> bool:
    """Whether a method learns no labels."""
    return method.inspector.learns_from != "labels"


def as_method(method: CrossFit) -> list[Outcome]:
    """What a method answers, put to work on another bench than its own."""
    return [Outcome(method.scores(), method.layers, method.bench.items, zero_shot(method))]


def reading(method: CrossFit, model: LanguageModel) -> list[Outcome]:
    """What a method answers that reads another model in the target's place.

    At layers where both models' activations are the same to the bit, below an edit, the method's own answers are taken:
    it would only give them again, from other batches, with other last digits.
    """
    other, layers = method.on(model), method.bench.lab.layers
    alike = _alike(method, other)
    if not alike:
        return as_method(other)
    own, rest = method.scores(), tuple(layer for layer in layers if layer not in alike)
    kept = of_layers(own, [layers.index(layer) for layer in alike])
    parts = [(alike, kept), *([(rest, other.scores(layers=rest))] if rest else [])]
    return [Outcome(stacked(parts), layers, method.bench.items, zero_shot(method))]


def _alike(method: CrossFit, other: CrossFit) -> tuple[int, ...]:
    """The layers at which a method gets the same from both benches, to learn from and to answer."""
    reads = method.inspector.reads
    if "activation" not in reads or reads & {"components", "target"}:
        return ()  # of what else it reads, nothing is known
    pairs = [(method.bench.residuals, other.bench.residuals)]
    if not zero_shot(method):
        pairs.append((method.bench.train_residuals, other.bench.train_residuals))
    if any(one.values.shape != another.values.shape for one, another in pairs):
        return ()
    return tuple(
        layer
        for layer in method.bench.lab.layers
        if all(
            torch.equal(one.at_layers((layer,)).values, another.at_layers((layer,)).values) for one, another in pairs
        )
    )


def changed(method: CrossFit, change: Change) -> list[Outcome]:
    """The method, with its own fits, on changed activations."""
    return [Outcome(method.scores(change=change), method.bench.lab.layers, method.bench.items, zero_shot(method))]


def asking(method: CrossFit, verbalizer: LanguageModel) -> CrossFit:
    """The method on the same bench with another verbalizer."""
    return replace(method, bench=replace(method.bench, lab=replace(method.bench.lab, verbalizer=verbalizer)))


def in_place_of(method: CrossFit, reader: Callable[[], Inspector]) -> CrossFit:
    """Another inspector on the method's bench."""
    bench = method.bench
    # What a method does not say, its rival need not say either.
    silent = bench.relation.describe > 0 and not method.inspector.generates
    return (replace(bench, silent=True) if silent else bench).method(reader)


def read_instead(method: CrossFit, reader: Callable[[], Inspector]) -> list[Outcome]:
    """What another inspector answers that reads no activation."""
    rival = in_place_of(method, reader)
    return [Outcome(rival.scores(), (None,), method.bench.items, zero_shot(rival))]


def asked_in(method: CrossFit, verbalizer: LanguageModel, forms: Sequence[str]) -> list[Outcome]:
    """What a model answers that is asked these forms in text."""
    return read_instead(asking(method, verbalizer), lambda: TextReader(tuple(forms)))


def own_forms(method: CrossFit) -> tuple[str, ...]:
    """Every text form of a method's items, the method's own prompts first."""
    own = [one.text for one in method.inspector.own_prompts(method.bench.forms)]
    return tuple(dict.fromkeys([*own, *text_forms(method)]))


def text_forms(method: CrossFit) -> tuple[str, ...]:
    """Every text form in which anybody can be asked about the items."""
    forms = [*method.bench.forms, "{source}\n" + method.bench.question]
    if method.bench.items[0].site in ("answer", "t2"):
        forms.append("{source}")  # it asks by itself: what a lens at the last layer reads
    return tuple(forms)
