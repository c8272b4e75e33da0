"""SelfIE adapters: against inputs_embeds written by hand, files against a second reader, rivals, and training."""

import json
import math
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from lensbench import testing
from lensbench.baselines.spec import find_baselines
from lensbench.errors import NotApplicableError, UsageError
from lensbench.harness.bench import Bench
from lensbench.harness.crossfit import CrossFit
from lensbench.inspectors.patchscopes.patchscope import Patchscope
from lensbench.inspectors.verbalizers.activation_oracle import ActivationOracle
from lensbench.inspectors.verbalizers.recipe import Notes, read_notes
from lensbench.inspectors.verbalizers.selfie_adapter import (
    ADAPTER,
    KINDS,
    MEANS,
    RECIPE,
    SelfIEAdapter,
    SoftToken,
    read_soft_token,
)
from lensbench.models.corpus import Corpus
from lensbench.models.gradients import Lesson, answer_losses
from lensbench.models.language_model import LanguageModel
from lensbench.models.optimization import Descent
from lensbench.models.patching.patcher import patcher_of
from lensbench.models.tokens import Tokens
from lensbench.training import selfie
from lensbench.training.selfie import SelfIETraining, make_settings, train
from tests import chats, tiny
from tests.cuts import cut_and_begun_again
from tests.inspectors.test_oracle import write_adapter
from tests.inspectors.test_verbalizers import MARK, NAMES, naive_stream, telling

NEAR = {"rtol": 1e-4, "atol": 5e-4}
LAYERS = (0, 2, 3)


def bench_of(family: str = "chatml", kind: str = "llama", answers: tuple[str, ...] = ("tea", "teas", "milk")) -> Bench:
    model = chats.model(family, kind)
    return testing.make_bench(model, Corpus(model), testing.Subjects(NAMES, answers), LAYERS)


def weights_of(kind: str, seed: int = 0) -> dict[str, Tensor]:
    """Numbers as a training could have left them, on the scale of the tiny models' embeddings."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"log_scale": (1,), "bias": (32,), "U": (32, 4), "V": (32, 4), "weight": (32, 32)}
    return {name: torch.randn(shapes[name], generator=generator) for name in KINDS[kind]}


def write_published(file: Path, kind: str, **header: str) -> Path:
    """Write a file as the published code does."""
    config = {"projection": {"type": kind, "normalize_input": True, "init_scale": 2.0, "low_rank_rank": 4}}
    save_file(weights_of(kind), file, header or {"config_json": json.dumps(config), "model_dim": "32"})
    return file


def naive_token(kind: str, x: Tensor) -> Tensor:
    """The soft token of one activation, as the paper has it."""
    own = weights_of(kind)
    unit = x / (x.norm() + 1e-8)
    if kind == "full_rank":
        return own["weight"] @ unit + own["bias"]
    found = torch.zeros(32)
    if "log_scale" in own:
        found = found + math.exp(float(own["log_scale"])) * unit
    if "U" in own:
        found = found + own["V"] @ (own["U"].T @ unit)
    return found + own.get("bias", torch.zeros(32))


def naive_prompt(tokenizer: Any) -> tuple[str, list[int], list[int]]:
    """The published prompt under a chat template: its text, its tokens, and where the two X are."""
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": 'What is the meaning of "X"?'}],
        add_generation_prompt=True, enable_thinking=False, tokenize=False,
    )  # fmt: skip
    text += 'The meaning of "X" is "'
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    places = [i for i, token in enumerate(ids) if tokenizer.decode([token]) == "X"]
    assert len(places) == 2
    return text, ids, places


def naive_scores(module: Any, tokenizer: Any, soft: Tensor, answers: tuple[str, ...]) -> list[float]:
    """Log-probabilities of the answers, as many tokens of each as tell it from the others, one pass an answer."""
    text, ids, places = naive_prompt(tokenizer)
    whole = [tokenizer(f'{text}{a}"', add_special_tokens=False)["input_ids"][len(ids) :] for a in answers]
    found = []
    for answer in telling(whole, 1):
        embedded = module.get_input_embeddings()(torch.tensor([ids + answer])).clone()
        embedded[0, places] = soft
        with torch.no_grad():
            logits = module(inputs_embeds=embedded).logits[0].log_softmax(-1)
        found.append(float(sum(logits[len(ids) - 1 + i, token] for i, token in enumerate(answer))))
    return found


CASES = [(family, "scalar_affine", "llama") for family in chats.TEMPLATES]
CASES += [("chatml", kind, "llama") for kind in KINDS if kind != "scalar_affine"]
# Its embeddings are multiplied before layer 0: a soft token is not.
CASES += [("gemma", "scalar_affine", "gemma3_text")]


@pytest.mark.parametrize(("family", "kind", "architecture"), CASES)
def test_it_is_asked_as_published(family: str, kind: str, architecture: str, tmp_path: Path) -> None:
    bench = bench_of(family, architecture)
    model, file = bench.context.model, write_published(tmp_path / "published.safetensors", kind)
    method = CrossFit(lambda: SelfIEAdapter(str(file)), bench)
    method.inspector.check(bench.context.target, model)
    scores = method.scores()
    tokenizer = model.tokens.tokenizer
    for row, layer in enumerate(LAYERS):
        for item in (0, 7):
            soft = naive_token(kind, naive_stream(bench, item, layer, 1)[0])
            expected = naive_scores(model.module, tokenizer, soft, bench.answers)
            torch.testing.assert_close(scores.log_scores[row, 0, item], torch.tensor(expected), **NEAR)
    (own,) = method.inspector.own_prompts(bench.forms)
    _, ids, places = naive_prompt(tokenizer)
    prompt = RECIPE.make(model, "", (0,))
    assert prompt.ids == tuple(ids) == model.tokens.encode(own.text.replace("{subject}", "X")).ids
    assert prompt.positions == tuple(places)


def test_an_answer_that_begins_another_is_told_by_the_quotation_mark() -> None:
    tokens, text = chats.model("chatml").tokens, RECIPE.text("", (0,))
    short, long = tokens.telling_ids(("tea", "tea house"), text)
    assert tokens.decode(short) == 'tea"'
    assert tokens.decode(long).startswith("tea h")


def test_a_relations_own_question_can_be_put(tmp_path: Path) -> None:
    """With `{question}`, the soft token is in the place of the subject: a Patchscope at layer 0 with other vectors."""
    bench, file = bench_of(), write_published(tmp_path / "published.safetensors", "scalar_affine")
    ours = CrossFit(lambda: SelfIEAdapter(str(file), prompt="{question}", placeholder=MARK), bench).scores()
    soft = read_soft_token(file)
    moved = CrossFit(lambda: Patchscope((0,), placeholder=MARK), bench).with_activations(
        lambda captured: captured.change(lambda values: soft(values.flatten(0, 1)).reshape(values.shape))
    )
    torch.testing.assert_close(ours.log_scores, moved.scores().log_scores, **NEAR)


def read_by_hand(file: Path) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Read a safetensors file byte by byte."""
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    table = json.loads(content[8 : 8 + length])
    header, data = table.pop("__metadata__"), content[8 + length :]
    return header, {
        name: np.frombuffer(data[slice(*one["data_offsets"])], np.float32).reshape(one["shape"])
        for name, one in table.items()
    }


@pytest.mark.parametrize("kind", KINDS)
def test_files_make_the_round_trip(kind: str, tmp_path: Path) -> None:
    """A second reader finds what the published code looks for, and the file read again is the same map."""
    ours = SoftToken(kind, weights_of(kind), scale=2.0)
    ours.write(tmp_path / "ours.safetensors", steps=7)
    header, tensors = read_by_hand(tmp_path / "ours.safetensors")
    projection = json.loads(header["config_json"])["projection"]
    assert (projection["type"], projection["normalize_input"], projection["init_scale"]) == (kind, True, 2.0)
    assert projection["low_rank_rank"] == (4 if "U" in KINDS[kind] else None)
    assert header["global_step"] == "7"
    assert kind == "scale_only" or header["model_dim"] == "32"
    assert set(tensors) == KINDS[kind]
    x = torch.randn(32, generator=torch.Generator().manual_seed(1))
    for made in (ours, read_soft_token(tmp_path / "ours.safetensors")):
        torch.testing.assert_close(made(x[None])[0], naive_token(kind, x))
    assert all(np.array_equal(tensors[name], weight.numpy()) for name, weight in ours.weights.items())


def test_a_header_without_a_configuration_is_read_too(tmp_path: Path) -> None:
    file = write_published(
        tmp_path / "flat.safetensors", "scalar_affine", projection_type="scalar_affine", normalize_input="false"
    )
    found = read_soft_token(file)
    assert (found.kind, found.normalized) == ("scalar_affine", False)
    x = torch.full((1, 32), 3.0)
    own = weights_of("scalar_affine")
    torch.testing.assert_close(found(x), own["log_scale"].exp() * x + own["bias"])


WRONG: dict[str, Callable[[Path], object]] = {
    "unknown kind of SelfIE adapter": lambda file: write_published(file, "scalar_affine", projection_type="mlp"),
    "scale_only has log_scale": lambda file: write_published(file, "scalar_affine", projection_type="scale_only"),
    "not finite": lambda file: save_file(
        {"log_scale": torch.tensor([torch.nan]), "bias": torch.zeros(32)}, file, {"projection_type": "scalar_affine"}
    ),
    "is for models of width 8; tiny-chatml has 32": lambda file: save_file(
        {"log_scale": torch.zeros(1), "bias": torch.zeros(8)}, file, {"projection_type": "scalar_affine"}
    ),
    "cannot be read": lambda file: file.write_bytes(b"broken"),
    "None": lambda file: save_file({"bias": torch.zeros(32)}, file),
    "No such file": lambda file: None,
}


@pytest.mark.parametrize("message", WRONG)
def test_a_wrong_file_is_refused_in_one_line(message: str, tmp_path: Path) -> None:
    bench, file = bench_of(), tmp_path / "wrong.safetensors"
    WRONG[message](file)
    with pytest.raises(UsageError) as told:
        SelfIEAdapter(str(file)).check(bench.context.target, bench.context.model)
    assert message in str(told.value)
    assert "\n" not in str(told.value)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    file = write_published(tmp_path / "a.safetensors", "scalar_affine")
    bench = bench_of()
    with pytest.raises(UsageError, match="`lensbench fit selfie_adapter --out FOLDER` trains one"):
        SelfIEAdapter().check(bench.context.target, bench.context.model)
    with pytest.raises(UsageError, match=r"no chat template; give selfie_adapter\.prompt, a plain text"):
        SelfIEAdapter(str(file)).check(bench.context.target, tiny.model("llama"))
    with pytest.raises(NotApplicableError, match=r"layers 2, not 3: give --layers 2, or --set selfie_adapter\.any"):
        CrossFit(lambda: SelfIEAdapter(str(file), layers=(2,)), bench).scores()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as a training writes it, with means that matter."""
    model = chats.model("chatml")
    write_published(tmp_path / ADAPTER, "scalar_affine")
    means = torch.randn(5, 32, generator=torch.Generator().manual_seed(2))
    save_file({str(layer): mean.clone() for layer, mean in enumerate(means)}, tmp_path / MEANS)
    Notes(replace(RECIPE, layers=(2, 3)), model.fingerprint, str(model.dtype), ("milk",)).write(tmp_path)
    return tmp_path


def test_the_mean_of_the_layer_is_subtracted(folder: Path) -> None:
    bench, means = bench_of(), load_file(folder / MEANS)
    model = bench.context.model
    scores = CrossFit(lambda: SelfIEAdapter(str(folder)), bench).scores()
    for row, layer in enumerate(LAYERS):
        soft = naive_token("scalar_affine", naive_stream(bench, 3, layer, 1)[0] - means[str(layer)])
        expected = naive_scores(model.module, model.tokens.tokenizer, soft, bench.answers)
        torch.testing.assert_close(scores.log_scores[row, 0, 3], torch.tensor(expected), **NEAR)
    save_file({"2": means["2"]}, folder / MEANS)
    with pytest.raises(NotApplicableError, match="no mean activation of layer 0"):
        CrossFit(lambda: SelfIEAdapter(str(folder)), bench).scores()


def test_conformance(folder: Path) -> None:
    done = testing.check_inspector(lambda: SelfIEAdapter(str(folder)), bench_of())
    assert {"check_layers_are_local", "check_sources_are_withheld", "check_constant_activation"} <= set(done)


def test_the_notes_beside_it_are_minded(folder: Path) -> None:
    bench, notes = bench_of(), read_notes(folder)
    assert notes is not None
    made = SelfIEAdapter(str(folder))
    made.check(bench.context.target, bench.context.model)
    assert [file.name for file in made.files()] == [ADAPTER, MEANS, "lensbench.json"]
    replace(notes, base="0" * 16).write(folder)
    with pytest.raises(UsageError, match="was trained on another model than tiny-chatml"):
        made.check(bench.context.target, bench.context.model)
    replace(notes, answers=("milk", "tea")).write(folder)
    with pytest.raises(NotApplicableError, match="2 of the 3 answers"):
        CrossFit(lambda: SelfIEAdapter(str(folder)), bench).scores()


# Rivals.


def run(baseline: str, make: Callable[[], Any], bench: Bench) -> Tensor:
    (outcome,) = find_baselines()[baseline].run(CrossFit(make, bench))
    return outcome.scores.log_scores


def test_the_learned_constant_is_the_bias_alone(folder: Path) -> None:
    bench = bench_of()
    model = bench.context.model
    found = run("learned_constant", lambda: SelfIEAdapter(str(folder)), bench)
    expected = naive_scores(model.module, model.tokens.tokenizer, weights_of("scalar_affine")["bias"], bench.answers)
    torch.testing.assert_close(found[:, 0], torch.tensor(expected).expand(found[:, 0].shape), **NEAR)


def test_untrained_is_a_scaled_activation(folder: Path) -> None:
    bench, means = bench_of(), load_file(folder / MEANS)
    model = bench.context.model
    found = run("untrained", lambda: SelfIEAdapter(str(folder)), bench)
    x = naive_stream(bench, 3, 2, 1)[0] - means["2"]
    expected = naive_scores(model.module, model.tokens.tokenizer, 2 * x / x.norm(), bench.answers)
    torch.testing.assert_close(found[1, 0, 3], torch.tensor(expected), **NEAR)


def test_an_untrained_oracle_is_one_whose_adapter_does_nothing(tmp_path: Path) -> None:
    bench = bench_of()
    real, zero = write_adapter(tmp_path / "real"), write_adapter(tmp_path / "zero", zero=True)
    found = run("untrained", lambda: ActivationOracle(str(real), placeholder=MARK), bench)
    expected = CrossFit(lambda: ActivationOracle(str(zero), placeholder=MARK), bench).scores().log_scores
    torch.testing.assert_close(found, expected, **NEAR)
    own = CrossFit(lambda: ActivationOracle(str(real), placeholder=MARK), bench).scores().log_scores
    assert float((own - expected).abs().max()) > 0.1


def test_where_there_is_nothing_to_leave_out(tmp_path: Path) -> None:
    bench, file = bench_of(), write_published(tmp_path / "a.safetensors", "scale_only")
    with pytest.raises(NotApplicableError, match="has learned no constant token"):
        run("learned_constant", lambda: SelfIEAdapter(str(file)), bench)
    for name in ("learned_constant", "untrained"):
        with pytest.raises(NotApplicableError, match="beforehand"):
            run(name, lambda: Patchscope(placeholder=MARK), bench)


# Training.


def base() -> LanguageModel:
    return LanguageModel(tiny.module("llama"), chats.model("chatml").tokens, "tiny-llama")


SMALL = {
    "relations": ["country_continent", "verb_past"], "subjects": 8, "batch": 4, "layers": "2,3",
    "kind": "scalar_affine",
}  # fmt: skip


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> SelfIETraining:
    monkeypatch.setattr(selfie, "PROSE_TOKENS", 256)
    return make_settings({**SMALL, "steps": 60})


def test_losses_and_gradients_are_those_of_inputs_embeds() -> None:
    """One row at a time, the whole text, autograd through the soft token: what sharing a prefix must not change."""
    model = base()
    prompt, generator = RECIPE.make(model, "", (0,)), torch.Generator().manual_seed(0)
    answers = ((40, 50, 60), (70,))
    vectors = [torch.randn(1, 32, generator=generator, requires_grad=True) for _ in answers]
    lessons = [Lesson(prompt, answer, vector) for answer, vector in zip(answers, vectors, strict=True)]
    assert patcher_of(model).proved_mode(prompt) == "shared"
    for frozen in (False, True):
        with torch.enable_grad():
            found = answer_losses(model, lessons, 0, frozen=frozen)
            slopes = torch.autograd.grad(found.sum(), vectors)
        for loss, slope, answer, vector in zip(found, slopes, answers, vectors, strict=True):
            with torch.enable_grad():
                ids = torch.tensor([prompt.ids + answer])
                embedded = model.module.get_input_embeddings()(ids).detach().clone()
                embedded[0, list(prompt.positions)] = vector
                logits = model.module(inputs_embeds=embedded).logits[0, len(prompt.ids) - 1 : -1]
                expected = F.cross_entropy(logits, torch.tensor(answer))
                (steepest,) = torch.autograd.grad(expected, [vector])
            torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(slope, steepest, rtol=1e-3, atol=1e-4)


def test_training_learns_and_tells_what_it_did(small: SelfIETraining, tmp_path: Path) -> None:
    model = base()
    before = model.fingerprint
    # A random model has nothing to say; what it is to say most often can be learned.
    fast = small.model_copy(update={"learning_rate": 0.3, "prose": 0.0})
    spent = train(model, Corpus(model), fast, tmp_path / "out")
    del model.fingerprint
    assert model.fingerprint == before
    assert spent.tokens > 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [ADAPTER, "lensbench.json", MEANS]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    notes = read_notes(tmp_path / "out")
    assert notes is not None
    figures = notes.more["figures"]
    assert figures["held_out_loss"] < figures["held_out_loss_untrained"] - 0.03
    assert figures["held_out_loss_constant_token"] < figures["held_out_loss_untrained"] - 0.03
    assert figures["held_out_loss_no_activation"] not in (figures["held_out_loss"], figures["held_out_loss_untrained"])
    assert notes.recipe.layers == (2, 3)
    assert {"Asia", "Europe"} <= set(notes.answers)
    SelfIEAdapter(str(tmp_path / "out")).check(bench_of().context.target, model)
    soft = read_soft_token(tmp_path / "out" / ADAPTER)
    assert soft.kind == "scalar_affine"
    assert float(soft.weights["bias"].norm()) > 0.1


def test_training_is_the_same_again_and_after_it_was_cut_off(
    small: SelfIETraining, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few, model = small.model_copy(update={"steps": 6, "kind": "scalar_affine_plus_low_rank", "rank": 2}), base()
    train(model, Corpus(model), few, tmp_path / "whole")
    begun = cut_and_begun_again(lambda out: train(model, Corpus(model), few, out), tmp_path / "cut", monkeypatch)
    assert begun == [0, 1, 2, 3, 4, 4, 5]
    for name in (ADAPTER, MEANS):
        whole, again = load_file(tmp_path / "whole" / name), load_file(tmp_path / "cut" / name)
        assert all(torch.equal(whole[key], again[key]) for key in whole)
    assert (tmp_path / "whole" / "lensbench.json").read_bytes() == (tmp_path / "cut" / "lensbench.json").read_bytes()


def test_descent_is_adamw_with_a_cosine() -> None:
    """By hand: decay besides the step, gradients of a length of 1/2 at most, a rate that falls to zero."""
    weight = torch.tensor([3.0, 4.0], requires_grad=True)
    learner = Descent({"w": weight}, 0.1, 20, decay=0.01, clip=0.5, cosine=True)
    own, first, second = torch.tensor([3.0, 4.0]), torch.zeros(2), torch.zeros(2)
    for step in range(20):
        with torch.enable_grad():
            learner.step(step, (weight**2).sum()[None])
        slope = 2 * own
        slope = slope * min(1.0, 0.5 / float(slope.norm()))
        rate = 0.1 * min((step + 1) / 10, (1 + math.cos(math.pi * step / 20)) / 2)
        first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2
        moved = (first / (1 - 0.9 ** (step + 1))) / ((second / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8)
        own = own * (1 - rate * 0.01) - rate * moved
        torch.testing.assert_close(weight.detach(), own, rtol=1e-4, atol=1e-5)


def test_what_is_taught(small: SelfIETraining) -> None:
    """Names, answers and words; no subject of fold 0; vectors less the mean of the taught subjects."""
    model = base()
    labels = selfie.Labels(model, Corpus(model), small)
    soft = SoftToken("scale_only", {"log_scale": torch.zeros(1)}, normalized=False)
    taught, held_out = ({fact.labels[0] for fact in facts} for facts in (labels.taught, labels.held_out))
    assert taught
    assert held_out
    assert not taught & held_out
    asked, again = labels.batch(3, soft), labels.batch(3, soft)
    assert all(
        torch.equal(one.vectors, same.vectors) and one.answer == same.answer
        for one, same in zip(asked, again, strict=True)
    )
    said = {model.tokens.decode(one.answer[:-1]) for step in range(60) for one in labels.batch(step, soft)}
    assert {one.answer[-1] for one in asked} == {model.tokens.turn_end}
    assert all(text.endswith('"') for text in said)
    names, answers = ({f'{fact.labels[i]}"' for fact in labels.taught} for i in (0, 1))
    words = {f'{word.labels[0]}"' for word in labels.words}
    assert said <= names | answers | words
    assert said & names
    assert said & answers
    assert said & (words - names - answers)
    places = [fact.place for fact in labels.taught]
    torch.testing.assert_close(labels._values[:, places].mean(1), torch.zeros(2, 32), rtol=0, atol=1e-4)


def test_words_are_read_where_they_end(small: SelfIETraining) -> None:
    model = base()
    corpus = Corpus(model)
    found = selfie._words(corpus, model, 0)
    assert found
    window = next(w for w in corpus.windows[:2] if found[0][0] in model.tokens.decode(w.tolist()))
    with torch.no_grad():
        states = model.module(window[None], output_hidden_states=True).hidden_states[2][0]
    word, values = found[0]
    at = [i for i, token in enumerate(window.tolist()) if model.tokens.decode([token]) == f" {word}"]
    assert any(torch.allclose(states[i], values[2], rtol=1e-3, atol=1e-3) for i in at)


WRONG_SETTINGS = {
    "kind=mlp": "unknown selfie_adapter: kind 'mlp'",
    "scale=0": "expected more than 0",
    "rate=1": "unknown setting of selfie_adapter 'rate'",
    "relations=country_capitol": "did you mean 'country_capital'",
}


@pytest.mark.parametrize("setting", WRONG_SETTINGS)
def test_wrong_settings_are_refused_before_a_model_is_loaded(setting: str) -> None:
    from lensbench.cli.options import read_value

    name, _, value = setting.partition("=")
    with pytest.raises(UsageError) as error:
        make_settings({name: read_value(value)})
    assert WRONG_SETTINGS[setting] in str(error.value)


def test_a_model_without_a_template_is_refused(small: SelfIETraining, tmp_path: Path) -> None:
    plain = LanguageModel(tiny.module("llama"), Tokens(tiny.tokenizer()), "plain")
    with pytest.raises(UsageError, match="train one for a model that has a chat template"):
        train(plain, Corpus(plain), small, tmp_path / "out")
