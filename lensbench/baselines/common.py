"""The ways in which a baseline gives a method something else to read, or asks something else in its place."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from lensbench.baselines.readers import TextReader
from lensbench.errors import NotApplicableError
from lensbench.harness.bench import NO_QUESTION, layers_shown
from lensbench.harness.crossfit import CrossFit, Outcome
from lensbench.inspectors.base import Inspector, Part
from lensbench.inspectors.probes.probing import require_classes
from lensbench.inspectors.scores import Scores
from lensbench.models.chat import Text
from lensbench.models.language_model import LanguageModel


def require_question(method: CrossFit) -> None:
    """Refuse prose, where the gold answer is what the target itself would say next.

    Raises:
        NotApplicableError: the relation asks no question.
    """
    if not method.bench.relation.inspection:
        raise NotApplicableError(NO_QUESTION)


def in_model(method: CrossFit, model: LanguageModel) -> Outcome:
    """Return a method's answers when it reads another model in the target's place.

    At layers where both models' activations are the same to the bit, below an edit, the method's own answers are taken:
    it would only give them again, from other batches, with other last digits.
    """
    require_question(method)
    if least := method.inspector.class_subjects:  # what cannot be learned is refused before a model is read
        for fold in sorted({item.fold for item in method.bench.items}):
            require_classes(method.bench.training(method.inspector, fold, (), None), least)
    other, layers = method.with_model(model), method.bench.context.layers
    shared = _layers_in_common(method, other)
    if not shared:
        return other.outcome()
    rest = tuple(layer for layer in layers if layer not in shared)
    # The other model comes first: a method must not learn from the order which of them is the target.
    parts = [other.scores(layers=rest)] if rest else []
    own = method.outcome()
    parts.insert(0, own.scores.select(layers=[layers.index(layer) for layer in shared]))
    return replace(own, scores=Scores.concat(parts, [*shared, *rest], axis="layer"))


def _layers_in_common(method: CrossFit, other: CrossFit) -> tuple[int, ...]:
    """The layers at which a method gets the same from both benches, to learn from and to answer."""
    reads = method.inspector.reads
    if "activation" not in reads or reads & {"components", "target"}:
        return ()  # of what else it reads, nothing is known
    asked = method.bench.context.layers
    read = {layer: method.inspector.layers_read(layer) for layer in asked}
    seen = layers_shown(method.inspector, asked)
    own, others = (bench.residuals_at(seen).at_layers(seen) for bench in (method.bench, other.bench))
    if own.values.shape != others.values.shape:
        return ()
    same = [layer for layer in asked if all(own.same_at(each, others) for each in read[layer])]
    if method.learns_labels:
        own, others = method.bench.train_residuals, other.bench.train_residuals
        same = [layer for layer in same if own.values.shape == others.values.shape and own.same_at(layer, others)]
    return tuple(same)


def in_place_of(method: CrossFit, reader: Callable[[], Inspector]) -> CrossFit:
    """Return another inspector on the method's bench."""
    bench = method.bench
    # What a method does not say, its baseline need not say either.
    silent = bench.relation.describe > 0 and not method.inspector.generates
    return CrossFit(reader, bench.without_descriptions() if silent else bench)


def without_part(method: CrossFit, part: Part, complaint: str) -> CrossFit:
    """Return a verbalizer that was trained beforehand without a part of it, on the method's bench.

    Raises:
        NotApplicableError: the method has no such part; the complaint says so.
    """

    def make() -> Inspector:
        other = method.make().without(part)
        if other is None:
            raise NotApplicableError(complaint)
        return other

    return in_place_of(method, make)


def asked_in_text(method: CrossFit, model: LanguageModel, forms: Sequence[Text]) -> Outcome:
    """Return a model's answers to these forms in text."""
    asked = method.with_bench(method.bench.with_verbalizer(model))
    return in_place_of(asked, lambda: TextReader(tuple(forms))).outcome()


def own_forms(method: CrossFit) -> tuple[Text, ...]:
    """Return every text form of a method's items, the method's own prompts first."""
    own = [one.text for one in method.inspector.own_prompts(method.bench.forms)]
    return tuple(dict.fromkeys([*own, *text_forms(method)]))


def text_forms(method: CrossFit) -> tuple[str, ...]:
    """Return every form in which text can ask about the items."""
    forms = [*method.bench.forms, "{source}\n" + method.bench.question]
    if method.bench.items[0].place in ("answer", "t2"):
        forms.append("{source}")  # it asks by itself: what a lens at the last layer reads
    return tuple(forms)
