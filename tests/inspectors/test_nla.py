"""Natural-language autoencoders: explanations, readings and reconstructions by hand; sidecars, and what is refused."""

import copy
import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from lensbench import testing
from lensbench.baselines.activation import question_only
from lensbench.baselines.spec import find_baselines
from lensbench.errors import NotApplicableError, UsageError
from lensbench.harness.bench import Bench
from lensbench.harness.crossfit import CrossFit
from lensbench.inspectors.evidence import Training
from lensbench.inspectors.verbalizers import nla
from lensbench.inspectors.verbalizers.nla import HEAD, NLA, explanation_of, variance
from lensbench.inspectors.verbalizers.nla_meta import SIDECAR, NLAMeta, read_meta
from lensbench.models.corpus import Corpus
from lensbench.models.language_model import LanguageModel
from lensbench.training import nla as training
from lensbench.training.nla import NLATraining, make_settings, train
from tests import chats, tiny
from tests.cuts import cut_and_begun_again
from tests.inspectors.test_verbalizers import NAMES, naive_stream

NEAR = {"rtol": 1e-4, "atol": 5e-4}
SCALE, STEPS, LAYER = 60.0, 6, 3
AV_TEXT = "Say what it is. <concept>{injection_char}</concept> Explain."
AR_TEXT = "A summary: <text>{explanation}</text> <summary>"


def mark_ids(tokenizer: Any) -> tuple[int, int, int]:
    """The token of the mark and those beside it, in the user's turn under the chat template."""
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": AV_TEXT.replace("{injection_char}", "X")}],
        add_generation_prompt=True, tokenize=False,
    )  # fmt: skip
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    (at,) = [i for i, token in enumerate(ids) if tokenizer.decode([token]) == "X"]
    return ids[at], ids[at - 1], ids[at + 1]


def av_module() -> Any:
    """Other weights than the target's, with sharper attention: what is said depends on the slot."""
    module: Any = tiny.module("llama", seed=1)
    with torch.no_grad():
        for block in module.model.layers:
            for part in (block.self_attn.q_proj, block.self_attn.k_proj):
                part.weight *= 10
    return module


def head() -> Tensor:
    return torch.randn(32, 32, generator=torch.Generator().manual_seed(5))


def write_pair(root: Path) -> tuple[Path, Path]:
    """A verbalizer with other weights than the target's, and a reconstructor of its first three blocks."""
    av, ar = root / "av", root / "ar"
    tokenizer = chats.model("chatml").tokens.tokenizer
    av_module().save_pretrained(av)
    cut = tiny.module("llama")
    cut.model.layers = cut.model.layers[:LAYER]
    cut.config.num_hidden_layers = LAYER
    cut.save_pretrained(ar)
    save_file({"weight": head()}, ar / HEAD)
    for folder in (av, ar):
        tokenizer.save_pretrained(folder)
    NLAMeta("av", 32, LAYER - 1, AV_TEXT, SCALE, "X", mark_ids(tokenizer)).write(av)
    ends = tuple(tokenizer(AR_TEXT.replace("{explanation}", "x"))["input_ids"][-3:])
    NLAMeta("ar", 32, LAYER - 1, AR_TEXT, suffix=ends).write(ar)
    return av, ar


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_pair(tmp_path_factory.mktemp("nla"))


@pytest.fixture(scope="module")
def bench() -> Bench:
    model = chats.model("chatml")
    return testing.make_bench(model, Corpus(model), testing.Subjects(NAMES, ("tea", "wine", "milk")), (0, LAYER))


def naive_explanation(vector: Tensor) -> str:
    """Greedy text of the verbalizer, the whole text again for each token, the slot's embedding written by hand."""
    module, tokenizer = av_module(), chats.model("chatml").tokens.tokenizer
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": AV_TEXT.replace("{injection_char}", "X")}],
        add_generation_prompt=True, tokenize=False,
    )  # fmt: skip
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    at, said = ids.index(mark_ids(tokenizer)[0]), []
    for _ in range(STEPS):
        embedded = module.get_input_embeddings()(torch.tensor([ids + said])).detach().clone()
        embedded[0, at] = SCALE * vector / vector.norm()
        with torch.no_grad():
            token = int(module(inputs_embeds=embedded).logits[0, -1].argmax())
        if token == tokenizer.eos_token_id:
            break
        said.append(token)
    return tokenizer.decode(said, skip_special_tokens=True).strip()


def naive_rebuilt(text: str) -> Tensor:
    """The reconstruction, from the whole model's third hidden state, which no norm has touched."""
    tokenizer = chats.model("chatml").tokens.tokenizer
    ids = torch.tensor([tokenizer(AR_TEXT.replace("{explanation}", text))["input_ids"]])
    with torch.no_grad():
        states = tiny.module("llama")(ids, output_hidden_states=True).hidden_states
    return head() @ states[LAYER][0, -1]


def test_explanations_answers_and_reconstructions(pair: tuple[Path, Path], bench: Bench) -> None:
    av, ar = pair
    method = CrossFit(lambda: NLA(str(av), str(ar), steps=STEPS), bench)
    method.inspector.check(bench.context.target, bench.context.model)
    scores = method.scores()
    items = range(len(bench.items))
    vectors = [naive_stream(bench, i, LAYER, 1)[0] for i in items]
    said = [naive_explanation(vector) for vector in vectors]
    assert len(set(said)) > 3
    rebuilt = [naive_rebuilt(text) for text in said]
    mse = [2 - 2 * float(v @ w / (v.norm() * w.norm())) for v, w in zip(vectors, rebuilt, strict=True)]
    np.testing.assert_allclose(scores.measures["mse"][1, 0], mse, rtol=1e-3, atol=1e-3)
    # By coordinate, both at length √d: the same number.
    at_length = [math.sqrt(32) * v / v.norm() for v in (vectors[2], rebuilt[2])]
    assert mse[2] == pytest.approx(float((at_length[0] - at_length[1]).square().mean()), abs=1e-4)
    none = naive_rebuilt("")
    constant = [2 - 2 * float(v @ none / (v.norm() * none.norm())) for v in vectors]
    np.testing.assert_allclose(scores.measures["mse_constant"][1, 0], constant, rtol=1e-3, atol=1e-3)
    for i in items:  # some other item's explanation
        errors = [2 - 2 * float(vectors[i] @ w / (vectors[i].norm() * w.norm())) for w in rebuilt]
        others = [one for j, one in enumerate(errors) if j != i]
        assert min(abs(one - scores.measures["mse_shuffled"][1, 0, i]) for one in others) < 1e-3
    module, tokenizer = bench.context.model.module, bench.context.model.tokens.tokenizer
    firsts = [bench.context.model.tokens.answer_token(answer) for answer in bench.answers]
    for i in (0, 4, 9):
        ids = tokenizer(f"Text: {said[i]}\n{bench.question.replace('{subject}', 'this')}")["input_ids"]
        with torch.no_grad():
            expected = module(torch.tensor([ids])).logits[0, -1].log_softmax(-1)[firsts]
        torch.testing.assert_close(scores.log_scores[1, 0, i], expected, **NEAR)


def test_variance_explained_is_of_the_raw_variance(pair: tuple[Path, Path], bench: Bench) -> None:
    scores = CrossFit(lambda: NLA(str(pair[0]), str(pair[1]), steps=STEPS), bench).scores()
    unit = torch.stack([v / v.norm() for v in (naive_stream(bench, i, LAYER, 1)[0] for i in range(len(bench.items)))])
    base = sum(float((one - unit.mean(0)) @ (one - unit.mean(0))) for one in unit) / len(unit)
    assert variance(unit) == pytest.approx(base, rel=1e-4)
    for name in ("fve", "fve_shuffled", "fve_constant"):
        mean = scores.measures[name.replace("fve", "mse")][1, 0].mean()
        assert scores.measures[name][1, 0].mean() == pytest.approx(1 - mean / base, rel=1e-3)
    assert "mse" not in CrossFit(lambda: NLA(str(pair[0]), steps=1), bench).scores().measures


def test_a_perfect_reconstructor_explains_all(bench: Bench) -> None:
    values = bench.residuals.values[1]
    found = nla.reconstruction_errors(lambda texts: torch.cat([values, values[:1]]), values, ["x"] * len(values))
    np.testing.assert_allclose(found["mse"], 0, atol=1e-5)
    assert found["mse_shuffled"].mean() > 0.01
    assert found["mse_constant"][0] == pytest.approx(0, abs=1e-5)
    assert found["mse_constant"][1:].min() > 0.01


def test_what_is_between_the_tags() -> None:
    assert explanation_of("So: <explanation>\nA town.\n</explanation> More") == "A town."
    assert explanation_of("<explanation>A town that was cut o") == "A town that was cut o"
    assert explanation_of(" no tags ") == "no tags"


def test_sidecars_make_the_round_trip_and_a_second_reader_finds_its_keys(pair: tuple[Path, Path]) -> None:
    for folder, half in zip(pair, ("av", "ar"), strict=True):
        found = read_meta(folder, half)
        text = (folder / SIDECAR).read_text(encoding="utf-8")
        found.write(folder)
        assert (folder / SIDECAR).read_text(encoding="utf-8") == text
        assert found.layer == LAYER
        held = yaml.safe_load(text)
        assert (held["kind"], held["role"], held["d_model"]) == ("nla_model", half, 32)
        assert held["extraction"]["mse_scale"] == pytest.approx(math.sqrt(32))
    av, ar = (yaml.safe_load((folder / SIDECAR).read_text(encoding="utf-8")) for folder in pair)
    tokens = av["tokens"]
    ids = mark_ids(chats.model("chatml").tokens.tokenizer)
    assert [tokens[f"injection_{one}_id"] for one in ("token", "left_neighbor", "right_neighbor")] == list(ids)
    assert (tokens["injection_char"], av["extraction"]["injection_scale"]) == ("X", SCALE)
    assert av["prompt_templates"]["av"] == AV_TEXT
    assert len(ar["tokens"]["critic_suffix_ids"]) == 3


def test_older_names_are_read(pair: tuple[Path, Path], tmp_path: Path) -> None:
    held = yaml.safe_load((pair[1] / SIDECAR).read_text(encoding="utf-8"))
    del held["extraction_layer_index"]
    held |= {"role": "critic", "prompt_templates": {"critic": AR_TEXT}, "critic": {"extraction_layer_index": 2}}
    (tmp_path / SIDECAR).write_text(yaml.safe_dump(held), encoding="utf-8")
    assert read_meta(tmp_path, "ar") == read_meta(pair[1], "ar")


def changed(pair: tuple[Path, Path], root: Path, half: int, change: Callable[[dict[str, Any]], object]) -> NLA:
    """The pair, with another sidecar of one half."""
    held = copy.deepcopy(yaml.safe_load((pair[half] / SIDECAR).read_text(encoding="utf-8")))
    change(held)
    for file in pair[half].iterdir():
        (root / file.name).symlink_to(file)
    (root / SIDECAR).unlink()
    (root / SIDECAR).write_text(yaml.safe_dump(held), encoding="utf-8")
    folders = [str(folder) for folder in pair]
    folders[half] = str(root)
    return NLA(*folders)


WRONG: dict[str, tuple[int, Callable[[dict[str, Any]], object]]] = {
    "role is 'rl'; give the folder whose role is 'av'": (0, lambda held: held.update(role="rl")),
    "no extraction_layer_index": (0, lambda held: held.pop("extraction_layer_index")),
    "its template has no {injection_char}": (0, lambda held: held["prompt_templates"].update(av="Explain.")),
    "is no sidecar of an av ('injection_scale')": (0, lambda held: held["extraction"].pop("injection_scale")),
    "mse_scale is null": (1, lambda held: held["extraction"].update(mse_scale=None)),
    "explains layer 9 of models of width 32": (0, lambda held: held.update(extraction_layer_index=8)),
    "are of different layers": (1, lambda held: held.update(extraction_layer_index=1)),
    "the tokens of the slot and beside it are": (0, lambda held: held["tokens"].update(injection_left_neighbor_id=7)),
    "is several tokens": (0, lambda held: held["tokens"].update(injection_char="XYZZY")),
    "texts end in the tokens": (1, lambda held: held["tokens"].update(critic_suffix_ids=[1, 2])),
}


@pytest.mark.parametrize("message", WRONG)
def test_a_wrong_sidecar_is_refused_in_one_line(
    message: str, pair: tuple[Path, Path], tmp_path: Path, bench: Bench
) -> None:
    half, change = WRONG[message]
    method, context = changed(pair, tmp_path, half, change), bench.context

    def begin() -> None:
        method.check(context.target, context.model)
        method.fit(context.target, context.model, bench.training(method, None, (LAYER,), None))

    with pytest.raises(UsageError) as told:
        begin()
    assert message in str(told.value)
    assert "\n" not in str(told.value)


def test_what_does_not_fit_is_refused(pair: tuple[Path, Path], bench: Bench, tmp_path: Path) -> None:
    for method, message in (
        (NLA(), "nla.av is missing"),
        (NLA(str(tmp_path)), "holds no nla_meta.yaml"),
        (NLA(str(pair[1])), "give the folder whose role is 'av'"),
        (NLA(str(pair[0]), steps=0), "expected 1 or more"),
        (NLA(str(pair[0]), prompt="{question}"), "expected the slots"),
    ):
        with pytest.raises(UsageError) as told:
            method.check(bench.context.target, bench.context.model)
        assert message in str(told.value)
    other = replace(bench, context=replace(bench.context, layers=(2, 3)))
    with pytest.raises(NotApplicableError, match=r"read layers 3, not 2: give --layers 3, or --set nla\.any_layer"):
        CrossFit(lambda: NLA(str(pair[0]), steps=1), other).scores()


def test_conformance(pair: tuple[Path, Path], bench: Bench) -> None:
    done = testing.check_inspector(lambda: NLA(str(pair[0]), str(pair[1]), steps=3), bench)
    assert {"check_layers_are_local", "check_sources_are_withheld", "check_constant_activation"} <= set(done)


def test_rivals_have_no_explanation_or_an_untrained_one(pair: tuple[Path, Path], bench: Bench) -> None:
    method = CrossFit(lambda: NLA(str(pair[0]), steps=STEPS), bench)
    (bare,) = question_only(method)
    assert bare.scores.attempts == (f"Text: this\n{bench.question.replace('{subject}', 'this')}",)
    (plain,) = find_baselines()["untrained"].run(method)
    other = method.inspector.without("training")
    assert other is not None
    other.fit(bench.context.target, bench.context.model, bench.training(other, None, (LAYER,), None))
    assert other.av_ is bench.context.model
    assert float((plain.scores.log_scores - method.scores().log_scores).abs().max()) > 1e-2
    strange = replace(bench, context=replace(bench.context, verbalizer=tiny.model("llama")))
    with pytest.raises(NotApplicableError, match="the plain verbalizer cannot be asked so"):
        find_baselines()["untrained"].run(CrossFit(lambda: NLA(str(pair[0]), steps=STEPS), strange))
    with pytest.raises(NotApplicableError, match="no constant"):
        find_baselines()["learned_constant"].run(method)


# Training.


@pytest.fixture
def small() -> NLATraining:
    return make_settings(
        {"block": 1, "pairs": 16, "steps": 30, "batch": 4, "rank": 2, "learning_rate": 0.01, "mark": "X"}
    )


def base() -> LanguageModel:
    return LanguageModel(tiny.module("llama"), chats.model("chatml").tokens, "tiny-llama")


def test_the_first_blocks_are_those_of_the_model() -> None:
    model = base()
    ids = torch.tensor([[5, 90, 200, 310]])
    torch.testing.assert_close(training.first_blocks(model, 2).text_residuals(ids), model.text_residuals(ids, (2,)))


def test_pairs_are_the_words_around_an_activation() -> None:
    model = base()
    corpus = Corpus(model)
    pairs = training.draw_pairs(model, corpus, 2, 10, 0)
    assert pairs.values.shape == (10, 32)
    window = corpus.windows[0]
    with torch.no_grad():
        states = model.module(window[None], output_hidden_states=True).hidden_states[2][0]
    (place,) = [i for i in range(len(window)) if torch.allclose(states[i], pairs.values[0], rtol=1e-3, atol=1e-3)]
    assert training.FIRST <= place < len(window) - training.MOST
    before, after = (" ".join(part.split()) for part in pairs.texts[0].split(" / "))
    decoded = [
        " ".join(model.tokens.decode(part.tolist()).split()) for part in (window[: place + 1], window[place + 1 :])
    ]
    assert decoded[0].endswith(before)
    assert decoded[1].startswith(after)


def test_training_writes_a_pair_that_is_read(
    small: NLATraining, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = base()
    before = model.fingerprint
    caplog.set_level("INFO", logger="lensbench")
    spent = train(model, Corpus(model), small, tmp_path / "out")
    del model.fingerprint
    assert model.fingerprint == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    (said,) = [one.message for one in caplog.records if "minutes" in one.message]
    tokens = int(said.partition(" ")[0].replace(",", ""))
    assert tokens == pytest.approx(spent.tokens, rel=0.5)
    figures = json.loads((tmp_path / "out" / "lensbench.json").read_text())["figures"]
    assert set(figures) == {"held_out_loss", "fve_true_words", "fve_true_words_shuffled", "fve_true_words_constant"}
    losses = [one.message for one in caplog.records if "at last" in one.message]
    for half, message in zip(("av", "ar"), losses, strict=True):
        first, last = re.findall(r"\d+\.\d+", message)
        assert message.startswith(half)
        assert float(last) < float(first) - 0.05
    context = testing.make_bench(model, Corpus(model), testing.Subjects(NAMES, ("tea", "wine")), (2,)).context
    method = NLA(*(str(tmp_path / "out" / half) for half in ("av", "ar")), steps=2)
    method.check(context.target, model)
    method.fit(context.target, model, Training(corpus=context.corpus))
    assert method.ar_ is not None
    assert method.meta_.layer == 2


def test_training_is_the_same_after_it_was_cut_off(
    small: NLATraining, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few, model = small.model_copy(update={"steps": 3}), base()
    train(model, Corpus(model), few, tmp_path / "whole")
    begun = cut_and_begun_again(lambda out: train(model, Corpus(model), few, out), tmp_path / "cut", monkeypatch)
    assert begun == [0, 1, 2, 0, 1, 1, 2]
    for name in ("av/model.safetensors", "ar/model.safetensors", f"ar/{HEAD}"):
        whole, again = load_file(tmp_path / "whole" / name), load_file(tmp_path / "cut" / name)
        assert all(torch.equal(whole[key], again[key]) for key in whole)


def test_what_cannot_be_trained_is_refused(small: NLATraining, tmp_path: Path) -> None:
    model = base()
    for changes, message in (({"block": 4}, "has blocks 0 to 3"), ({"mark": None}, "give a word of one token")):
        with pytest.raises(UsageError, match=message):
            train(model, Corpus(model), small.model_copy(update=changes), tmp_path / "out")
    with pytest.raises(UsageError, match="unknown setting of nla 'stepps'"):
        make_settings({"stepps": 3})
