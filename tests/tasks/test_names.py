"""Names: distinct ones stay distinct, and a text says a name or it does not, in any script."""

import csv
import logging
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lensbench.tasks import load_task
from lensbench.tasks.facts import fold_of
from lensbench.tasks.formats.texts import SLOT, Slugs, place_subject, place_whole
from lensbench.tasks.names import find_name, name_key, plain_words, says

DISTINCT = [
    "C", "C++", "C#", "F#", "O+", "O-", "-5", "5", "+5", "5°", "♀A", "♂A", "パリ", "バリ", "ハリ", "ดี", "ดู", "й", "и",
    "resume", "résumé", "हिन्दी", "हिन्द", "A.", "A", "½", "1/2", "№ 1", "a_b", "a-b",
]  # fmt: skip


def test_names_that_differ_in_signs_or_marks_are_distinct():
    assert len({name_key(name) for name in DISTINCT}) == len(DISTINCT)


@pytest.mark.parametrize(
    "same",
    [
        ("Paris", "PARIS", " paris ", "Ｐａｒｉｓ"),
        ("São Paulo", "Sa\u0303o  Paulo", "são\u00a0paulo"),
        ("パリ", "ﾊﾟﾘ", "ハ\u309aリ"),
        ("Straße", "STRASSE"),
        ("서울", unicodedata.normalize("NFD", "서울")),
    ],
)
def test_case_width_blanks_and_canonical_form_make_no_other_name(same: tuple[str, ...]):
    assert len({name_key(name) for name in same}) == 1


@given(st.text(min_size=1, max_size=12))
def test_a_key_is_its_own_key_whatever_the_form(name: str):
    key = name_key(name)
    assert name_key(key) == key
    assert name_key(unicodedata.normalize("NFD", name)) == key
    assert name_key(f" {name}\t") == key


@given(st.text(alphabet="abcdeéñйパดี京C+#-5. ", min_size=1, max_size=8).filter(lambda name: name_key(name) != ""))
def test_a_name_between_blanks_is_found_where_it_stands(name: str):
    bare = name.strip()
    text = f"one two {bare} three"
    found = find_name(text, bare)
    assert found is not None
    assert name_key(text[found.start : found.end]) == name_key(bare)
    assert find_name(unicodedata.normalize("NFD", text), bare) is not None


SAID = [
    ("首都是北京。", "北京", True), ("東京は", "東京", True), ("バリは島", "パリ", False), ("ﾊﾟﾘへ", "パリ", True),
    ("ดีมาก", "ดี", True), ("ดีมาก", "ด", False), ("서울은", "서울", True), ("C言語", "C", True),
    ("It is 5 degrees", "-5", False), ("It is -5 degrees", "5", False), ("It is -5 degrees", "-5", True),
    ("it is \u22125 degrees", "5", False), ("3-5 of them", "5", True), ("3.5 km", "5", False), ("3.5 km", "3", False),
    ("1,984 of them", "984", False), ("in 1984.", "1984", True), ("5% of it", "5", True), ("5° north", "5", True),
    ("written in C++", "C", False), ("written in C#.", "C", False), ("written in C++.", "C++", True),
    ("C, or Java", "C", True), ("It's C.", "C", True), ("group O- here", "O", False), ("group O- here", "O-", True),
    ("group O+", "O-", False), ("an A-level", "A", True), ("Guinea-Bissau", "Guinea", True),
    ("Pakistani", "Pakistan", False), ("New\u00a0York", "new york", True), ("Paris™", "Paris", True),
    ("McDonald\u2019s", "McDonald's", True), ("sa\u0303o paulo", "São Paulo", True), ("Sao Paulo", "São Paulo", False),
]  # fmt: skip


@pytest.mark.parametrize(("text", "name", "found"), SAID)
def test_a_text_says_a_name_or_does_not(text: str, name: str, found: bool):
    assert says(text, [name]) is found


def test_the_subject_is_located_in_any_form():
    assert place_subject("私はフランスについて聞いた", "フランス") == (f"私は{SLOT}", 0)
    assert place_subject("They went to\u00a0new  york at once", "New York") == (f"They went to\u00a0{SLOT}", 0)
    assert place_whole("Where is " + unicodedata.normalize("NFD", "Malmö") + "?", "Malmö") == f"Where is {SLOT}?"
    assert place_subject("We love Pakistani food", "Pakistan") == (f"We love {SLOT}", 1)


def test_relations_keep_names_of_their_own():
    called = Slugs()
    names = ["C", "C++", "C#", "c", "ดี", "ดู"]
    slugs = [called(name) for name in names]
    assert slugs[0] == slugs[3] == "c"
    assert len(set(slugs)) == 5
    assert [called(name) for name in names] == slugs


def test_names_that_are_nearly_the_same_share_a_fold():
    assert plain_words("Malmö") == plain_words("Malmo")
    assert fold_of("Malmö") == fold_of("Malmo")
    assert len({plain_words(name) for name in ("パリ", "バリ", "ดี", "ดู", "й", "и", "ё", "е")}) == 8


def test_subjects_in_other_scripts_fill_all_folds():
    names = ["パリ", "バリ", "ดี", "ดู", "टोंगा", "टोगो", "पेरू", "पोरी", "й", "и", "ё", "е"]
    assert {fold_of(name) for name in names} == set(range(5))


def table(path: Path, header: str, rows: list[list[str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header.split(","), *rows])
    return path


def test_signs_make_answers_of_their_own(tmp_path: Path):
    languages = ["C", "C++", "C#", "Java", "F#"]
    path = table(tmp_path / "t.csv", "subject,answer", [[f"Person {i}x", languages[i % 5]] for i in range(60)])
    relation = load_task(str(path)).relations["answer"]
    assert set(relation.answers) == set(languages)
    assert relation.kind == "class"


def test_subjects_and_relations_that_differ_in_marks_stay_apart(tmp_path: Path):
    subjects = [f"{mark}{i}" for i in range(10) for mark in ("♀ ant", "♂ ant", "ดี", "ดู", "パリ", "バリ")]
    rows = [[name, ("north", "south")[i % 2], ("C", "C++")[i % 3 == 0]] for i, name in enumerate(subjects)]
    task = load_task(f"{table(tmp_path / 't.csv', 'subject,answer,kind', rows)}?relation=kind")
    assert len(task.facts) == 60
    assert len(task.relations) == 2


def test_texts_in_scripts_without_blanks_are_used_and_what_is_replaced_is_counted(tmp_path: Path, caplog):
    rows = [[f"国{i}号", "東西"[i % 2], f"私は国{i}号について聞いた", f"国{i}号の向きは"] for i in range(30)]
    rows[7][2] = "何も言わない"
    path = table(tmp_path / "t.csv", "subject,answer,source,question", rows)
    with caplog.at_level(logging.WARNING, "lensbench"):
        task = load_task(f"{path}?source=source&question=question")
    texts = [fact.texts["subject"] for fact in task.facts]
    assert texts.count(f"私は{SLOT}") == 29
    assert "1 texts replaced by" in caplog.text
    assert task.relations["answer"].inspection == (f"It is said that {SLOT}の向きは",)


@pytest.mark.parametrize(
    ("cell", "aliases"),
    [
        ("['City 0' 'Cityville 0']", ("City 0", "Cityville 0")),
        ("['City 0'\n 'Town, 0']", ("City 0", "Town, 0")),
        ("['City 0', 'Town 0']", ("City 0", "Town 0")),
        ('["City 0", "it\'s"]', ("City 0", "it's")),
        ("City 0|Town 0", ("City 0", "Town 0")),
    ],
)
def test_lists_are_read_as_they_were_printed(tmp_path: Path, cell: str, aliases: tuple[str, ...]):
    rows = [[f"Land {i}q", f"City {i % 2 + 5}", cell if i == 0 else ""] for i in range(40)]
    path = table(tmp_path / "t.csv", "subject,answer,aliases", rows)
    fact = next(fact for fact in load_task(f"{path}?aliases=aliases").facts if fact.subject == "Land 0q")
    assert fact.aliases == aliases


@pytest.mark.parametrize("cell", ["['a' 'b', 'c']", "[1 2]", "[City"[:1] + "City 0]"])
def test_a_list_that_is_none_is_a_problem_of_its_line(tmp_path: Path, cell: str):
    path = table(tmp_path / "t.csv", "subject,answer,aliases", [[f"Land {i}q", f"C{i % 2}", cell] for i in range(40)])
    with pytest.raises(Exception, match=r"t\.csv:2: .*a list of texts"):
        load_task(f"{path}?aliases=aliases")
