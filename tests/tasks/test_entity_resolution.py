"""The task of names: its data, names that are cut, and texts that are generated."""

import importlib.util
import json
import re
import sys
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from lensbench import evaluate
from lensbench.evaluation.items import cut_by_token
from lensbench.tasks import Task, load_task
from lensbench.tasks.facts import fold_of
from lensbench.tasks.names import plain_words
from tests.tiny import model

FACETS = {"place", "era", "claim"}


@pytest.fixture(scope="module")
def task() -> Task:
    return load_task("entity_resolution")


def entities(task: Task) -> list[dict]:
    return [json.loads(line) for line in (task.folder / "entities.jsonl").read_text(encoding="utf-8").splitlines()]


def test_entities_are_whole(task) -> None:
    found = entities(task)
    assert len(found) > 500
    assert len({plain_words(one["name"]) for one in found}) == len(found)
    assert min(Counter(one["tier"] for one in found).values()) > len(found) / 4
    for one in found:
        words = one["description"].split()
        assert 12 <= len(words) <= 25, one["name"]
        assert words[0].lower() not in ("a", "an", "the")
        assert one["place"]
        assert one["claim"]
        assert one["era"] or one["type"] in ("country", "city")
        name = {word for word in plain_words(one["name"]).split() if len(word) > 3}
        assert not name & set(plain_words(one["description"]).split()), one["name"]


def test_no_alias_is_another_entity(task) -> None:
    owner: dict[str, str] = {}
    for one in entities(task):
        for name in (one["name"], *one["aliases"]):
            assert owner.setdefault(plain_words(name), one["name"]) == one["name"]


def test_choices_are_of_one_type(task) -> None:
    kind = {f"the {one['name']}" if one.get("the") else one["name"]: one["type"] for one in entities(task)}
    for name in ("claim", "description", "claim_by_token"):
        relation = task.relations[name]
        answered = {fact.answer: kind[fact.subject] for fact in task.facts if fact.relation == name}
        for choices in relation.choice_sets:
            assert len(choices) == 8
            assert len({answered[choice] for choice in choices if choice in answered}) == 1


def test_descriptions_have_facets_and_claims_are_one_word(task) -> None:
    for fact in task.facts:
        if fact.relation == "description":
            assert {"place", "claim"} <= set(fact.facets) <= FACETS
        if fact.relation == "claim":
            assert " " not in fact.answer
            assert plain_words(fact.answer) not in plain_words(fact.subject).split()


def test_invented_names_are_balanced_and_not_entities(task) -> None:
    renown = [fact for fact in task.facts if fact.relation == "renown"]
    assert Counter(fact.answer for fact in renown) == {"famous": 60, "unknown": 60}
    assert len(set(Counter((fact.answer, fact.fold) for fact in renown).values())) == 1
    names = {plain_words(one["name"]) for one in entities(task)}
    invented = {fact.subject for fact in renown if fact.answer == "unknown"}
    assert not names & {plain_words(name) for name in invented}
    assert all(re.fullmatch(r"[A-Z][a-z]+ [A-Z][a-z]+", name) for name in invented)


def test_the_build_agrees_on_folds(task) -> None:
    spec = importlib.util.spec_from_file_location("build_entities", task.folder / "build.py")
    build = importlib.util.module_from_spec(spec)
    sys.modules["build_entities"] = build
    try:
        spec.loader.exec_module(build)
        assert all(build.fold_of(fact.subject) == fold_of(fact.subject) for fact in task.facts)
    finally:
        del sys.modules["build_entities"]


def test_a_name_is_cut_after_each_of_its_tokens(task) -> None:
    small = model()
    items = [item for item in task.items("subject", "test") if item.relation == "claim_by_token"][:40]
    for item in items:
        cuts = list(cut_by_token(small, item))
        assert cuts[-1].source == item.source
        assert cuts[-1].mention == item.subject
        assert [cut.mention for cut in cuts] == sorted((cut.mention for cut in cuts), key=len)
        assert all(item.subject.startswith(cut.mention) and cut.mention for cut in cuts)
        assert len({cut.id for cut in cuts}) == len(cuts)
        assert {cut.subject for cut in cuts} == {item.subject}
        # What is before the name stays; each cut has one token more.
        lengths = [len(small.tokens.encode(cut.source).ids) for cut in cuts]
        assert lengths == sorted(lengths)
        assert cuts[0].template.endswith(f"@1/{len(cuts)}")


@pytest.fixture(scope="module")
def run(tiny_llama_folder: Path, tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LENSBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield evaluate(
            str(tiny_llama_folder),
            tasks=("entity_resolution/description", "entity_resolution/kind_by_token", "entity_resolution/renown"),
            inspectors=("patchscope", "logit_lens"),
            baselines=("input_only", "shuffled", "mean"),
            limit=30,
            out=tmp_path_factory.mktemp("runs") / "entities",
        )


def test_methods_that_generate_say_something(run) -> None:
    assert not run.failed
    texts = run.records[run.records.text.notna()]
    # The lens says nothing, and neither do its rivals.
    assert set(texts.inspector.astype(str)) == {"patchscope"}
    assert set(texts.baseline.astype(str)) == {"none", "input_only", "mean"}
    own = texts[texts.baseline == "none"]
    assert set(own.inspector.astype(str)) == {"patchscope"}
    assert set(own.relation.astype(str)) == {"description", "renown"}
    assert not own.text.str.contains("\n").any()
    described = own[own.relation == "description"]
    assert described.open_correct.isna().all()
    assert own[own.relation == "renown"].open_correct.notna().all()


def test_the_mean_says_one_thing_a_layer(run) -> None:
    said = run.records[(run.records.baseline == "mean") & (run.records.inspector == "patchscope")]
    said = said[said.relation == "description"]
    assert (said.groupby(["layer", "site"], observed=True).text.nunique() == 1).all()


def test_texts_are_measured(run) -> None:
    metrics = pd.read_csv(run.path / "metrics.csv")
    kept = metrics[(metrics.inspector == "patchscope") & (metrics.baseline == "none") & (metrics.site == "answer")]
    recall = kept[kept.metric == "facet_recall"].set_index("layer")
    assert set(recall.index) == {0, 1, 2}
    assert ((recall.ci_low <= recall.value) & (recall.value <= recall.ci_high)).all()
    assert set(kept[kept.metric == "rouge_l"].relation) == {"description"}


def test_cut_names_have_a_curve(run) -> None:
    metrics = pd.read_csv(run.path / "metrics.csv")
    cut = metrics[metrics.metric.str.startswith("accuracy_cut_") & (metrics.inspector == "logit_lens")]
    assert {"accuracy_cut_0", "accuracy_cut_1"} <= set(cut.metric)
    assert set(cut.relation) == {"kind_by_token"}
    records = run.records
    whole = records[(records.relation == "kind_by_token") & (records.baseline == "none") & (records.layer == 1)]
    whole = whole[whole.inspector == "logit_lens"]
    last = whole[whole.template.astype(str).str.extract(r"@(\d+)/(\d+)", expand=True).pipe(lambda x: x[0] == x[1])]
    expected = cut[(cut.metric == "accuracy_cut_0") & (cut.layer == 1) & (cut.baseline == "none")].value.iloc[0]
    assert last.correct_corrected.mean() == pytest.approx(expected)


def test_cut_names_have_no_part_in_totals(run) -> None:
    summary = run.summary[(run.summary.inspector == "logit_lens") & (run.summary.baseline == "none")]
    subject = summary[(summary.site == "subject") & (summary.layer == 1) & (summary.question == "uses_activation")]
    sizes = subject.set_index("relation")["n"]
    assert sizes["all"] == sizes["description"] + sizes["renown"]
    assert run.outside_totals == {("entity_resolution", "kind_by_token")}


def test_known_is_in_the_records_and_the_journal(run) -> None:
    assert run.records.known.notna().all()
    assert set(run.info["knowledge"]) == {
        "entity_resolution/description",
        "entity_resolution/kind_by_token",
        "entity_resolution/renown",
    }
    share = run.info["knowledge"]["entity_resolution/renown"]
    assert set(share) == {"facts", "known", "corrected"}
    known = run.records.drop_duplicates("subject")
    assert set(known.known) <= {True, False}
