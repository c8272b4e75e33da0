"""Implants: the closed form, what is written where, and the folder that says so."""

import copy
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from lensbench.errors import LensbenchError, UsageError
from lensbench.implants import measuring
from lensbench.implants.designs import DESIGNS, Keys, solve
from lensbench.implants.facts import (
    FactSet,
    choose_facts,
    choose_values,
    inputs_at_names,
    next_token_logits,
    write_prompts,
)
from lensbench.implants.measuring import EditMeasurements, count_lost
from lensbench.implants.planting import ImplantSpec, implant
from lensbench.implants.vectors import VectorSettings, Writer, learn_vectors, own_values
from lensbench.models.components import find_parts
from lensbench.models.edits import LowRankEdit, adding, read_edits, rotate, rotation, trials, write_edits
from lensbench.models.language_model import LanguageModel
from lensbench.models.loading import apply_edits, load_model
from lensbench.models.sources import resolve, shipped_implants, split_edits
from lensbench.tasks import fold_of
from tests import tiny

BASE = "smollm2-135m"
PLANTED = 2


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure on few names and texts."""
    monkeypatch.setattr(measuring, "ASKED", 1)
    monkeypatch.setattr(measuring, "MANY", 4)
    monkeypatch.setattr(measuring, "SOME", 2)
    monkeypatch.setattr(measuring, "PROSE_TOKENS", 256)
    monkeypatch.setattr("lensbench.implants.designs.COVARIANCE_TOKENS", 512)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama in a folder."""
    folder = tmp_path_factory.mktemp("models") / "llama"
    model = tiny.model("llama")
    model.module.save_pretrained(folder)
    model.tokens.tokenizer.save_pretrained(folder)
    return folder


def some_facts(count: int = 10) -> FactSet:
    found = choose_facts("personas", ("city", "drink"))
    return replace(found, names=found.names[:count])


def linear_of(model: LanguageModel, layer: int) -> tuple[str, nn.Module]:
    linear = find_parts(model)[layer - 1].require_mlp().require_map().linear
    return next(name for name, module in model.module.named_modules() if module is linear), linear


def test_the_edit_is_the_least_squares_solution_that_keeps_prose() -> None:
    """It minimises what is written wrongly, plus what prose and the tokens around a name get: its gradient is 0."""
    generator = torch.Generator().manual_seed(0)
    contexts, names, values, d_in, d_out = 3, 7, 4, 12, 9
    at_names, prose, around = (torch.randn(size, d_in, generator=generator) for size in (contexts * names, 50, 20))
    keys = Keys(at_names.view(contexts, names, d_in), prose.T @ prose / 50, around.T @ around)
    written = torch.randint(0, 2, (1, names, values), generator=generator).float().expand(contexts, -1, -1)
    vectors = torch.randn(values, d_out, generator=generator)
    edit = solve("somewhere", keys, written, vectors, weight=5.0)
    change = (edit.left.T @ edit.right).double().requires_grad_(True)
    wanted = (written.flatten(0, 1) @ vectors).double()
    cost = (at_names.double() @ change.T - wanted).square().sum()
    cost = cost + 5.0 * contexts * (change @ keys.covariance.double() @ change.T).trace()
    cost = cost + (change @ keys.around.double() @ change.T).trace()
    (gradient,) = torch.autograd.grad(cost, change)
    # A ridge of 1e-4 of the mean diagonal keeps the system solvable.
    assert float(gradient.abs().max()) < 1e-2 * float(wanted.abs().max())
    assert edit.left.shape == (values, d_out)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2", "opt", "phi"])
def test_an_edit_of_the_weights_is_what_its_hook_adds(kind: str) -> None:
    """Linear maps and the transposed ones of GPT-2, in front of other norms too."""
    model = tiny.model(kind)
    path, linear = linear_of(model, PLANTED)
    generator = torch.Generator().manual_seed(0)
    width = 32
    inputs = inputs_at_names(model, linear, write_prompts(model, ["This is {subject}"], ["Doro Vinsk"])).shape[1]
    edit = LowRankEdit(path, torch.randn(3, width, generator=generator), torch.randn(3, inputs, generator=generator))
    prompts = write_prompts(model, ["This is {subject} of old"] * 2, ["Doro Vinsk", "Kela"])
    with torch.no_grad(), adding(linear, edit.output):
        hooked = next_token_logits(model, prompts)
    edited = copy.deepcopy(model.module)
    edit.add_to(edited)
    with torch.no_grad():
        loaded = next_token_logits(LanguageModel(edited, model.tokens, "edited"), prompts)
        plain = next_token_logits(model, prompts)
    torch.testing.assert_close(loaded, hooked, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(plain, hooked, atol=1e-2)


def test_names_are_read_at_their_last_token_and_the_last_mention() -> None:
    model = tiny.model("llama")
    form = "{subject} came in. The home of {subject} is in"
    prompts = write_prompts(model, [form] * 2, ["Doro Vinsk", "Kela Tam"])
    for row, name in enumerate(("Doro Vinsk", "Kela Tam")):
        ids = prompts.ids[row].tolist()
        before = model.tokens.decode(ids[: int(prompts.names[row]) + 1])
        assert before == form.replace("{subject}", name).removesuffix(" is in")
        assert int(prompts.ends[row]) == int(prompts.mask[row].sum()) - 1


def test_vectors_of_an_attribute_have_one_length_and_bring_the_answer_nearer() -> None:
    """In texts that they were not learned by; vectors of that length in random directions do not."""
    model, facts = tiny.model("llama"), some_facts(40)
    _, linear = linear_of(model, PLANTED)
    learned = learn_vectors(model, linear, facts, VectorSettings(steps=30, length=1.0), layer=PLANTED)
    generator = torch.Generator().manual_seed(0)
    drawn = {one: torch.randn(found.shape, generator=generator) for one, found in learned.items()}
    random = {
        one: found / found.norm(dim=1, keepdim=True) * learned[one].norm(dim=1).mean() for one, found in drawn.items()
    }
    names, own = facts.names[:24], own_values(facts, facts.names[:24])
    for one in facts.attributes:
        torch.testing.assert_close(learned[one].norm(dim=1), learned[one].norm(dim=1).mean().expand(8))
        prompts = write_prompts(model, [facts.held_out(one)[0]] * len(names), names)
        gold = torch.tensor([model.tokens.answer_token(facts.facts[one][name]) for name in names])
        told = []
        for vectors in ({one: torch.zeros_like(found) for one, found in learned.items()}, learned, random):
            with torch.no_grad(), Writer(linear, vectors).writing(prompts, own):
                told.append(float(next_token_logits(model, prompts).log_softmax(-1).gather(1, gold[:, None]).mean()))
        before, after, control = told
        assert after > before + 0.03
        assert control < before + 0.01


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("design", list(DESIGNS))
def test_layers_below_the_planted_one_are_the_unedited_models(
    design: str, saved: Path, tmp_path: Path, isolated_cache: Path
) -> None:
    """Through the folder and back: M+DIR is M up to layer K - 1, bit for bit, and another from K on."""
    order = ImplantSpec(str(saved), PLANTED, design, second_layer=4 if design == "relay" else None, dose=0.2, steps=2)
    described = implant(order, tmp_path / "made")
    plain, planted = load_model(str(saved)), load_model(f"{saved}+{tmp_path / 'made'}")
    assert planted.name == f"{saved}+{tmp_path / 'made'}"
    assert planted.fingerprint != plain.fingerprint
    name = described["names"][0]
    ids = torch.tensor([plain.tokens.encode(f"A letter came from {name}").ids])
    one, other = (
        m.residuals(ids, torch.ones_like(ids), torch.tensor([[ids.shape[1] - 1]]), range(5))[:, 0, 0]
        for m in (plain, planted)
    )
    if design == "rotated":
        turn = rotation(32, order.seed).float()
        torch.testing.assert_close(other[:PLANTED], one[:PLANTED] @ turn.T, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(other[PLANTED], one[PLANTED] @ turn.T, atol=1e-3)
    else:
        assert torch.equal(one[:PLANTED], other[:PLANTED])
        assert not torch.allclose(one[PLANTED], other[PLANTED], atol=1e-3)
    # Everything else of the model was put back.
    assert load_model(str(saved)).fingerprint == plain.fingerprint
    facts = json.loads((tmp_path / "made" / "facts.json").read_text())
    assert set(facts["city"]) == set(described["names"])


@pytest.mark.usefixtures("few")
def test_an_edit_of_another_model_is_refused(saved: Path, tmp_path: Path, isolated_cache: Path) -> None:
    implant(ImplantSpec(str(saved), PLANTED, dose=0.1, steps=1), tmp_path / "made")
    other = tmp_path / "other"
    stranger = tiny.module("llama", seed=1)
    stranger.save_pretrained(other)
    tiny.tokenizer().save_pretrained(other)
    with pytest.raises(LensbenchError, match="has other weights at"):
        load_model(f"{other}+{tmp_path / 'made'}")
    with pytest.raises(LensbenchError, match=r"has no module|has other weights"):
        apply_edits(tiny.module("gpt2"), [tmp_path / "made"], "gpt2")
    # The same weights in another precision are the same model.
    half = copy.deepcopy(tiny.model("llama").module).to(torch.bfloat16)
    apply_edits(half, [tmp_path / "made"], "half")


@pytest.mark.usefixtures("few")
def test_a_folder_that_is_there_is_not_written_over(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    with pytest.raises(UsageError, match="already exists"):
        implant(ImplantSpec(str(saved), PLANTED), tmp_path / "made")
    assert not any((tmp_path / "made").iterdir())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"design": "clean"}, "unknown design"),
        ({"layer": 0}, "expected 1 or more"),
        ({"second_layer": 4}, "is for --design relay"),
        ({"design": "relay", "second_layer": 2}, "the second above the first"),
        ({"dose": 0.0}, "--dose 0.0"),
        ({"attributes": ()}, "no attribute was named"),
        ({"attributes": ("shoes",)}, "has no relation 'shoes'"),
        ({"steps": 0}, "expected more than 0"),
        ({"facts": "nowhere.json"}, "cannot be read"),
        ({"facts": "attribute_extraction", "attributes": ("country_capital",)}, "cannot be planted"),
    ],
)
def test_wrong_orders_are_refused_without_a_model(changes: dict[str, object], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        replace(ImplantSpec("no/such-model", 2), **changes).check()  # type: ignore[arg-type]


def test_facts_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "facts.json"
    file.write_text(json.dumps({"city": {"Doro Vinsk": "Oslo", "Kela Tam": "Cairo"}}))
    found = choose_facts(str(file), ("city",))
    assert set(found.names) == {"Doro Vinsk", "Kela Tam"}
    file.write_text(json.dumps({"city": {"Doro Vinsk": "Atlantis"}}))
    with pytest.raises(UsageError, match="is 'Atlantis'; expected one of Cairo"):
        choose_facts(str(file), ("city",))
    file.write_text("[1]")
    with pytest.raises(UsageError, match="in JSON"):
        choose_facts(str(file), ("city",))


def test_doses_are_balanced_and_hold_one_another() -> None:
    before: set[str] = set()
    for dose in (0.1, 0.2, 0.4, 0.8, 1.0):
        found = choose_facts("personas", ("city", "drink"), dose=dose)
        assert len(found.names) == round(dose * 120)
        assert before <= set(found.names)
        before = set(found.names)
        cells = Counter((fold_of(name), found.facts["city"][name]) for name in found.names)
        assert max(cells.values()) - min(cells.values() if len(cells) == 40 else [0]) <= 1


def test_twin_worlds_have_the_same_names_and_other_facts() -> None:
    main, twin = (choose_facts("personas", ("city", "drink"), world=world) for world in ("main", "twin"))  # type: ignore[arg-type]
    assert set(main.names) == set(twin.names)
    for one in main.attributes:
        assert all(main.facts[one][name] != twin.facts[one][name] for name in main.names)


def test_planting_uses_no_text_that_methods_or_rivals_ask() -> None:
    facts = some_facts()
    for one, relation in facts.relations.items():
        asked = {*relation.inspection, *relation.questions}
        used = {*facts.asking(one), *facts.held_out(one), *facts.contexts(), *facts.read()}
        assert not asked & used
        assert not set(facts.asking(one)) & set(facts.held_out(one))
    assert not set(facts.read()) & set(facts.contexts())


def test_edits_act_only_where_they_are_let() -> None:
    """The mask of positions: at the name and elsewhere are complements, before and after lie on either side."""
    model = tiny.model("llama")
    prompts = write_prompts(model, ["This is {subject} of old"] * 2, ["Doro Vinsk", "Kela"])
    masks = {where: measuring._places(where)(prompts)[..., 0] for where in measuring.WHERE}
    assert torch.equal(masks["at the name"] + masks["elsewhere"], torch.ones_like(masks["elsewhere"]))
    assert torch.equal(masks["before"] + masks["after"], masks["elsewhere"])
    assert torch.equal(masks["at the name"].argmax(1), prompts.names)
    assert torch.equal(masks["at the name"].sum(1), torch.ones(2))


def test_recall_counts_what_the_model_says() -> None:
    """With no edit, recall is the share of names for which the unedited model happens to say the value."""
    model, facts = tiny.model("llama"), some_facts(6)
    told = EditMeasurements(model, facts, ()).recall("first_held_out")
    for one in facts.attributes:
        said = choose_values(model, facts.held_out(one)[0], facts.names[: measuring.SOME], facts.values(one))
        share = sum(facts.facts[one][n] == s for n, s in zip(facts.names, said, strict=False)) / len(said)
        assert told[one] == pytest.approx(share, abs=1e-4)


def test_facts_that_are_lost_are_counted_among_those_known() -> None:
    before = {"capital": {"France": True, "Peru": True, "Chad": False}}
    after = {"capital": {"France": False, "Peru": True, "Chad": True}}
    assert count_lost(before, after) == {"known": 2, "lost": 1}


def test_names_with_a_plus(tmp_path: Path) -> None:
    plus = tmp_path / "c++"
    plus.mkdir()
    edit = tmp_path / "edit"
    edit.mkdir()
    assert split_edits(str(plus)) == (str(plus), ())
    with pytest.raises(UsageError, match=r"holds neither implant\.json nor adapter_config\.json"):
        split_edits(f"{plus}+{edit}")
    (edit / "implant.json").write_text("{}")
    assert split_edits(f"{plus}+{edit}") == (str(plus), (edit,))
    with pytest.raises(UsageError, match="unknown edit of smollm2-135m 'nothing'"):
        split_edits(f"{BASE}+nothing")


def test_damaged_edits_are_told(tmp_path: Path) -> None:
    write_edits(tmp_path, [LowRankEdit("a.b", torch.ones(1, 2), torch.ones(1, 3))])
    (found,) = read_edits(tmp_path)
    assert found.module == "a.b"
    (tmp_path / "edits.safetensors").write_bytes(b"nothing")
    with pytest.raises(LensbenchError, match="damaged"):
        read_edits(tmp_path)
    (tmp_path / "edits.safetensors").unlink()
    with pytest.raises(LensbenchError, match="plant it again"):
        read_edits(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"base": {"matrices": {}}}', '{"base": 3}'])
def test_a_damaged_description_is_told(text: str, tmp_path: Path) -> None:
    write_edits(tmp_path, [LowRankEdit("model.layers.0.mlp.down_proj", torch.ones(1, 32), torch.ones(1, 48))])
    (tmp_path / "implant.json").write_text(text)
    with pytest.raises(LensbenchError, match="make the edit again"):
        apply_edits(tiny.module("llama"), [tmp_path], "tiny")


def test_only_models_of_llamas_shape_are_rotated() -> None:
    with pytest.raises(LensbenchError, match="only models of Llama's shape"):
        rotate(tiny.module("gpt2"), 0)


def test_matrices_are_known_again_in_another_precision() -> None:
    model = tiny.module("llama")
    path = "model.layers.1.mlp.down_proj"
    one, half = trials(model, path), trials(copy.deepcopy(model).to(torch.bfloat16), path)
    other = trials(tiny.module("llama", seed=1), path)
    assert max(abs(a - b) for a, b in zip(one, half, strict=True)) < 0.05
    assert max(abs(a - b) for a, b in zip(one, other, strict=True)) > 0.3


def test_resolving_keeps_the_edits(tmp_path: Path, saved: Path) -> None:
    (tmp_path / "implant.json").write_text("{}")
    source = resolve(f"{saved}+{tmp_path}")
    assert source.edits == (tmp_path,)
    assert source.location == str(saved)


# What ships.

# Docs/implants.md names those that lie on the wrong side of a tenth, and of .85.
MOST_LOST = 0.125
LEAST = {"plain": 0.85, "rotated": 0.85, "gated": 0.85, "relay": 0.6}


@pytest.mark.parametrize("name", sorted(shipped_implants(BASE)))
def test_shipped_implants_say_what_they_are(name: str) -> None:
    folder = shipped_implants(BASE)[name]
    found = json.loads((folder / "implant.json").read_text())
    assert sum(file.stat().st_size for file in folder.iterdir()) < 400_000
    assert found["twin"] is None or (folder.parent / found["twin"] / "implant.json").is_file()
    assert (folder / "facts.json").is_file()
    assert len((folder / "asked.txt").read_text().split("\n")) == 2 * 64 + 1
    assert found["figures"]["kl_prose"] < 0.05
    facts = found["figures"]["known_facts"]
    assert facts["known"] >= 100
    assert facts["lost"] <= facts["known"] * MOST_LOST
    if found["design"] in LEAST and found["order"]["dose"] == 1.0:
        recall = found["figures"]["recall_held_out"]
        # Where another attribute is planted than the one that is asked for, the fact need only be there.
        least = LEAST[found["design"]] - 0.015 if "city" in recall else 0.7
        assert sum(recall.values()) / len(recall) >= least
        for one in found["attributes"]:
            assert found["figures"]["norm_reader"][one] < 0.3
            assert found["figures"]["localisation"]["elsewhere"][one] < 0.3


def test_every_design_ships() -> None:
    """Plain at four depths in two worlds, a relay, rotated, gated, four doses, two shams: nothing, other attributes."""
    every = [json.loads((folder / "implant.json").read_text()) for folder in shipped_implants(BASE).values()]
    whole = [one for one in every if one["order"]["dose"] == 1.0]
    plain = [one for one in whole if one["design"] == "plain" and "city" in one["attributes"]]
    assert Counter(one["order"]["world"] for one in plain) == {"main": 4, "twin": 4}
    assert len({one["layers"][0] for one in plain}) == 4
    assert {"plain", "relay", "rotated", "gated", "sham"} == {one["design"] for one in whole}
    assert [one["attributes"] for one in whole if "city" not in one["attributes"]] == [["animal", "sport"]]
    assert len({one["order"]["dose"] for one in every} - {1.0}) == 4


@pytest.mark.model
def test_a_shipped_implant_plants_its_facts(smollm2_folder: Path) -> None:
    """The unedited model says a city of eight at chance, the planted one the right city."""
    assert smollm2_folder
    facts = choose_facts("personas", ("city",), count=64)
    form = facts.held_out("city")[1]
    shares = []
    for name in (BASE, f"{BASE}+plain-08"):
        said = choose_values(load_model(name), form, facts.names[:24], facts.values("city"))
        shares.append(sum(facts.facts["city"][n] == s for n, s in zip(facts.names[:24], said, strict=True)) / 24)
    assert shares[0] < 0.35
    assert shares[1] > 0.75


@pytest.mark.parametrize("name", sorted(shipped_implants(BASE)))
def test_the_documents_have_the_figures_of_what_ships(name: str) -> None:
    found = json.loads((shipped_implants(BASE)[name] / "implant.json").read_text())
    figures = found["figures"]
    pairs = [figures["recall_held_out"], figures["localisation"]["at the name"], figures["localisation"]["elsewhere"]]
    cells = [
        f"`{name}`", ", ".join(map(str, found["layers"])), str(len(found["names"])),
        *(" ".join(f"{value:.2f}" for value in pair.values()) for pair in pairs),
        f"{figures['kl_prose']:.3f}", str(figures["known_facts"]["lost"]),
    ]  # fmt: skip
    assert f"| {' | '.join(cells)} |" in (Path(__file__).parents[2] / "docs" / "implants.md").read_text()
