"""What rival explanations do: each function destroys one source of information, or reads another in its place.

A function takes a method at work on a bench and returns outcomes. Rivals that change the evidence use the method's
own fits.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from lensbench.bench import Method, merged
from lensbench.evidence import NotApplicableError, Scores
from lensbench.handles import Change
from lensbench.inspectors.base import Inspector
from lensbench.inspectors.inversion import Inversion
from lensbench.model.language_model import LanguageModel
from lensbench.residuals import Residuals
from lensbench.tasks import N_FOLDS, Item
from lensbench.text_readers import ChoicesOnly, InputClassifier, Majority, TextReader


@dataclass(frozen=True)
class Outcome:
    """What a baseline answered.

    Attributes:
        scores: as a method returns them.
        layers: the layers of their first axis; (None,) for what reads no layer.
        items: the items scored, their `answer` changed where the baseline asks for another.
        zero_shot: whether it learned no labels, and is corrected for its prior.
    """

    scores: Scores
    layers: tuple[int | None, ...]
    items: tuple[Item, ...]
    zero_shot: bool


Rival = Callable[..., list[Outcome]]


def _changed(method: Method, change: Change) -> list[Outcome]:
    bench = method.bench
    scores = method.scores(change=change)
    return [Outcome(scores, bench.lab.layers, bench.items, method.inspector.learns_from != "labels")]


def _asking(method: Method, verbalizer: LanguageModel) -> Method:
    """The method on the same bench with another verbalizer."""
    return replace(method, bench=replace(method.bench, lab=replace(method.bench.lab, verbalizer=verbalizer)))


def _read_instead(method: Method, reader: Callable[[], Inspector]) -> list[Outcome]:
    rival = _in_place_of(method, reader)
    return [Outcome(rival.scores(), (None,), method.bench.items, rival.inspector.learns_from != "labels")]


def _in_place_of(method: Method, reader: Callable[[], Inspector]) -> Method:
    bench = method.bench
    # What a method does not say, its rival need not say either.
    silent = bench.relation.describe > 0 and not method.inspector.generates
    return (replace(bench, silent=True) if silent else bench).method(reader)


def mean_activation(method: Method) -> list[Outcome]:
    """The method on the mean activation of all items, at each layer.

    One mean for all: a mean that leaves an item's fold out would, after the prior is corrected, point away from its
    answer, and the rival would be weaker than chance.
    """
    return _changed(
        method,
        lambda residuals: Residuals(
            residuals.layers, residuals.values.mean(1, keepdim=True).expand_as(residuals.values)
        ),
    )


def shuffled(method: Method) -> list[Outcome]:
    """The method on another subject's activation, same layer, same site: a derangement that is blind to the answers."""
    order = derangement([item.subject for item in method.bench.items], method.bench.lab.seed)
    if order is None:
        raise NotApplicableError(
            "one subject has half of the items or more, so no other subject's activation can stand in for each"
        )
    return _changed(method, lambda residuals: residuals.of(order))


def derangement(subjects: list[str], seed: int) -> list[int] | None:
    """Return for each item another one with another subject, each used once; None where there is none."""
    shuffled_names = sorted(set(subjects))
    random.Random(seed).shuffle(shuffled_names)
    rank = {name: i for i, name in enumerate(shuffled_names)}
    order = sorted(range(len(subjects)), key=lambda i: (rank[subjects[i]], i))
    step = max(subjects.count(name) for name in shuffled_names)
    if 2 * step > len(subjects):
        return None
    partner = {order[i]: order[(i + step) % len(order)] for i in range(len(order))}
    return [partner[i] for i in range(len(subjects))]


def embedding(method: Method) -> list[Outcome]:
    """The method at layer 0: token identity without computation."""
    bench = method.bench
    scores = method.scores(layers=(0,))
    return [Outcome(scores, (None,), bench.items, method.inspector.learns_from != "labels")]


def question_only(method: Method) -> list[Outcome]:
    """The verbalizer, as the method has it, with the method's own prompts, the placeholder left as it is."""
    prompts = method.inspector.own_prompts(method.bench.forms)
    if not prompts:
        raise NotApplicableError("the method has no prompt of its own")
    unpatched = dict.fromkeys(own.text.replace("{subject}", own.placeholder) for own in prompts)
    reader = method.inspector.reader(method.bench.lab.verbalizer)
    return _read_instead(_asking(method, reader), lambda: TextReader(tuple(unpatched)))


def input_only(method: Method) -> list[Outcome]:
    """The verbalizer asked in text: the method's prompts, every inspection prompt and question, the source.

    A verbalizer that the method has trained is asked besides the plain one: training may have made it a better reader
    of text, or a worse one.
    """
    own = [one.text for one in method.inspector.own_prompts(method.bench.forms)]
    forms = tuple(dict.fromkeys([*own, *_text_forms(method)]))
    outcomes = _read_instead(method, lambda: TextReader(forms))
    verbalizer = method.bench.lab.verbalizer
    reader = method.inspector.reader(verbalizer)
    if reader is not verbalizer:
        (trained,) = _read_instead(_asking(method, reader), lambda: TextReader(forms))
        names = tuple(f"trained: {form}" for form in forms)
        outcomes.append(replace(trained, scores=replace(trained.scores, attempts=names)))
    return outcomes


def inversion(method: Method) -> list[Outcome]:
    """The input text, decoded from the same activations at each layer, and read by the verbalizer.

    It is asked in each of the method's own prompts, else in the relation's inspection prompt. Only tokens that stand in
    the relation's sources are decoded, and of these no first token of an answer: what is read is then a text that could
    have been the input, and says no answer by itself.
    """
    bench = method.bench
    sources = {item.source for item in (*bench.items, *bench.train_items)}
    vocabulary = sorted({token for source in sources for token in bench.lab.model.tokens.encode(source).ids})
    prompts = [own.text for own in method.inspector.own_prompts(bench.forms)] or [bench.question]
    outcomes = []
    for i, prompt in enumerate(dict.fromkeys(prompts)):
        reader = partial(Inversion, prompt=prompt, vocabulary=tuple(vocabulary))
        scores = _in_place_of(method, reader).scores()
        if i:
            scores = replace(scores, attempts=tuple(f"{name} prompt={i}" for name in scores.attempts))
        outcomes.append(Outcome(scores, bench.lab.layers, bench.items, zero_shot=True))
    return outcomes


def asked_in_text(method: Method) -> list[Outcome]:
    """The target asked in text, as the verbalizer is in `input_only`: for methods that may run it themselves."""
    asked = _asking(method, method.bench.lab.model)
    return _read_instead(asked, lambda: TextReader(_text_forms(method)))


def _text_forms(method: Method) -> tuple[str, ...]:
    forms = [*method.bench.forms, "{source}\n" + method.bench.question]
    if method.bench.items[0].site in ("answer", "t2"):
        forms.append("{source}")  # it asks by itself: what a lens at the last layer reads
    return tuple(forms)


def choices_only(method: Method) -> list[Outcome]:
    """Pick from the choice set by prior, centre, or order."""
    return _read_instead(method, ChoicesOnly)


def majority(method: Method) -> list[Outcome]:
    """Say the best constant of the training folds."""
    return _read_instead(method, Majority)


def input_classifier(method: Method) -> list[Outcome]:
    """Classify the characters and words of the source text, with the same labels as the method."""
    return _read_instead(method, InputClassifier)


def control_task(method: Method) -> list[Outcome]:
    """The method trained on labels dealt to subjects at random (Hewitt & Liang 2019).

    Three attempts: random labels of seen subjects in new phrasings (what it can memorise), random labels of held-out
    subjects (chance, or something leaks), true labels of seen subjects. Selectivity is the third minus the first.
    """
    bench = method.bench
    labels = _dealt(bench.train_items, f"{bench.lab.seed}/{bench.relation.name}")
    relabelled = tuple(replace(item, answer=labels[item.subject]) for item in bench.items)
    return [
        _regime(method, "random_labels_seen", labels, relabelled, held_out=False),
        _regime(method, "random_labels_held_out", labels, relabelled, held_out=True),
        _regime(method, "true_labels_seen", None, bench.items, held_out=False),
    ]


def _dealt(items: tuple[Item, ...], seed: str) -> dict[str, str]:
    """Deal the answers of a choice set to its subjects at random."""
    labels: dict[str, str] = {}
    for choices in sorted({item.choices for item in items}):
        truth = {item.subject: item.answer for item in items if item.choices == choices}
        answers = [truth[subject] for subject in sorted(truth)]
        random.Random(f"{seed}/{choices}").shuffle(answers)
        labels.update(zip(sorted(truth), answers, strict=True))
    return labels


def _regime(
    method: Method, name: str, labels: dict[str, str] | None, items: tuple[Item, ...], *, held_out: bool
) -> Outcome:
    parts = []
    for fold in range(N_FOLDS):
        # A seen subject is tested by the fold after its own, which learned from it, in other words.
        tested = fold if held_out else (fold - 1) % N_FOLDS
        if places := [i for i, item in enumerate(items) if item.fold == tested]:
            parts.append((places, method.scores_with(fold, labels, places)))
    return Outcome(replace(merged(parts), attempts=(name,)), method.bench.lab.layers, items, zero_shot=False)


FUNCTIONS: dict[str, Rival] = {
    function.__name__: function
    for function in (
        mean_activation,
        shuffled,
        embedding,
        question_only,
        input_only,
        inversion,
        asked_in_text,
        choices_only,
        majority,
        input_classifier,
        control_task,
    )
}
