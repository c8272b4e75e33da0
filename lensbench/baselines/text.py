"""Baselines of *beats the text*: they read the input text in place of what the target made of it."""

from dataclasses import replace
from functools import partial

from lensbench.baselines.common import asked_in_text as ask_in_text
from lensbench.baselines.common import in_model, in_place_of, own_forms, require_question, text_forms
from lensbench.baselines.readers import InputClassifier
from lensbench.errors import NotApplicableError, TokenError
from lensbench.harness.crossfit import CrossFit, Outcome
from lensbench.inspectors.verbalizers.inversion import Inversion
from lensbench.models.chat import Text
from lensbench.models.loading import with_random_weights


def embedding(method: CrossFit) -> list[Outcome]:
    """The method at layer 0: token identity without computation."""
    scores = method.scores(layers=(0,))
    return [Outcome(scores, (None,), method.bench.items, not method.learns_labels)]


def input_only(method: CrossFit) -> list[Outcome]:
    """The verbalizer asked in text: the method's prompts, every inspection prompt and question, the source.

    A verbalizer that the method has trained is asked besides the plain one: training may have made it a better reader
    of text, or a worse one.
    """
    forms, verbalizer = own_forms(method), method.bench.context.verbalizer
    outcomes = [ask_in_text(method, verbalizer, forms)]
    reader = method.inspector.reader(verbalizer)
    if reader is not verbalizer:
        trained = ask_in_text(method, reader, forms)
        names = tuple(f"trained: {form}" for form in forms)
        outcomes.append(replace(trained, scores=replace(trained.scores, attempts=names)))
    return outcomes


def inversion(method: CrossFit, decoder: str | None = None) -> list[Outcome]:
    """The input text, decoded from the same activations at each layer, and read by the verbalizer.

    It is asked in each of the method's own prompts, else in the relation's inspection prompt. Only tokens that stand in
    the relation's sources are decoded, and of these no first token of an answer: what is read is then a text that could
    have been the input, and says no answer by itself.

    Args:
        method: the method.
        decoder: the folder of a decoder that writes the text, in place of linear maps; see `Inversion`. It may write
            any word, but loses the answers.

    Raises:
        UsageError: a decoder that does not fit the verbalizer, or was not trained to write texts.
    """
    bench = method.bench
    Inversion(decoder=decoder).check(bench.context.target, bench.context.verbalizer)
    sources = {item.source for item in (*bench.items, *bench.train_items)}
    vocabulary = sorted({token for source in sources for token in bench.context.model.tokens.encode(source).ids})
    prompts: list[Text] = [own.text for own in method.inspector.own_prompts(bench.forms)] or [bench.question]
    outcomes = []
    for i, prompt in enumerate(dict.fromkeys(prompts)):
        reader = partial(Inversion, prompt=prompt, vocabulary=tuple(vocabulary), decoder=decoder)
        outcome = in_place_of(method, reader).outcome()
        if i:
            names = tuple(f"{name} prompt={i}" for name in outcome.scores.attempts)
            outcome = replace(outcome, scores=replace(outcome.scores, attempts=names))
        outcomes.append(outcome)
    return outcomes


def asked_in_text(method: CrossFit) -> list[Outcome]:
    """The target asked in text, like the verbalizer in `input_only`: for methods that may run the target themselves."""
    return [ask_in_text(method, method.bench.context.model, text_forms(method))]


def input_classifier(method: CrossFit) -> list[Outcome]:
    """Classify the characters and words of the source text, with the same labels as the method."""
    return [in_place_of(method, InputClassifier).outcome()]


def random_model(method: CrossFit, seed: int) -> list[Outcome]:
    """The method, with the same labels, on activations of the same architecture with random weights."""
    require_question(method)
    return [in_model(method, with_random_weights(method.bench.context.model, seed))]


def verbalizer_probe(method: CrossFit) -> list[Outcome]:
    """The method, with the same labels, on the verbalizer's activations of the same texts.

    In a verbalizer of another depth each layer is the one as deep in it: layer l of L is round(l L' / L) of L'.
    """
    require_question(method)
    target, verbalizer = method.bench.context.model, method.bench.context.verbalizer
    if verbalizer is target or verbalizer.fingerprint == target.fingerprint:
        raise NotApplicableError("the verbalizer is the target: its activations are the method's own")
    if "target" in method.inspector.reads and verbalizer.n_layers != target.n_layers:
        raise NotApplicableError(
            f"the method runs the target at its {target.n_layers} layers; the verbalizer has {verbalizer.n_layers}"
        )
    try:
        return [in_model(method, verbalizer)]
    except TokenError as error:
        raise NotApplicableError(f"a read site is not found under the verbalizer's tokenizer: {error}") from None
