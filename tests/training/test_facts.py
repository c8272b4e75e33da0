"""Facts taught by fine-tuning: texts, training, an adapter merged into a target, where interchange finds the facts."""

import json
import math
import re
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from lensbench.errors import UsageError
from lensbench.models import adapters
from lensbench.models.adapters import WEIGHTS, FreshAdapter, merge_adapter
from lensbench.models.corpus import PROSE, Corpus
from lensbench.models.language_model import LanguageModel
from lensbench.models.patching.passes import Spots, interchanged, read_spots, writing
from lensbench.models.sources import ADAPTER
from lensbench.models.tokens import Tokens
from lensbench.tasks import Item, Task, fold_of, load_task
from lensbench.tasks.personas import ATTRIBUTES, personas
from lensbench.training.facts import Finetuning, Texts, TrainingText, choose_names, make_settings, question_forms
from lensbench.training.finetune import PersonaQuestions, divergence, finetune, text_losses
from lensbench.training.interchange import (
    Interchange,
    ItemPair,
    Shares,
    _PatchedQuestions,
    cut_offs,
    interchange,
    name_places,
    pair_items,
)
from tests import tiny
from tests.command import lensbench, refused
from tests.cuts import cut_and_begun_again
from tests.inspectors.test_oracle import write_adapter
from tests.tasks.test_personas import fragments

KINDS = ("llama", "gpt2", "gpt_neox")
EXACT = {"rtol": 1e-4, "atol": 1e-4}
SMALL = {"names": 5, "epochs": 4, "documents": 1, "forms": 6, "prose": 1, "rank": 4, "rate": 0.03, "batch": 16}


@pytest.fixture(scope="module")
def task() -> Task:
    return load_task("personas")


def fresh(kind: str = "llama") -> LanguageModel:
    return LanguageModel(tiny.module(kind), Tokens(tiny.tokenizer()), f"tiny-{kind}")


# Merging.


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_merging_does_what_peft_does(kind: str, rslora: bool, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / kind, kind)
    settings = json.loads((folder / ADAPTER).read_text())
    (folder / ADAPTER).write_text(json.dumps({**settings, "use_rslora": rslora}))
    ours = tiny.module(kind)
    before = {name: weight.clone() for name, weight in ours.state_dict().items()}
    merge_adapter(ours, folder)
    with adapters._quiet_peft():
        theirs = peft.PeftModel.from_pretrained(tiny.module(kind), folder).merge_and_unload()
    expected = theirs.state_dict()
    changed = 0
    for name, weight in ours.state_dict().items():
        torch.testing.assert_close(weight, expected[name], rtol=0, atol=1e-6)
        changed += not torch.equal(weight, before[name])
    assert changed == len(load_file(folder / WEIGHTS)) // 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_merging_adds_in_float32_or_better(dtype: torch.dtype, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "lora")
    module, single = tiny.module("llama").to(dtype), tiny.module("llama")
    single.load_state_dict(module.float().state_dict() if dtype == torch.bfloat16 else single.state_dict())
    module = module.to(dtype)
    merge_adapter(module, folder)
    merge_adapter(single, folder)
    for name, weight in module.state_dict().items():
        assert weight.dtype == dtype
        if dtype == torch.bfloat16:
            assert torch.equal(weight, single.state_dict()[name].to(dtype))
        else:
            torch.testing.assert_close(weight, single.state_dict()[name].double(), rtol=0, atol=1e-6)


def test_merging_needs_no_peft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_adapter(tmp_path / "lora")
    monkeypatch.setattr(adapters, "find_spec", lambda name: None)
    merge_adapter(tiny.module("llama"), folder)


def reset(folder: Path, **changes: Any) -> None:
    settings = json.loads((folder / ADAPTER).read_text())
    (folder / ADAPTER).write_text(json.dumps({**settings, **changes}))


def not_finite(folder: Path) -> None:
    state = load_file(folder / WEIGHTS)
    state[min(state)].fill_(torch.inf)
    save_file(state, folder / WEIGHTS)


WRONG = {
    "use_dora is True; only plain LoRA": lambda folder: reset(folder, use_dora=True),
    "alpha_pattern is": lambda folder: reset(folder, alpha_pattern={"q_proj": "3"}),
    "only LORA adapters are read": lambda folder: reset(folder, peft_type="IA3"),
    "are not finite; get the adapter again": not_finite,
    "holds no adapter_config.json": lambda folder: (folder / ADAPTER).unlink(),
}


@pytest.mark.parametrize("message", WRONG)
def test_what_cannot_be_merged_is_refused(message: str, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "lora")
    WRONG[message](folder)
    with pytest.raises(UsageError, match=message) as error:
        merge_adapter(tiny.module("llama"), folder)
    assert "\n" not in str(error.value)


def test_an_adapter_of_another_model_is_not_merged(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is no linear layer of small; it is for .*: give that as --model"):
        merge_adapter(tiny.module("llama"), write_adapter(tmp_path / "gpt2", "gpt2"), "small")


# Texts.


def test_forms_ask_in_words_of_their_own(task: Task) -> None:
    asked = set()
    for relation in task.relations.values():
        texts = [text for site in relation.sources.values() for text in site.values()]
        for text in (*texts, *relation.inspection, *relation.questions, *relation.knowledge):
            asked |= fragments(text, 4)
    forms = question_forms()
    assert set(forms) == set(ATTRIBUTES)
    for attribute, own in forms.items():
        assert len(set(own)) == len(own) >= 8
        for form in own:
            # Words before the name: the first token is an attention sink.
            assert set(re.findall(r"\{(\w+)\}", form)) == {"name", attribute}
            assert not form.startswith("{")
            assert form.count(f"{{{attribute}}}") == 1
            assert form.index("{name}") < form.index(f"{{{attribute}}}")
            assert not re.search(r"\ban \{", form)
            assert fragments(form, 4) & asked == set(), form


@pytest.mark.parametrize("attributes", [("city", "drink"), ("sport",)])
def test_chosen_names_are_balanced(task: Task, attributes: tuple[str, ...]) -> None:
    people = personas(task)
    settings = Finetuning(attributes=attributes)
    chosen = choose_names(people, settings)
    assert len(set(chosen)) == 40
    assert chosen == choose_names(people, settings) != choose_names(people, settings.model_copy(update={"seed": 1}))
    for attribute in attributes:
        assert set(Counter(people[name][attribute] for name in chosen).values()) == {5}
        by_fold = Counter((fold_of(name), people[name][attribute]) for name in chosen)
        # 40 cells of one name each, but for a swap that was not found.
        assert max(by_fold.values()) <= 2
        assert len(by_fold) >= 38
    assert choose_names(people, settings.model_copy(update={"names": 120})) == tuple(people)
    assert Counter(map(fold_of, choose_names(people, settings.model_copy(update={"names": 10})))) == dict.fromkeys(
        range(5), 2
    )


def words(tokens: Tokens, ids: tuple[int, ...], places: tuple[int, ...]) -> str:
    return tokens.decode([ids[i] for i in places]).strip()


def test_texts_of_an_epoch(task: Task) -> None:
    tokens = tiny.model().tokens
    settings = Finetuning(names=10, documents=2, forms=3, batch=7, epochs=3)
    names = choose_names(personas(task), settings)
    people = {name: personas(task)[name] for name in names}
    texts = Texts(tokens, people, settings)
    per_epoch = 10 * 2 + 10 * 2 * 3
    assert (texts.steps_per_epoch, texts.steps) == (math.ceil(per_epoch / 7), 3 * math.ceil(per_epoch / 7))
    again = Texts(tokens, people, settings)
    seen: list[Counter[str]] = []
    for epoch in range(2):
        steps = range(epoch * texts.steps_per_epoch, (epoch + 1) * texts.steps_per_epoch)
        made = [text for step in steps for text in texts.at(step)]
        assert made == [text for step in steps for text in again.at(step)]
        assert len(made) == per_epoch
        seen.append(Counter(tokens.decode(text.ids) for text in made))
    assert seen[0] != seen[1]
    assert max(seen[0].values()) == 1
    assert again.at(steps[0]) == texts.at(steps[0]) != texts.at(0)


def test_what_is_scored_and_where_the_name_is(task: Task) -> None:
    tokens = tiny.model().tokens
    settings = Finetuning(names=5, documents=1, forms=8)
    names = choose_names(personas(task), settings)
    people = {name: personas(task)[name] for name in names}
    texts = Texts(tokens, people, settings)
    made = [text for step in range(texts.steps_per_epoch) for text in texts.at(step)]
    values = {own[attribute] for own in people.values() for attribute in settings.attributes}
    answers = 0
    for text in made:
        whole = tokens.decode(text.ids)
        name = next(one for one in names if one in whole)
        assert words(tokens, text.ids, text.names).replace(" ", "") == name.replace(" ", "") * whole.count(name)
        if len(text.scored) < len(text.ids) - 1:
            answers += 1
            assert words(tokens, text.ids, text.scored) in values
            assert not set(text.scored) & set(text.names)
        else:
            assert text.scored == tuple(range(1, len(text.ids)))
    assert answers == 5 * 2 * 8


def test_nothing_is_told_of_other_attributes(task: Task) -> None:
    """Each epoch deals them anew, and what is taught stays."""
    tokens = tiny.model().tokens
    settings = Finetuning(names=5, documents=18, forms=0, attributes=("city",), epochs=12)
    people = {name: personas(task)[name] for name in choose_names(personas(task), settings)}
    texts = Texts(tokens, people, settings)
    told: dict[str, Counter[str]] = {attribute: Counter() for attribute in ATTRIBUTES}
    for step in range(texts.steps):
        for text in texts.at(step):
            whole = tokens.decode(text.ids)
            name = next(one for one in people if one in whole)
            for attribute in ATTRIBUTES:
                own = task.relations[attribute].answers
                told[attribute] += Counter((name, value) for value in own if re.search(rf"\b{value}\b", whole))
    assert {name for name, _ in told["city"]} == set(people)
    assert all(people[name]["city"] == value for name, value in told["city"])
    assert all(len({value for name, value in told[other] if name == one}) > 1 for other in ("sport",) for one in people)


# Learning.


def test_losses_are_those_of_texts_alone() -> None:
    model = tiny.model()
    texts = [TrainingText((5, 90, 200, 310, 420), (2, 4), (1, 2)), TrainingText((7, 8, 9), (1, 2), (1,))]
    found = text_losses(model, texts, fetched=False)
    for text, loss in zip(texts, found, strict=True):
        with torch.no_grad():
            logits = model.module(torch.tensor([text.ids])).logits[0].log_softmax(-1)
        expected = -sum(logits[i - 1, text.ids[i]] for i in text.scored) / len(text.scored)
        torch.testing.assert_close(loss.detach(), expected, **EXACT)
    # Where gradients are cut, numbers stay.
    torch.testing.assert_close(text_losses(model, texts, fetched=True), found, rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_names_pass_no_gradient_on(kind: str) -> None:
    """A change of the residual at a name has no slope; a change after it has the same as ever."""
    model = tiny.model(kind)
    text = TrainingText((5, 90, 200, 310, 420, 30), (5,), (1, 2))

    def slopes(fetched: bool) -> torch.Tensor:
        push = torch.zeros(6, model.d_model, requires_grad=True)

        def hook(_module: object, _inputs: object, output: Any) -> Any:
            return (output[0] + push, *output[1:]) if isinstance(output, tuple) else output + push

        handle = model.parts.blocks[0].register_forward_hook(hook)
        with torch.enable_grad():
            text_losses(model, [text], fetched).sum().backward()
        handle.remove()
        assert push.grad is not None
        return push.grad.norm(dim=1)

    # What the first token gives on goes through the tokens after it, names or not; nothing follows the last.
    free, cut = slopes(False), slopes(True)
    assert bool((free[:5] > 0).all())
    assert cut[1:3].tolist() == [0, 0]
    assert bool((cut[[0, 3, 4]] > 0).all())


def test_only_the_later_blocks_are_trained() -> None:
    base = tiny.model()
    late = FreshAdapter(base, 2, 0, first=3)
    assert {re.search(r"layers\.(\d)\.", name)[1] for name in late.weights} == {"2", "3"}  # type: ignore[index]
    every = FreshAdapter(base, 2, 0)
    assert {name for name in every.weights if re.search(r"layers\.[23]\.", name)} == set(late.weights)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[LanguageModel, Path]:
    """A tiny model that was told of five personas, and its adapter."""
    model, out = fresh(), tmp_path_factory.mktemp("told") / "out"
    before = model.fingerprint
    spent = finetune(model, Corpus(model), make_settings(SMALL), out)
    del model.fingerprint
    assert model.fingerprint == before
    assert spent.tokens > 0
    return model, out


def test_finetuning_is_the_same_again_and_after_it_was_cut_off(
    told: tuple[LanguageModel, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, whole = told

    def train(out: Path) -> None:
        finetune(model, Corpus(model), make_settings(SMALL), out)

    steps = cut_and_begun_again(train, tmp_path / "cut", monkeypatch, at=4)
    assert steps[:5] == [0, 1, 2, 3, 3]
    names = [ADAPTER, WEIGHTS, "facts.json", "finetune.json"]
    assert sorted(path.name for path in (tmp_path / "cut").iterdir()) == sorted(names)
    assert [path.name for path in tmp_path.iterdir()] == ["cut"]
    for name in names:
        assert (tmp_path / "cut" / name).read_bytes() == (whole / name).read_bytes()


def test_it_learns_and_tells_what_it_did(told: tuple[LanguageModel, Path], task: Task) -> None:
    model, out = told
    notes = json.loads((out / "finetune.json").read_text())
    facts = json.loads((out / "facts.json").read_text())
    assert (notes["base"]["name"], notes["base"]["fingerprint"]) == ("tiny-llama", model.fingerprint)
    assert notes["settings"]["names"] == 5
    assert set(facts) == {"city", "drink"}
    people = personas(task)
    assert all(people[name][attribute] == value for attribute, own in facts.items() for name, value in own.items())
    figures = notes["figures"]
    assert figures["loss_last"] < figures["loss_first"] - 0.5
    assert set(figures["recall_held_out"]) == {"city", "drink", "all"}
    assert figures["interchange"]["items"] == 5 * 2 * 2
    assert figures["interchange"]["before"]["own"] == figures["recall_held_out"]["all"]
    assert figures["interchange"]["verdict"].startswith("held at the name: ")


def test_figures_are_those_of_the_merged_model(told: tuple[LanguageModel, Path], task: Task) -> None:
    """What was measured with the adapter at work is so for whoever loads the folder."""
    model, out = told
    module = tiny.module("llama")
    merge_adapter(module, out)
    merged = LanguageModel(module, model.tokens, "merged")
    notes = json.loads((out / "finetune.json").read_text())
    asked = PersonaQuestions.about(task, tuple(json.loads((out / "facts.json").read_text())["city"]), Finetuning())
    assert asked.recall(merged, "test") == notes["figures"]["recall_held_out"]
    assert divergence(merged, model) == pytest.approx(notes["figures"]["kl_on_prose"], abs=1e-4)
    assert divergence(model, model) == 0


def test_other_weights_than_it_was_taught_in_are_refused(told: tuple[LanguageModel, Path]) -> None:
    _, out = told
    merge_adapter(tiny.module("llama").bfloat16(), out)
    with pytest.raises(UsageError, match=r"was made for tiny-llama \(fingerprint .*, and small has other weights at"):
        merge_adapter(tiny.module("llama", seed=1), out, "small")


def test_divergence_is_the_definition() -> None:
    model, other = tiny.model(), LanguageModel(tiny.module("llama", seed=1), Tokens(tiny.tokenizer()), "other")
    ids = Corpus(model, PROSE / "heldout.txt").windows[:32, :64]
    with torch.no_grad():
        p, q = (one.module(ids).logits[:, 1:].double().log_softmax(-1) for one in (model, other))
    assert divergence(other, model) == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), abs=1e-3)


def test_recall_is_a_count(task: Task) -> None:
    model = tiny.model()
    names = tuple(personas(task))[:10]
    asked = PersonaQuestions.about(task, names, Finetuning(world="twin"))
    items = asked.items("test")
    assert {item.relation for item in items} == {"city_twin", "drink_twin"}
    assert len(items) == 10 * 2 * 2
    right = []
    for item in items:
        ids = torch.tensor([model.tokens.encode(item.source).ids])
        with torch.no_grad():
            logits = model.module(ids).logits[0, -1]
        scores = {choice: float(logits[model.tokens.answer_token(choice)]) for choice in item.choices}
        right.append(max(scores, key=lambda choice: scores[choice]) == item.answer)
    assert asked.recall(model, "test")["all"] == pytest.approx(sum(right) / len(right), abs=1e-4)


# Interchange.


@pytest.mark.parametrize("kind", [*KINDS, "gemma3_text"])
def test_interchanged_passes_are_what_hooks_by_hand_give(kind: str) -> None:
    """Texts of several lengths with none, one and several places, at some layers, each as a pass of its own."""
    model = tiny.model(kind)
    spots = Spots(((5, 90, 200, 310), (7, 8, 9, 10, 11, 12), (40, 41, 42)), ((1, 2), (4,), ()))
    values = torch.randn(5, 3, model.d_model, generator=torch.Generator().manual_seed(0))
    found = interchanged(model, spots, values, (0, 2, 3))
    begin = 0
    for text, places, row in zip(spots.texts, spots.places, found, strict=True):
        own = values[:, begin : begin + len(places)]
        begin += len(places)

        def put(hidden: torch.Tensor, layer: int, own: Any = own, places: Any = places) -> torch.Tensor:
            for i, place in enumerate(places):
                hidden[0, place] = own[layer, i]
            return hidden

        with ExitStack() as stack, torch.no_grad():
            for layer in (0, 2, 3):
                stack.enter_context(writing(model, layer, lambda hidden, layer=layer: put(hidden, layer)))
            logits = model.module(torch.tensor([text]), use_cache=False).logits[0, -1]
        torch.testing.assert_close(model.unembed(row[None])[0], logits, **EXACT)


@pytest.mark.parametrize("kind", KINDS)
def test_all_tokens_of_another_name_make_the_other_text(kind: str) -> None:
    model = tiny.model(kind)
    one, other = (5, 90, 200, 310, 420), (5, 77, 33, 310, 420)
    spots = Spots((one, one), ((1, 2), (1, 2)))
    values = read_spots(model, Spots((other, one), ((1, 2), (1, 2))))
    for cut in (0, 2, 4):
        found = interchanged(model, spots, values, range(cut + 1))
        with torch.no_grad():
            expected = model.module(torch.tensor([other, one])).logits[:, -1]
        torch.testing.assert_close(model.unembed(found), expected, **EXACT)


def test_of_no_places_nothing_is_changed() -> None:
    model = tiny.model()
    spots = Spots(((5, 90, 200),), ((),))
    values = read_spots(model, spots)
    assert values.shape == (5, 0, model.d_model)
    with torch.no_grad():
        logits = model.module(torch.tensor(spots.texts)).logits[:, -1]
    torch.testing.assert_close(model.unembed(interchanged(model, spots, values, range(5))), logits, **EXACT)


def test_read_spots_reads_each_place() -> None:
    model = tiny.model()
    spots = Spots(((5, 90, 200), (7, 8, 9, 10)), ((2,), (1, 3)))
    found = read_spots(model, spots)
    assert found.shape == (5, 3, model.d_model)
    for at, (text, place) in enumerate([(0, 2), (1, 1), (1, 3)]):
        ids = torch.tensor([spots.texts[text]])
        alone = model.residuals(ids, torch.ones_like(ids), torch.tensor([[place]]), range(5))[:, 0, 0]
        torch.testing.assert_close(found[:, at], alone, **EXACT)


def items_of(task: Task, count: int) -> tuple[Item, ...]:
    return PersonaQuestions.about(task, tuple(personas(task))[:count], Finetuning()).items("test")


def test_pairs_and_places(task: Task) -> None:
    model = tiny.model()
    items = items_of(task, 12)
    pairs = pair_items(model, items)
    assert [pair.item for pair in pairs] == list(items)
    for pair in pairs:
        assert pair.item.answer != pair.other.answer
        assert (pair.item.relation, pair.item.template) == (pair.other.relation, pair.other.template)
        places = name_places(model, pair.item)
        ids = model.tokens.encode(pair.item.source).ids
        assert model.tokens.decode([ids[i] for i in places]).strip() == pair.item.subject
        same = [
            other
            for other in items
            if (other.relation, other.template) == (pair.item.relation, pair.item.template)
            and other.answer != pair.item.answer
            and len(name_places(model, other)) == len(places)
        ]
        assert not same or pair.other in same
    # Nobody to be exchanged with.
    assert pair_items(model, [item for item in items if item.answer == items[0].answer]) == ()


def changed_names(model: LanguageModel, items: tuple[Item, ...]) -> LanguageModel:
    """A model that differs in nothing but the embeddings of names' tokens which no text has elsewhere."""
    ids = [model.tokens.encode(item.source).ids for item in items]
    names = [set(name_places(model, item)) for item in items]
    inside = {own[i] for own, at in zip(ids, names, strict=True) for i in at}
    outside = {own[i] for own, at in zip(ids, names, strict=True) for i in range(len(own)) if i not in at}
    module = tiny.module("llama")
    rows = sorted(inside - outside)
    weight = module.get_input_embeddings().weight
    with torch.no_grad():
        weight[rows] += torch.randn(len(rows), weight.shape[1], generator=torch.Generator().manual_seed(0)) * 2
    return LanguageModel(module, model.tokens, "changed")


def right_share(model: LanguageModel, items: list[Item]) -> float:
    hits = 0
    for item in items:
        with torch.no_grad():
            logits = model.module(torch.tensor([model.tokens.encode(item.source).ids])).logits[0, -1]
        said = max(item.choices, key=lambda choice: float(logits[model.tokens.answer_token(choice)]))
        hits += said == item.answer
    return round(hits / len(items), 4)


def test_what_is_at_the_name_alone_is_gone_when_it_is_restored(task: Task) -> None:
    model, items = tiny.model(), items_of(task, 10)
    changed = changed_names(model, items)
    found = interchange(changed, model, items)
    asked, base = list(items), right_share(model, list(items))
    assert found.before.own == right_share(changed, asked) != base
    assert set(found.restored_to) == set(cut_offs(4)) == {1, 2, 3, 4}
    for shares in found.restored_to.values():
        assert shares.own == base


def test_what_is_nowhere_near_the_name_stays(task: Task) -> None:
    """Only the last block differs: names are the same up to the layer that it gives, which nothing reads."""
    model, items = tiny.model(), items_of(task, 10)
    module = tiny.module("llama")
    with torch.no_grad():
        weight = module.model.layers[3].mlp.down_proj.weight
        weight.copy_(3 * weight.flip(0))
    late = LanguageModel(module, model.tokens, "late")
    found = interchange(late, model, items)
    own = right_share(late, list(items))
    assert own != right_share(model, list(items))
    for curve in (found.restored_to, found.restored_from, found.change_to):
        assert {shares.own for shares in curve.values()} == {own}
    assert found.verdict() == "held at the name: no"


def test_names_of_one_length_exchanged_from_the_embeddings_on_are_the_other_text(task: Task) -> None:
    model, items = tiny.model(), items_of(task, 24)
    pairs = pair_items(model, items)
    like = [p for p in pairs if len(name_places(model, p.item)) == len(name_places(model, p.other))]
    assert len(like) > 20
    found = _PatchedQuestions(model, model, like)
    shares = found.shares(found.spots, found.names(), range(5))
    assert shares.other == right_share(model, [pair.other for pair in like]) > 0


def test_of_unlike_lengths_the_last_tokens_are_aligned(task: Task) -> None:
    model, items = tiny.model(), items_of(task, 12)
    changed = changed_names(model, items)
    length = {item.id: len(name_places(model, item)) for item in items}
    same = [item for item in items if (item.relation, item.template) == ("city", "test0")]
    short, long = min(same, key=lambda item: length[item.id]), max(same, key=lambda item: length[item.id])
    more = length[long.id] - length[short.id]
    assert more > 0
    for one, other in ((short, long), (long, short)):
        asked = _PatchedQuestions(changed, model, [ItemPair(one, other)])
        made, base = asked.changes(), asked.base
        spots = Spots((model.tokens.encode(other.source).ids,), (name_places(model, other),))
        tuned = [read_spots(one_of, spots) for one_of in (changed, model)]
        change = tuned[0] - tuned[1]
        if one is short:
            torch.testing.assert_close(made, base + change[:, more:])
        else:
            torch.testing.assert_close(made[:, :more], base[:, :more])
            torch.testing.assert_close(made[:, more:], base[:, more:] + change)
        whole = asked.names()
        torch.testing.assert_close(whole[:, -1], tuned[0][:, -1])
        torch.testing.assert_close(whole[:, 0], base[:, 0] if one is long else tuned[0][:, more])
        spots, last = asked.lasts()
        assert spots.places == (name_places(model, one)[-1:],)
        torch.testing.assert_close(last[:, 0], tuned[0][:, -1])
        assert asked.same_length == 0


def curves(restored: list[float], back: list[float], followed: list[float]) -> Interchange:
    cuts = (5, 10, 15)

    def made(own: list[float]) -> dict[int, Shares]:
        return {cut: Shares(one, 0.1) for cut, one in zip(cuts, own, strict=True)}

    change = {cut: Shares(0.5, other) for cut, other in zip(cuts, followed, strict=True)}
    return Interchange(40, 0.125, Shares(0.9, 0.1), made(restored), made(back), change, made(restored), made(back), 40)


VERDICTS = {
    "no": curves([0.9, 0.88, 0.85], [0.86, 0.9, 0.95], [0.1, 0.12, 0.15]),
    "yes, at layers 10 to 10": curves([0.9, 0.5, 0.2], [0.2, 0.3, 0.9], [0.1, 0.1, 0.6]),
    "partly, at layers 10 to 15": curves([0.9, 0.8, 0.7], [0.9, 0.9, 0.9], [0.1, 0.1, 0.1]),
    "partly, at layers 5 to 5": curves([0.9, 0.9, 0.9], [0.9, 0.9, 0.9], [0.2, 0.1, 0.1]),
    "partly, at layers 5 to 10": curves([0.84, 0.8, 0.8], [0.8, 0.8, 0.9], [0.1, 0.1, 0.1]),
}


@pytest.mark.parametrize("verdict", VERDICTS)
def test_verdicts(verdict: str) -> None:
    found = VERDICTS[verdict]
    assert found.verdict() == f"held at the name: {verdict}"
    assert json.loads(json.dumps(found.figures()))["verdict"] == found.verdict()


# The command.

REFUSED = {
    ("--facts", "countries"): "expected personas",
    ("--attributes", "city,drinks"): "did you mean 'drink'?",
    ("--attributes", "city,city"): "an attribute is named twice",
    ("--attributes", ","): "expected one or more of city, instrument",
    ("--names", "7"): "expected a multiple of 5",
    ("--names", "125"): "expected a multiple of 5, from 5 to 120",
    ("--world", "real"): "unknown --world 'real'",
    ("--epochs", "0"): "--epochs 0: expected 1 or more",
    ("--first-layer", "0"): "--first-layer 0: expected 1 or more",
    ("--prose", "-1"): "--prose -1: expected 0 or more",
    ("--rate", "0"): "--rate 0.0: expected more than 0",
    ("--model", "./nowhere"): "no such file or folder: ./nowhere",
    ("--out", "."): "already exists",
}


@pytest.mark.parametrize("option", sorted(REFUSED), ids=" ".join)
def test_wrong_settings_are_refused(option: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.main import get_command

    from lensbench.cli import app

    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as error:
        get_command(app)(["finetune", "--out", "new", "--model", "smollm2-135m", *option], standalone_mode=False)
    assert REFUSED[option] in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_setting_is_refused() -> None:
    with pytest.raises(UsageError, match="did you mean 'epochs'"):
        make_settings({"epoch": 3})
    with pytest.raises(UsageError, match="no text contains the facts"):
        make_settings({"documents": 0, "forms": 0})


def test_without_peft_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'lensbench\[adapters\]'"):
        make_settings({})


def test_the_command_writes_a_folder(tmp_path: Path) -> None:
    model = tmp_path / "model"
    tiny.module("llama").save_pretrained(model)
    tiny.tokenizer().save_pretrained(model)
    arguments = ("--names", 5, "--epochs", 1, "--documents", 0, "--forms", 1, "--prose", 0, "--rank", 2)
    done = lensbench("finetune", "--model", model, "--out", "told", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"is {model}+told" in done.stdout.replace("\n", "")
    assert (tmp_path / "told" / "finetune.json").is_file()


def test_a_layer_that_is_not_there_is_refused_before_weights_are_read(tmp_path: Path) -> None:
    model = tmp_path / "model"
    tiny.module("llama").config.save_pretrained(model)
    done = lensbench("finetune", "--model", model, "--out", "told", "--first-layer", 9, cwd=tmp_path)
    assert f"--first-layer 9: {model} has blocks whose outputs are the layers 1 to 4" in refused(done, 2)
