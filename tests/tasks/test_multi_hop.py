"""The shipped task multi_hop: chains of two hops, their first hops, and their corrections."""

import json
import tomllib
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lensbench.tasks import N_FOLDS, Fact, Item, Relation, Site, data_root, load_task
from lensbench.tasks.names import plain_words

TASK = load_task("multi_hop")
CHAINS = [name for name, relation in TASK.relations.items() if relation.hops and not relation.hops.correct]
CORRECTIONS = [name for name, relation in TASK.relations.items() if relation.hops and relation.hops.correct]
FIRST = [name for name, relation in TASK.relations.items() if relation.hops is None]


def facts_of(name: str) -> list[Fact]:
    return [fact for fact in TASK.facts if fact.relation == name]


def words(text: str) -> str:
    return f" {plain_words(text)} "


def all_texts(relation: Relation) -> list[str]:
    texts = [text for site in relation.sources.values() for text in site.values()]
    texts += [*relation.inspection, *relation.questions, *relation.knowledge]
    return texts + list(relation.hops.second if relation.hops else ())


def test_loads_quickly():
    load_task("multi_hop")


def test_counts():
    assert TASK.sites == ("t1", "t2")
    assert [f"{name}_correction" for name in CHAINS] == CORRECTIONS
    assert 1100 <= sum(len(facts_of(name)) for name in CHAINS) <= 1300
    assert all(len(facts_of(name)) <= 60 for name in CHAINS)
    # Every chain's first hop is a relation of its own, and every first hop is used.
    assert {TASK.relations[name].hops.first for name in CHAINS} == set(FIRST)
    assert len(FIRST) == 6


@pytest.mark.parametrize("name", TASK.relations)
def test_classes_and_folds_are_balanced(name):
    facts = facts_of(name)
    count = Counter(fact.answer for fact in facts)
    assert set(count) == set(TASK.relations[name].answers)
    assert min(count.values()) >= 7
    assert max(count.values()) <= 1.5 * min(count.values())
    folds = Counter(fact.fold for fact in facts)
    assert len(folds) == N_FOLDS
    assert min(folds.values()) >= 0.08 * len(facts)
    # A probe needs five subjects of an answer outside the fold that is tested.
    outside = Counter()
    for fact in facts:
        outside[fact.answer, fact.fold] += 1
    assert all(count[answer] - n >= 5 for (answer, _), n in outside.items())


@pytest.mark.parametrize("name", TASK.relations)
def test_texts_are_different_and_of_the_right_number(name):
    relation = TASK.relations[name]
    (site,) = relation.sources
    assert site == ("t2" if name in CHAINS else "t1")
    assert [len(relation.templates(site, split)) for split in ("train", "test")] == [4, 2]
    assert [len(relation.inspection), len(relation.questions), len(relation.knowledge)] == [2, 3, 2]
    texts = all_texts(relation)
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("name", TASK.relations)
def test_no_answer_and_no_bridge_in_a_text_or_a_subject(name):
    facts = facts_of(name)
    said = " | ".join(words(text) for text in all_texts(TASK.relations[name]))
    given_away = {word for fact in facts for word in (fact.answer, fact.bridge) if word and words(word) in said}
    assert not given_away
    for fact in facts:
        for word in filter(None, (fact.answer, fact.bridge)):
            assert plain_words(word) not in plain_words(fact.subject), fact
            assert plain_words(fact.subject) not in plain_words(word), fact


@pytest.mark.parametrize("name", CHAINS)
def test_hops_and_swaps(name):
    facts = {fact.subject: fact for fact in facts_of(name)}
    first = {fact.subject: fact.answer for fact in facts_of(TASK.relations[name].hops.first)}
    second: dict[str, str] = {}
    for fact in facts.values():
        assert fact.bridge == first[fact.subject]
        assert second.setdefault(fact.bridge, fact.answer) == fact.answer
        other = facts[fact.swap]
        assert other.bridge != fact.bridge
        assert other.answer != fact.answer
    used = Counter(fact.swap for fact in facts.values())
    assert max(used.values()) <= 3


def test_a_bridge_has_one_answer_in_all_relations():
    """The capital of France is one city, whoever comes from there."""
    known: dict[tuple[str, str], str] = {}
    for name in CHAINS:
        attribute = name.removeprefix(TASK.relations[name].hops.first.rsplit("_", 1)[0] + "_")
        for fact in facts_of(name):
            assert known.setdefault((attribute, fact.bridge), fact.answer) == fact.answer


@pytest.mark.parametrize("name", CHAINS)
def test_a_correction_has_the_facts_and_the_knowledge_of_its_chain(name):
    chain, correction = TASK.relations[name], TASK.relations[f"{name}_correction"]
    pairs = zip(facts_of(name), facts_of(correction.name), strict=True)
    for fact, same in pairs:
        keys = ("subject", "answer", "bridge", "swap", "aliases", "fold")
        assert [getattr(fact, key) for key in keys] == [getattr(same, key) for key in keys]
    assert correction.choice_sets == chain.choice_sets
    assert correction.knowledge == chain.knowledge
    assert (correction.hops.first, correction.hops.second) == (chain.hops.first, chain.hops.second)
    # What carries out the second hop is not what asks whether the model knows it.
    carried = {text.replace("{subject}", "{bridge}") for text in correction.inspection}
    assert not carried & set(correction.hops.second)


@pytest.mark.parametrize("name", CHAINS)
def test_t1_is_the_beginning_of_the_same_query(name):
    chain, correction = TASK.relations[name], TASK.relations[f"{name}_correction"]
    for template, whole in chain.sources["t2"].items():
        begun = correction.sources["t1"][template]
        assert whole.startswith(f"{begun} "), template
        assert not begun.endswith("{subject}")


def test_the_phrase_of_the_first_hop_is_found():
    """Every chain says its first hop in a phrase, at t2 as at t1; what is read at t1 is the phrase's end."""
    begun = {(item.relation, item.subject, item.template): item for item in both_splits("t1")}
    asked = [item for item in (*both_splits("t2"), *begun.values()) if TASK.relations[item.relation].hops]
    assert {item.relation for item in asked} == {*CHAINS, *CORRECTIONS}
    for item in asked:
        start, end = item.hop_span
        filled = [phrase.replace("{subject}", item.subject) for phrase in TASK.relations[item.relation].hops.phrases]
        assert filled.count(item.source[start:end]) == 1, item
        assert item.source[start - 1] == " "
        assert start < item.subject_span[0] < item.subject_span[1] <= end
        cut = item if item.site == "t1" else begun[f"{item.relation}_correction", item.subject, item.template]
        assert item.source[:end] == cut.source
    assert all(item.hop_span is None for item in begun.values() if item.relation in FIRST)


def both_splits(site: Site) -> tuple[Item, ...]:
    return (*TASK.items(site, "test"), *TASK.items(site, "train"))


@pytest.mark.parametrize("name", FIRST)
def test_a_first_hop_is_read_in_the_queries_of_its_chains(name):
    begun = {
        text
        for correction in CORRECTIONS
        if TASK.relations[correction].hops.first == name
        for text in TASK.relations[correction].sources["t1"].values()
    }
    assert set(TASK.relations[name].sources["t1"].values()) <= begun


def test_items_pair_t1_with_t2():
    whole = {(item.relation, item.subject, item.template): item for item in TASK.items("t2", "test")}
    begun = [item for item in TASK.items("t1", "test") if item.relation.endswith("_correction")]
    assert len(begun) == len(whole) == 2 * sum(len(facts_of(name)) for name in CHAINS)
    for item in begun:
        other = whole[item.relation.removesuffix("_correction"), item.subject, item.template]
        assert other.source.startswith(f"{item.source} ")
        assert (other.answer, other.bridge, other.swap) == (item.answer, item.bridge, item.swap)
        assert item.mention == item.subject


@settings(max_examples=6, deadline=None)
@given(limit=st.integers(1, 4000), seed=st.integers(0, 3), site=st.sampled_from(["t1", "t2"]))
def test_draws_are_seeded_and_even(limit, seed, site):
    drawn = TASK.items(site, "test", limit, seed)
    assert drawn == TASK.items(site, "test", limit, seed)
    assert len({item.id for item in drawn}) == len(drawn)
    assert len(drawn) == min(limit, len(TASK.items(site, "test")))
    size = {name: 2 * len(facts_of(name)) for name in TASK.relations_at(site)}
    count = Counter(item.relation for item in drawn)
    full = [count[name] for name in size if count[name] < size[name]]
    assert not full or max(full) - min(full) <= 1


def test_shortcuts_are_choices_of_their_chains():
    shortcuts = tomllib.loads((TASK.folder / "shortcuts.toml").read_text(encoding="utf-8"))
    assert list(shortcuts) == CHAINS
    readme = (TASK.folder / "README.md").read_text(encoding="utf-8")
    for name, row in shortcuts.items():
        assert row["answer"] in TASK.relations[name].answers
        assert 0 < row["share"] < 1
        assert f"| {name} | {row['answer']} | {row['share']:.2f} |" in readme


def test_the_readme_counts_what_is_there():
    readme = (TASK.folder / "README.md").read_text(encoding="utf-8")
    for name in (*FIRST, *CHAINS):
        facts = facts_of(name)
        folds = Counter(fact.fold for fact in facts)
        sizes = Counter(fact.answer for fact in facts).values()
        row = [name, *map(str, (len(facts), len(sizes), len({fact.bridge or fact.answer for fact in facts})))]
        row += [", ".join(str(folds[i]) for i in range(N_FOLDS)), f"{min(sizes)} – {max(sizes)}"]
        assert f"| {' | '.join(row)} |" in readme


def test_countries_agree_with_attribute_extraction():
    """Both tasks take their facts from the same packages: no subject has two answers."""
    lines = (data_root() / "tasks/attribute_extraction/items.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    seen = 0
    for name, attribute in (("country_capital", "capital"), ("country_currency", "currency")):
        answers = {row["subject"]: row["answer"] for row in rows if row["relation"] == name}
        for chain in (chain for chain in CHAINS if chain.endswith(f"_{attribute}") and not chain.startswith("us_")):
            for fact in facts_of(chain):
                seen += fact.bridge in answers
                assert answers.get(fact.bridge, fact.answer) == fact.answer
    assert seen > 200


def test_lines_are_in_one_order():
    """The build sorts, so that the same packages give the same bytes."""
    rows = [json.loads(line) for line in (TASK.folder / "items.jsonl").read_text(encoding="utf-8").splitlines()]
    order = list(TASK.relations)
    keys = [(order.index(row["relation"]), plain_words(row["subject"])) for row in rows]
    assert keys == sorted(keys)
