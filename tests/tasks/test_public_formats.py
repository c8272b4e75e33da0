"""Public sets of facts and chains: their layouts, in small files of our own, with counts and texts by hand."""

import csv
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from lensbench.errors import LensbenchError
from lensbench.tasks import load_task

TOWNS = (
    "Arlen", "Bexby", "Corvo", "Dunmar", "Elsin", "Farrow", "Gantry", "Hollen", "Istra", "Jorvik", "Kelda", "Lorne",
    "Marsk", "Norden", "Oskar", "Perth", "Quill", "Rosas", "Selby", "Thorne", "Ulver", "Varna", "Wexley", "Xanten",
    "Yarrow", "Zadar", "Ashby", "Brant", "Calder", "Dorne",
)  # fmt: skip
BANKS = sorted(Path(__file__).resolve().parents[3].glob("shared/data/workspace-bench/*/*.json"))
LANDS = ("Norland", "Sudland", "Ostland")
SPEECH = {"Norland": "Norlish", "Sudland": "Sudlish", "Ostland": "Ostlish"}


def land_of(i: int) -> str:
    return LANDS[i % 3]


def write(path: Path, document: Any) -> Path:
    path.write_text(json.dumps(document, indent=1), encoding="utf-8")
    return path


def rewrite(i: int, **changes: Any) -> dict[str, Any]:
    told = {
        "prompt": "{} lies in" if i % 2 else "The country of {} is", "relation_id": "P17", "subject": TOWNS[i],
        "target_new": {"str": "Westland", "id": "Q9"}, "target_true": {"str": land_of(i), "id": "Q1"},
    }  # fmt: skip
    return {"case_id": i, "requested_rewrite": told | changes, "paraphrase_prompts": ["no matter"]}


def case(i: int, hops: int = 2) -> dict[str, Any]:
    land = land_of(i)
    triples = [[TOWNS[i], "country", land], [land, "official language", SPEECH[land]], [SPEECH[land], "x", "y"]][:hops]
    single = [{"question": "q", "cloze": "c", "answer": land, "answer_alias": [f"{land} Union"]}] * hops
    return {
        "case_id": i, "orig": {"triples_labeled": triples}, "single_hops": single, "questions": ["q"],
        "answer": triples[-1][2], "answer_alias": ["it"],
    }  # fmt: skip


def popqa() -> str:
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter="\t")
    writer.writerow(["id", "subj", "prop", "obj", "s_pop", "o_pop", "question", "possible_answers"])
    for i, town in enumerate(TOWNS):
        names = json.dumps([land_of(i), f"Kingdom of {land_of(i)}"])
        writer.writerow([i, town, "country", land_of(i), 7, 100 + i, f"In what country is {town}?", names])
    return text.getvalue()


def twohopfact() -> str:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    columns = ["e1.value", "e2.value", "e3.value", "r1.category", "r2.category", "r2(e2).prompt", "r2(r1(e1)).prompt"]
    writer.writerow(columns)
    for i, town in enumerate(TOWNS):
        land = land_of(i)
        second = (f"The tongue of {land} is", f"The tongue of the country around {town} is")
        writer.writerow([town, land, SPEECH[land], "town-country", "country-tongue", *second])
    return text.getvalue()


def pararel() -> str:
    return "\n".join(json.dumps({"sub_label": town, "obj_label": land_of(i)}) for i, town in enumerate(TOWNS))


def ravel() -> dict[str, Any]:
    return {town: {"Country": land_of(i), "Language": SPEECH[land_of(i)]} for i, town in enumerate(TOWNS)}


def public_files() -> dict[str, str]:
    """A small file of each format, as text."""
    documents = {
        "counterfact": [rewrite(i) for i in range(30)], "ravel": ravel(), "mquake": [case(i) for i in range(30)],
        "workspace": {"family": "far lands", "items": [item(i) for i in range(30)]},
    }  # fmt: skip
    written = {f"{scheme}:x.json": json.dumps(document, indent=1) for scheme, document in documents.items()}
    return written | {"popqa:x.tsv": popqa(), "pararel:x.jsonl": pararel(), "twohopfact:x.csv": twohopfact()}


def test_counterfact_has_the_true_facts_and_its_templates(tmp_path: Path) -> None:
    task = load_task(f"counterfact:{write(tmp_path / 'cf.json', [rewrite(i) for i in range(30)])}")
    (relation,) = task.relations.values()
    assert (relation.name, relation.kind, len(task.facts)) == ("p17", "class", 30)
    assert {fact.subject: fact.answer for fact in task.facts}["Bexby"] == "Sudland"
    assert relation.answers == ("Norland", "Ostland", "Sudland")
    assert relation.sources["answer"] == {"train0": "The country of {subject} is", "test0": "{subject} lies in"}
    assert relation.inspection == ("The country of {subject} is",)


def test_known_1000_is_read_by_the_same_scheme(tmp_path: Path) -> None:
    rows = [
        {"known_id": i, "subject": TOWNS[i], "attribute": land_of(i), "template": "{} is a town in", "prediction": " x",
         "prompt": f"{TOWNS[i]} is a town in", "relation_id": "P17"}
        for i in range(30)
    ]  # fmt: skip
    task = load_task(f"counterfact:{write(tmp_path / 'known_1000.json', rows)}")
    assert len(task.facts) == 30
    assert task.relations["p17"].inspection == ("It is said that {subject} is a town in",)


def test_popqa_asks_its_own_question(tmp_path: Path) -> None:
    path = tmp_path / "test.tsv"
    path.write_text(popqa(), encoding="utf-8", newline="")
    task = load_task(f"popqa:{path}")
    relation, fact = task.relations["country"], task.facts[3]
    assert relation.questions[0] == "Question: In what country is {subject}? Answer:"
    assert relation.sources["answer"]["test0"] == "As to {subject}, the country is"
    assert (fact.popularity, fact.aliases) == (103.0, ("Kingdom of Norland",))


def test_pararel_completes_the_patterns_that_end_with_the_object(tmp_path: Path) -> None:
    data, patterns = tmp_path / "P17.jsonl", tmp_path / "patterns.jsonl"
    data.write_text(pararel(), encoding="utf-8")
    told = ("[X] is located in [Y] .", "[Y] is where [X] lies .", "One finds [X] in [Y].", "[X], [Y] and [Y].")
    patterns.write_text("\n".join(json.dumps({"pattern": one}) for one in told), encoding="utf-8")
    bare, asked = load_task(f"pararel:{data}"), load_task(f"pararel:{data}?patterns={patterns}")
    assert set(bare.relations["p17"].sources) == {"subject"}
    answer = asked.relations["p17"].sources["answer"]
    assert answer == {"train0": "{subject} is located in", "test0": "One finds {subject} in"}
    assert bare.version != asked.version
    assert len(asked.facts) == 30


def test_ravel_has_a_relation_for_each_attribute(tmp_path: Path) -> None:
    path = write(tmp_path / "ravel_city_entity_attributes.json", ravel())
    write(
        tmp_path / "ravel_city_attribute_to_prompts.json",
        {"Country": ["%s is in the land of", "a %s and a %s"], "Area": ["%s has"]},
    )
    task = load_task(f"ravel:{path}")
    assert {name: len([f for f in task.facts if f.relation == name]) for name in task.relations} == {
        "country": 30, "language": 30
    }  # fmt: skip
    country, language = task.relations["country"], task.relations["language"]
    assert country.sources["answer"] == {
        "train0": "{subject} is in the land of",
        "test0": "{subject} is in the land of",
    }
    assert language.inspection == ("The language of {subject} is",)


def test_mquake_has_the_chains_of_two_hops(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "mquake.json", [*(case(i) for i in range(30)), case(0, 3)])
    task = load_task(f"mquake:{path}")
    assert set(task.relations) == {"country", "country_then_official_language"}
    chain = task.relations["country_then_official_language"]
    assert chain.sources["t2"]["test0"] == "the official language of the country of {subject} is"
    assert chain.hops is not None
    fact = next(f for f in task.facts if f.relation == chain.name and f.subject == "Corvo")
    assert (fact.bridge, fact.answer, fact.aliases) == ("Ostland", "Ostlish", ("it",))
    assert "1 of another number of hops" in caplog.text


def test_twohopfact_finds_both_phrases_in_its_prompts(tmp_path: Path) -> None:
    path = tmp_path / "two.csv"
    path.write_text(twohopfact(), encoding="utf-8", newline="")
    task = load_task(f"twohopfact:{path}")
    chain = task.relations["town_country_then_country_tongue"]
    assert chain.sources["t2"]["test0"] == "the tongue of the country around {subject} is"
    assert task.relations["town_country"].inspection == ("The country around {subject} is",)
    assert len([fact for fact in task.facts if fact.bridge]) == 30


def item(i: int, **changes: Any) -> dict[str, Any]:
    told = {
        "name": f"i{i}", "prompt": f"Note: the land around {TOWNS[i]} ",
        "intermediates": [land_of(i), land_of(i).lower()],
        "target": "no matter", "eval_render": "plain", "readout": {"kind": "final_prompt_token", "offsets": [-1]},
    }  # fmt: skip
    return told | changes


def test_banks_of_workspace_bench_are_read_at_the_last_token(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    units = [{"match": ["no"]}, {"headline": True, "match": ["Sudland"]}]
    others = [
        item(0, eval_render="table"), item(1, readout={"kind": "writing_positions"}),
        item(2, prompt="Note: it is warm there", intermediates=None, units=units),
    ]  # fmt: skip
    bank = {"family": "far lands", "items": [*(item(i) for i in range(30)), *others]}
    task = load_task(f"workspace:{write(tmp_path / 'bank.json', bank)}")
    assert (task.name, task.sites, len(task.facts)) == ("workspace_far_lands", ("answer",), 31)
    first = next(one for one in task.items("answer", "test") if "Arlen" in one.source)
    assert (first.source, first.mention, first.answer) == ("Note: the land around Arlen",) * 2 + ("Norland",)
    assert {fact.answer for fact in task.facts if "warm" in fact.subject} == {"Sudland"}
    assert "1 put in another way than as a plain text or in a chat" in caplog.text
    assert "1 read elsewhere than at the last token" in caplog.text


def test_items_of_banks_that_are_put_in_a_chat_are_conversations(tmp_path: Path) -> None:
    written = {"readout": {"kind": "writing_positions"}, "assistant": "The room was quiet."}
    items = [
        *(item(i, eval_render="chat") for i in range(30)),
        *(item(i, eval_render="chat_dm", polarity="think", **written) for i in range(30)),
    ]  # fmt: skip
    bank = {"family": "far lands", "items": [*(item(i) for i in range(30)), *items]}
    task = load_task(f"workspace:{write(tmp_path / 'bank.json', bank)}")
    assert list(task.relations) == ["far_lands", "far_lands_chat", "far_lands_think"], "each is read at another token"
    asked = {one.relation: one for one in task.items("answer", "test") if "Arlen" in one.subject}
    prompt = asked["far_lands"].source
    assert asked["far_lands"].turns == ()
    assert asked["far_lands_chat"].turns == (("user", prompt), ("assistant", ""))
    assert asked["far_lands_chat"].source == f"user: {prompt}"
    assert asked["far_lands_think"].turns == (("user", prompt), ("assistant", "The room was quiet."))
    assert asked["far_lands_think"].source == f"user: {prompt}\nassistant: The room was quiet."


@pytest.mark.skipif(not BANKS, reason="the files of others are not there")
@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("multihop-mt", {"": 100}), ("basic-readout", {"": 68, "_chat": 32}), ("multihop", {"": 100}),
        ("typo", {"": 100}), ("directed-modulation", {"_think": 35, "_dont_think": 35, "_suppress": 30}),
    ],
)  # fmt: skip
def test_published_banks(name: str, counts: dict[str, int]) -> None:
    (path,) = [path for path in BANKS if path.stem == f"lens-eval-{name}"]
    document = json.loads(path.read_text(encoding="utf-8"))
    published = {one["prompt"].strip(): one for one in document["items"]}
    task = load_task(f"workspace:{path}")
    family = min(task.relations, key=len).removesuffix("_think")
    found = Counter(fact.relation.removeprefix(family) for fact in task.facts)
    assert found == counts
    for fact in task.facts:
        one = published[fact.subject]
        told = one.get("intermediates") or next(unit["match"] for unit in one["units"] if unit["headline"])
        assert fact.answer.casefold() in [text.casefold() for text in told]
        assert bool(fact.turns) == (one["eval_render"] != "plain")
        if fact.turns:
            assert fact.turns[1] == ("assistant", one.get("assistant", ""))


WRONG: dict[str, tuple[str, Any, str]] = {
    "a template without a slot": (
        "counterfact",
        [rewrite(0, prompt="They lie in")],
        "exactly one {} and no other brace",
    ),
    "MQuAKE as CounterFact": ("counterfact", [{"requested_rewrite": [{}]}], "MQuAKE is read by mquake:"),
    "an edit without the truth": ("counterfact", [rewrite(0, target_true=None)], "'true' is empty"),
    "no list": ("counterfact", {"a": 1}, "a list of objects"),
    "a list of entities": ("ravel", [1, 2], "an object by name"),
    "an entity without attributes": ("ravel", {"Arlen": "Norland"}, "an object of attributes"),
    "a chain without triples": ("mquake", [{"orig": {}}], "orig.triples_labeled"),
    "a bank without items": ("workspace", {"family": "x"}, "no 'family' and list of 'items'"),
    "an item without what is meant": (
        "workspace",
        {"family": "x", "items": [item(0, intermediates=[])]},
        "no 'intermediates' and no 'match'",
    ),
    "no chain of two hops": ("mquake", [case(0, 3)], "no chains of two hops"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_file_of_another_kind_is_refused_with_its_line(kind: str, tmp_path: Path) -> None:
    scheme, document, told = WRONG[kind]
    with pytest.raises(LensbenchError) as error:
        load_task(f"{scheme}:{write(tmp_path / 'file.json', document)}")
    assert told in str(error.value)
    assert "file.json:" in str(error.value)
