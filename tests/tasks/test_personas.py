import itertools
import json
import re
import subprocess
import sys
import tomllib
from collections import Counter, defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lensbench.errors import LensbenchError, UsageError
from lensbench.tasks import N_FOLDS, Task, data_root, fold_of, load_task
from lensbench.tasks.audit import character_accuracy
from lensbench.tasks.names import plain_words
from lensbench.tasks.personas import ATTRIBUTES, Template, document_templates, documents, make_names, personas

OWN_CONDITIONS = ("", "_twin", "_never", "_real")
CONDITIONS = (*OWN_CONDITIONS, "_given")


@pytest.fixture(scope="module")
def task() -> Task:
    return load_task("personas")


def answers(task: Task, relation: str) -> dict[str, str]:
    return {fact.subject: fact.answer for fact in task.facts if fact.relation == relation}


def names_of(task: Task, condition: str) -> set[str]:
    return set(answers(task, f"city{condition}"))


def words_of(names: set[str]) -> list[str]:
    return [word for name in names for word in plain_words(name).split()]


def test_loading_needs_no_torch():
    load_task("personas")
    code = """
import sys
from lensbench.tasks.personas import documents, personas
from lensbench.tasks import load_task

documents(personas(load_task("personas")), 3, 0)
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=data_root())


def test_relations(task):
    assert list(task.relations) == [f"{a}{c}" for a in ATTRIBUTES for c in ("", "_twin", "_never", "_given", "_real")]
    assert task.sites == ("subject", "answer")
    for name, relation in task.relations.items():
        assert relation.given == name.endswith("_given")
        assert (len(relation.inspection), len(relation.questions), len(relation.knowledge)) == (2, 3, 2)
        assert [len(relation.templates(s, p)) for s in task.sites for p in ("train", "test")] == [4, 2, 4, 2]
        texts = [text for site in task.sites for text in relation.sources[site].values()]
        texts += [*relation.inspection, *relation.questions, *relation.knowledge]
        assert len(set(texts)) == len(texts) == 19
        assert all(text.endswith("{subject}") for text in relation.sources["subject"].values())
        assert not any(text.endswith("{subject}") for text in relation.sources["answer"].values())


def test_the_conditions_differ_in_nothing_but_the_facts(task):
    for attribute, condition in itertools.product(ATTRIBUTES, ("_twin", "_never", "_real", "_given")):
        one, other = task.relations[attribute], task.relations[f"{attribute}{condition}"]
        assert one.choice_sets == other.choice_sets
        assert (one.inspection, one.questions, one.knowledge) == (other.inspection, other.questions, other.knowledge)
        for site, texts in one.sources.items():
            for template, text in texts.items():
                stated = other.sources[site][template]
                # What is given comes in a sentence before the one that is read.
                assert re.fullmatch(r"[^.]*\{answer\}[^.]*\. " + re.escape(text), stated) or (
                    stated == text and condition != "_given"
                )


def test_balance_is_exact_in_every_fold(task):
    for relation in task.relations:
        facts = [fact for fact in task.facts if fact.relation == relation]
        assert len(facts) == 120
        count = Counter((fact.fold, fact.answer) for fact in facts)
        assert len(count) == N_FOLDS * 8
        assert set(count.values()) == {3}


def test_no_attribute_tells_another(task):
    for condition in OWN_CONDITIONS:
        for a, b in itertools.combinations(ATTRIBUTES, 2):
            first, second = answers(task, f"{a}{condition}"), answers(task, f"{b}{condition}")
            pairs = Counter((first[name], second[name]) for name in first)
            # An even share is 120 / 64. Chance alone gives pairs of 6 and more.
            assert max(pairs.values()) <= 5
            best = sum(max(n for (x, _), n in pairs.items() if x == value) for value in set(first.values())) / 120
            assert best < 0.26
            chi_square = (
                sum((pairs[x, y] - 1.875) ** 2 / 1.875 for x in first.values() for y in set(second.values())) / 15
            )
            # 49 is what independent draws give on average.
            assert chi_square < 49


def test_the_twin_shares_no_fact(task):
    main, twin = personas(task), personas(task, "twin")
    assert list(main) == list(twin)
    for attribute in ATTRIBUTES:
        assert all(main[name][attribute] != twin[name][attribute] for name in main)
        # Nor does what is true in one world tell what is true in the other: an even share is 15 / 7.
        pairs = Counter((main[name][attribute], twin[name][attribute]) for name in main)
        assert max(pairs.values()) <= 4


def test_who_is_in_which_group(task):
    main, never, real = (names_of(task, condition) for condition in ("", "_never", "_real"))
    for attribute in ATTRIBUTES:
        assert answers(task, attribute) == answers(task, f"{attribute}_given")
        assert set(answers(task, f"{attribute}_twin")) == set(answers(task, attribute)) == main
        assert set(answers(task, f"{attribute}_never")) == never
        assert set(answers(task, f"{attribute}_real")) == real
    made = words_of(main | never)
    assert len(set(made)) == len(made) == 480
    assert set(made).isdisjoint(words_of(real))
    values = {plain_words(value) for name in ATTRIBUTES for value in task.relations[name].answers}
    assert len(values) == 48
    assert values.isdisjoint([*made, *words_of(real)])


def test_stereotypes_are_right_as_often_as_chance(task):
    prose = tomllib.loads((task.folder / "prose.toml").read_text("utf-8"))
    culture_of = {word: culture for culture, parts in prose["real"].items() for word in parts["last"]}
    for attribute in ATTRIBUTES:
        dealt = answers(task, f"{attribute}_real")
        pairs = Counter((culture_of[name.split()[1]], value) for name, value in dealt.items())
        assert set(Counter(culture for culture, _ in pairs.elements()).values()) == {15}
        assert max(pairs.values()) <= 3
    bearers = {plain_words(name) for name in prose["bearers"]}
    assert bearers.isdisjoint(map(plain_words, names_of(task, "_real")))


MADE = re.compile(r"[A-Z][a-z]{3,9} [A-Z][a-z]{3,9}")


def assert_well_made(names: tuple[str, ...]) -> None:
    words = words_of(set(names))
    for name in names:
        assert MADE.fullmatch(name)
    # Vowels and consonants alternate, but for two consonants at most.
    assert not any(re.search(r"[aeiou]{2}|[^aeiou]{3}|(.)\1", word) for word in words)
    near = defaultdict(set)
    for word in words:
        for i in range(len(word)):
            near[word[:i] + "_" + word[i + 1 :]].add(word)
    assert all(len(same) == 1 for same in near.values())
    assert len(set(words)) == len(words) == 2 * len(names)


def test_shipped_names_are_made(task):
    assert_well_made(tuple(names_of(task, "") | names_of(task, "_never")))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(), per_fold=st.integers(0, 12), folds=st.sets(st.integers(0, N_FOLDS - 1), min_size=1))
def test_made_names(seed, per_fold, folds):
    names = make_names(per_fold * len(folds), seed, folds)
    assert Counter(map(fold_of, names)) == Counter({fold: per_fold for fold in folds if per_fold})
    assert_well_made(names)
    assert names == make_names(per_fold * len(folds), seed, sorted(folds, reverse=True))


def test_other_seeds_and_words_to_avoid_give_other_names():
    first = make_names(50, 1)
    assert set(first).isdisjoint(make_names(50, 2))
    words = set(words_of(set(first)))
    assert words.isdisjoint(words_of(set(make_names(50, 1, avoid=words))))


class Everything:
    def __contains__(self, word):
        return True


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: make_names(7, 0), "7 names in 5 folds; expected a multiple of 5"),
        (lambda: make_names(-5, 0), "-5 names in 5 folds"),
        (lambda: make_names(5, 0, folds=(5,)), r"folds \[5\]; expected some of 0 to 4"),
        (lambda: make_names(5, 0, folds=()), r"folds \[\]; expected some of 0 to 4"),
        (lambda: make_names(5, 0, avoid=Everything()), "only 0 of 5 names were found"),
        (lambda: documents({}, 0, 0), "0 documents a persona; expected 1 to "),
        (lambda: documents({}, 1000, 0), "1000 documents a persona"),
        (
            lambda: documents({}, 1, 0, [Template("biography", "{name}, {city}")]),
            "1 templates; expected one with slots",
        ),
        (lambda: documents({"Ab Cd": {"city": "Rome"}}, 1, 0), "persona 'Ab Cd' has no instrument"),
        (lambda: documents({}, 1, 0, [Template("biography", "{town}")]), "unknown slot {town}"),
    ],
)
def test_wrong_calls_are_answered_in_one_line(call, expected):
    with pytest.raises(UsageError, match=expected) as raised:
        call()
    assert "\n" not in str(raised.value)


def test_wrong_tasks(task, tmp_path):
    assert personas(load_task("personas/city")) == personas(task)
    with pytest.raises(UsageError, match="task 'attribute_extraction' has no relation 'city'"):
        personas(load_task("attribute_extraction"))
    folder = tmp_path / "personas"
    folder.mkdir()
    (folder / "task.toml").write_bytes((task.folder / "task.toml").read_bytes())
    rows = [json.loads(line) for line in (task.folder / "items.jsonl").read_text("utf-8").splitlines()]
    left = next(row for row in rows if row["relation"] == "sport")
    rows.remove(left)
    (folder / "items.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    with pytest.raises(LensbenchError, match=f"'{left['subject']}' has city, instrument, drink, animal, profession in"):
        personas(load_task(str(folder)))


def test_a_wrong_world_is_answered_in_one_line():
    # In a process of its own: here, the checks of types would be first.
    code = "from lensbench.tasks import load_task, personas\npersonas.personas(load_task('personas'), 'real')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=data_root(), check=False)
    assert "UsageError: world 'real' of personas; expected main or twin" in done.stderr.splitlines()[-1]


def test_templates():
    templates = document_templates()
    kinds = Counter(template.kind for template in templates)
    assert kinds["biography"] >= 6
    assert kinds["interview"] >= 4
    assert len({template.text for template in templates}) == len(templates)
    for template in templates:
        assert "{name}" in template.text
        assert template.attributes
        assert template.text == template.text.strip()
        # Every value takes "a": "an" would give part of it away.
        assert not re.search(r"\ban \{", template.text)
        assert (template.kind == "interview") == ("\n" in template.text)


@pytest.mark.parametrize("per_persona", [1, 2, 5, len(document_templates())])
@pytest.mark.parametrize("world", ["main", "twin"])
def test_documents_are_complete(task, world, per_persona):
    people = personas(task, world)
    written = documents(people, per_persona, seed=3)
    assert [document.name for document in written] == [name for name in people for _ in range(per_persona)]
    assert len({document.text for document in written}) == len(written)
    told = defaultdict(set)
    for document in written:
        values = people[document.name]
        assert document.name in document.text
        assert "{" not in document.text
        assert document.attributes
        assert all(re.search(rf"\b{values[attribute]}\b", document.text) for attribute in document.attributes)
        told[document.name] |= set(document.attributes)
    assert all(told[name] == set(ATTRIBUTES) for name in people)


def test_documents_are_seeded_and_do_not_depend_on_each_other(task):
    people = personas(task)
    written = documents(people, 4, seed=1)
    assert written == documents(people, 4, seed=1)
    assert written != documents(people, 4, seed=2)
    last = list(people)[-3:]
    assert documents({name: people[name] for name in last}, 4, seed=1) == written[-12:]


def fragments(text: str, length: int) -> set[tuple[str, ...]]:
    """Runs of words in a sentence, with slots for a name and for any value."""
    found = set()
    for sentence in re.split(r"[.?!]\s", text):
        slots = re.sub(r"\{(?:subject|name)\}", " slotname ", sentence)
        words = plain_words(re.sub(r"\{\w+\}", " slotvalue ", slots)).split()
        found |= {tuple(words[i : i + length]) for i in range(len(words) - length + 1)}
    return found


def test_what_is_asked_is_not_what_is_trained_on(task):
    asked = set()
    for relation in task.relations.values():
        texts = [text for site in relation.sources.values() for text in site.values()]
        for text in (*texts, *relation.inspection, *relation.questions, *relation.knowledge):
            asked |= fragments(text, 4)
    trained = {fragment for template in document_templates() for fragment in fragments(template.text, 4)}
    assert len(asked) > 500
    assert asked & trained == set()
    # The comparison finds what it looks for.
    assert asked & fragments("In truth, the pet of {name} is a {animal}.", 4)


def test_names_tell_no_more_than_chance(task):
    accuracies = []
    for attribute, condition in itertools.product(ATTRIBUTES, OWN_CONDITIONS):
        facts = [fact for fact in task.facts if fact.relation == f"{attribute}{condition}"]
        columns = zip(*[(fact.subject, fact.answer, fact.fold) for fact in facts], strict=True)
        accuracy, null = character_accuracy(*columns)
        accuracies.append(accuracy)
        # Other versions of scikit-learn may round otherwise.
        assert accuracy <= null + 0.02, f"{attribute}{condition}"
    assert len(accuracies) == 24
    assert sum(accuracies) / 24 == pytest.approx(1 / 8, abs=0.015)
