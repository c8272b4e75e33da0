import functools
import importlib.util
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lensbench.errors import LensbenchError, UsageError, unknown_name
from lensbench.evaluation.config import read_subjects
from lensbench.tasks import N_FOLDS, Task, TaskError, data_root, find_tasks, fold_of, load_task
from lensbench.tasks.names import name_key

TOML = """name = "toy"
summary = "A toy."

[relations.colour]
kind = "class"
summary = "thing → colour"
inspection = ["The colour of {subject} is"]
questions = ["Which colour has {subject}? Answer:"]
choice_sets = [["blue", "red"]]

[relations.colour.sources.subject]
train = ["They saw {subject}", "We met {subject}"]
test = ["I know {subject}", "You like {subject}"]

[relations.colour.sources.answer]
train = ["In colour, {subject} is"]
test = ["Painters paint {subject} in"]
"""
FACTS = [{"relation": "colour", "subject": f"thing {i}", "answer": ("red", "blue")[i % 2]} for i in range(30)]


def write(folder: Path, toml: str = TOML, facts: list | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "task.toml").write_text(toml, encoding="utf-8")
    lines = [fact if isinstance(fact, str) else json.dumps(fact) for fact in (FACTS if facts is None else facts)]
    (folder / "items.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@functools.cache
def load_shipped() -> Task:
    return load_task("attribute_extraction")


@pytest.fixture
def shipped() -> Task:
    return load_shipped()


def test_toy_items(tmp_path):
    task = load_task(str(write(tmp_path / "toy")))
    items = task.items("subject", "test")
    assert len(items) == 60
    first = items[0]
    assert first.id == "colour/thing 0/subject/test0"
    assert first.source == "I know thing 0"
    assert first.source[slice(*first.subject_span)] == "thing 0"
    assert first.question == "The colour of {subject} is"
    assert first.choices == ("blue", "red")
    assert (first.answer, first.relation, first.fold) == ("red", "colour", fold_of("thing 0"))
    train = task.items("subject", "train")
    assert [item.subject for item in train] == [fact["subject"] for fact in FACTS]
    assert {item.template for item in train} == {"train0", "train1"}


BROKEN = {
    "malformed line": (None, [*FACTS, '{"relation": "colour",'], "items.jsonl:31: not JSON"),
    "not an object": (None, [*FACTS, "[1]"], "items.jsonl:31: a JSON list"),
    "missing key": (None, [*FACTS, {"relation": "colour", "subject": "x"}], "items.jsonl:31: no 'answer'"),
    "unknown key": (None, [*FACTS, FACTS[0] | {"subject": "x", "alias": []}], "items.jsonl:31: unknown key 'alias'"),
    "unknown relation": (
        None,
        [*FACTS, {"relation": "color", "subject": "x", "answer": "red"}],
        "did you mean 'colour'?",
    ),
    "empty subject": (None, [*FACTS, FACTS[0] | {"subject": ""}], "items.jsonl:31: subject ''"),
    "no such answer": (
        None,
        [*FACTS, FACTS[0] | {"subject": "x", "answer": "rad"}],
        "'rad' is in no choice set; expected a choice of colour; did you mean 'red'?",
    ),
    "alias is a choice": (None, [*FACTS, FACTS[0] | {"subject": "x", "aliases": ["Blue"]}], "is another choice"),
    "empty alias": (None, [*FACTS, FACTS[0] | {"subject": "x", "aliases": [""]}], "items.jsonl:31: alias ''"),
    "duplicate fact": (None, [*FACTS, FACTS[3] | {"subject": "thing  3"}], "first in line 4"),
    "empty folds": (None, FACTS[:2], "has no subject in fold 0 and"),
    "no facts": (None, [], "task.toml:4: relation 'colour' has no facts"),
    "same choices": (('["blue", "red"]', '["blue", "red", "RED"]'), None, "task.toml:9: choices RED and red"),
    "answer in two sets": (
        ('"class"', '"open"', '["blue", "red"]', '["blue", "red"], ["red", "green"]'),
        None,
        "task.toml:9: choices red and red of colour are the same",
    ),
    "class with two sets": (
        ('[["blue", "red"]]', '[["blue", "red"], ["green", "black"]]'),
        None,
        "2 choice sets in class relation colour",
    ),
    "one choice": (
        ('"class"', '"open"', '[["blue", "red"]]', '[["blue", "red"], ["green"]]'),
        None,
        "a choice set of 1",
    ),
    "no slot": (("I know {subject}", "I know"), None, "task.toml:13: 'I know'; expected exactly one {subject}"),
    "other brace": (("I know {subject}", "I {x} {subject}"), None, "task.toml:13:"),
    "slot first in prompt": (("The colour of {subject} is", "{subject} is"), None, "task.toml:7: '{subject} is'"),
    "slot first in source": (("I know {subject}", "{subject}"), None, "words before the slot"),
    "trailing space": (("I know {subject}", "I know {subject} "), None, "no space at the ends"),
    "unknown kind": (('"class"', '"klass"'), None, "task.toml:5: kind 'klass'"),
    "missing table": (("test = [", "tests = ["), None, "expected train = [...] and test = [...]"),
    "unknown relation key": (("questions", "question"), None, "did you mean 'questions'?"),
    "unknown key on top": (("summary = \"A toy.\"", "summary = \"A toy.\"\ncolour = 1"), None, "unknown key 'colour'"),
    "syntax": (('kind = "class"', 'kind = "class'), None, "task.toml:5: not TOML"),
    "bad name": (('name = "toy"', 'name = "To y"'), None, "task.toml:1: task name 'To y'"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_one_problem_is_one_line(tmp_path, case):
    change, facts, expected = BROKEN[case]
    toml = TOML
    for old, new in zip(*[iter(change or ())] * 2, strict=True):
        assert old in toml
        toml = toml.replace(old, new)
    with pytest.raises(TaskError) as raised:
        load_task(str(write(tmp_path / "toy", toml, facts)))
    message = str(raised.value)
    # Two of the cases break both sites in the same way.
    assert message.count("\n") == (1 if case == "missing table" else 0) + (case == "unknown relation key")
    assert expected in message
    assert message.startswith(str(tmp_path / "toy"))


def test_all_problems_are_shown_up_to_a_thousand(tmp_path):
    facts = [*FACTS, *({"relation": "colour", "subject": f"x{i}", "answer": "rad"} for i in range(1005))]
    with pytest.raises(TaskError) as raised:
        load_task(str(write(tmp_path / "toy", facts=facts)))
    lines = str(raised.value).splitlines()
    assert len(lines) == 1001
    assert lines[-1] == "... and 5 more"
    assert "items.jsonl:31:" in lines[0]


SECOND = TOML.split("\n", 3)[3].replace("relations.colour", "relations.taste")


def test_relations_may_have_sites_of_their_own(tmp_path):
    second = SECOND.split("[relations.taste.sources.answer]")[0].replace("sources.subject", "sources.t1")
    facts = [*FACTS, *(fact | {"relation": "taste"} for fact in FACTS)]
    task = load_task(str(write(tmp_path / "toy", TOML + second, facts)))
    assert task.sites == ("subject", "t1", "answer")
    assert {item.relation for item in task.items("t1", "test")} == {"taste"}
    assert {item.relation for item in task.items("answer", "test", 10)} == {"colour"}
    assert load_task(f"{tmp_path / 'toy'}/taste").sites == ("t1",)


CHAINS = TOML + SECOND.replace(
    'summary = "thing', 'hops = {first = "colour", second = ["{bridge} is", "{bridge}:"]}\nsummary = "thing'
)
GOOD_CHAINS = [
    fact
    | {"relation": "taste", "bridge": fact["answer"], "answer": ("red", "blue")[i % 2], "swap": f"thing {(i + 1) % 30}"}
    for i, fact in enumerate(FACTS)
]


def test_chains(tmp_path):
    task = load_task(str(write(tmp_path / "toy", CHAINS, [*FACTS, *GOOD_CHAINS])))
    item = next(item for item in task.items("answer", "test") if item.relation == "taste")
    assert (item.bridge, item.swap) == ("red", "thing 1")
    assert task.relations["taste"].hops.first == "colour"
    # One relation alone still knows its first hop.
    alone = load_task(f"{tmp_path / 'toy'}/taste")
    assert {fact.relation for fact in alone.every.facts} == {"colour", "taste"}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"bridge": "blue"}, "bridge 'blue' of 'thing 0'; expected its answer in the first hop, colour (red)"),
        ({"swap": "thing 2"}, "swap 'thing 2' of 'thing 0'"),
        ({"swap": "nobody"}, "swap 'nobody' of 'thing 0'"),
        ({"facets": {"place": "Rome"}}, "facet 'place' is 'Rome'"),
        ({"popularity": "high"}, "'popularity' of this fact is a str; expected a int or float"),
    ],
)
def test_bad_chains(tmp_path, change, expected):
    facts = [*FACTS, GOOD_CHAINS[0] | change, *GOOD_CHAINS[1:]]
    with pytest.raises(TaskError) as raised:
        load_task(str(write(tmp_path / "toy", CHAINS, facts)))
    assert expected in str(raised.value)
    assert "items.jsonl:31:" in str(raised.value)


PHRASES = CHAINS.replace('["{bridge} is", "{bridge}:"]', '["{bridge} is", "{bridge}:"], phrases = PHRASES')


def test_the_first_hop_is_found_in_the_source(tmp_path):
    text = PHRASES.replace("PHRASES", '["colour, {subject}", "paint {subject}"]')
    task = load_task(str(write(tmp_path / "toy", text, [*FACTS, *GOOD_CHAINS])))
    assert task.relations["taste"].hops.phrases == ("colour, {subject}", "paint {subject}")
    items = [item for split in ("train", "test") for item in task.items("answer", split)]
    found = {item.source[slice(*item.hop_span)] for item in items if item.relation == "taste"}
    assert {"colour, thing 0", "paint thing 0"} <= found
    assert len(found) == 60
    # No phrase is looked for where nothing is asked yet, or in what is no chain.
    assert {item.hop_span for item in items if item.relation == "colour"} == {None}
    assert {item.hop_span for item in task.items("subject", "test")} == {None}


@pytest.mark.parametrize(
    ("phrases", "expected"),
    [
        ('"paint {subject}"', "'phrases' of hops of 'taste' is a str; expected a list"),
        ("[]", "phrases of [relations.taste.hops] is []; expected a list of texts"),
        ('["colour, {subject}", "paint it"]', "'paint it'; expected exactly one {subject}"),
        (
            '["colour, {subject}", "{x} {subject}"]',
            "'{x} {subject}'; expected exactly one {subject} and no other brace",
        ),
        (
            '["colour, {subject}"]',
            "task.toml:32: 'Painters paint {subject} in' has 0 of the phrases of taste.hops; expected exactly one; say",
        ),
        (
            '["colour, {subject}", "paint {subject}", "{subject} in"]',
            "task.toml:32: 'Painters paint {subject} in' has 2 of the phrases of taste.hops",
        ),
    ],
)
def test_bad_phrases(tmp_path, phrases, expected):
    with pytest.raises(TaskError) as raised:
        load_task(str(write(tmp_path / "toy", PHRASES.replace("PHRASES", phrases), [*FACTS, *GOOD_CHAINS])))
    assert expected in str(raised.value)
    assert "\n" not in str(raised.value)


KNOWN = 'knowledge = ["Of {subject} the colour is", "If asked for the colour of {subject}, say"]\n'


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("Of {subject} the colour is", "The colour of {subject} is", "expected a text that is no inspection prompt"),
        (', "If asked for the colour of {subject}, say"', "", "1 knowledge prompts of colour"),
    ],
)
def test_knowledge_prompts_are_two_and_new(tmp_path, old, new, expected):
    toml = TOML.replace('summary = "thing', KNOWN + 'summary = "thing')
    assert load_task(str(write(tmp_path / "good", toml))).relations["colour"].knowledge[0].startswith("Of")
    with pytest.raises(TaskError) as raised:
        load_task(str(write(tmp_path / "bad", toml.replace(old, new))))
    assert expected in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_answer_that_is_given(tmp_path):
    text = TOML.replace(
        '"They saw {subject}", "We met {subject}"', '"They say {subject} is {answer}. We saw {subject}"'
    )
    text = text.replace('"I know {subject}", "You like {subject}"', '"It is {answer}, {subject}; and {subject}"')
    text = text.split("[relations.colour.sources.answer]")[0]
    with pytest.raises(TaskError, match=r"exactly one \{subject\}"):
        load_task(str(write(tmp_path / "bad", text)))
    task = load_task(str(write(tmp_path / "toy", text.replace('kind = "class"', 'kind = "class"\ngiven = true'))))
    item = task.items("subject", "test")[0]
    assert item.source == "It is red, thing 0; and thing 0"
    assert item.mention == "thing 0"
    assert item.subject_span == (len("It is red, thing 0; and "), len(item.source))


def test_knowledge_of_what_is_given_may_state_it(tmp_path):
    """Both prompts do, before the last mention of the subject, or neither does."""
    text = TOML.replace('kind = "class"', 'kind = "class"\ngiven = true')
    for one in ("They saw", "We met", "I know", "You like", "In colour,", "Painters paint"):
        text = text.replace(f'"{one} {{subject}}', f'"{{answer}}. {one} {{subject}}')
    stated = KNOWN.replace("Of {subject}", "{answer}! Of {subject}").replace("If asked", "{answer}? If asked")
    half = KNOWN.replace("Of {subject}", "{answer}! Of {subject}")
    after = stated.replace("of {subject}, say", "of {subject}, not {answer}").replace("{answer}? If", "If")
    for known in (KNOWN, stated):
        load_task(str(write(tmp_path / "toy", text.replace("choice_sets", known + "choice_sets"))))
    for known in (half, after):
        with pytest.raises(TaskError, match=r"expected one \{answer\} and \{subject\} after it"):
            load_task(str(write(tmp_path / "toy", text.replace("choice_sets", known + "choice_sets"))))
    with pytest.raises(TaskError, match=r"expected exactly one \{subject\} and no other brace"):
        load_task(str(write(tmp_path / "toy", TOML.replace("choice_sets", stated + "choice_sets"))))


def test_not_utf8(tmp_path):
    folder = write(tmp_path / "toy")
    (folder / "items.jsonl").write_bytes(b'{"relation": "colour"}\n\xff\n')
    with pytest.raises(TaskError, match=r"items.jsonl:2: byte 0xff"):
        load_task(str(folder))


def test_crlf_and_byte_order_mark_are_read(tmp_path):
    folder = write(tmp_path / "toy")
    for name in ("task.toml", "items.jsonl"):
        text = (folder / name).read_text(encoding="utf-8")
        (folder / name).write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert len(load_task(str(folder)).facts) == 30


def test_names_and_paths(tmp_path):
    folder = write(tmp_path / "toy")
    assert load_task(str(folder)).name == "toy"
    assert list(load_task(f"{folder}/colour").relations) == ["colour"]
    assert list(load_task("attribute_extraction/country_capital").relations) == ["country_capital"]
    for spec in ("atribute_extraction", "attribute_extraction/country_capitol", f"{folder}/color"):
        with pytest.raises(UsageError, match="did you mean"):
            load_task(spec)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"holds no task: expected task.toml and items.jsonl"):
        load_task(str(tmp_path / "empty"))
    (tmp_path / "empty" / "items.jsonl").write_text("")
    with pytest.raises(TaskError, match=r"task.toml:1: cannot be read"):
        load_task(str(tmp_path / "empty"))


def test_version_follows_the_bytes(tmp_path):
    first = load_task(str(write(tmp_path / "toy"))).version
    assert load_task(str(write(tmp_path / "copy"))).version == first
    assert load_task(str(write(tmp_path / "copy", TOML + "\n"))).version != first


def test_loading_needs_no_torch():
    load_task("attribute_extraction")
    code = "import sys, lensbench.tasks as t; t.load_task('attribute_extraction')\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=data_root())


def test_shipped_task(shipped):
    assert find_tasks()["attribute_extraction"] == shipped.folder
    assert shipped.sites == ("subject", "answer")
    controls = {"verb_past", "word_first_letter"}
    assert len(shipped.relations.keys() - controls) >= 20
    assert 3000 <= len(shipped.facts) <= 4200
    assert len({name_key(fact.subject) for fact in shipped.facts}) >= 2500
    assert (shipped.folder / "items.jsonl").stat().st_size < 1_000_000
    assert shipped.relations["country_capital"].inspection[0] == "The capital of {subject} is"
    for relation in shipped.relations.values():
        texts = [text for site in ("subject", "answer") for text in relation.sources[site].values()]
        texts += [*relation.inspection, *relation.questions, *relation.knowledge]
        assert len(set(texts)) == len(texts) == 19
        assert all(text.endswith("{subject}") for text in relation.sources["subject"].values())
        assert not any(text.endswith("{subject}") for text in relation.sources["answer"].values())
        count = Counter(fact.answer for fact in shipped.facts if fact.relation == relation.name)
        assert set(count) == set(relation.answers)
        if relation.kind == "class":
            assert len(count) <= 24
            assert 8 <= min(count.values()) <= max(count.values()) <= 40
        else:
            assert {len(choices) for choices in relation.choice_sets} == {8}
    capitals = [fact for fact in shipped.facts if fact.relation in {"country_capital", "state_capital"}]
    assert all(fact.popularity for fact in capitals)
    assert max(capitals, key=lambda fact: fact.popularity).answer == "Beijing"


def test_build_and_package_agree_on_folds(shipped):
    spec = importlib.util.spec_from_file_location("build", shipped.folder / "build.py")
    build = importlib.util.module_from_spec(spec)
    sys.modules["build"] = build
    try:
        spec.loader.exec_module(build)
        assert all(build.fold_of(fact.subject) == fact.fold for fact in shipped.facts)
    finally:
        del sys.modules["build"]


@given(st.text(min_size=1))
def test_fold_ignores_case_accents_and_spaces(name):
    assert 0 <= fold_of(name) < N_FOLDS
    assert fold_of(f"  {name} ") == fold_of(name)


def test_fold_of_the_same_name():
    assert fold_of("São Tomé") == fold_of("SAO  TOME") == fold_of("Sao-Tome")


@settings(max_examples=12, deadline=None)
@given(limit=st.integers(0, 6000), seed=st.integers(0, 3), split=st.sampled_from(["train", "test"]))
def test_limits(limit, seed, split):
    shipped = load_shipped()
    drawn = {site: shipped.items(site, split, limit, seed) for site in ("subject", "answer")}
    everything = shipped.items("answer", split)
    items = drawn["answer"]
    assert len(items) == min(limit, len(everything))
    assert len({item.id for item in items}) == len(items)
    keys = [[(item.relation, item.subject, item.template) for item in drawn[site]] for site in ("subject", "answer")]
    assert keys[0] == keys[1]
    place = {item: i for i, item in enumerate(everything)}
    assert [place[item] for item in items] == sorted(place[item] for item in items)
    count = Counter(item.relation for item in items)
    size = Counter(item.relation for item in everything)
    full = [count[r] for r in size if count[r] < size[r]]
    if full:
        assert max(full) - min(full) <= 1
        assert all(count[r] <= max(full) for r in size if count[r] == size[r])
    facts = Counter(fact.relation for fact in shipped.facts)
    for relation, n in count.items():
        subjects = {item.subject for item in items if item.relation == relation}
        assert len(subjects) == min(n, facts[relation])


def test_draw_is_seeded_and_one_relation_is_drawn_as_in_the_task(shipped):
    assert shipped.items("answer", "test", 100, 1) == shipped.items("answer", "test", 100, 1)
    assert shipped.items("answer", "test", 100, 1) != shipped.items("answer", "test", 100, 2)
    n = sum(item.relation == "country_capital" for item in shipped.items("answer", "test", 190))
    alone = load_task("attribute_extraction/country_capital").items("answer", "test", n)
    assert alone == tuple(item for item in shipped.items("answer", "test", 190) if item.relation == "country_capital")


def test_unknown_site(tmp_path):
    toml = TOML.split("[relations.colour.sources.answer]")[0]
    task = load_task(str(write(tmp_path / "toy", toml)))
    assert task.sites == ("subject",)
    with pytest.raises(LensbenchError, match="its sites are subject"):
        task.items("answer", "test")


def test_unknown_name_is_one_line():
    error = unknown_name("inspector", "Logitlens", ["logit_lens", "tuned_lens"], "see `lensbench list`")
    assert isinstance(error, UsageError)
    assert error.exit_status == 2
    assert str(error).startswith("unknown inspector 'Logitlens'; did you mean 'logit_lens'")
    assert "\n" not in str(error)
    assert "20 are known" in str(unknown_name("task", "zzz", map(str, range(20))))
    assert "there is no task" in str(unknown_name("task", "zzz", []))


def test_some_subjects_alone(tmp_path):
    """Items of the others are gone, and nothing else is another; the version says that it is not the whole task."""
    whole = load_task("personas/city")
    names = sorted({fact.subject for fact in whole.facts})[:30]
    some = whole.about([*names, "Nobody Known"])
    every = {item.id: item for item in whole.items("subject", "test")}
    kept = some.items("subject", "test")
    assert {item.subject for item in kept} == set(names)
    assert all(every[item.id] == item for item in kept)
    assert some.version != whole.version
    assert len(some.version) == len(whole.version)
    assert some.version == whole.about(reversed(names)).version
    with pytest.raises(LensbenchError, match="has no fact about any of the 1 subjects"):
        whole.about(["Nobody Known"])


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("names.txt", "Ada Lovelace\n\n Alan Turing \n", {"Ada Lovelace", "Alan Turing"}),
        ("facts.json", '{"city": {"Ada": "Oslo"}, "drink": {"Ada": "tea", "Alan": "wine"}}', {"Ada", "Alan"}),
    ],
)
def test_subjects_are_read_from_a_file(tmp_path, name, text, expected):
    (tmp_path / name).write_text(text)
    assert read_subjects(tmp_path / name) == expected


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("names.txt", "\n \n", "contains no name"),
        ("facts.json", "[1", "expected one name on each line"),
        ("facts.json", "[1]", "expected one name on each line"),
        ("facts.json", "{}", "contains no name"),
    ],
)
def test_a_file_that_names_nobody_is_refused(tmp_path, name, text, says):
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=says):
        read_subjects(tmp_path / name)
    with pytest.raises(UsageError, match="No such file"):
        read_subjects(tmp_path / "nowhere.txt")


@pytest.mark.parametrize("limit", [20, 40, 90])
def test_a_limit_draws_answers_and_folds_in_their_proportions(limit: int) -> None:
    task = load_task("attribute_extraction/country_continent")
    facts = [fact for fact in task.facts if fact.relation == "country_continent"]
    drawn = task.items("subject", "test", limit)
    for of in (lambda one: one.answer, lambda one: one.fold):
        whole, part = Counter(map(of, facts)), Counter(map(of, drawn))
        for name, count in whole.items():
            # A stratum is an answer in a fold: each of the five or six of a name is off by less than one.
            assert abs(part[name] - limit * count / len(facts)) < 6 * 0.5, (name, part[name])
    assert {item.subject for item in task.items("subject", "test", 20)} <= {
        item.subject for item in task.items("subject", "test", 40)
    }, "a larger draw holds the smaller one"


FOREIGN_TOML = {
    "20,000 parts of a key": (".".join("a" * 20_000) + " = 1\n", "not TOML|no 'name'|unknown key"),
    "nested deep": ("x = " + "[" * 50_000 + "\n", "not TOML"),
    "a number without end": ("x = " + "9" * 6000 + "\n", "not TOML|unknown key"),
    "a description without end": (
        TOML.replace('kind = "class"', 'kind = "class"\ndescribe = 999999999999'),
        "0 to 512",
    ),
}


@pytest.mark.parametrize(("toml", "says"), FOREIGN_TOML.values(), ids=FOREIGN_TOML.keys())
def test_whatever_stands_in_a_task_is_a_line_each(toml: str, says: str, tmp_path: Path):
    with pytest.raises(TaskError, match=says) as told:
        load_task(str(write(tmp_path / "toy", toml)))
    assert all(len(line) < 400 for line in str(told.value).splitlines())


@pytest.mark.parametrize("line", ["[" * 100_000, '{"a": ' + "9" * 6000 + "}", "3", "null", '{"relation": {}}'])
def test_whatever_stands_in_a_fact_is_a_line(line: str, tmp_path: Path):
    with pytest.raises(TaskError, match=r"items\.jsonl:31: ") as told:
        load_task(str(write(tmp_path / "toy", TOML, [*FACTS, line])))
    assert all(len(line) < 400 for line in str(told.value).splitlines())


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), Path.mkdir])
def test_what_is_no_regular_file_is_not_read(make: Callable[[Path], None], tmp_path: Path):
    folder = write(tmp_path / "toy")
    (folder / "items.jsonl").unlink()
    make(folder / "items.jsonl")
    with pytest.raises(TaskError, match=r"items\.jsonl:1: cannot be read \(it is"):
        load_task(str(folder))
