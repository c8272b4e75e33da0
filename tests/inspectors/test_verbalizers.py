"""Published verbalizers against naive references: prompts token by token, vectors written by hand, logits."""

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from torch import Tensor

from lensbench import testing
from lensbench.baselines.activation import gaussian, learned_constant, mean_activation, question_only, shuffled
from lensbench.baselines.common import _layers_in_common, in_model
from lensbench.baselines.diagnostics import wrong_position
from lensbench.baselines.text import input_only
from lensbench.baselines.verbalizers import full_context, self_report
from lensbench.errors import LensbenchError, NotApplicableError, UsageError
from lensbench.evaluation.config import make_config
from lensbench.exam.examiner import ExamSettings
from lensbench.harness.bench import Bench
from lensbench.harness.crossfit import CrossFit
from lensbench.harness.recording import require_one_layer
from lensbench.inspectors.catalog import find_inspectors
from lensbench.inspectors.lenses.logit_lens import LogitLens
from lensbench.inspectors.target import Target
from lensbench.inspectors.verbalizers.activation_oracle import ActivationOracle
from lensbench.inspectors.verbalizers.latentqa import LatentQA
from lensbench.inspectors.verbalizers.recipe import (
    AO_CONFIG,
    CONVENTIONS,
    Notes,
    Recipe,
    about_this,
    as_question,
    read_ao_config,
    write_ao_config,
)
from lensbench.models import adapters
from lensbench.models.activations import Residuals
from lensbench.models.chat import Conversation
from lensbench.models.corpus import Corpus
from lensbench.models.language_model import LanguageModel
from lensbench.models.patching import PatchedPass, Patcher
from lensbench.tasks import load_task
from lensbench.testing.checks import check_layers_are_local, check_target_is_not_run
from tests import chats, tiny
from tests.inspectors.test_oracle import write_adapter

NEAR = {"rtol": 1e-4, "atol": 5e-4}
MARK = " a"  # one token of the tiny tokenizer, where real ones have " ?"
NAMES = tuple(f"{first} {last}" for first in ("Bo", "Cy", "Di", "Ed", "Fay") for last in ("Ash", "Birch", "Cole"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(tmp_path_factory.mktemp("lora") / "adapter")


def bench_of(family: str, site: str = "subject", layers: tuple[int, ...] = (0, 2, 3)) -> Bench:
    model = chats.model(family)
    return testing.make_bench(model, Corpus(model), testing.Subjects(NAMES, ("tea", "wine", "milk")), layers, site=site)


def question_of(bench: Bench) -> str:
    """The relation's question, as tasks put it between `Question:` and `Answer:`."""
    (form,) = [form for form in bench.forms if form.startswith("Question: ")]
    return form.removeprefix("Question: ").removesuffix(" Answer:").replace("{subject}", "this")


def naive_stream(bench: Bench, item: int, layer: int, count: int) -> Tensor:
    """The outputs of a block (0: the embeddings) at the last tokens up to the read site, by a plain pass."""
    model, it = bench.context.model, bench.items[item]
    end = it.subject_span[1]
    text = it.source[:end]
    ids = model.tokens.tokenizer(text)["input_ids"]
    with torch.no_grad():
        states = model.module(torch.tensor([ids]), output_hidden_states=True).hidden_states
    return states[layer][0, -count:]


def naive_answers(
    folder: Path, ids: list[int], places: list[int], vectors: Tensor, block: int, how: str, answers: list[list[int]]
) -> list[float]:
    """Log-probabilities of whole answers after a prompt, PEFT's own pass with a hook, one answer at a time."""
    with adapters._quiet_peft():
        module = peft.PeftModel.from_pretrained(tiny.module("llama"), folder).eval().base_model.model

    def hook(_module: Any, _inputs: Any, output: Tensor) -> Tensor:
        changed = output.clone()
        for place, vector in zip(places, vectors, strict=True):
            there = output[0, place]
            changed[0, place] = vector if how == "overwrite" else there + there.norm() * vector / vector.norm()
        return changed

    handle = module.model.layers[block].register_forward_hook(hook)
    found = []
    for answer in answers:
        with torch.no_grad():
            logits = module(torch.tensor([ids + answer])).logits[0].log_softmax(-1)
        found.append(float(sum(logits[len(ids) - 1 + i, token] for i, token in enumerate(answer))))
    handle.remove()
    return found


def telling(whole: list[list[int]], end: int) -> list[list[int]]:
    """As many tokens of each answer as tell it from all others."""
    whole = [[*ids, end] for ids in whole]
    out = []
    for ids in whole:
        n = next(n for n in range(1, len(ids) + 1) if sum(other[:n] == ids[:n] for other in whole) == 1)
        out.append(ids[:n])
    return out


@pytest.mark.parametrize("site", ["subject", "subject/segment:3", "subject/text"])
@pytest.mark.parametrize("family", chats.TEMPLATES)
def test_an_activation_oracle_is_asked_as_published(family: str, site: str, folder: Path) -> None:
    bench = bench_of(family, site)
    tokenizer = bench.context.model.tokens.tokenizer
    scores = CrossFit(lambda: ActivationOracle(str(folder), placeholder=MARK), bench).scores()
    for row, layer in enumerate(bench.context.layers):
        for item in (0, 7):
            text = bench.items[item].source[: bench.items[item].subject_span[1]]
            seen = len(tokenizer(text)["input_ids"]) - 1  # all but token 0
            count = {"subject": 1, "subject/segment:3": 3, "subject/text": seen}[site]
            asked = question_of(bench)
            user = f"Layer: {layer - 1}\n{MARK * count} \n{asked}"
            ids = tokenizer.apply_chat_template(
                [{"role": "user", "content": user}], add_generation_prompt=True, enable_thinking=False,
                return_dict=True,
            )["input_ids"]  # fmt: skip
            mark = tokenizer.convert_tokens_to_ids("Ġa")
            first = next(i for i in range(len(ids)) if ids[i : i + count] == [mark] * count)
            vectors = naive_stream(bench, item, layer, count)
            opened = tokenizer.decode(ids)
            answers = telling(
                [tokenizer(opened + a, add_special_tokens=False)["input_ids"][len(ids) :] for a in bench.answers], 1
            )
            places = list(range(first, first + count))
            expected = naive_answers(folder, ids, places, vectors, 1, "add", answers)
            torch.testing.assert_close(scores.log_scores[row, 0, item], torch.tensor(expected), **NEAR)


@pytest.mark.parametrize("site", ["subject", "subject/segment:3"])
@pytest.mark.parametrize("family", chats.TEMPLATES)
def test_several_layers_are_read_in_one_prompt_as_published(family: str, site: str, folder: Path) -> None:
    """The lines before the question once a layer, its vectors layer by layer; asked at the deepest alone."""
    bench = bench_of(family, site, layers=(3,))
    tokenizer, item = bench.context.model.tokens.tokenizer, 7
    count = 3 if site.endswith("3") else 1
    scores = CrossFit(lambda: ActivationOracle(str(folder), placeholder=MARK, together="1,2,3"), bench).scores()
    user = "".join(f"Layer: {layer - 1}\n{MARK * count} \n" for layer in (1, 2, 3)) + question_of(bench)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": user}], add_generation_prompt=True, enable_thinking=False, return_dict=True
    )["input_ids"]
    mark = tokenizer.convert_tokens_to_ids("Ġa")
    lines = [i for i in range(len(ids)) if ids[i : i + count] == [mark] * count]
    firsts = [i for i in lines if tokenizer.decode(ids[:i]).rstrip().endswith(("Layer: 0", "Layer: 1", "Layer: 2"))]
    assert len(firsts) == 3
    places = [first + k for first in firsts for k in range(count)]
    vectors = torch.cat([naive_stream(bench, item, layer, count) for layer in (1, 2, 3)])
    opened = tokenizer.decode(ids)
    answers = telling(
        [tokenizer(opened + a, add_special_tokens=False)["input_ids"][len(ids) :] for a in bench.answers], 1
    )
    expected = naive_answers(folder, ids, places, vectors, 1, "add", answers)
    torch.testing.assert_close(scores.log_scores[0, 0, item], torch.tensor(expected), **NEAR)


def test_what_is_read_together_is_of_that_layer_and_below(folder: Path) -> None:
    """At other layers one is read alone; no layer above is shown; each baseline changes all of them."""
    bench = bench_of("chatml", layers=(0, 2, 3))

    def make(together: Any = "2,3") -> ActivationOracle:
        return ActivationOracle(str(folder), placeholder=MARK, together=together, any_layer=True)

    check_layers_are_local(make, bench)
    both, alone = (CrossFit(lambda given=given: make(given), bench).scores() for given in ("2,3", False))
    torch.testing.assert_close(both.log_scores[:2], alone.log_scores[:2])
    assert float((both.log_scores[2] - alone.log_scores[2]).abs().max()) > 1e-3
    (mean,) = mean_activation(CrossFit(make, bench))
    torch.testing.assert_close(mean.scores.log_scores, mean.scores.log_scores[:, :, :1].expand(-1, -1, 15, -1), **NEAR)
    (own,) = make().own_prompts(bench.forms)
    assert str(own.text).count("Layer: ") == 2

    class Deeper(LogitLens):
        def layers_read(self, layer: int) -> tuple[int, ...]:
            return (layer, layer + 1)

    with pytest.raises(LensbenchError, match=r"layers_read\(2\) names layer 3"):
        CrossFit(Deeper, bench_of("chatml", layers=(2,))).scores()


def test_what_reads_several_layers_takes_other_models_where_all_are_the_same(folder: Path) -> None:
    """Below an edit a method's own scores are taken; where one of the layers read differs, they are not."""
    bench = bench_of("chatml", layers=(2, 3))
    other = chats.model("chatml")
    method = CrossFit(lambda: ActivationOracle(str(folder), placeholder=MARK, together="1,3", any_layer=True), bench)
    seen = bench.residuals_at((1, 2, 3))
    changed = Residuals(seen.layers, seen.values.clone())
    changed.values[seen.layers.index(1)] += 1.0
    apart = bench.with_model(LanguageModel(other.module, other.tokens, "other"))
    apart.captured.residuals = changed
    assert _layers_in_common(method, method.with_model(apart.context.model)) == (2,)
    found = in_model(method, apart.context.model)
    assert torch.equal(found.scores.log_scores[0], method.scores().log_scores[0])
    assert float((found.scores.log_scores[1] - method.scores().log_scores[1]).abs().max()) > 1e-3
    # Of what others have captured besides, a method of one layer learns nothing.
    lens = CrossFit(LogitLens, bench_of("chatml", layers=(2, 3)))
    same = LanguageModel(other.module, other.tokens, "same")
    lens.bench.residuals_at((1,))
    assert _layers_in_common(lens, lens.with_model(same)) == (2, 3)


def test_layers_that_are_not_asked_about_are_read_beside_those_that_are(folder: Path) -> None:
    """Baselines that read elsewhere read them there, other methods never see them, and what was given stays."""

    def make(*, any_layer: bool = False) -> ActivationOracle:
        return ActivationOracle(str(folder), placeholder=MARK, together="1,2,3", any_layer=any_layer)

    bench, whole = (bench_of("chatml", layers=layers) for layers in ((3,), (1, 2, 3)))
    lens_before = wrong_position(CrossFit(LogitLens, bench))[0].scores.log_scores
    for baseline in (wrong_position, mean_activation, shuffled, gaussian):
        (alone,) = baseline(CrossFit(make, bench))
        with_others = CrossFit(
            lambda: ActivationOracle(str(folder), placeholder=MARK, together="1,2,3", any_layer=True), whole
        )
        (among,) = baseline(with_others)
        torch.testing.assert_close(alone.scores.log_scores[0], among.scores.log_scores[2], **NEAR)
    assert torch.equal(wrong_position(CrossFit(LogitLens, bench))[0].scores.log_scores, lens_before)
    given = bench.with_captured(Residuals((3,), torch.zeros(1, 15, 32)), bench.train_residuals)
    found = given.residuals_at((2,))
    assert (found.layers, float(found.values[1].abs().max())) == ((2, 3), 0.0)
    assert float(found.values[0].abs().max()) > 0
    short = bench_of("chatml", layers=(2, 3))
    check_layers_are_local(partial(make, any_layer=True), short)
    check_target_is_not_run(partial(make, any_layer=True), short)


def test_what_shows_one_vector_refuses_what_reads_several_layers(folder: Path) -> None:
    several = ActivationOracle(str(folder), placeholder=MARK, together="2,3")
    require_one_layer(several, (0, 2), "an exam")
    with pytest.raises(UsageError, match="reads layers 2,3 to answer at layer 3, and an exam shows one vector"):
        require_one_layer(several, (2, 3), "an exam")
    with pytest.raises(UsageError, match="isolate cannot score whole answers"):
        make_config({"isolate": True, "whole_answers": True})
    with pytest.raises(UsageError, match="an exam cannot score whole answers"):
        ExamSettings(make_config({"whole_answers": True}))


def test_slots_may_stand_anywhere(folder: Path) -> None:
    """After the question, too; and one vector may fill several, but not where several layers are read."""
    recipe = Recipe("Q: {question}\n{subject}", layer=2, write="add", placeholder=MARK)
    assert str(recipe.text("Who is {subject}?", (3,), 3)) == "Q: Who is this?\n" + "{subject}" * 3
    assert str(replace(recipe, placeholders=2).text("Who is {subject}?", (3,))).count("{subject}") == 2
    model = chats.model("chatml")
    for given, told in (
        ({"together": 5}, "together = \\(5,\\)"),
        ({"together": True}, "expected numbers of layers, such as 8,16,23, or false"),
        ({"together": "2,3", "placeholders": 2}, "one placeholder each; set no placeholders"),
        ({"together": "2,3", "prompt": "{question}"}, "no place for the activations of several layers.*together=false"),
    ):
        with pytest.raises(UsageError, match=told):
            ActivationOracle(str(folder), **{"placeholder": MARK, **given}).check(Target(model), model)


def test_an_adapter_of_several_layers_alone_is_not_asked_about_one(folder: Path, tmp_path: Path) -> None:
    model, recipe = (
        chats.model("chatml"),
        replace(CONVENTIONS["activation_oracle"], placeholder=MARK, together=((2, 3),)),
    )
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    Notes(recipe, model.fingerprint, str(model.dtype), ()).write(copy)
    with pytest.raises(UsageError, match="was trained to read several layers at once"):
        ActivationOracle(str(copy), together=False).check(Target(model), model)


def test_an_oracle_of_a_constant_is_the_rival_of_its_like(folder: Path, tmp_path: Path) -> None:
    bench = bench_of("chatml", layers=(2, 3))
    model, recipe = bench.context.model, replace(CONVENTIONS["activation_oracle"], placeholder=MARK)
    kinds = {}
    for constant in (False, True):
        kinds[constant] = write_adapter(tmp_path / str(constant), seed=int(constant) + 1)
        notes = Notes(recipe, model.fingerprint, str(model.dtype), (), {"settings": {"constant": constant}})
        notes.write(kinds[constant])
    method = CrossFit(lambda: ActivationOracle(str(kinds[False]), constant=str(kinds[True])), bench)
    method.inspector.check(Target(model), model)
    (rival,) = learned_constant(method)
    ones = bench.with_activations(lambda read: read.change(torch.ones_like))
    plain = ActivationOracle(str(kinds[True]))
    expected = CrossFit(lambda: plain, ones).scores()
    torch.testing.assert_close(rival.scores.log_scores, expected.log_scores, **NEAR)
    with pytest.raises(NotApplicableError, match="learned no constant"):
        learned_constant(CrossFit(lambda: ActivationOracle(str(kinds[False])), bench))
    with pytest.raises(UsageError, match="was trained on a constant vector"):
        plain.check(Target(model), model)
    for wrong in (kinds[False], folder):
        with pytest.raises(UsageError, match="expected an adapter that was trained in the same recipe"):
            ActivationOracle(str(kinds[False]), constant=str(wrong)).check(Target(model), model)


@pytest.mark.parametrize("family", ["chatml", "llama3", "zephyr"])
def test_latentqa_is_asked_as_published(family: str, folder: Path) -> None:
    bench = bench_of(family, "subject/segment:3")
    tokenizer = bench.context.model.tokens.tokenizer
    scores = CrossFit(lambda: LatentQA(str(folder), placeholder=f"{MARK.strip()} "), bench).scores()
    item, row, layer = 4, 1, bench.context.layers[1]
    turns = [
        {"role": "user", "content": "a a "},
        {"role": "reflect", "content": "Sure, I've analyzed the assistant."},
        {"role": "user", "content": question_of(bench)},
        {"role": "reflect", "content": "XYZ"},
    ]
    text = tokenizer.apply_chat_template(turns, tokenize=False).partition("XYZ")[0]
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    header = tokenizer(text[: text.index("a a")], add_special_tokens=False)["input_ids"]
    assert ids[: len(header)] == header
    places = list(range(len(header), len(header) + 3))
    whole = [tokenizer(text + a, add_special_tokens=False)["input_ids"][len(ids) :] for a in bench.answers]
    vectors = naive_stream(bench, item, layer, 3)
    expected = naive_answers(folder, ids, places, vectors, 0, "overwrite", telling(whole, 1))
    torch.testing.assert_close(scores.log_scores[row, 0, item], torch.tensor(expected), **NEAR)


def test_a_template_that_refuses_the_roles_is_one_line(folder: Path) -> None:
    bench = bench_of("gemma")
    with pytest.raises(UsageError, match="an unknown role; give another recipe") as told:
        LatentQA(str(folder), placeholder="a ").check(bench.context.target, bench.context.model)
    assert "\n" not in str(told.value)
    base = tiny.model("llama")
    with pytest.raises(UsageError, match="the tokenizer has no chat template; give another recipe"):
        ActivationOracle(str(folder), placeholder=MARK).check(bench.context.target, base)


def test_methods_of_one_vector_read_the_last_of_a_segment() -> None:
    one, several = (CrossFit(LogitLens, bench_of("chatml", site)).scores() for site in ("subject", "subject/segment:3"))
    torch.testing.assert_close(one.log_scores, several.log_scores, rtol=1e-5, atol=1e-5)


def test_baselines_change_every_vector(folder: Path) -> None:
    bench = bench_of("chatml", "subject/segment:3")
    real = bench.residuals
    assert real.before is not None
    seen: list[Any] = []

    class Looking(ActivationOracle):
        def inspect(self, evidence: Any) -> Any:
            seen.append(evidence.residuals)
            return super().inspect(evidence)

    for baseline in (mean_activation, gaussian, shuffled):
        seen.clear()
        baseline(CrossFit(lambda: Looking(str(folder), placeholder=MARK), bench))
        changed = torch.cat([one.before for one in seen], dim=1)
        assert changed.shape[1] == real.before.shape[1]
        at = [i for i in range(changed.shape[1]) if bool((changed[1:, i] == real.before[1:, i]).all())]
        assert not at, baseline.__name__


def test_rivals_ask_the_same_conversation_without_the_activation(folder: Path) -> None:
    bench = bench_of("llama3")
    method = CrossFit(lambda: ActivationOracle(str(folder), placeholder=MARK), bench)
    (own,) = method.inspector.own_prompts(bench.forms)
    assert isinstance(own.text, Conversation)
    (twin,) = question_only(method)
    tokens = bench.context.model.tokens
    ids = tokens.encode(own.text.replace("{subject}", MARK)).ids
    assert ids.count(0) == 1  # one BOS
    reader = method.inspector.reader(bench.context.model)
    with torch.no_grad():
        logits = reader.module(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
    firsts = [one[0] for one in tokens.telling_ids(bench.answers, own.text)]
    assert all(len(one) == 1 for one in tokens.telling_ids(bench.answers, own.text))
    torch.testing.assert_close(twin.scores.log_scores[0, 0, 0], logits[firsts], **NEAR)
    assert len(input_only(method)) == 2


def test_readers_of_text_are_asked_in_the_same_roles(folder: Path) -> None:
    bench = bench_of("llama3")
    method = CrossFit(lambda: ActivationOracle(str(folder), placeholder=MARK), bench)
    plain, trained = full_context(method)
    (report,) = self_report(method)
    item, tokens = bench.items[3], bench.context.model.tokens
    question = question_of(bench).replace("this", item.subject)
    reader = method.inspector.reader(bench.context.model)
    for outcome, model, before in (
        (plain, bench.context.model, f"{item.source}\n\n"), (trained, reader, f"{item.source}\n\n"),
        (report, bench.context.model, ""),
    ):  # fmt: skip
        ids = tokens.tokenizer.apply_chat_template(
            [{"role": "user", "content": before + question}], add_generation_prompt=True, return_dict=True
        )["input_ids"]
        first = tokens.telling_ids(bench.answers, Conversation((("user", ""), ("assistant", ""))))
        assert all(len(one) == 1 for one in first)
        with torch.no_grad():
            logits = model.module(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        expected = logits[[one[0] for one in first]]
        torch.testing.assert_close(outcome.scores.log_scores[0, 0, 3], expected, **NEAR)


@pytest.mark.parametrize("family", ["chatml", "zephyr"])
def test_whole_answers_are_scored_to_their_last_token(family: str, folder: Path) -> None:
    """By the method and by a rival that asks in text, against plain passes over each whole answer."""
    bench = bench_of(family, layers=(2,))
    bench = replace(bench, context=replace(bench.context, whole_answers=True))
    method = CrossFit(lambda: ActivationOracle(str(folder), placeholder=MARK), bench)
    whole, rival = method.scores().whole, full_context(method)[1].scores.whole
    assert whole is not None
    assert rival is not None
    tokens, asked = bench.context.model.tokens, question_of(bench)

    def ids_of(user: str) -> list[int]:
        return list(tokens.tokenizer.apply_chat_template(
            [{"role": "user", "content": user}], add_generation_prompt=True, return_dict=True
        )["input_ids"])  # fmt: skip

    def answers_after(ids: list[int]) -> list[list[int]]:
        opened = tokens.tokenizer.decode(ids)
        encoded = (tokens.tokenizer(opened + a, add_special_tokens=False)["input_ids"] for a in bench.answers)
        return [[*one[len(ids) :], tokens.turn_end] for one in encoded]

    ids = ids_of(f"Layer: 1\n{MARK} \n{asked}")
    mark = tokens.tokenizer.convert_tokens_to_ids("Ġa")
    item = 5
    expected = naive_answers(
        folder, ids, [ids.index(mark)], naive_stream(bench, item, 2, 1), 1, "add", answers_after(ids)
    )
    torch.testing.assert_close(whole[0, 0, item], torch.tensor(expected), **NEAR)
    ids = ids_of(f"{bench.items[item].source}\n\n" + asked.replace("this", bench.items[item].subject))
    nothing = torch.zeros(0, 32)
    expected = naive_answers(folder, ids, [], nothing, 1, "add", answers_after(ids))
    torch.testing.assert_close(rival[0, 0, item], torch.tensor(expected), **NEAR)
    sampled = CrossFit(lambda: ActivationOracle(str(folder), placeholder=MARK, samples=1), bench).scores()
    columns = bench.measures(bench.items, sampled, (2,))
    told = {
        a for a, name in zip(columns["attempt"], columns["metric"], strict=True) if name == "accuracy_whole_answers"
    }
    assert told == {"default"}, "samples are of the first words alone"
    assert columns["metric"].count("accuracy_whole_answers") == len(bench.items)


def test_sampled_answers_are_a_second_attempt(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = bench_of("chatml", layers=(2,))
    said = iter(["it is tea", "wine or tea", "nothing", "Tea."])

    def drawn(_self: Any, _prompt: Any, vectors: Tensor, _at: Any, _steps: int, seed: int | None = None) -> Any:
        assert seed is not None
        return (next(said),) * len(vectors)

    monkeypatch.setattr(Patcher, "generate", drawn)
    method = CrossFit(lambda: ActivationOracle(str(folder), placeholder=MARK, samples=4), bench)
    outcome = method.outcome()
    scores = outcome.scores
    assert scores.attempts == ("default", "samples=4")
    shares = scores.log_scores[0, 1].exp()
    assert bench.answers == ("milk", "tea", "wine")
    torch.testing.assert_close(shares, torch.tensor([[0.0, 0.5, 0.25]]).expand_as(shares))
    assert set(scores.measures["confidence"][0, 1]) == {0.5}
    columns = bench.measures(bench.items, scores, (2,))
    rows = [
        row for row in zip(columns["attempt"], columns["metric"], columns["value"], strict=True) if row[0] != "default"
    ]
    found = {metric: value for _, metric, value in rows}
    right = np.array([item.answer == "tea" for item in bench.items])
    assert found["calibration_error"] == pytest.approx(abs(right.mean() - 0.5))
    assert found["confidence_auroc"] == 0.5


def test_layers_that_it_was_not_trained_on_are_refused(folder: Path) -> None:
    bench = bench_of("chatml", layers=(2, 3))
    with pytest.raises(
        NotApplicableError, match=r"layers 2,4, not 3: give --layers 2,4, or --set activation_oracle\.any"
    ):
        CrossFit(lambda: ActivationOracle(str(folder), placeholder=MARK, layers=(2, 4)), bench).scores()
    asked = CrossFit(lambda: ActivationOracle(str(folder), placeholder=MARK, layers=(2,), any_layer=True), bench)
    assert asked.scores().log_scores.shape == (2, 1, 15, 3)


def test_every_relation_is_asked_as_a_question() -> None:
    task = load_task("attribute_extraction")
    for relation in task.relations.values():
        asked = about_this(as_question((*relation.inspection, *relation.questions)))
        assert asked.endswith("?"), relation.name
        assert "the this" not in asked
        assert "{" not in asked


def test_the_catalogue_knows_what_a_method_inherits() -> None:
    known = find_inspectors()
    for name in ("activation_oracle", "latentqa"):
        for what in ("reads", "cost", "tries", "parameters"):
            assert getattr(known[name], what) == getattr(known["oracle"], what)
        assert known[name].summary != known["oracle"].summary
    assert known["tuned_lens"].reads == ("activation",)


def test_ao_config_makes_the_round_trip(tmp_path: Path) -> None:
    recipe = CONVENTIONS["activation_oracle"]
    write_ao_config(tmp_path, recipe)
    held = json.loads((tmp_path / AO_CONFIG).read_text())
    assert (held["hook_onto_layer"], held["special_token"], held["schema_version"]) == (1, " ?", 1)
    assert held["prefix_template"] == "Layer: {layer}\\n{special_token} * {num_positions} \\n"
    assert read_ao_config(tmp_path) == recipe
    (tmp_path / AO_CONFIG).write_text(json.dumps({**held, "act_layer_combinations": [[9], [18], [27]]}))
    found = read_ao_config(tmp_path)
    assert found is not None
    assert found.layers == (10, 19, 28)
    several = {**held, "act_layer_combinations": [[9], [9, 18], [21, 22, 23]]}
    (tmp_path / AO_CONFIG).write_text(json.dumps(several))
    found = read_ao_config(tmp_path)
    assert found is not None
    assert (found.layers, found.together) == ((10,), ((10, 19), (22, 23, 24)))
    assert found.trained_at == (10, 19, 24)
    assert [found.layers_read(layer) for layer in (10, 19, 20, 24)] == [(10,), (10, 19), (20,), (22, 23, 24)]
    write_ao_config(tmp_path, found)
    assert json.loads((tmp_path / AO_CONFIG).read_text()) == several


WRONG_CONFIGS = {
    "act_layer_combinations is empty": {"act_layer_combinations": [[9], []]},
    "steering_coefficient is 2": {"steering_coefficient": 2.0},
    "has no {special_token}": {"prefix_template": "Layer: {layer}\\n"},
    "is no configuration of an Activation Oracle": {"hook_onto_layer": "second"},
}


@pytest.mark.parametrize("message", WRONG_CONFIGS)
def test_a_configuration_of_another_kind_is_refused(message: str, tmp_path: Path) -> None:
    write_ao_config(tmp_path, CONVENTIONS["activation_oracle"])
    held = json.loads((tmp_path / AO_CONFIG).read_text())
    (tmp_path / AO_CONFIG).write_text(json.dumps(held | WRONG_CONFIGS[message]))
    with pytest.raises(UsageError) as told:
        read_ao_config(tmp_path)
    assert message in str(told.value)
    assert "\n" not in str(told.value)


def test_several_vectors_are_one_a_slot() -> None:
    """Written in a shared pass and in a plain one: the same, and not what one vector for all slots gives."""
    model = chats.model("chatml")
    made = replace(CONVENTIONS["activation_oracle"], placeholder=MARK).make(model, "What is {subject}?", (3,), 3)
    vectors = torch.randn(2, 3 * 32, generator=torch.Generator().manual_seed(0))
    at = torch.tensor([2, 2])
    shared, plain = (PatchedPass(model, made, mode).final_residuals(vectors, at) for mode in ("shared", "plain"))
    torch.testing.assert_close(shared, plain, **NEAR)
    same = PatchedPass(model, made, "plain").final_residuals(vectors[:, :32], at)
    assert float((same - plain).abs().max()) > 1e-2
