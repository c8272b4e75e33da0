"""Trained verbalizers: adapters read and refused, the two conventions, and training."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from lensbench import testing
from lensbench.baselines.activation import question_only
from lensbench.baselines.text import input_only
from lensbench.errors import LensbenchError, NotApplicableError, UsageError
from lensbench.harness.bench import Bench
from lensbench.harness.crossfit import CrossFit
from lensbench.inspectors.patchscopes.patchscope import Patchscope
from lensbench.inspectors.target import Target
from lensbench.inspectors.verbalizers.oracle import Oracle
from lensbench.inspectors.verbalizers.recipe import CONVENTIONS, Notes, read_notes
from lensbench.models import adapters
from lensbench.models.adapters import FreshAdapter, adapted, read_adapter
from lensbench.models.corpus import Corpus
from lensbench.models.gradients import Lesson, answer_losses
from lensbench.models.language_model import LanguageModel
from lensbench.models.patching import PatchedPass, make_prompt
from lensbench.models.prompting import score_next_tokens
from lensbench.models.sources import ADAPTER
from lensbench.models.tokens import Tokens
from lensbench.training import verbalizers
from lensbench.training.verbalizers import OracleTraining, make_settings, train
from tests import chats, tiny
from tests.command import lensbench, refused
from tests.cuts import cut_and_begun_again

EXACT = {"rtol": 1e-4, "atol": 1e-4}
CONFIG, WEIGHTS = ADAPTER, adapters.WEIGHTS
# With it, the tokenizer of the tiny models gives the placeholder a token of its own.
PLACEHOLDER = " a"


def write_adapter(folder: Path, kind: str = "llama", *, zero: bool = False, seed: int = 1) -> Path:
    """Have PEFT write a LoRA of a tiny model, with B other than zero."""
    torch.manual_seed(seed)
    # PEFT refuses some of Mamba's layers.
    modules = ["in_proj", "x_proj"] if kind == "mamba" else "all-linear"
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=modules, task_type="CAUSAL_LM")
    with adapters._quiet_peft():
        wrapped = peft.get_peft_model(tiny.module(kind), config)
    for name, weight in wrapped.named_parameters():
        if "lora_B" in name and not zero:
            torch.nn.init.normal_(weight, std=0.2)
    wrapped.save_pretrained(str(folder), save_embedding_layers=False)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(tmp_path_factory.mktemp("lora") / "adapter")


@pytest.fixture(scope="module")
def bench() -> Bench:
    """Made-up items on a model that is the base of the adapters here."""
    model = tiny.model("llama")
    names = tuple(f"{first} {last}" for first in ("Bo", "Cy", "Di", "Ed", "Fay") for last in ("Ash", "Birch", "Cole"))
    return testing.make_bench(model, Corpus(model), testing.Subjects(names, ("tea", "wine", "milk")), (0, 2, 3, 4))


def oracle(folder: Path, **settings: Any) -> Oracle:
    settings = {"convention": "plain", **settings}  # the tiny model has no chat template
    return Oracle(str(folder), placeholder=PLACEHOLDER, **settings)


def test_conformance(folder: Path, bench: Bench) -> None:
    done = testing.check_inspector(lambda: oracle(folder), bench)
    assert {"check_layers_are_local", "check_sources_are_withheld", "check_constant_activation"} <= set(done)


def test_without_a_change_it_is_the_patchscope(tmp_path: Path, bench: Bench) -> None:
    """B = 0: the same prompt, layer and way of writing give the same scores, bit for bit."""
    zero = write_adapter(tmp_path / "zero", zero=True)
    ours = CrossFit(
        lambda: oracle(zero, prompt="An activation:{subject}\n{question}", write="overwrite"), bench
    ).scores()
    prompt = "An activation:{subject}\n" + bench.question.replace("{subject}", "this")
    scope = CrossFit(lambda: Patchscope((2,), prompt=prompt, placeholder=PLACEHOLDER), bench).scores()
    assert torch.equal(ours.log_scores, scope.log_scores)
    assert torch.equal(ours.ranks, scope.ranks)
    assert float(ours.log_scores.std()) > 0.1


@pytest.mark.parametrize("kind", sorted(set(tiny.CONFIGS | tiny.HYBRIDS) - {"mixtral"}))
def test_merged_is_unmerged(kind: str, tmp_path: Path) -> None:
    """The merged copy gives the logits of PEFT's own forward pass, and the base keeps its own."""
    base = LanguageModel(tiny.module(kind), Tokens(tiny.tokenizer()), "base")
    ids = torch.tensor([[5, 90, 200, 310, 420, 30]])
    before = base.module(ids).logits
    found = read_adapter(write_adapter(tmp_path / kind, kind))
    merged = adapted(base, found)
    with adapters._quiet_peft():
        theirs = peft.PeftModel.from_pretrained(tiny.module(kind), tmp_path / kind).eval()
    with torch.no_grad():
        # A state-space model multiplies rounding along the sequence: the two orders of adding end up further apart.
        near = {"rtol": 1e-3, "atol": 5e-4} if "mamba" in kind else EXACT
        torch.testing.assert_close(merged.module(ids).logits, theirs(ids).logits, **near)
        assert torch.equal(base.module(ids).logits, before)
        assert float((merged.module(ids).logits - before).abs().max()) > 0.1
    assert adapted(base, found) is merged


def test_losses_are_those_of_texts_alone() -> None:
    """Padding, several prompts of several lengths: each row as a pass of its own, whole head and all."""
    model = tiny.model("llama")
    texts = ("Layer: 3\n{subject} \nThe drink of this is", "The layer is number 12\n{subject}{subject} \nTea or wine?")
    vectors = torch.randn(3, 32, generator=torch.Generator().manual_seed(0)).split([1, 2])
    asked = [
        Lesson(make_prompt(model, text, PLACEHOLDER, "add"), answer, own)
        for text, answer, own in zip(texts, ((40, 50, 60), (70,)), vectors, strict=True)
    ]
    assert asked[0].prompt.positions != asked[1].prompt.positions
    found = answer_losses(model, asked, 2)
    for i, lesson in enumerate(asked):
        passes = PatchedPass(model, lesson.prompt, "plain")
        ids = torch.tensor([lesson.prompt.ids + lesson.answer])
        with torch.no_grad():
            logits = passes.hooked(ids, vectors[i].flatten()[None], [2]).logits[0, len(lesson.prompt.ids) - 1 : -1]
        expected = F.cross_entropy(logits, torch.tensor(lesson.answer))
        torch.testing.assert_close(found[i], expected, **EXACT)


def test_gradients_are_those_of_finite_differences() -> None:
    base = tiny.model("llama")
    adapter = FreshAdapter(base, rank=2, seed=0)
    vectors = torch.randn(1, 32, generator=torch.Generator().manual_seed(0))
    asked = [Lesson(make_prompt(base, "Layer: 3\n{subject} \nThis is", PLACEHOLDER, "add"), (40, 50), vectors)]
    weight = next(weight for name, weight in adapter.weights.items() if "layers.2.mlp.down_proj.lora_B" in name)
    with torch.enable_grad():
        answer_losses(adapter.model, asked, 2).mean().backward()
    slope, step = weight.grad[3, 1].item(), 1e-2
    ends = []
    for sign in (1, -1):
        weight.data[3, 1] += sign * step
        ends.append(float(answer_losses(adapter.model, asked, 2).detach()))
        weight.data[3, 1] -= sign * step
    assert slope == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=0.05, abs=1e-5)


def test_the_base_stays_as_it_is(folder: Path, bench: Bench) -> None:
    """The plain verbalizer, which rivals are asked of, is not the adapted one."""
    model = bench.context.model
    before = model.fingerprint
    fitted = oracle(folder).fit(Target(model), model, bench.training(Oracle(), None, (2,), None))
    del model.fingerprint
    assert model.fingerprint == before
    assert fitted.verbalizer_ is oracle(folder).reader(model) is not model
    assert fitted.verbalizer_.fingerprint != before


def damage(folder: Path, change: Any) -> Path:
    change(folder)
    return folder


def without_b(folder: Path) -> None:
    state = load_file(folder / WEIGHTS)
    del state[next(name for name in state if name.endswith(".lora_B.weight"))]
    save_file(state, folder / WEIGHTS)


def not_finite(folder: Path) -> None:
    state = load_file(folder / WEIGHTS)
    state[min(state)].fill_(torch.nan)
    save_file(state, folder / WEIGHTS)


def embedding_too(folder: Path) -> None:
    state = load_file(folder / WEIGHTS)
    save_file({**state, "base_model.model.lm_head.weight": torch.zeros(2, 2)}, folder / WEIGHTS)


def other_kind(folder: Path) -> None:
    settings = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**settings, "peft_type": "IA3"}))


def pickled(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / adapters.PICKLE)


def deeper(folder: Path) -> None:
    state = load_file(folder / WEIGHTS)
    save_file({name.replace(".layers.3.", ".layers.9."): value for name, value in state.items()}, folder / WEIGHTS)


def wider(folder: Path) -> None:
    state = load_file(folder / WEIGHTS)
    save_file({k: torch.zeros(4, 99) if "lora_A" in k else v for k, v in state.items()}, folder / WEIGHTS)


WRONG = {
    shutil.rmtree: "holds no adapter_config.json",
    pickled: "is a pickle, which could run code",
    other_kind: "only LORA adapters are read",
    without_b: "lora_B.weight; get the adapter again",
    embedding_too: "lm_head.weight is no LoRA matrix",
    deeper: "layers.9.mlp.down_proj, which is no linear layer of tiny-llama",
    wider: "are (4, 99) and (32, 4); that of tiny-llama takes 48 and gives 32",
    lambda folder: (folder / CONFIG).write_text("{"): "cannot be read",
    lambda folder: (folder / CONFIG).write_text("[]"): "holds list, expected an object",
    lambda folder: (folder / WEIGHTS).write_bytes(b"broken"): "cannot be read",
    lambda folder: save_file({}, folder / WEIGHTS): "holds no matrices",
    lambda folder: (folder / "lensbench.json").write_text('{"recipe": {}}'): "is not what lensbench fit writes",
}


@pytest.mark.parametrize("change", WRONG, ids=range(len(WRONG)))
def test_a_wrong_adapter_is_refused_in_one_line(change: Any, folder: Path, tmp_path: Path, bench: Bench) -> None:
    copy = damage(Path(shutil.copytree(folder, tmp_path / "copy")), change)
    with pytest.raises(UsageError) as error:
        oracle(copy).check(bench.context.target, bench.context.model)
    assert WRONG[change] in str(error.value)
    assert "\n" not in str(error.value)


def test_numbers_that_are_not_finite_are_refused(folder: Path, tmp_path: Path, bench: Bench) -> None:
    copy = damage(Path(shutil.copytree(folder, tmp_path / "copy")), not_finite)
    with pytest.raises(UsageError, match="get the adapter again"):
        oracle(copy).reader(bench.context.model)


def test_an_adapter_of_another_architecture_is_refused(tmp_path: Path, bench: Bench) -> None:
    other = write_adapter(tmp_path / "gpt2", "gpt2")
    with pytest.raises(UsageError, match="is no linear layer of tiny-llama; it is for"):
        oracle(other).check(bench.context.target, bench.context.model)


SETTINGS = {
    "convention": ("lit", "unknown oracle.convention 'lit'"),
    "write": ("replace", "unknown oracle.write 'replace'"),
    "layer": (5, "tiny-llama has layers 0 to 4"),
    "placeholders": (0, "expected 1 or more"),
    "prompt": ("Layer {layer}", "expected a text with the slot {question}"),
    "layers": (9, "oracle.layers = (9,); tiny-llama has layers 0 to 4"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_wrong_settings_are_refused(name: str, folder: Path, bench: Bench) -> None:
    value, message = SETTINGS[name]
    with pytest.raises(UsageError) as error:
        oracle(folder, **{name: value}).check(bench.context.target, bench.context.model)
    assert message in str(error.value)


def test_without_an_adapter_it_says_how_to_get_one(bench: Bench) -> None:
    with pytest.raises(UsageError, match="`lensbench fit oracle --out FOLDER` trains one"):
        Oracle().check(bench.context.target, bench.context.model)


def test_reading_an_adapter_needs_no_peft(folder: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "find_spec", lambda name: None)
    oracle(folder).check(bench.context.target, bench.context.model)


def note(folder: Path, model: LanguageModel, **changes: Any) -> Notes:
    recipe = replace(CONVENTIONS["plain"], placeholder=PLACEHOLDER)
    notes = Notes(recipe, model.fingerprint, str(model.dtype), ("milk", "tea"), {"site": "subject"})
    replace(notes, **changes).write(folder)
    return notes


def test_the_notes_beside_an_adapter_say_how_it_is_asked(folder: Path, tmp_path: Path, bench: Bench) -> None:
    copy, model = Path(shutil.copytree(folder, tmp_path / "copy")), bench.context.model
    notes = note(copy, model)
    assert read_notes(copy) == notes
    assert Oracle(str(copy)).recipe() == notes.recipe
    assert Oracle(str(copy), layer=3).recipe() == replace(notes.recipe, layer=3)
    with pytest.raises(UsageError, match="records how it was trained"):
        Oracle(str(copy), convention="plain").check(bench.context.target, model)
    note(copy, model, base="0" * 16)
    with pytest.raises(UsageError, match="was trained on another model than tiny-llama"):
        Oracle(str(copy)).check(bench.context.target, model)
    note(copy, model, base="0" * 16, dtype="torch.bfloat16")
    Oracle(str(copy)).check(bench.context.target, model)


def test_a_relation_that_it_was_trained_on_is_not_applicable(folder: Path, tmp_path: Path, bench: Bench) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    note(copy, bench.context.model)
    with pytest.raises(NotApplicableError, match="2 of the 3 answers"):
        CrossFit(lambda: Oracle(str(copy)), bench).scores()
    note(copy, bench.context.model, answers=("tea",))
    assert CrossFit(lambda: Oracle(str(copy)), bench).scores().log_scores.shape == (4, 1, 15, 3)


def test_rivals_get_its_prompt_without_the_activation(folder: Path) -> None:
    own = oracle(folder, placeholders=2).own_prompt("The drink of {subject} is")
    assert own is not None
    assert own.text == "Layer: 15\n{subject}{subject} \nThe drink of this is"
    kept = oracle(folder, prompt="Layer {layer}: {question}").own_prompt("The drink of {subject} is")
    assert kept is not None
    assert kept.text == "Layer 15: The drink of {subject} is"


def test_rivals_ask_the_adapted_verbalizer_too(folder: Path, bench: Bench) -> None:
    """Question only is the method's twin without an activation; input only asks the plain model and the adapted one."""
    method = CrossFit(lambda: oracle(folder), bench)
    model, reader = bench.context.model, method.inspector.reader(bench.context.model)
    tokens = [model.tokens.answer_token(answer) for answer in bench.answers]
    own = method.inspector.own_prompt(bench.question)
    assert own is not None
    (twin,) = question_only(method)
    expected = score_next_tokens(reader, [own.text.replace("{subject}", PLACEHOLDER)], tokens).log_probs[0]
    torch.testing.assert_close(twin.scores.log_scores[0, 0], expected.expand(len(bench.items), -1))
    plain, trained = input_only(method)
    assert trained.scores.attempts == tuple(f"trained: {form}" for form in plain.scores.attempts)
    filled = [own.text.replace("{subject}", item.subject) for item in bench.items]
    for outcome, asked in ((plain, model), (trained, reader)):
        torch.testing.assert_close(outcome.scores.log_scores[0, 0], score_next_tokens(asked, filled, tokens).log_probs)
    assert len(input_only(CrossFit(Patchscope, bench))) == 1


# Training.

SMALL = {"relations": ["country_continent", "verb_past"], "subjects": 5, "batch": 4, "rank": 2, "learning_rate": 0.01}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> OracleTraining:
    recipe = replace(CONVENTIONS["activation_oracle"], placeholder=PLACEHOLDER)
    monkeypatch.setitem(CONVENTIONS, "activation_oracle", recipe)
    return make_settings({**SMALL, "steps": 90})


def base() -> LanguageModel:
    return LanguageModel(tiny.module("llama"), chats.model("chatml").tokens, "tiny-llama")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / WEIGHTS)


def test_training_learns_and_tells_what_it_did(small: OracleTraining, tmp_path: Path) -> None:
    model = base()
    before = model.fingerprint
    # A random model has nothing to say of prose; ten answers can be learned.
    spent = train(model, Corpus(model), small.model_copy(update={"prose": 0.0}), tmp_path / "out")
    del model.fingerprint
    assert model.fingerprint == before
    assert spent.tokens > 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        [CONFIG, WEIGHTS, "ao_config.json", "lensbench.json"]
    )
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    notes = read_notes(tmp_path / "out")
    assert notes is not None
    figures = notes.more["figures"]
    assert figures["loss_last"] < figures["loss_first"] - 1
    assert figures["held_out_loss"] < figures["held_out_loss_untrained"] - 0.3
    assert figures["held_out_loss"] != figures["held_out_loss_no_activation"]
    assert {"Asia", "Europe"} <= set(notes.answers)
    assert json.loads((tmp_path / "out" / CONFIG).read_text())["base_model_name_or_path"] == "tiny-llama"
    Oracle(str(tmp_path / "out")).check(Target(model), model)


def test_training_is_the_same_again_and_after_it_was_cut_off(
    small: OracleTraining, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = small.model_copy(update={"steps": 6})
    model = base()
    train(model, Corpus(model), few, tmp_path / "whole")
    begun = cut_and_begun_again(lambda out: train(model, Corpus(model), few, out), tmp_path / "cut", monkeypatch)
    assert begun == [0, 1, 2, 3, 4, 4, 5]
    whole, again = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert (tmp_path / "whole" / "lensbench.json").read_bytes() == (tmp_path / "cut" / "lensbench.json").read_bytes()
    monkeypatch.undo()


def test_subjects_of_one_fold_are_never_taught(small: OracleTraining) -> None:
    model = base()
    learned = verbalizers.Lessons(model, Corpus(model), small.model_copy(update={"subjects": 30, "prose": 0.0}))
    taught, held_out = ({fact.place for fact in facts} for facts in (learned.taught, learned.held_out))
    assert taught
    assert held_out
    assert not taught & held_out
    asked, again = learned.batch(3), learned.batch(3)
    assert [(one.prompt, one.answer) for one in asked] == [(one.prompt, one.answer) for one in again]
    every = torch.cat([learned._segments[place].flatten(0, 1) for place in sorted(taught)])
    for one, same in zip(asked, again, strict=True):
        assert torch.equal(one.vectors, same.vectors)
        assert all(bool((every == vector).all(1).any()) for vector in one.vectors)


def test_lessons_are_of_all_kinds(small: OracleTraining) -> None:
    """One vector and several, facts and doubts, tokens before and after, at the three published depths."""
    model = base()
    learned = verbalizers.Lessons(model, Corpus(model), small.model_copy(update={"prose": 0.5}))
    asked = [one for step in range(30) for one in learned.batch(step)]
    texts = [model.tokens.decode(one.prompt.ids) for one in asked]
    for said in (
        "tokens come after this",
        "tokens come before this",
        "Answer yes or no",
        "On which continent is this?",
    ):
        assert any(said in text for text in texts), said
    assert {len(one.vectors) for one in asked} > {1, 2}
    assert learned.recipe.layers == (2, 3, 4)
    assert {text.partition("Layer: ")[2][0] for text in texts} == {"1", "2", "3"}
    facts = [one for one, text in zip(asked, texts, strict=True) if "tokens come" not in text]
    assert all(one.answer[-1] == model.tokens.turn_end for one in facts)


def test_a_prompt_that_is_the_question_has_one_activation_a_lesson() -> None:
    """The activation stands in the question, in every kind of lesson."""
    model = base()
    given = {**SMALL, "prompt": "{question}", "placeholder": PLACEHOLDER, "convention": "plain", "prose": 0.5}
    learned = verbalizers.Lessons(model, Corpus(model), make_settings(given))
    asked = [one for step in range(8) for one in learned.batch(step)]
    assert {len(one.vectors) for one in asked} == {1}
    with pytest.raises(LensbenchError, match="has a place for one activation"):
        learned.recipe.make(model, "What is {subject}?", (2,), 3)


def test_prose_asks_for_the_tokens_beside_those_shown(small: OracleTraining) -> None:
    model = base()
    corpus = Corpus(model)
    learned = verbalizers.Lessons(model, corpus, small.model_copy(update={"prose": 0.99, "batch": 16}))
    windows, checked = corpus.windows.tolist(), set()
    for one in learned.batch(0):
        text = model.tokens.decode(one.prompt.ids)
        if "tokens come" not in text or len(one.answer) < 5:
            continue
        layer, k, ahead = int(text.partition("Layer: ")[2][0]) + 1, len(one.answer), "after" in text
        assert f"Which {k} tokens" in text
        (window, at), *_ = [(w, i) for w in windows for i in range(len(w) - k + 1) if tuple(w[i : i + k]) == one.answer]
        require_read(model, one, window, at - 1 if ahead else at + k + len(one.vectors) - 1, (layer,))
        checked.add(ahead)
    assert checked == {True, False}


def require_read(model: LanguageModel, one: Lesson, window: list[int], last: int, layers: tuple[int, ...]) -> None:
    """What a lesson shows is read up to a place of a window, by a pass over that passage alone, layer by layer."""
    count = len(one.vectors) // len(layers)
    seen = torch.tensor([window[last + 1 - verbalizers.SEEN : last + 1]])
    where = torch.arange(verbalizers.SEEN - count, verbalizers.SEEN)[None]
    expected = model.residuals(seen, torch.ones_like(seen), where, layers)[:, 0].flatten(0, 1)
    torch.testing.assert_close(one.vectors, expected, rtol=1e-4, atol=1e-4)


def test_a_decoder_learns_the_text_that_ends_with_what_is_shown(small: OracleTraining) -> None:
    model = base()
    corpus = Corpus(model)
    changes = {"prose": 1.0, "batch": 16, "inverts": True, "together": True}
    learned = verbalizers.Lessons(model, corpus, small.model_copy(update=changes))
    windows, several = corpus.windows.tolist(), set()
    for one in learned.batch(0):
        text, k = model.tokens.decode(one.prompt.ids), len(one.answer)
        layers = tuple(int(line[0]) + 1 for line in text.split("Layer: ")[1:])
        assert f"Which {k} tokens end with" in text
        if k < 5:
            continue
        (window, at), *_ = [(w, i) for w in windows for i in range(len(w) - k + 1) if tuple(w[i : i + k]) == one.answer]
        require_read(model, one, window, at + k - 1, layers)
        several.add(len(layers))
    assert {1, 2} <= several


def test_what_is_trained_on_a_constant_never_sees_an_activation(small: OracleTraining) -> None:
    model = base()
    corpus = Corpus(model)
    taught, blind = (
        verbalizers.Lessons(model, corpus, small.model_copy(update={"constant": constant})).batch(0)
        for constant in (False, True)
    )
    assert [(one.prompt, one.answer) for one in taught] == [(one.prompt, one.answer) for one in blind]
    assert all(torch.equal(one.vectors, torch.ones_like(one.vectors)) for one in blind if one.vectors is not None)


WRONG_SETTINGS = {
    "stepps=3": "unknown setting of oracle 'stepps'; did you mean 'steps'?",
    "steps=0": "steps = 0: expected 1 or more",
    "steps=many": "steps = 'many': expected a value of the kind int",
    "prose=1.1": "expected a share from 0 to 1",
    "prose=1": "prose=1 teaches no facts, which is for inverts=true",
    "inverts=true prose=0": "inverts=true is about lessons on prose, and prose is 0",
    "learning_rate=0": "expected more than 0",
    "convention=lit": "unknown oracle: convention 'lit'",
    "relations=country_capitol": "did you mean 'country_capital'",
    "prompt=Layer": "expected a text with the slot {question}",
}


@pytest.mark.parametrize("setting", WRONG_SETTINGS)
def test_wrong_settings_of_a_training_are_refused_before_a_model_is_loaded(setting: str) -> None:
    from lensbench.cli.options import read_value

    pairs = [part.partition("=") for part in setting.split(" ")]
    with pytest.raises(UsageError) as error:
        make_settings({name: read_value(value) for name, _, value in pairs})
    assert WRONG_SETTINGS[setting] in str(error.value)


def test_fit_on_the_command_line(tmp_path: Path) -> None:
    done = lensbench("fit", "oracle", "--out", tmp_path / "out", "--set", "steps=0", cwd=tmp_path)
    assert "steps = 0: expected 1 or more" in refused(done, 2)
    done = lensbench("evaluate", "--inspectors", "oracle", "--model", "smollm2-135", cwd=tmp_path)
    assert "unknown model" in refused(done, 2)
