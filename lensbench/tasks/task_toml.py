"""Reading a task folder: `task.toml` (what is asked) and `items.jsonl` (one fact a line).

All problems of a folder are collected and shown together, one line each: where, what was given, what was expected and
what to do.
"""

import hashlib
import re
import tomllib
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lensbench.tasks.facts import (
    ANSWER_SLOT,
    BRIDGE_SLOT,
    HOP_SITES,
    N_FOLDS,
    OWN,
    SITES,
    SLOT,
    SOURCE_SLOT,
    Fact,
    Hops,
    Relation,
    TaskFolder,
)
from lensbench.tasks.files import File, Problems, check_keys, listed, read_facts
from lensbench.tasks.names import name_key
from lensbench.utils.foreign import reason_of, time_limit

MOST_DESCRIBED = 512
"""How many tokens a description may have."""
SECONDS = 10.0
"""How long the parse of a file may take."""
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
_HOP_KEYS = {"first": str, "second": list}
_MORE_HOP_KEYS = {"correct": bool, "phrases": list}
# The texts whose slot is read where it stands; token 0 is never read.
_READ_AT_SLOT = {"inspection": "an inspection prompt", "train": "a source text", "test": "a source text"}


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
    digests = b"".join(hashlib.sha256(file.content).digest() for file in (toml, items))
    version = hashlib.sha256(digests).hexdigest()[:12]
    if (folder, version) not in _READ:
        _READ[folder, version] = _checked(toml, items, version, problems)
    return _READ[folder, version]


_READ: dict[tuple[Path, str], TaskFolder] = {}
"""What was read in this process: a run looks its tasks up more than once, and checking them takes half a second."""


def _checked(toml: File, items: File, version: str, problems: Problems) -> TaskFolder:
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
    return TaskFolder(table["name"], table["summary"], version, relations, tuple(facts))


def _parse_toml(file: File) -> dict[str, Any]:
    text, line = "\n".join(file.lines).replace("\r\n", "\n"), 1
    try:
        with time_limit(SECONDS, "reading it"):
            return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        place = re.search(r"\(at line (\d+), column \d+\)", str(error))
        line = int(place.group(1)) if place else len(file.lines)
        why = str(error).split(" (at ")[0]
    except Exception as error:  # nested too deep, numbers too long
        why = reason_of(error)
    file.problem(line, f"not TOML: {why}", "TOML 1.0", "repair this line or the one above")
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
    before = file.n_problems
    prose = table.get("kind") == "next_token"
    keys, more = (_PROSE_KEYS, {}) if prose else (_RELATION_KEYS, _MORE_KEYS)
    if not check_keys(file, line, table, keys, f"relation {name!r}", more):
        return None
    _check_kind(file, name, table)
    if prose:
        relation = Relation(name, "next_token", table["summary"], (), (), {"answer": {OWN: SOURCE_SLOT}}, ())
        return relation if file.n_problems == before else None
    _check_choice_sets(file, name, table)
    for key in ("inspection", "questions"):
        _check_texts(file, header, key, table[key])
    _check_sources(file, name, table["sources"], bool(table.get("given")))
    _check_knowledge(file, name, table)
    _check_hops(file, name, table)
    _check_describe(file, name, table)
    if file.n_problems == before:
        # These two look into texts that were found to be texts.
        _check_by_token(file, name, table)
        _check_phrases(file, name, table)
    return _relation(name, table) if file.n_problems == before else None


def _relation(name: str, table: Mapping[str, Any]) -> Relation:
    sources = table["sources"]
    hops = table.get("hops")
    return Relation(
        name=name,
        kind=table["kind"],
        summary=table["summary"],
        inspection=tuple(table["inspection"]),
        questions=tuple(table["questions"]),
        sources={
            site: {f"{split}{i}": text for split, texts in sources[site].items() for i, text in enumerate(texts)}
            for site in SITES
            if site in sources
        },
        choice_sets=tuple(tuple(sorted(choices)) for choices in table["choice_sets"]),
        knowledge=tuple(table.get("knowledge", ())),
        hops=None if hops is None else _hops(hops),
        by_token=table.get("by_token", False),
        describe=table.get("describe", 0),
        given=bool(table.get("given", False)),
    )


def _hops(table: Mapping[str, Any]) -> Hops:
    return Hops(table["first"], tuple(table["second"]), table.get("correct", False), tuple(table.get("phrases", ())))


def _check_texts(file: File, header: str, key: str, texts: Any, given_answer: bool = False) -> None:
    """Check a list of texts with one slot each; where the answer is given, before the slot that is read."""
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        do = "write at least one"
        file.problem(file.find(key, header), f"{key} of [{header}] is {texts!r:.60}", "a list of texts", do)
        return
    must_not_start = key in _READ_AT_SLOT and not header.endswith((".answer", ".t1", ".t2"))
    for text in texts:
        problem = None
        if given_answer and not _states_answer(text):
            problem = ("one {answer} and {subject} after it", "state the fact, then name the subject")
        elif not given_answer and (text.count(SLOT) != 1 or re.search(r"[{}]", text.replace(SLOT, "", 1))):
            problem = ("exactly one {subject} and no other brace", "there is no other templating")
        elif must_not_start and text.startswith(SLOT):
            expected = f"{_READ_AT_SLOT[key]} with words before the slot"
            problem = (expected, "token 0 is an attention sink: put a word before it")
        elif text != text.strip():
            problem = ("no space at the ends", "the next token brings its own space")
        elif texts.count(text) > 1:
            problem = ("different texts", "remove one of them")
        if problem:
            file.problem(file.find(key, header, text), f"{text!r}", *problem)


def _states_answer(text: str) -> bool:
    before, slot, after = text.rpartition(SLOT)
    rest = (before + after).replace(ANSWER_SLOT, "").replace(SLOT, "")
    return bool(slot) and before.count(ANSWER_SLOT) == 1 and not re.search(r"[{}]", rest)


def _check_kind(file: File, name: str, table: Mapping[str, Any]) -> None:
    line = file.find("kind", f"relations.{name}")
    if not _NAME.fullmatch(name):
        file.problem(line, f"relation name {name!r}", "lower-case letters, digits and _", "rename it")
    elif table["kind"] not in ("class", "open", "next_token"):
        file.problem(line, f"kind {table['kind']!r} of {name}", "'class', 'open' or 'next_token'", "choose one")


def _check_choice_sets(file: File, name: str, table: Mapping[str, Any]) -> None:
    header, sets = f"relations.{name}", table["choice_sets"]
    line = file.find("choice_sets", header)
    if not sets or not all(isinstance(s, list) and all(isinstance(c, str) and c.strip() for c in s) for s in sets):
        file.problem(line, f"choice_sets of {name}", "a list of lists of answers", "write at least one set")
        return
    if table["kind"] == "class" and len(sets) != 1:
        do = "join them or set kind = 'open'"
        file.problem(line, f"{len(sets)} choice sets in class relation {name}", "one set", do)
    for choices in (choices for choices in sets if len(choices) < 2):
        at = file.find("choice_sets", header, choices[0]) if choices else line
        file.problem(at, f"a choice set of {len(choices)} in {name}", "at least 2 choices", "add choices")
    alike: dict[str, list[str]] = defaultdict(list)
    for choices in sets:
        for choice in choices:
            alike[name_key(choice)].append(choice)
    for same in (same for same in alike.values() if len(same) > 1):
        at = file.find("choice_sets", header, same[-1])
        do = "keep one of them (case, width and blanks do not count)"
        file.problem(at, f"choices {listed(same)} of {name} are the same", "each answer once", do)


def _check_sources(file: File, name: str, sources: Mapping[str, Any], given_answer: bool) -> None:
    if not sources or sources.keys() - set(SITES):
        given = f"{name} has sources for {listed(sources) or 'no site'}"
        line = file.find("", f"relations.{name}")
        file.problem(line, given, f"one or more of {', '.join(SITES)}", f"name them [relations.{name}.sources.SITE]")
        return
    for site, splits in sources.items():
        header = f"relations.{name}.sources.{site}"
        if not isinstance(splits, dict) or set(splits) != {"train", "test"}:
            given = f"{site} sources of {name} have {listed(splits) or 'nothing'}"
            do = "what learns must not see the test phrasings: give both"
            file.problem(file.find("", header), given, "train = [...] and test = [...]", do)
            continue
        for split, texts in splits.items():
            _check_texts(file, header, split, texts, given_answer)


def _check_knowledge(file: File, name: str, table: Mapping[str, Any]) -> None:
    """Prompts of knowledge are two, and none of the texts by which methods and text baselines are scored."""
    if "knowledge" not in table:
        return
    header, texts = f"relations.{name}", table["knowledge"]
    before = file.n_problems
    # Both prompts state the answer, or neither does.
    stated = bool(table.get("given")) and isinstance(texts, list) and any(ANSWER_SLOT in str(text) for text in texts)
    _check_texts(file, header, "knowledge", texts, stated)
    if file.n_problems > before:
        return
    if len(texts) != 2:
        given = f"{len(texts)} knowledge prompts of {name}"
        file.problem(file.find("knowledge", header), given, "two, which must agree", "give two paraphrases")
        return
    splits = [own for own in table["sources"].values() if isinstance(own, dict)]
    asked = [*table["inspection"], *table["questions"]]
    asked += [text for own in splits for listing in own.values() if isinstance(listing, list) for text in listing]
    for text in (text for text in texts if text in asked):
        expected = "a text that is no inspection prompt, question or source"
        file.problem(file.find("knowledge", header, text), f"knowledge prompt {text!r}", expected, "say it otherwise")


def _check_hops(file: File, name: str, table: Mapping[str, Any]) -> None:
    """Check the table of a chain's hops: whether the phrases stand in the sources is checked by `_check_phrases`."""
    if "hops" not in table:
        return
    header, hops = f"relations.{name}.hops", table["hops"]
    if not check_keys(file, file.find("", header), hops, _HOP_KEYS, f"hops of {name!r}", _MORE_HOP_KEYS):
        return
    second = hops["second"]
    if len(second) != 2 or not all(isinstance(text, str) and text.count(BRIDGE_SLOT) == 1 for text in second):
        given = f"second = {second!r:.60}"
        file.problem(file.find("second", header), given, "two texts with one {bridge} each", "write the two prompts")
    elif "phrases" in hops:
        _check_texts(file, header, "phrases", hops["phrases"])


def _check_phrases(file: File, name: str, table: Mapping[str, Any]) -> None:
    """Check that every source in which a chain is asked says its first hop in one of the phrases, and once."""
    phrases = table.get("hops", {}).get("phrases", [])
    sources = table["sources"]
    asked = [(site, split, text) for site in HOP_SITES for split, own in sources.get(site, {}).items() for text in own]
    for site, split, text in asked if phrases else ():
        n_said = sum(text.count(phrase) for phrase in phrases)
        if n_said != 1:
            line = file.find(split, f"relations.{name}.sources.{site}", text)
            given = f"{text!r} has {n_said} of the phrases of {name}.hops"
            file.problem(line, given, "exactly one", "say the first hop in a phrase, or mend the phrases")


def _check_describe(file: File, name: str, table: Mapping[str, Any]) -> None:
    tokens = table.get("describe", 0)
    if isinstance(tokens, bool) or not 0 <= tokens <= MOST_DESCRIBED:
        line = file.find("describe", f"relations.{name}")
        file.problem(
            line, f"describe = {tokens} in {name}", f"a number of tokens, 0 to {MOST_DESCRIBED}", "write it so"
        )


def _check_by_token(file: File, name: str, table: Mapping[str, Any]) -> None:
    """Names are cut at the end of the source, so it must end with the name."""
    if not table.get("by_token"):
        return
    sites = sorted(set(table["sources"]) - {"subject"})
    late = [text for texts in table["sources"].get("subject", {}).values() for text in texts if not text.endswith(SLOT)]
    if sites or late:
        given = f"{name} has by_token and {f'sources for {listed(sites)}' if sites else f'the source {late[0]!r}'}"
        expected = "sources for the site subject only, which end with {subject}"
        file.problem(file.find("by_token", f"relations.{name}"), given, expected, "end them there, or drop by_token")


def _check_coverage(toml: File, items: File, relation: Relation, facts: list[Fact]) -> None:
    if not facts:
        line = toml.find("", f"relations.{relation.name}")
        toml.problem(line, f"relation {relation.name!r} has no facts", "facts in items.jsonl", "add facts or remove it")
        return
    subjects = {name_key(fact.subject): fact.fold for fact in facts}
    empty = set(range(N_FOLDS)) - set(subjects.values())
    if empty:
        given = f"{relation.name} has no subject in fold {listed(empty)} ({len(subjects)} subjects in all)"
        do = "add subjects (the fold is a hash of the name; about 25 fill all five)"
        items.problem(facts[-1].line, given, f"a subject in each of the {N_FOLDS} folds", do)
