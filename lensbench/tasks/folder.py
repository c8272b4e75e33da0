"""Reading a task folder: `task.toml` (what is asked) and `items.jsonl` (one fact a line).

All problems of a folder are collected and shown together, one line each: where, what was given, what was expected and
what to do.
"""

import hashlib
import re
import tomllib
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lensbench.tasks.facts import (
    N_FOLDS,
    OWN,
    SITES,
    SLOT,
    SOURCE_SLOT,
    Fact,
    Relation,
    Site,
    TaskFolder,
    normalise,
)
from lensbench.tasks.lines import read_facts
from lensbench.tasks.problems import File, Problems, check_keys, listed
from lensbench.tasks.texts import check_hops, check_phrases, check_texts, read_hops

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_TASK_KEYS = {"name": str, "summary": str, "relations": dict}
_RELATION_KEYS = {
    "kind": str,
    "summary": str,
    "inspection": list,
    "questions": list,
    "choice_sets": list,
    "sources": dict,
}
_MORE_KEYS = {"knowledge": list, "hops": dict, "by_token": bool, "describe": int, "given": bool}
_PROSE_KEYS = {"kind": str, "summary": str}


def read_task_folder(folder: Path) -> TaskFolder:
    """Read and check a task folder.

    Args:
        folder: A folder with `task.toml` and `items.jsonl`.

    Returns:
        The task's content.

    Raises:
        TaskError: With one line for each problem of the two files.
    """
    problems = Problems()
    toml, items = File(folder / "task.toml", problems), File(folder / "items.jsonl", problems)
    problems.stop_if_any()
    table = _parse_toml(toml)
    check_keys(toml, 1, table, _TASK_KEYS, "task.toml")
    problems.stop_if_any()
    if not _NAME.fullmatch(table["name"]):
        toml.problem(toml.find("name"), f"task name {table['name']!r}", "lower-case letters, digits and _", "rename it")
    relations = _read_relations(toml, table["relations"])
    facts = read_facts(items, relations, set(table["relations"]))
    problems.stop_if_any()
    for relation in relations.values():
        _check_coverage(toml, items, relation, [fact for fact in facts if fact.relation == relation.name])
    problems.stop_if_any()
    digests = b"".join(hashlib.sha256(file.content).digest() for file in (toml, items))
    version = hashlib.sha256(digests).hexdigest()[:12]
    return TaskFolder(table["name"], table["summary"], version, relations, tuple(facts))


def _parse_toml(file: File) -> dict[str, Any]:
    try:
        return tomllib.loads("\n".join(file.lines).replace("\r\n", "\n"))
    except tomllib.TOMLDecodeError as error:
        place = re.search(r"\(at line (\d+), column \d+\)", str(error))
        line = int(place.group(1)) if place else len(file.lines)
        file.problem(line, f"not TOML: {str(error).split(' (at ')[0]}", "TOML 1.0", "repair this line or the one above")
        return {key: kind() for key, kind in _TASK_KEYS.items()}


def _read_relations(file: File, tables: Mapping[str, Any]) -> dict[str, Relation]:
    """Read all relations, leaving out those with a problem, so that none of their facts is reported for it again."""
    if not tables:
        file.problem(1, "no relation", "at least one [relations.NAME]", "add one")
    read = {name: _read_relation(file, name, table) for name, table in tables.items()}
    for name, relation in read.items():
        if relation and relation.hops and relation.hops.first not in tables:
            line = file.find("first", f"relations.{name}.hops")
            given = f"first hop {relation.hops.first!r} of {name}"
            expected = f"a relation of this task ({listed(tables)})"
            file.problem(line, given, expected, "name the one that asks for the bridge")
    return {name: relation for name, relation in read.items() if relation}


def _read_relation(file: File, name: str, table: Any) -> Relation | None:
    header = f"relations.{name}"
    line = file.find("", header)
    if not isinstance(table, dict):
        file.problem(file.find(name, "relations"), f"relation {name!r} is not a table", f"[{header}]", "write it so")
        return None
    if table.get("kind") == "next_token":
        if not (check_keys(file, line, table, _PROSE_KEYS, f"relation {name!r}") and _check_kind(file, name, table)):
            return None
        return Relation(name, "next_token", table["summary"], (), (), {"answer": {OWN: SOURCE_SLOT}}, ())
    if not check_keys(file, line, table, _RELATION_KEYS, f"relation {name!r}", _MORE_KEYS):
        return None
    given = bool(table.get("given", False))
    checks = [_check_kind(file, name, table), _check_choice_sets(file, name, table)]
    checks += [check_texts(file, header, key, table[key]) for key in ("inspection", "questions")]
    checks += [_check_sources(file, name, table["sources"], given)]
    checks += [check(file, name, table) for check in (_check_knowledge, check_hops, _check_describe)]
    if not (all(checks) and _check_by_token(file, name, table) and check_phrases(file, name, table)):
        return None
    sources: dict[Site, dict[str, str]] = {
        site: {f"{split}{i}": text for split, texts in table["sources"][site].items() for i, text in enumerate(texts)}
        for site in SITES
        if site in table["sources"]
    }
    sets = tuple(tuple(sorted(choices)) for choices in table["choice_sets"])
    return Relation(
        name=name,
        kind=table["kind"],
        summary=table["summary"],
        inspection=tuple(table["inspection"]),
        questions=tuple(table["questions"]),
        sources=sources,
        choice_sets=sets,
        knowledge=tuple(table.get("knowledge", ())),
        hops=read_hops(table),
        by_token=table.get("by_token", False),
        describe=table.get("describe", 0),
        given=given,
    )


def _check_kind(file: File, name: str, table: Mapping[str, Any]) -> bool:
    line = file.find("kind", f"relations.{name}")
    if not _NAME.fullmatch(name):
        file.problem(line, f"relation name {name!r}", "lower-case letters, digits and _", "rename it")
        return False
    if table["kind"] not in ("class", "open", "next_token"):
        file.problem(line, f"kind {table['kind']!r} of {name}", "'class', 'open' or 'next_token'", "choose one")
        return False
    return True


def _check_knowledge(file: File, name: str, table: Mapping[str, Any]) -> bool:
    """Prompts of knowledge are two, and none of the texts by which methods and text rivals are scored."""
    if "knowledge" not in table:
        return True
    header, texts = f"relations.{name}", table["knowledge"]
    if not check_texts(file, header, "knowledge", texts):
        return False
    if len(texts) != 2:
        given = f"{len(texts)} knowledge prompts of {name}"
        file.problem(file.find("knowledge", header), given, "two, which must agree", "give two paraphrases")
        return False
    asked = {text for key in ("inspection", "questions") for text in table[key] if isinstance(text, str)}
    asked |= {
        text
        for splits in table["sources"].values()
        if isinstance(splits, dict)
        for own in splits.values()
        if isinstance(own, list)
        for text in own
    }
    twice = [text for text in texts if text in asked]
    for text in twice:
        expected = "a text that is no inspection prompt, question or source"
        file.problem(file.find("knowledge", header, text), f"knowledge prompt {text!r}", expected, "say it otherwise")
    return not twice


def _check_describe(file: File, name: str, table: Mapping[str, Any]) -> bool:
    tokens = table.get("describe", 0)
    if isinstance(tokens, bool) or tokens < 0:
        line = file.find("describe", f"relations.{name}")
        file.problem(line, f"describe = {tokens} in {name}", "a number of tokens, 0 or more", "write it so")
        return False
    return True


def _check_by_token(file: File, name: str, table: Mapping[str, Any]) -> bool:
    """Names are cut at the end of the source, so it must end with the name."""
    if not table.get("by_token"):
        return True
    other = sorted(set(table["sources"]) - {"subject"})
    texts = [text for own in dict(table["sources"].get("subject", {})).values() for text in own]
    late = [text for text in texts if isinstance(text, str) and not text.endswith(SLOT)]
    if other or late:
        given = f"{name} has by_token and {f'sources for {listed(other)}' if other else f'the source {late[0]!r}'}"
        expected = "sources for the site subject only, which end with {subject}"
        file.problem(file.find("by_token", f"relations.{name}"), given, expected, "end them there, or drop by_token")
    return not (other or late)


def _check_sources(file: File, name: str, sources: Mapping[str, Any], given_answer: bool) -> bool:
    if not sources or sources.keys() - set(SITES):
        given = f"{name} has sources for {listed(sources) or 'no site'}"
        line = file.find("", f"relations.{name}")
        file.problem(line, given, f"one or more of {', '.join(SITES)}", f"name them [relations.{name}.sources.SITE]")
        return False
    good = True
    for site, splits in sources.items():
        header = f"relations.{name}.sources.{site}"
        if not isinstance(splits, dict) or set(splits) != {"train", "test"}:
            given = f"{site} sources of {name} have {listed(splits) or 'nothing'}"
            do = "what learns must not see the test phrasings: give both"
            file.problem(file.find("", header), given, "train = [...] and test = [...]", do)
            good = False
            continue
        for split, texts in splits.items():
            good &= check_texts(file, header, split, texts, given_answer)
    return good


def _check_choice_sets(file: File, name: str, table: Mapping[str, Any]) -> bool:
    header, sets = f"relations.{name}", table["choice_sets"]
    line = file.find("choice_sets", header)
    problems: list[tuple[int, str, str, str]] = []
    if not sets or not all(isinstance(s, list) and all(isinstance(c, str) and c.strip() for c in s) for s in sets):
        problems.append((line, f"choice_sets of {name}", "a list of lists of answers", "write at least one set"))
    else:
        if table["kind"] == "class" and len(sets) != 1:
            do = "join them or set kind = 'open'"
            problems.append((line, f"{len(sets)} choice sets in class relation {name}", "one set", do))
        for choices in (choices for choices in sets if len(choices) < 2):
            at = file.find("choice_sets", header, choices[0]) if choices else line
            problems.append((at, f"a choice set of {len(choices)} in {name}", "at least 2 choices", "add choices"))
        count = Counter(normalise(choice) for choices in sets for choice in choices)
        for same in (same for same, n in count.items() if n > 1):
            given = [choice for choices in sets for choice in choices if normalise(choice) == same]
            at = file.find("choice_sets", header, given[-1])
            do = "keep one of them (case, accents and punctuation do not count)"
            problems.append((at, f"choices {listed(given)} of {name} are the same", "each answer once", do))
    for problem in problems:
        file.problem(*problem)
    return not problems


def _check_coverage(toml: File, items: File, relation: Relation, facts: list[Fact]) -> None:
    if not facts:
        line = toml.find("", f"relations.{relation.name}")
        toml.problem(line, f"relation {relation.name!r} has no facts", "facts in items.jsonl", "add facts or remove it")
        return
    by_fold = defaultdict(set)
    for fact in facts:
        by_fold[fact.fold].add(normalise(fact.subject))
    empty = [fold for fold in range(N_FOLDS) if not by_fold[fold]]
    if empty:
        subjects = len({normalise(fact.subject) for fact in facts})
        given = f"{relation.name} has no subject in fold {listed(empty)} ({subjects} subjects in all)"
        do = "add subjects (the fold is a hash of the name; about 25 fill all five)"
        items.problem(facts[-1].line, given, f"a subject in each of the {N_FOLDS} folds", do)
