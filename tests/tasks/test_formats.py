"""Files of other people's formats, and tables: what becomes of them, and what is said of broken ones."""

import csv
import io
import json
import logging
from collections import Counter, defaultdict
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lensbench.errors import LensbenchError, UsageError
from lensbench.tasks import N_FOLDS, Task, TaskError, fold_of, load_task
from lensbench.tasks.facts import OWN
from lensbench.tasks.formats.drafts import make_sets
from lensbench.tasks.formats.sources import elements, parse_spec
from lensbench.tasks.formats.texts import LEAD_IN, place_subject
from lensbench.tasks.load import load_tasks
from lensbench.tasks.names import name_key
from tests.tasks.test_public_formats import public_files

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared" / "data"
LRE = sorted(SHARED.glob("lre/*/*.json"))
SNIPPETS = sorted(SHARED.glob("patchscopes/*/*.tsv"))
PERSONAS = sorted(SHARED.glob("personaqa/*/*.jsonl"))
needs_files = pytest.mark.skipif(not LRE, reason=f"the files of others are not at {SHARED}")


def by_name(path: Path) -> str:
    return f"{path.parent.name}-{path.stem}"


def of_files(paths: list[Path]):
    """Parametrise over files; where they are absent, one test is skipped, with the reason."""
    absent = [pytest.param(SHARED, marks=pytest.mark.skip(reason=f"the files of others are not at {SHARED}"))]
    return pytest.mark.parametrize("path", paths or absent, ids=by_name)


def naive(pairs) -> dict[str, str]:
    """The first answer of each subject."""
    first: dict[str, str] = {}
    for subject, answer in pairs:
        first.setdefault(name_key(subject), answer)
    return first


def unescaped(text: str) -> str:
    """Two answers of the shared files are escaped twice."""
    return text.replace("\\u00ed", "í").replace("\\u00e1", "á")


def check_items(task: Task) -> None:
    """What holds for every task, of whatever file."""
    for relation in task.relations.values():
        facts = [fact for fact in task.facts if fact.relation == relation.name]
        assert {fact.fold for fact in facts} == set(range(N_FOLDS))
        assert len({name_key(fact.subject) for fact in facts}) == len(facts)
        assert Counter(choice for choices in relation.choice_sets for choice in choices).most_common(1)[0][1] == 1
        assert all(len(choices) >= 2 and list(choices) == sorted(choices) for choices in relation.choice_sets)
        assert max(map(len, relation.choice_sets)) <= (24 if relation.kind == "class" else 8)
        assert all(text.count("{subject}") == 1 for text in (*relation.inspection, *relation.questions))
        assert not any(text.startswith("{subject}") for text in relation.inspection)
        texts = [text for own in relation.sources.values() for text in own.values()]
        assert not {*texts, *relation.inspection, *relation.questions} & set(relation.knowledge)
    for site in task.sites:
        items = [item for split in ("train", "test") for item in task.items(site, split)]
        own = {item.id for item in task.items(site, "test")}
        assert len(own) == len(task.items(site, "test"))
        assert all(item.source == item.source.strip() and item.answer in item.choices for item in items)
        assert all(item.fold == fold_of(item.subject) for item in items)
        if site == "subject":
            assert all(item.mention == item.subject for item in items)
            assert all(item.source.endswith(item.subject) for item in items)
            # Token 0 is never read: there are words before.
            assert all(any(c.isalnum() for c in item.source[: item.subject_span[0]]) for item in items)


@of_files(LRE)
def test_every_lre_file(path):
    document = json.loads(path.read_text(encoding="utf-8"))
    task = load_task(f"lre:{path}")
    expected = naive((sample["subject"], sample["object"]) for sample in document["samples"])
    assert len(task.facts) == len(expected)
    (relation,) = task.relations.values()
    for fact in task.facts:
        assert name_key(fact.answer) == name_key(unescaped(expected[name_key(fact.subject)]))
    assert set(relation.answers) == {fact.answer for fact in task.facts}
    given = {text.replace("{}", "{subject}") for text in document["prompt_templates"]}
    assert set(relation.sources["answer"].values()) == given
    assert set(relation.questions) == {text.replace("{}", "{subject}") for text in document["prompt_templates_zs"]}
    lines = path.read_text(encoding="utf-8").split("\n")
    for fact in task.facts:
        # A sample begins with its brace.
        assert "{" in lines[fact.line - 1]
        sample = "".join(lines[fact.line - 1 : fact.line + 3])
        assert fact.subject in sample or json.dumps(fact.subject)[1:-1] in sample
    check_items(task)


@needs_files
def test_what_lre_files_are_known_for():
    capitals = load_task(f"lre:{SHARED}/lre/factual/country_capital_city.json")
    answers = {fact.subject: fact.answer for fact in capitals.facts}
    assert (answers["Brazil"], answers["Colombia"]) == ("Brasília", "Bogotá")
    assert not any("\\" in answer for answer in answers.values())
    years = load_task(f"lre:{SHARED}/lre/factual/presidents_birth_year.json")
    assert "Jimmy Carter" in {fact.subject for fact in years.facts}
    assert years.relations["president_birth_year"].sources["answer"]["train0"] == "{subject} was born in"
    assert years.relations["president_birth_year"].inspection == ("It is said that {subject} was born in",)
    assert len(load_task(f"lre:{SHARED}/lre/factual/person_father.json").facts) == 991
    assert load_task(f"lre:{SHARED}/lre/linguistic/word_last_letter.json").relations["word_last_letter"].kind == "class"
    assert (
        load_task(f"lre:{SHARED}/lre/linguistic/word_first_letter.json").relations["word_first_letter"].kind == "open"
    )


def snippets(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t"))


@of_files(SNIPPETS)
def test_every_patchscopes_file(path):
    rows = snippets(path)
    expected = naive((row["subject"], row["object"]) for row in rows)
    empty = set(range(N_FOLDS)) - {fold_of(row["subject"]) for row in rows}
    if empty:
        with pytest.raises(TaskError, match=rf"{len(expected)} subjects, none in fold {min(empty)}"):
            load_task(f"patchscopes:{path}")
        return
    task = load_task(f"patchscopes:{path}")
    assert {name_key(fact.subject): fact.answer for fact in task.facts} == {
        subject: unescaped(answer) for subject, answer in expected.items()
    }
    (relation,) = task.relations.values()
    assert relation.inspection == (rows[0]["prompt_target"].removesuffix("x") + "{subject}",)
    assert task.sites == ("subject",)
    texts = defaultdict(list)
    for row in rows:
        texts[row["subject"]].append(row["prompt_source"])
    for item in task.items("subject", "test"):
        own = [text for text in texts[item.subject] if text.lstrip().startswith(item.source)]
        assert own or item.source == LEAD_IN.replace("{subject}", item.subject)
    check_items(task)


@needs_files
def test_rows_of_all_patchscopes_files():
    # 12 columns, cells with newlines: counted independently of the reader.
    count = {path.stem: len(snippets(path)) for path in SNIPPETS}
    assert len(count) == 10
    assert sum(count.values()) == 1601
    with_newlines = sum("\n" in row["prompt_source"] for path in SNIPPETS for row in snippets(path))
    assert with_newlines == 78


@needs_files
def test_chains_of_patchscopes():
    path = SHARED / "patchscopes" / "multihop_product_company_ceo_45.tsv"
    task = load_task(f"patchscopes:{path}")
    chains = {row["hop1_product"]: (row["hop2_company"], row["hop3_ceo"]) for row in snippets(path)}
    assert len(chains) == 45
    relation = task.relations["company_then_chief_executive"]
    facts = [fact for fact in task.facts if fact.relation == relation.name]
    assert {fact.subject: (fact.bridge, fact.answer) for fact in facts} == chains
    assert {f.subject: f.answer for f in task.facts if f.relation == relation.hops.first} == {
        subject: bridge for subject, (bridge, _) in chains.items()
    }
    for fact in facts:
        assert chains[fact.swap][0] != fact.bridge
        assert chains[fact.swap][1] != fact.answer
    assert task.sites == ("t1", "t2")
    # At the end of the first hop the bridge is asked for.
    first = task.items("t1", "test")[0]
    assert (first.source, first.answer) == ("the chief executive of the company that makes WinDbg", "Microsoft")
    assert task.items("t2", "test")[0].source.endswith("WinDbg is")
    check_items(task)


@of_files(PERSONAS)
def test_every_personaqa_file(path):
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 100
    task = load_task(f"personaqa:{path}")
    assert task.name == f"personaqa_{path.parent.name}"
    attributes = [key for key in rows[0] if key not in ("id", "variant", "name")]
    assert list(task.relations) == attributes
    assert len(task.facts) == 600
    for fact in task.facts:
        row = rows[fact.line - 1]
        assert fact.subject == row["name"]
        assert name_key(fact.answer) == name_key(row[fact.relation])
        assert row[fact.relation] in (fact.answer, *fact.aliases)
    check_items(task)
    one = load_tasks([f"personaqa:{path}/country", f"personaqa:{path}/favorite_food"])
    assert [len(task.facts) for task in one] == [200]


@needs_files
def test_both_variants_at_once_and_names():
    shuffled, fantasy = (
        f"personaqa:{SHARED}/personaqa/{variant}/personas.jsonl" for variant in ("shuffled", "fantasy")
    )
    assert [task.name for task in load_tasks([shuffled, fantasy])] == ["personaqa_shuffled", "personaqa_fantasy"]
    assert load_task(f"{shuffled}?name=mine").name == "mine"
    with pytest.raises(UsageError, match=r"add \?name=NAME"):
        load_tasks([f"{shuffled}?name=x", f"{fantasy}?name=x"])
    with pytest.raises(UsageError, match="one question for the relations country, favorite_food"):
        load_task(f"{shuffled}?question==I ask of {{subject}}")


PEOPLE = [
    f"{first} {last}"
    for first in ("Ann", "Bo", "Cy", "Di", "Ed", "Flo")
    for last in ("Lee", "Hay", "Roe", "Poe", "Day")
]


def test_the_json_layout_of_personaqa(tmp_path):
    entries = {
        str(i): {"prompt": f"My name is {name}.", "question": "The lucky colour of x", "target": ["red", "blue"][i % 2]}
        for i, name in enumerate(PEOPLE)
    }
    path = tmp_path / "lucky_colour.json"
    path.write_text(json.dumps(entries, indent=4), encoding="utf-8")
    task = load_task(f"personaqa:{path}")
    assert [fact.subject for fact in task.facts] == PEOPLE
    relation = task.relations["lucky_colour"]
    assert relation.inspection == ("The lucky colour of {subject}",)
    assert task.items("subject", "test")[0].source == "My name is Ann Lee"
    assert [fact.line for fact in task.facts[:2]] == [2, 7]
    check_items(task)
    asked = load_task(f"personaqa:{path}?question==The colour of {{subject}} is")
    assert asked.items("subject", "test")[0].question == "The colour of {subject} is"
    assert asked.version != task.version


HOPPING = ("id", "e1", "e1_label", "r1_type", "e2_label", "e2_aliases", "r2_type", "e3_label", "e3_aliases",
           "e3_popularity", "r1_template", "r2_template", "prompt")  # fmt: skip
CITIES = {"Paris": "France", "Lyon": "France", "Rome": "Italy", "Turin": "Italy"}


def hopping_rows(count: int = 30) -> list[dict[str, object]]:
    rows = []
    for i in range(count):
        bridge = list(CITIES)[i % 4]
        rows.append(
            dict.fromkeys(HOPPING, "")
            | {"id": i, "e1": f"Q{i}", "e1_label": f"Song {i}", "r1_type": "birth place", "r2_type": "country"}
            | {"e2_label": bridge, "e2_aliases": f"['City of {bridge}', '{bridge} (city)']", "e3_label": CITIES[bridge]}
            | {"e3_aliases": "['The Republic', 'Italy']", "e3_popularity": 10 + i}
            | {"r1_template": "the birth place of {}", "r2_template": "the country of {}"}
        )
    return rows


def write_csv(path: Path, rows: list[dict], columns=None, **options) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns or list(rows[0]), **options)
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_hopping(tmp_path):
    path = write_csv(tmp_path / "two_hop.csv", hopping_rows())
    task = load_task(f"hopping:{path}")
    assert list(task.relations) == ["birth_place", "birth_place_then_country"]
    relation = task.relations["birth_place_then_country"]
    assert relation.hops.first == "birth_place"
    assert all(text.count("{bridge}") == 1 and text.endswith(" is") for text in relation.hops.second)
    chain = next(fact for fact in task.facts if fact.relation == relation.name)
    assert (chain.subject, chain.bridge, chain.answer, chain.popularity) == ("Song 0", "Paris", "France", 10.0)
    # "Italy" is another answer, and cannot be an alias of France.
    assert chain.aliases == ("The Republic",)
    hop = next(fact for fact in task.facts if fact.relation == "birth_place")
    assert (hop.answer, hop.aliases) == ("Paris", ("City of Paris", "Paris (city)"))
    assert task.items("t1", "test")[0].source == "the country of the birth place of Song 0"
    assert task.items("t2", "test")[0].source == "the country of the birth place of Song 0 is"
    alone = load_task(f"hopping:{path}/birth_place_then_country")
    assert {fact.relation for fact in alone.every.facts} == set(task.relations)
    assert (task.relations["birth_place"].sources.keys(), relation.sources.keys()) == ({"t1"}, {"t2"})
    check_items(task)


def test_hopping_where_the_second_template_comes_after(tmp_path):
    rows = [row | {"r2_template": "{} lies in the country of"} for row in hopping_rows()]
    task = load_task(f"hopping:{write_csv(tmp_path / 'two_hop.csv', rows)}")
    assert task.items("t1", "test")[0].source == "the birth place of Song 0"
    assert task.items("t1", "train")[0].source == "It is said that the birth place of Song 0"
    assert task.items("t2", "test")[0].source == "the birth place of Song 0 lies in the country of"
    assert all(
        "{bridge} lies in the country of" in text for text in task.relations["birth_place_then_country"].hops.second
    )


def test_hopping_of_many_kinds_is_one_relation(tmp_path, caplog):
    rows = [
        row | {"r2_type": f"country {i % 10}", "r2_template": f"country {i % 10} of {{}}"}
        for i, row in enumerate(hopping_rows())
    ]
    task = load_task(f"hopping:{write_csv(tmp_path / 'two_hop.csv', rows)}")
    assert list(task.relations) == ["two_hop"]
    assert task.items("t2", "test")[3].source == "country 3 of the birth place of Song 3 is"
    check_items(task)
    some = [*hopping_rows(), *(row | {"e1_label": f"x{i}", "r2_type": "mayor"} for i, row in enumerate(rows[:3]))]
    with caplog.at_level(logging.WARNING, "lensbench"):
        task = load_task(f"hopping:{write_csv(tmp_path / 'more.csv', some)}")
    assert list(task.relations) == ["birth_place", "birth_place_then_country"]
    assert "3 of pairs of relations with too few subjects" in caplog.text


TABLE = [
    {"name": name, "job": ["baker", "smith", "judge"][i % 3], "text": f"They say {name} is here.", "also": "x|y"}
    for i, name in enumerate(PEOPLE)
]


def write_table(path: Path, rows: list[dict]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    elif path.suffix == ".parquet":
        import datasets

        datasets.Dataset.from_list(rows).to_parquet(str(path))
    else:
        write_csv(path, rows, delimiter="\t" if path.suffix == ".tsv" else ",")
    return path


@pytest.mark.parametrize("scheme", ["", "hf:"])
@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".json", ".parquet"])
def test_tables(tmp_path, ending, scheme):
    path = write_table(tmp_path / f"people{ending}", TABLE)
    task = load_task(f"{scheme}{path}?subject=name&answer=job&source=text&aliases=also")
    assert (task.name, list(task.relations)) == ("people", ["job"])
    assert [(fact.subject, fact.answer, fact.aliases) for fact in task.facts] == [
        (row["name"], row["job"], ("x", "y")) for row in TABLE
    ]
    item = task.items("subject", "test")[0]
    assert (item.source, item.mention, item.template) == ("They say Ann Lee", "Ann Lee", OWN)
    assert item.question == "The job of {subject} is"
    assert task.sites == ("subject",)
    assert list(load_task(f"{scheme}{path}/job?subject=name&answer=job").relations) == ["job"]
    check_items(task)


def test_texts_that_are_given_once(tmp_path):
    path = write_table(tmp_path / "people.csv", TABLE)
    literal = "source==Once I met {subject} there&prompt=={subject} works as a&question==By trade, {subject} is a"
    task = load_task(f"{path}?subject=name&answer=job&{literal.replace(',', '%2C')}")
    assert task.items("subject", "test")[0].source == "Once I met Ann Lee"
    assert task.items("answer", "train")[0].source == "Ann Lee works as a"
    assert task.items("answer", "test")[0].question == "By trade, {subject} is a"
    other = load_task(f"{path}?subject=name&answer=job&prompt=text")
    assert other.items("answer", "test")[0].source == "They say Ann Lee is here."
    assert other.items("answer", "test")[0].mention == "Ann Lee"


def test_relations_questions_and_choices_of_a_table(tmp_path):
    rows = [
        row | {"kind": kind, "ask": f"What {kind} has {row['name']}? It is", "of": ["baker", "judge", "smith"]}
        for kind in ("Trade", "Hobby")
        for row in TABLE
    ]
    path = write_table(tmp_path / "people.jsonl", rows)
    task = load_task(f"{path}?subject=name&answer=job&relation=kind&question=ask&choices=of")
    assert list(task.relations) == ["trade", "hobby"]
    assert task.relations["hobby"].inspection == ("What Hobby has {subject}? It is",)
    assert task.relations["hobby"].choice_sets == (("baker", "judge", "smith"),)
    assert len(load_task(f"{path}/hobby?subject=name&answer=job&relation=kind").facts) == 30
    rows[7]["of"] = ["smith", "judge", "cook"]
    write_table(path, rows)
    with pytest.raises(TaskError, match=r"people.jsonl:8: choices 'smith, judge, cook', of which another row"):
        load_task(f"{path}?subject=name&answer=job&relation=kind&choices=of")


def test_a_data_set_folder_with_splits_and_class_labels(tmp_path):
    import datasets

    names = ["baker", "judge", "smith"]
    features = datasets.Features({"name": datasets.Value("string"), "job": datasets.ClassLabel(names=names)})
    data = datasets.Dataset.from_dict({"name": PEOPLE, "job": [i % 3 for i in range(30)]}, features=features)
    datasets.DatasetDict({"train": data, "test": data.select(range(29))}).save_to_disk(tmp_path / "saved")
    task = load_task(f"hf:{tmp_path}/saved?split=test&subject=name&answer=job")
    assert [fact.answer for fact in task.facts] == [names[i % 3] for i in range(29)]
    with pytest.raises(UsageError, match="has the splits train, test; choose one"):
        load_task(f"hf:{tmp_path}/saved?subject=name&answer=job")
    with pytest.raises(UsageError, match=r"unknown split .*did you mean 'test'"):
        load_task(f"hf:{tmp_path}/saved?split=tset&subject=name&answer=job")


def test_the_hub_without_a_network(monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(LensbenchError, match=r"cannot be reached .* give the file") as raised:
        load_task("hf:nobody/no-such-data-set-here?subject=a&answer=b")
    assert "\n" not in str(raised.value)
    with pytest.raises(UsageError, match="--offline was given"):
        load_tasks(["hf:nobody/nothing?subject=a&answer=b"], offline=True)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("lrre:file.json", "unknown format 'lrre'; did you mean 'lre'?"),
        ("lre:file.json?subjct=a", "unknown option of lre: 'subjct'"),
        ("data.csv?subjekt=a", "did you mean 'subject'?"),
        ("data.csv?subject", "KEY=VALUE"),
        ("data.csv?subject=a&subject=b", "each option once"),
        ("hf:squad", "expected hf:ORG/NAME"),
        ("lre:", "expected lre: and a file"),
        ("people.csv?subject=nam&answer=job", "unknown column for subject in people.csv: 'nam'; did you mean 'name'?"),
        ("people.csv?subject=name", "unknown column for answer in people.csv: 'answer'; known: also, job, name, text"),
        ("people.csv?subject=name&answer==job", "is a text; expected a column"),
        ("people.csv?subject=name&answer=job&source==I met", "expected a text with one {subject} after other words"),
        ("people.csv?subject=name&answer=job&question=={subject} is", "expected a text with one {subject}"),
        ("people.csv/jib?subject=name&answer=job", "unknown relation of task people 'jib'; did you mean 'job'?"),
        ("hf:./none.parquet?subject=name", "no such file or folder"),
    ],
)  # fmt: skip
def test_wrong_specifications(tmp_path, monkeypatch, spec, expected):
    monkeypatch.chdir(tmp_path)
    write_table(tmp_path / "people.csv", TABLE)
    with pytest.raises(UsageError) as raised:
        load_task(spec)
    assert expected in str(raised.value)
    assert "\n" not in str(raised.value)


def test_other_specifications_are_not_touched(tmp_path):
    assert parse_spec("attribute_extraction/country_capital") is None
    assert parse_spec(str(tmp_path)) is None
    assert parse_spec("C:/tasks/mine") is None
    assert parse_spec("C:/data/mine.csv?subject=a")[0].scheme == "table"
    assert parse_spec("hf:a/b/c")[1] == "c"
    assert parse_spec("data.csv?question==a%2C b%26c")[0].option("question") == "=a, b&c"


GOOD_LRE = {
    "name": "lucky number",
    "prompt_templates": ["{} likes"],
    "samples": [{"subject": name, "object": str(i % 2)} for i, name in enumerate(PEOPLE)],
}
LINE = "id,e1_label,r1_type,e2_label,r2_type,e3_label\n"
COLUMNS = "subject\tobject\tprompt_target\tprompt_source\n"
BROKEN = {
    "lre:x.json|missing": (None, ["x.json:1: cannot be read"]),
    "lre:x.json|no JSON": ('{"samples": [\n{"subject": }', ["x.json:2: not JSON"]),
    "lre:x.json|a list": ("[1]", ["x.json:1: no list of 'samples'"]),
    "lre:x.json|samples": (
        '{"prompt_templates": "a",\n"samples": [\n{"subject": "a"},\n{"subject": 1.5, "object": ""},\n7]}',
        ["x.json:1: 'prompt_templates' is 'a'", "x.json:3: no 'object'", "x.json:4: 'object' is empty",
         "x.json:4: 'subject' is a float", "x.json:5: a JSON int"],
    ),
    "lre:x.json|templates": (
        json.dumps(GOOD_LRE | {"prompt_templates": ["{} {}", "none", "{x} {}"]}, indent=1),
        ["x.json:3: template 'none'", "x.json:3: template '{x} {}'", "x.json:3: template '{} {}'"],
    ),
    "lre:x.json|empty": ('{"name": "a",\n"samples": []}', ["x.json:2: no samples"]),
    "lre:x.json|few": (
        json.dumps(GOOD_LRE | {"samples": GOOD_LRE["samples"][:3]}),
        ["x.json: no relation of its 3 rows can be cross-fitted (lucky_number: 3 subjects, none in fold"],
    ),
    "lre:x.json|one answer": (
        json.dumps(GOOD_LRE | {"samples": [sample | {"object": "1"} for sample in GOOD_LRE["samples"]]}),
        ["30 subjects, all with one answer"],
    ),
    "lre:x.json|half a pair": (
        '{"samples": [{"subject": "\\ud800", "object": "b"}]}', ["x.json:1: 'subject' holds half of a surrogate pair"]
    ),
    "patchscopes:x.tsv|columns": ("subject\tprompt\n", [
        "x.tsv:1: no column 'object'", "x.tsv:1: no column 'prompt_source'", "x.tsv:1: no column 'prompt_target'"]),
    "patchscopes:x.tsv|cells": (
        f'{COLUMNS}a\tb\tof x\t"I met\na"\n\ta\tof x\t\na\tb\tof y\ta\na\tb\n',
        ["x.tsv:4: 'subject' is empty", "x.tsv:5: prompt_target 'of y'", "x.tsv:6: 2 cells; expected 4"],
    ),
    "patchscopes:x.tsv|quote": (f'{COLUMNS}a\tb\tof x\t"I met\n', ["x.tsv:2: not CSV"]),
    "patchscopes:x.tsv|empty": ("", ["x.tsv:1: no header"]),
    "hopping:x.csv|columns": (
        "id,e1\n1,2\n", [f"x.csv:1: no column '{name}'" for name in sorted(LINE.strip().split(",")[1:])]
    ),
    "hopping:x.csv|cells": (
        LINE.replace("\n", ",r1_template,e3_popularity,e3_aliases\n")
        + "1,a,b,c,d,,t,5,\n2,a,b,c,d,e,of {},many,[1.5]\n",
        ["x.csv:2: 'e3_label' is empty", "x.csv:2: r1_template 't'", "x.csv:3: 'e3_aliases' is [1.5]",
         "x.csv:3: 'e3_popularity' is 'many'"],
    ),
    "hopping:x.csv|no rows": (LINE, ["x.csv:1: no rows"]),
    "personaqa:x.jsonl|lines": (
        '{"name": "a", "food": "b"}\n{"name"\n[1]\n{"name": "", "food": 1.5}\n{"food": "b"}\n',
        ["x.jsonl:2: not JSON", "x.jsonl:3: a JSON list", "x.jsonl:4: 'food' is a float", "x.jsonl:4: 'name' is empty",
         "x.jsonl:5: no 'name'"],
    ),
    "personaqa:x.jsonl|empty": ("", ["x.jsonl:1: no personas"]),
    "personaqa:x.json|entries": (
        '{"0": {"prompt": "I am a", "question": "of x"},\n"1": {"prompt": "I am b", "question": "of", "target": "c"},'
        '\n"2": 3}',
        ["x.json:1: no 'target'", "x.json:2: question 'of'", "x.json:3: a JSON int"],
    ),
    "personaqa:x.json|no frame": (
        '{"0": {"prompt": "a", "question": "of x", "target": "c"},\n'
        '"1": {"prompt": "b", "question": "of x", "target": "c"}}',
        ["x.json:1: prompt 'a'", "x.json:2: prompt 'b'"],
    ),
    "personaqa:x.json|list": ("[]", ["x.json:1: a JSON list"]),
    "x.csv|cells": ('subject,answer\n"a\nb",\n,c\n"d" e,f\n', [
        "x.csv:2: 'answer' is empty", "x.csv:4: 'subject' is empty", "x.csv:5: not CSV"]),
    "x.csv|twice": ("subject,subject,answer\n", ["x.csv:1: two columns 'subject'"]),
    "x.csv|bytes": (b"subject,answer\n\xff,a\n", ["x.csv:2: byte 0xff"]),
    "x.csv|long": (f"subject,answer\n{'a' * 501},b\n", ["x.csv:2: 'subject' of 501 characters"]),
    "x.jsonl|rows": ('{"subject": "a", "answer": true}\n{"subject": null, "answer": "b"}\nnonsense\n', [
        "x.jsonl:1: 'answer' is a bool", "x.jsonl:2: 'subject' is empty", "x.jsonl:3: not JSON"]),
    "x.json|object": ('{"subject": 1}', ["x.json:1: a JSON dict"]),
    "x.csv|no rows": ("subject,answer\n", ["x.csv:1: no rows"]),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_all_problems_of_a_broken_file_are_shown(tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    content, expected = BROKEN[case]
    spec = case.split("|")[0]
    if content is not None:
        Path(spec.split(":")[-1]).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(TaskError) as raised:
        load_task(spec)
    lines = str(raised.value).split("\n")
    assert len(lines) == len(expected), lines
    for line, wanted in zip(lines, expected, strict=True):
        assert wanted in line
        assert "expected " in line


def test_a_parquet_file_with_problems_names_rows(tmp_path):
    path = write_table(tmp_path / "x.parquet", [{"subject": "a", "answer": ""}, {"subject": None, "answer": "b"}])
    with pytest.raises(TaskError) as raised:
        load_task(str(path))
    assert str(raised.value).count("\n") == 1
    assert f"{path}:1: 'answer' is empty" in str(raised.value)
    path.write_bytes(b"no parquet")
    with pytest.raises(LensbenchError, match="datasets cannot read it"):
        load_task(str(path))


def test_what_is_left_out_is_said_in_one_line(tmp_path, caplog):
    rows = [*TABLE, TABLE[0], TABLE[1] | {"job": "cook"}, TABLE[2] | {"name": TABLE[2]["name"].upper()}]
    with caplog.at_level(logging.WARNING, "lensbench"):
        task = load_task(f"{write_table(tmp_path / 'people.csv', rows)}?subject=name&answer=job")
    assert len(task.facts) == 30
    assert "cook" not in task.relations["job"].answers
    (record,) = caplog.records
    assert "30 facts of 33 rows" in record.getMessage()
    assert record.getMessage().endswith(
        "left out: 2 the same fact again, 1 another answer for the subject 'Ann Hay' (lines 3 and 33)"
    )


def test_a_relation_with_an_empty_fold_is_left_out(tmp_path, caplog):
    rows = [row | {"kind": "full"} for row in TABLE] + [row | {"kind": "small"} for row in TABLE[:4]]
    with caplog.at_level(logging.WARNING, "lensbench"):
        task = load_task(f"{write_table(tmp_path / 'people.csv', rows)}?subject=name&answer=job&relation=kind")
    assert list(task.relations) == ["full"]
    assert "relation small (4 subjects, none in fold" in caplog.text


def test_the_version_follows_bytes_and_mapping(tmp_path):
    path = write_table(tmp_path / "people.csv", TABLE)
    first = load_task(f"{path}?subject=name&answer=job")
    assert load_task(f"{path}?answer=job&subject=name").version == first.version
    assert load_task(f"{path}?subject=name&answer=job&source=text").version != first.version
    with path.open("a") as file:
        file.write("\n")
    assert load_task(f"{path}?subject=name&answer=job").version != first.version


@pytest.mark.parametrize(
    ("text", "subject", "expected"),
    [
        (" ancestors came to the United States with", "United States", ("ancestors came to the {subject}", 0)),
        ("the Pakistani army", "Pakistan", ("the {subject}", 1)),
        ("the Pakistani army left Pakistan", "Pakistan", ("the Pakistani army left {subject}", 0)),
        ("many enjoyable tasks", "joy", (LEAD_IN, 2)),
        (" Turkey ===\n", "Turkey", (LEAD_IN, 2)),
        ('"Turkey', "Turkey", (LEAD_IN, 2)),
        ("", "Turkey", (LEAD_IN, 2)),
        ("the C++ (language)", "C++", ("the {subject}", 0)),
        ("a {subject} and Rome", "Rome", (LEAD_IN, 2)),
    ],
)
def test_the_subject_is_found_anew(text, subject, expected):
    assert tuple(place_subject(text, subject)) == expected


NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda name: name.strip() == name)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.text(st.sampled_from('ab",\n\t\r |\\{}é'), max_size=12), min_size=30, max_size=30))
def test_csv_with_quotes_and_newlines(tmp_path, texts):
    rows = [row | {"text": text} for row, text in zip(TABLE, texts, strict=True)]
    path = write_csv(tmp_path / "people.csv", rows)
    empty = [i for i, text in enumerate(texts) if not text.strip()]
    spec = f"{path}?subject=name&answer=job&prompt=text"
    if empty:
        with pytest.raises(TaskError) as raised:
            load_task(spec)
        assert len(str(raised.value).splitlines()) == len(empty)
        return
    task = load_task(spec)
    with path.open(newline="", encoding="utf-8") as file:
        expected = {row["name"]: row["text"].strip() for row in csv.DictReader(file)}
    assert {item.subject: item.source for item in task.items("answer", "test")} == expected
    # Lines are those of the file, not of the rows.
    lines = path.read_bytes().decode().split("\n")
    if "\r" not in "".join(texts):
        assert all(lines[fact.line - 1].startswith(fact.subject) for fact in task.facts)


@settings(max_examples=60, deadline=None)
@given(answers=st.lists(NAMES, min_size=2, max_size=70, unique_by=name_key), each=st.integers(1, 4))
def test_choice_sets_are_a_fixed_partition(answers, each):
    kind, sets = make_sets(dict.fromkeys(answers, each), "some relation")
    assert make_sets(dict.fromkeys(reversed(answers), each), "some relation") == (kind, sets)
    assert sorted(choice for choices in sets for choice in choices) == sorted(answers)
    if kind == "class":
        assert len(sets) == 1
        assert len(answers) <= 24
    else:
        assert all(2 <= len(choices) <= 8 for choices in sets)
        assert max(map(len, sets)) - min(map(len, sets)) <= 1


def test_answers_that_begin_alike_are_apart():
    answers = [f"{first} {last}" for first in ("Ann", "Bo", "Cy", "Di", "Ed", "Flo", "Gus", "Hal") for last in "XYZ"]
    _, sets = make_sets(dict.fromkeys(answers, 1), "people")
    assert all(len({answer.split()[0] for answer in choices}) == 8 for choices in sets)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


@given(
    document=st.lists(JSON, max_size=5) | st.dictionaries(st.text(max_size=5), JSON, max_size=5),
    indent=st.sampled_from([None, 0, 3]),
)
def test_elements_are_found_with_their_lines(document, indent):
    text = json.dumps(document, indent=indent)
    found = list(elements(text))
    assert [one.value for one in found] == (document if isinstance(document, list) else list(document.values()))
    assert [one.key for one in found] == (["" for _ in document] if isinstance(document, list) else list(document))
    assert all(one.line == text.count("\n", 0, one.at) + 1 for one in found)


def test_a_mapping_may_hold_what_separates(tmp_path):
    path = write_csv(tmp_path / "people.csv", [{"na,me": row["name"], "j&ob": row["job"]} for row in TABLE])
    assert len(load_task(f"{path}?subject={quote('na,me')}&answer={quote('j&ob')}").facts) == 30


def test_a_subject_that_looks_like_nothing_is_a_name(tmp_path):
    names = ["NA", "null", "007", "None", "1e5", "True", *PEOPLE]
    rows = io.StringIO()
    csv.writer(rows).writerows([("subject", "answer"), *((name, "ab"[i % 2]) for i, name in enumerate(names))])
    path = tmp_path / "odd.csv"
    path.write_text(rows.getvalue(), encoding="utf-8", newline="")
    assert [fact.subject for fact in load_task(str(path)).facts] == names


def good_files() -> dict[str, str]:
    """A small file of each format, as text."""
    snippet = "".join(f'{name}\t{i % 2}\tThe number of x\t"Once\n I saw {name}"\n' for i, name in enumerate(PEOPLE))
    chains = io.StringIO()
    writer = csv.DictWriter(chains, HOPPING)
    writer.writeheader()
    writer.writerows(hopping_rows())
    persona = [{"name": name, "colour": "ab"[i % 2]} for i, name in enumerate(PEOPLE)]
    prompt = {
        str(i): {"prompt": f"I am {name}.", "question": "of x", "target": "ab"[i % 2]} for i, name in enumerate(PEOPLE)
    }
    return {
        "lre:x.json": json.dumps(GOOD_LRE, indent=1),
        "patchscopes:x.tsv": COLUMNS + snippet,
        "hopping:x.csv": chains.getvalue(),
        "personaqa:x.jsonl": "\n".join(map(json.dumps, persona)),
        "personaqa:x.json": json.dumps(prompt, indent=1),
        "x.csv?subject=name&answer=job&source=text": "name,job,text\n"
        + "".join(f'{n},{n[0]},"a ""{n}"""\n' for n in PEOPLE),
        "x.jsonl?subject=name&answer=colour&choices=of": "\n".join(json.dumps(p | {"of": ["a", "b"]}) for p in persona),
        "x.json?subject=name&answer=colour&aliases=of": json.dumps([p | {"of": "a|c"} for p in persona]),
        **public_files(),
    }


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    spec=st.sampled_from(sorted(good_files())),
    start=st.floats(0, 1),
    length=st.sampled_from([0, 1, 2, 5, 50]),
    put=st.sampled_from(["", '"', "{", "}", "[1", ",", "\t", "\n", "\\", "null", "{}", "\x00", "\ud7ff", "x"])
    | st.text(max_size=3),
)
def test_damaged_files_end_in_lines_of_problems(tmp_path, spec, start, length, put):
    text = good_files()[spec]
    at = int(start * len(text))
    path = tmp_path / spec.split("?")[0].split(":")[-1]
    path.write_bytes((text[:at] + put + text[at + length :]).encode("utf-8", "surrogatepass"))
    full = spec.replace(path.name, str(path), 1)
    message = ""
    try:
        check_items(load_task(full))
    except (TaskError, UsageError) as error:
        message = str(error)
    assert all("expected " in line or "known: " in line for line in message.splitlines())


def test_the_small_files_are_good(tmp_path):
    for spec, text in good_files().items():
        path = tmp_path / spec.split("?")[0].split(":")[-1]
        path.write_text(text, encoding="utf-8", newline="")
        check_items(load_task(spec.replace(path.name, str(path), 1)))


def test_knowledge_is_asked_of_the_loaded_model() -> None:
    from lensbench.tasks.formats.texts import knowledge_of

    assert knowledge_of("The capital of {subject} is") == (
        "As far as is known, the capital of {subject} is",
        "Anyone can look up that the capital of {subject} is",
    )
    assert knowledge_of("{subject} plays the")[0] == "As far as is known, {subject} plays the"
    assert knowledge_of("Paris: France. Oslo: Norway. {subject}:") == ()
