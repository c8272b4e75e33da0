"""The Patchscope family: each quintuplet against a pass with hooks of its own, and what the parameters refuse."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lensbench import testing
from lensbench.errors import NotApplicableError, UsageError
from lensbench.harness.bench import Bench
from lensbench.harness.context import RunContext
from lensbench.harness.crossfit import CrossFit
from lensbench.inspectors.evidence import Evidence
from lensbench.inspectors.patchscopes.patched import DEMONSTRATIONS, prompt_text
from lensbench.inspectors.patchscopes.patchscope import Patchscope
from lensbench.inspectors.patchscopes.superscopes import Superscopes
from lensbench.inspectors.target import Target
from lensbench.models.corpus import Corpus
from lensbench.models.language_model import LanguageModel
from lensbench.models.loading import load_model
from lensbench.models.patching import Patcher
from lensbench.tasks import load_task
from tests import tiny

LAYERS = (0, 1, 2, 3, 4)
NAMES = ("Bo Ash", "Cy Cole", "Di Dow", "Ed Birch")
Change = Callable[[Tensor], Tensor]


def bench(kind: str = "llama", layers: tuple[int, ...] = LAYERS) -> Bench:
    model = tiny.model(kind)
    return testing.make_bench(model, Corpus(model), testing.Subjects(NAMES, ("tea", "wine")), layers)


def test_whole_answers_after_a_plain_text_are_their_own_tokens() -> None:
    """All tokens after the space, and no more; the accuracy of them corrected as any score is."""
    made = bench(layers=(2,))
    made = replace(made, context=replace(made.context, whole_answers=True))
    scores = CrossFit(Patchscope, made).scores()
    model, item = made.context.model, 3
    own = Patchscope().own_prompt(made.question)
    ids = model.tokens.encode(own.text.replace("{subject}", own.placeholder)).ids
    place = model.tokens.locate(model.tokens.encode(own.text.replace("{subject}", own.placeholder)),
        (own.text.index("{subject}"), own.text.index("{subject}") + len(own.placeholder)))  # fmt: skip
    vector = made.residuals.at_layers((2,)).values[0, item]
    expected = []
    for answer in made.answers:
        told = list(model.tokens.answer_ids(answer))
        assert len(told) > 1
        with changing(after_block(model, 1), [place], lambda _: vector), torch.no_grad():
            logits = model.module(torch.tensor([[*ids, *told]])).logits[0].log_softmax(-1)
        expected.append(sum(float(logits[len(ids) - 1 + i, token]) for i, token in enumerate(told)))
    assert scores.whole is not None
    torch.testing.assert_close(scores.whole[0, 0, item], torch.tensor(expected), rtol=1e-4, atol=5e-4)
    raw = scores.whole[0, 0].double().numpy()
    credit = []
    for i, it in enumerate(made.items):
        others = [j for j, one in enumerate(made.items) if one.fold != it.fold]
        corrected = raw[i] - raw[others].mean(0)
        credit.append(float(made.answers[int(corrected.argmax())] == it.answer))
    found = made.measures(made.items, scores, (2,))
    values = [v for v, name in zip(found["value"], found["metric"], strict=True) if name == "accuracy_whole_answers"]
    assert values == pytest.approx(credit)


@contextmanager
def changing(module: nn.Module, places: list[int], change: Change) -> Iterator[None]:
    """Change what a module puts out at some positions."""

    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        hidden = (output[0] if isinstance(output, tuple) else output).clone()
        hidden[0, places] = change(hidden[0, places])
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def after_block(model: LanguageModel, layer: int) -> nn.Module:
    """The module whose output is layer l of a Llama."""
    inner = model.module.model
    return inner.embed_tokens if layer == 0 else inner.layers[layer - 1]


def naive(model: LanguageModel, text: str, layer: int, change: Change, placeholder: str = "x") -> Tensor:
    """Log-probabilities of the next token after a prompt whose placeholders were changed at one layer of a Llama."""
    filled = text.replace("{subject}", placeholder)
    encoded = model.tokens.tokenizer(filled, return_offsets_mapping=True)
    starts, at = [], 0
    for part in text.split("{subject}")[:-1]:
        starts.append(at + len(part))
        at = starts[-1] + len(placeholder)
    places = [i for i, (a, b) in enumerate(encoded.offset_mapping) for start in starts if a <= start < b]
    assert len(places) == len(starts)
    with changing(after_block(model, layer), places, change), torch.no_grad():
        return model.module(torch.tensor([encoded.input_ids])).logits[0, -1].log_softmax(-1)


def of_answers(model: LanguageModel, found: Tensor, made: Bench) -> Tensor:
    return found[[model.tokens.answer_token(answer) for answer in made.answers]]


VARIANTS = {
    "same layer": lambda: Patchscope(("same", 0), "token_identity"),
    "every layer": lambda: Patchscope("all"),
    "in the manner of SelfIE": lambda: Patchscope((2,), "instruction", write="norm_matched", relevancy=True),
    "added": lambda: Patchscope((1,), write="add"),
    "superscopes": lambda: Superscopes(target_layers=(0, "same")),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_conformance(name: str) -> None:
    assert "check_layers_are_local" in testing.check_inspector(VARIANTS[name])


def test_the_same_layer_is_each_layers_own() -> None:
    made = bench()
    same = CrossFit(lambda: Patchscope(("same",)), made).scores()
    assert same.attempts == ("target_layer=same",)
    for layer in LAYERS:
        alone = CrossFit(lambda layer=layer: Patchscope((layer,)), made).scores()
        torch.testing.assert_close(same.log_scores[layer], alone.log_scores[layer], rtol=1e-5, atol=1e-5)


def test_a_grid_has_a_target_layer_an_attempt() -> None:
    made = bench()
    every = CrossFit(lambda: Patchscope("all"), made).scores()
    assert every.attempts == tuple(f"target_layer={layer}" for layer in LAYERS)
    coarse = CrossFit(lambda: Patchscope("stride:2"), made).scores()
    assert coarse.attempts == tuple(f"target_layer={layer}" for layer in (0, 2, 4))
    torch.testing.assert_close(coarse.log_scores, every.log_scores[:, ::2], rtol=1e-5, atol=1e-5)
    listed = CrossFit(lambda: Patchscope("0,2,4"), made).scores()
    assert torch.equal(listed.log_scores, coarse.log_scores)


def test_several_slots_get_the_same_vector_at_the_length_of_what_was_there() -> None:
    """SelfIE's writing, by hooks: h* <- v |h*| / |v| at each placeholder."""
    made, model = bench(), tiny.model("llama")
    text = "Message: {subject} {subject} {subject}. It is about"
    scores = CrossFit(lambda: Patchscope((2,), text, write="norm_matched"), made).scores()
    for layer in LAYERS:
        for item in (0, 3):
            vector = made.residuals.values[layer, item]
            found = naive(model, text, 2, lambda there, v=vector: v * (there.norm(dim=-1, keepdim=True) / v.norm()))
            torch.testing.assert_close(
                scores.log_scores[layer, 0, item], of_answers(model, found, made), rtol=1e-4, atol=1e-4
            )


def test_token_identity_is_read_at_the_placeholder() -> None:
    made, model = bench(), tiny.model("llama")
    text = "cat -> cat\n1135 -> 1135\nhello -> hello\n{subject}"
    assert prompt_text("patchscope", "token_identity", "?") == text
    scores = CrossFit(lambda: Patchscope(("same",), "token_identity"), made).scores()
    for layer in LAYERS:
        vector = made.residuals.values[layer, 1]
        found = naive(model, text, layer, lambda there, v=vector: v.expand_as(there))
        torch.testing.assert_close(scores.log_scores[layer, 0, 1], of_answers(model, found, made), rtol=1e-4, atol=1e-4)
    # At the last layer nothing is left to compute: what is patched there is unembedded.
    last = model.unembed(made.residuals.values[-1]).log_softmax(-1)
    tokens = [model.tokens.answer_token(answer) for answer in made.answers]
    torch.testing.assert_close(scores.log_scores[-1, 0], last[:, tokens], rtol=1e-4, atol=1e-4)


def test_prompts_by_name() -> None:
    assert prompt_text("patchscope", None, "What is {subject}?") == "What is {subject}?"
    assert prompt_text("patchscope", "token_identity: {subject}", "?") == "token_identity: {subject}"
    longest = prompt_text("patchscope", f"token_identity:{len(DEMONSTRATIONS)}", "?")
    assert longest.count(" -> ") == len(DEMONSTRATIONS) == len(set(DEMONSTRATIONS))
    assert prompt_text("patchscope", "description", "?").endswith("\n{subject}:")
    assert prompt_text("patchscope", "instruction", "?").count("{subject}") == 5
    own = Patchscope(prompt="description", placeholder="y").own_prompt("?")
    assert (own.text, own.placeholder) == (prompt_text("patchscope", "description", "?"), "y")


def test_relevancy_is_how_far_the_patch_moves_the_top_answer() -> None:
    made, model = bench(), tiny.model("llama")
    text = made.question
    scores = CrossFit(lambda: Patchscope((1,), relevancy=True), made).scores()
    plain = CrossFit(lambda: Patchscope((1,)), made).scores()
    assert torch.equal(scores.log_scores, plain.log_scores)
    assert not plain.measures
    unpatched = of_answers(model, naive(model, text, 1, lambda there: there), made).exp()
    patched = scores.log_scores[:, 0].exp()
    top = patched.argmax(-1, keepdim=True)
    expected = (patched - unpatched).abs().gather(-1, top)[..., 0]
    np.testing.assert_allclose(scores.measures["relevancy"][:, 0], expected.numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", [*tiny.CONFIGS, *tiny.HYBRIDS])
def test_prompts_that_end_at_the_placeholder_on_every_architecture(kind: str) -> None:
    """Against plain passes; and components, where blocks have them."""
    made, model = bench(kind, (0, 2, 4)), tiny.model(kind)
    scores = CrossFit(lambda: Patchscope((1, "same"), "token_identity"), made).scores()
    plain = LanguageModel(model.module, model.tokens, model.name)
    plain.cache["patcher"] = Patcher(plain, "plain")
    slowly = replace(made, context=replace(made.context, verbalizer=plain))
    expected = CrossFit(lambda: Patchscope((1, "same"), "token_identity"), slowly).scores()
    torch.testing.assert_close(scores.log_scores, expected.log_scores, rtol=1e-3, atol=1e-3)
    method = CrossFit(lambda: Superscopes(("hidden", "mlp"), (1, 3)), bench(kind, (0, 2, 4)))
    if kind in tiny.HYBRIDS:
        with pytest.raises(NotApplicableError, match=r"no MLP.*hidden alone"):
            method.scores()
        method = CrossFit(lambda: Superscopes(("hidden",), (1, 3)), method.bench)
    scores = method.scores()
    assert torch.isfinite(scores.log_scores).all()
    assert (scores.log_scores[1:].std(2) > 0).all()


def test_superscopes_of_hidden_states_is_a_patchscope() -> None:
    made = bench()
    ours = CrossFit(lambda: Superscopes(("hidden",), (1,), (2, "same")), made).scores()
    theirs = CrossFit(lambda: Patchscope((2, "same")), made).scores()
    assert ours.attempts == ("hidden x1 -> 2", "hidden x1 -> same")
    assert torch.equal(ours.log_scores, theirs.log_scores)
    assert torch.equal(ours.ranks, theirs.ranks)


def seen_at(model: LanguageModel, module: nn.Module, text: str, *, before: bool = False) -> Tensor:
    """What a module puts out, or takes in, at the last token of a text."""
    seen = []

    def hook(_module: nn.Module, args: Any, output: Any) -> None:
        seen.append((args[0] if before else output)[0, -1].clone())

    handle = module.register_forward_hook(hook)
    with torch.no_grad():
        model.module(torch.tensor([model.tokens.tokenizer(text).input_ids]))
    handle.remove()
    return seen[0]


def test_superscopes_writes_amplified_components() -> None:
    """By hooks: what the MLP puts out and what its norm takes in, times α, over the placeholder at layers 0 and l."""
    made, model = bench(), tiny.model("llama")
    made_by = CrossFit(lambda: Superscopes(("mlp", "mlp_input"), (1, 6.5), (0, "same")), made)
    scores = made_by.scores()
    assert scores.attempts[:4] == ("mlp x1 -> 0", "mlp x1 -> same", "mlp x6.5 -> 0", "mlp x6.5 -> same")
    for layer in (1, 3):
        block = model.module.model.layers[layer - 1]
        source = made.items[2].source
        read = {
            "mlp": seen_at(model, block.mlp, source),
            "mlp_input": seen_at(model, block.post_attention_layernorm, source, before=True),
        }
        for component, vector in read.items():
            for amplifier in (1, 6.5):
                for name, at in (("0", 0), ("same", layer)):
                    written = amplifier * vector
                    found = naive(model, made.question, at, lambda there, v=written: v.expand_as(there))
                    attempt = scores.attempts.index(f"{component} x{amplifier:g} -> {name}")
                    torch.testing.assert_close(
                        scores.log_scores[layer, attempt, 2], of_answers(model, found, made), rtol=2e-4, atol=2e-4
                    )
    # Layer 0 has no MLP: the same zeros for all.
    assert (scores.log_scores[0] == scores.log_scores[0][:, :1]).all()


def test_superscopes_goes_on_in_words() -> None:
    made, model = bench(), tiny.model("llama")
    method = Superscopes(("hidden", "mlp"), (1, 3), prompt="description")
    method.fit(Target(model), model, made.training(Superscopes(), None, LAYERS, None))
    evidence = made.evidence(Superscopes.reads, range(4), LAYERS)
    said = method.inspect(Evidence(**{**vars(evidence), "describe": 5})).texts
    assert said.shape == (5, 4, 4)
    plain = Patchscope((0,), "description").fit(Target(model), model, made.training(Patchscope(), None, LAYERS, None))
    expected = plain.inspect(Evidence(**{**vars(evidence), "describe": 5})).texts
    assert (said[:, 0] == expected[:, 0]).all()
    assert any(said.ravel())


REFUSED = [
    (Patchscope, {"target_layers": (5,)}, r"target_layers \(5,\); tiny-llama has layers 0 to 4"),
    (Patchscope, {"target_layers": ("some",)}, "'same' for the source layer"),
    (Patchscope, {"target_layers": (1, 1)}, "give different ones"),
    (Patchscope, {"target_layers": (True,)}, "layers 0 to 4"),
    (Patchscope, {"target_layers": "stride:0"}, "expected all, stride:2"),
    (Patchscope, {"target_layers": "0,7"}, "layer 7 is not one"),
    (Patchscope, {"prompt": "The capital is"}, "give a text with a {subject} slot"),
    (Patchscope, {"prompt": "token_identty"}, "did you mean 'token_identity'"),
    (Patchscope, {"prompt": "token_identity:99"}, "demonstrations from 1 to 10"),
    (Patchscope, {"placeholder": "several words"}, "is several tokens for tiny-llama"),
    (Patchscope, {"prompt": "{subject} it is"}, "attention sink"),
    (Superscopes, {"components": ()}, "expected some of hidden, mlp, mlp_input"),
    (Superscopes, {"components": ("hidden", "hidden")}, "each once"),
    (Superscopes, {"amplifiers": ()}, "different numbers above 0"),
    (Superscopes, {"amplifiers": (1, 1.0)}, "different numbers above 0"),
    (Superscopes, {"amplifiers": (0,)}, "different numbers above 0"),
    (Superscopes, {"amplifiers": (float("inf"),)}, "different numbers above 0"),
    (Superscopes, {"target_layers": (9,)}, "superscopes: target_layers"),
    (Superscopes, {"placeholder": "several words"}, "superscopes: placeholder"),
]


@pytest.mark.parametrize(("method", "parameters", "message"), REFUSED)
def test_wrong_parameters_are_refused(method: Any, parameters: dict[str, object], message: str) -> None:
    model = tiny.model("llama")
    with pytest.raises(UsageError, match=message):
        method(**parameters).check(Target(model), model)


def test_wrong_words_and_models_are_refused() -> None:
    """What types alone would refuse where they are checked, as they are in these tests."""
    model = tiny.model("llama")
    patchscope, superscopes = Patchscope(), Superscopes()
    patchscope.write, superscopes.components = "over", ("attention",)
    with pytest.raises(UsageError, match="did you mean 'overwrite'"):
        patchscope.check(Target(model), model)
    with pytest.raises(UsageError, match="expected some of hidden"):
        superscopes.check(Target(model), model)
    deep, narrow = Target(model), Target(model)
    deep.n_layers, narrow.d_model = 9, 16
    with pytest.raises(UsageError, match="has 9 layers, verbalizer tiny-llama only 4"):
        Patchscope(("same",)).check(deep, model)
    for method in (Patchscope(), Superscopes()):
        with pytest.raises(UsageError, match="or mapped_patchscope, which learns a map"):
            method.check(narrow, model)


@pytest.fixture(scope="module")
def capitals(smollm2_folder: Path) -> Bench:
    model = load_model(str(smollm2_folder))
    task = load_task("attribute_extraction/country_capital")
    items = tuple(task.items("subject", "test", 40))
    lab = RunContext(model, model, Corpus(model), (9, 15), seed=0)
    return Bench(lab, task.relations["country_capital"], items, ())


def accuracy(made: Bench, scores: Any) -> dict[str, list[float]]:
    place = {answer: i for i, answer in enumerate(made.answers)}
    own = torch.tensor([[answer in item.choices for answer in made.answers] for item in made.items])
    gold = torch.tensor([place[item.answer] for item in made.items])
    right = scores.log_scores.cpu().masked_fill(~own, -torch.inf).argmax(-1) == gold
    return dict(zip(scores.attempts, right.float().mean(-1).T.tolist(), strict=True))


@pytest.mark.model
def test_the_real_model_reads_early_and_not_late(capitals: Bench) -> None:
    """Capitals are recalled by what comes after the target layer: chance is 1/8 where little does."""
    found = accuracy(capitals, CrossFit(lambda: Patchscope((6, 24)), capitals).scores())
    assert min(found["target_layer=6"]) > 0.5
    assert max(found["target_layer=24"]) < 0.35


@pytest.mark.model
def test_the_real_mlps_output_alone_names_no_capital(capitals: Bench) -> None:
    """What one MLP adds is little of what a layer holds, at any amplifier; the residual before it is nearly all."""
    found = accuracy(capitals, CrossFit(Superscopes, capitals).scores())
    assert next(iter(found)) == "hidden x1 -> 0"
    for attempt, by_layer in found.items():
        if attempt.startswith("mlp x"):
            assert max(by_layer) < 0.35, (attempt, by_layer)
        else:
            assert min(by_layer) > 0.35, (attempt, by_layer)
