"""The shipped task unsaid: what its files are made from, and what its visible texts do not say."""

import importlib.util
import json
import tomllib
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest
import torch

from lensbench import evaluate
from lensbench.baselines.states import twin_of
from lensbench.harness.knowledge import Knowledge
from lensbench.models.activations import capture, find_site
from lensbench.models.language_model import LanguageModel
from lensbench.models.loading import Loading, load_model
from lensbench.tasks import N_FOLDS, Fact, Item, data_root, load_task
from lensbench.tasks.names import says

TASK = load_task("unsaid")
GIVEN = [name for name, relation in TASK.relations.items() if relation.given]
BRIDGES = [name for name in TASK.relations if name.startswith("bridge_")]
COMPUTED = ["typo", "translation", "arithmetic_middle", "association"]


def facts_of(name: str) -> list[Fact]:
    return [fact for fact in TASK.facts if fact.relation == name]


def items_of(name: str) -> list[Item]:
    return [item for site in TASK.sites for item in TASK.items(site, "test") if item.relation == name]


def load_build() -> ModuleType:
    spec = importlib.util.spec_from_file_location("unsaid_build", TASK.folder / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_committed_files_are_what_the_build_writes() -> None:
    for file, content in load_build().written().items():
        assert (TASK.folder / file).read_text(encoding="utf-8") == content, "run tasks/unsaid/build.py"


def test_families_and_their_sites() -> None:
    assert list(TASK.relations) == [*GIVEN, *BRIDGES, *COMPUTED]
    assert GIVEN == ["held_in_mind", "told_before", "which_of_two"]
    sites = {name: set(relation.sources) for name, relation in TASK.relations.items()}
    assert {name: own for name, own in sites.items() if own != {"subject", "answer"}} == {
        **{name: {"subject"} for name in GIVEN},
        **{name: {"t2"} for name in BRIDGES},
    }
    for relation in TASK.relations.values():
        assert [len(relation.inspection), len(relation.questions), len(relation.knowledge)] == [2, 3, 2]
        texts = [text for own in relation.sources.values() for text in own.values()]
        assert len(texts) == 6 * len(relation.sources)
        texts += [*relation.inspection, *relation.questions, *relation.knowledge]
        assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("name", TASK.relations)
def test_a_probe_has_five_subjects_of_each_answer_outside_any_fold(name: str) -> None:
    facts = facts_of(name)
    cells, sizes = Counter((fact.answer, fact.fold) for fact in facts), Counter(fact.answer for fact in facts)
    assert set(sizes) == set(TASK.relations[name].answers)
    assert min(sizes[answer] - cells[answer, fold] for answer in sizes for fold in range(N_FOLDS)) >= 5


@pytest.mark.parametrize("name", GIVEN)
def test_the_visible_text_is_paired_evenly_and_holds_no_choice(name: str) -> None:
    facts, answers = facts_of(name), TASK.relations[name].answers
    assert not [fact.subject for fact in facts if says(fact.subject, answers)]
    assert set(Counter(fact.answer for fact in facts).values()) == {len(facts) // len(answers)}
    cells = Counter((fact.fold, fact.answer) for fact in facts)
    for fold in range(N_FOLDS):
        own = [cells[fold, answer] for answer in answers]
        assert max(own) - min(own) <= 2
    for item in items_of(name):
        assert item.source.endswith(item.subject)
        assert says(item.source, [item.answer])


@pytest.mark.parametrize("name", GIVEN)
def test_the_twin_says_another_choice_and_shows_the_same_text(name: str) -> None:
    relation = TASK.relations[name]
    drawn: Counter[str] = Counter()
    for item in items_of(name):
        twin = twin_of(item, relation, 0)
        template = relation.sources["subject"][item.template]
        (other,) = [
            choice
            for choice in item.choices
            if template.replace("{answer}", choice).replace("{subject}", item.subject) == twin.source
        ]
        assert other != item.answer
        assert twin.mention == item.mention == item.subject
        drawn[other] += 1
    assert set(drawn) == set(relation.answers)


@pytest.mark.parametrize("name", BRIDGES)
def test_a_bridge_is_the_first_hop_of_chains_in_their_own_queries(name: str) -> None:
    folder = data_root() / "tasks" / "multi_hop"
    hops = tomllib.loads((folder / "task.toml").read_text(encoding="utf-8"))["relations"]
    first = next(
        one for one in hops if one.rsplit("_", 1)[0] == name.removeprefix("bridge_") and "hops" not in hops[one]
    )
    rows = [json.loads(line) for line in (folder / "items.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {(fact.subject, fact.answer, fact.aliases) for fact in facts_of(name)} == {
        (row["subject"], row["answer"], tuple(row.get("aliases", ()))) for row in rows if row["relation"] == first
    }
    chains = [one for one in hops.values() if one.get("hops", {}).get("first") == first and "t2" in one["sources"]]
    queries = {text for one in chains for split in ("train", "test") for text in one["sources"]["t2"][split]}
    assert set(TASK.relations[name].sources["t2"].values()) <= queries


def test_calculations_have_the_results_that_they_have() -> None:
    numbers = dict(zip(load_build().ONES, range(1, 20), strict=True)) | {"twenty": 20, "thirty": 30, "forty": 40}
    signs = {"plus": "+", "minus": "-", "times": "*", "divided by": "/"}
    for fact in facts_of("arithmetic_middle"):
        text = fact.subject
        for word, sign in signs.items():
            text = text.replace(word, sign)
        terms = [part if part in "+-*/" else str(sum(map(numbers.get, part.split("-")))) for part in text.split()]
        assert eval(" ".join(terms)) == numbers[fact.answer], fact.subject
        assert fact.answer not in fact.subject


def test_the_readme_counts_what_is_there() -> None:
    readme = (TASK.folder / "README.md").read_text(encoding="utf-8")
    for name in TASK.relations:
        facts = facts_of(name)
        folds, sizes = Counter(fact.fold for fact in facts), Counter(fact.answer for fact in facts).values()
        row = [name, str(len(facts)), str(len(sizes)), ", ".join(str(folds[i]) for i in range(N_FOLDS))]
        assert f"| {' | '.join(row)} | {min(sizes)} – {max(sizes)} |" in readme


# --- on the real model, against transformers alone, one text at a time


@pytest.fixture(scope="module")
def model(smollm2_folder: Path) -> LanguageModel:
    return load_model(str(smollm2_folder), Loading("cpu", "float32"))


class Naive:
    """The files as they are, filled by hand, and one forward pass a text."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.relations = tomllib.loads((TASK.folder / "task.toml").read_text(encoding="utf-8"))["relations"]
        rows = (TASK.folder / "items.jsonl").read_text(encoding="utf-8").splitlines()
        self.rows = [json.loads(row) for row in rows]

    def hidden(self, text: str) -> torch.Tensor:
        """The residual at the last token after the twentieth block."""
        with torch.no_grad():
            return self.model(self.ids(text), output_hidden_states=True).hidden_states[20][0, -1]

    def next(self, text: str, choices: list[str]) -> str:
        with torch.no_grad():
            scores = self.model(self.ids(text)).logits[0, -1]
        return max(choices, key=lambda choice: scores[self.tokenizer(f" {choice}").input_ids[0]])

    def ids(self, text: str) -> torch.Tensor:
        return torch.tensor([self.tokenizer(text).input_ids])


@pytest.fixture(scope="module")
def naive(smollm2_folder: Path) -> Naive:
    return Naive(smollm2_folder)


@pytest.mark.model
@pytest.mark.parametrize("name", TASK.relations)
def test_sites_choices_and_the_gate_against_a_naive_reference(name: str, model: LanguageModel, naive: Naive) -> None:
    own = naive.relations[name]
    rows = [row for row in naive.rows if row["relation"] == name][::60]
    found = {(item.subject, item.site, item.template): item for item in items_of(name)}
    choices = sorted(own["choice_sets"][0])
    assert len({naive.tokenizer(f" {choice}").input_ids[0] for choice in choices}) == len(choices)
    for row in rows:
        for site, splits in own["sources"].items():
            text = splits["test"][1].replace("{answer}", row["answer"]).replace("{subject}", row["subject"])
            item = found[row["subject"], site, "test1"]
            assert (item.source, list(item.choices), item.answer) == (text, choices, row["answer"])
            # All sources end where they are read: after the subject, or where the answer would come.
            reading = find_site(model, item)
            assert reading.ids == tuple(naive.ids(text)[0].tolist())
            read = capture(model, [reading], (20,)).values[0, 0]
            torch.testing.assert_close(read, naive.hidden(text), rtol=1e-3, atol=2e-3)
    filled = {
        row["subject"]: [
            p.replace("{answer}", row["answer"]).replace("{subject}", row["subject"]) for p in own["knowledge"]
        ]
        for row in rows
    }
    right = {
        row["subject"]: all(naive.next(text, choices) == row["answer"] for text in filled[row["subject"]])
        for row in rows
    }
    assert Knowledge(model, TASK).known(name, list(right)) == right


@pytest.mark.model
@pytest.mark.parametrize("name", GIVEN)
def test_twins_share_the_visible_tokens_and_differ_in_state(name: str, model: LanguageModel, naive: Naive) -> None:
    relation = TASK.relations[name]
    for item in items_of(name)[::60]:
        twin = twin_of(item, relation, 0)
        one, other = find_site(model, item), find_site(model, twin)
        assert len(one.ids) == len(other.ids)
        differing = [i for i, (a, b) in enumerate(zip(one.ids, other.ids, strict=True)) if a != b]
        visible = len(naive.tokenizer(f" {item.subject}").input_ids)
        assert len(differing) == 1
        assert differing[0] < len(one.ids) - visible
        pair = capture(model, [one, other], (0, 20)).values
        assert torch.equal(pair[0, 0], pair[0, 1]), "the token that is read is the same"
        assert (pair[1, 0] - pair[1, 1]).norm() > 1e-2 * pair[1, 0].norm()


@pytest.mark.model
def test_the_visible_text_alone_is_at_chance(smollm2_folder: Path, tmp_path: Path, isolated_cache: Path) -> None:
    tasks = [f"unsaid/{name}" for name in GIVEN]
    run = evaluate(
        str(smollm2_folder), tasks=tasks, inspectors=("logit_lens",), baselines=("visible_text",), layers="0",
        limit=60, out=tmp_path / "run",
    )  # fmt: skip
    rows = run.summary[run.summary.baseline == "visible_text"]
    alone = rows[rows.relation.isin(GIVEN)]
    assert set(alone.relation) == set(GIVEN)
    errors = (alone.chance * (1 - alone.chance) / alone.n) ** 0.5
    assert ((alone.accuracy_corrected - alone.chance).abs() <= 3 * errors).all()
