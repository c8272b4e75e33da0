"""Reading a task folder: `task.toml` (what is asked) and `items.jsonl` (one fact a line).

All problems of a folder are collected and shown together, one line each: where, what was given, what was expected and
what to do.
"""

import difflib
import hashlib
import json
import re
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lensbench.errors import LensbenchError
from lensbench.facts import N_FOLDS, SITES, SLOT, Fact, Relation, Site, TaskFolder, fold_of, normalise

LONGEST = 500
_SHOWN_PROBLEMS = 20
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
_FACT_KEYS = {"relation": str, "subject": str, "answer": str}


class TaskError(LensbenchError):
    """A task's files are wrong. The message has one line for each problem."""


def read_task_folder(folder: Path) -> TaskFolder:
    """Read and check a task folder.

    Args:
        folder: A folder with `task.toml` and `items.jsonl`.

    Returns:
        The task's content.

    Raises:
        TaskError: With one line for each problem of the two files, twenty at most.
    """
    problems = _Problems()
    toml, items = _File(folder / "task.toml", problems), _File(folder / "items.jsonl", problems)
    problems.stop_if_any()
    table = _parse_toml(toml)
    _check_keys(toml, 1, table, _TASK_KEYS, "task.toml")
    problems.stop_if_any()
    if not _NAME.fullmatch(table["name"]):
        toml.problem(toml.find("name"), f"task name {table['name']!r}", "lower-case letters, digits and _", "rename it")
    relations = _read_relations(toml, table["relations"])
    facts = _read_facts(items, relations, set(table["relations"]))
    problems.stop_if_any()
    for relation in relations.values():
        _check_coverage(toml, items, relation, [fact for fact in facts if fact.relation == relation.name])
    problems.stop_if_any()
    digests = b"".join(hashlib.sha256(file.content).digest() for file in (toml, items))
    version = hashlib.sha256(digests).hexdigest()[:12]
    return TaskFolder(table["name"], table["summary"], version, relations, tuple(facts))


@dataclass
class _Problems:
    found: list[tuple[str, int, str]] = field(default_factory=list)

    def stop_if_any(self) -> None:
        if self.found:
            lines = [f"{path}:{line}: {text}" for path, line, text in sorted(set(self.found))]
            more = len(lines) - _SHOWN_PROBLEMS
            raise TaskError("\n".join([*lines[:_SHOWN_PROBLEMS], *([f"... and {more} more"] if more > 0 else [])]))


class _File:
    """One of the two files, and the way to say what is wrong with it."""

    def __init__(self, path: Path, problems: _Problems) -> None:
        self.path, self._problems, self.content, self.lines = path, problems, b"", [""]
        try:
            self.content = path.read_bytes()
            self.lines = self.content.decode("utf-8-sig").split("\n")
        except UnicodeDecodeError as error:
            line = self.content[: error.start].count(b"\n") + 1
            self.problem(line, f"byte {self.content[error.start]:#04x}", "UTF-8 text", "save the file as UTF-8")
        except OSError as error:
            do = "a task is a folder with task.toml and items.jsonl (docs/tasks.md)"
            self.problem(1, f"cannot be read ({error.strerror})", "a readable file", do)

    def problem(self, line: int, given: str, expected: str, do: str) -> None:
        self._problems.found.append((str(self.path), line, f"{given}; expected {expected}; {do}"))

    def find(self, key: str, header: str = "", text: str = "") -> int:
        """Line of `text`, else of `key`, else of the header, in the TOML table under it (tomllib keeps no lines)."""
        start = next((i for i, line in enumerate(self.lines) if header and line.strip() == f"[{header}]"), 0)
        ends = (i for i, line in enumerate(self.lines) if i > start and re.match(r"\s*\[[\w.\"]+\]\s*$", line))
        table = range(start, next(ends, len(self.lines)))
        keyed = next((i for i in table if re.match(rf"\s*{re.escape(key)}\s*=", self.lines[i])), start)
        quoted = json.dumps(text, ensure_ascii=False)
        return next((i for i in table if text and i >= keyed and quoted in self.lines[i]), keyed) + 1


def _parse_toml(file: _File) -> dict[str, Any]:
    try:
        return tomllib.loads("\n".join(file.lines).replace("\r\n", "\n"))
    except tomllib.TOMLDecodeError as error:
        place = re.search(r"\(at line (\d+), column \d+\)", str(error))
        line = int(place.group(1)) if place else len(file.lines)
        file.problem(line, f"not TOML: {str(error).split(' (at ')[0]}", "TOML 1.0", "repair this line or the one above")
        return {key: kind() for key, kind in _TASK_KEYS.items()}


def _check_keys(file: _File, line: int, table: Mapping[str, Any], kinds: Mapping[str, type], where: str) -> bool:
    """Report missing, unknown and ill-typed keys. True when there are none."""
    before = True
    for key in table.keys() - kinds.keys():
        near = difflib.get_close_matches(key, kinds, n=1)
        do = f"did you mean {near[0]!r}?" if near else "remove it"
        file.problem(line, f"unknown key {key!r} in {where}", f"only {', '.join(kinds)}", do)
        before = False
    for key, kind in kinds.items():
        if key not in table:
            file.problem(line, f"no {key!r} in {where}", f"the keys {', '.join(kinds)}", f"add {key!r}")
            before = False
        elif not isinstance(table[key], kind):
            given = f"{key!r} of {where} is a {type(table[key]).__name__}"
            file.problem(line, given, f"a {kind.__name__}", "write it so")
            before = False
    return before


def _read_relations(file: _File, tables: Mapping[str, Any]) -> dict[str, Relation]:
    """Read all relations, leaving out those with a problem, so that none of their facts is reported for it again."""
    if not tables:
        file.problem(1, "no relation", "at least one [relations.NAME]", "add one")
    read = {name: _read_relation(file, name, table) for name, table in tables.items()}
    sites = {name: frozenset(relation.sources) for name, relation in read.items() if relation}
    most = max(Counter(sites.values()).items(), key=lambda item: (item[1], len(item[0])), default=(frozenset(), 0))[0]
    for name in (name for name, own in sites.items() if own != most):
        expected = f"{_listed(most)}, as in the other relations, so that all sites draw the same facts"
        do = "add the sources or move the relation to a task of its own"
        file.problem(file.find("", f"relations.{name}"), f"{name} has sources for {_listed(sites[name])}", expected, do)
    return {name: relation for name, relation in read.items() if relation}


def _read_relation(file: _File, name: str, table: Any) -> Relation | None:
    header = f"relations.{name}"
    line = file.find("", header)
    if not isinstance(table, dict):
        file.problem(file.find(name, "relations"), f"relation {name!r} is not a table", f"[{header}]", "write it so")
        return None
    if not _check_keys(file, line, table, _RELATION_KEYS, f"relation {name!r}"):
        return None
    checks = [_check_kind(file, name, table), _check_choice_sets(file, name, table)]
    checks += [_check_texts(file, header, key, table[key]) for key in ("inspection", "questions")]
    checks += [_check_sources(file, name, table["sources"])]
    if not all(checks):
        return None
    sources: dict[Site, dict[str, str]] = {
        site: {f"{split}{i}": text for split, texts in table["sources"][site].items() for i, text in enumerate(texts)}
        for site in SITES
        if site in table["sources"]
    }
    sets = tuple(tuple(sorted(choices)) for choices in table["choice_sets"])
    texts = (tuple(table["inspection"]), tuple(table["questions"]))
    return Relation(name, table["kind"], table["summary"], *texts, sources, sets)


def _check_kind(file: _File, name: str, table: Mapping[str, Any]) -> bool:
    line = file.find("kind", f"relations.{name}")
    if not _NAME.fullmatch(name):
        file.problem(line, f"relation name {name!r}", "lower-case letters, digits and _", "rename it")
        return False
    if table["kind"] not in ("class", "open"):
        file.problem(line, f"kind {table['kind']!r} of {name}", "'class' or 'open'", "choose one")
        return False
    return True


def _check_sources(file: _File, name: str, sources: Mapping[str, Any]) -> bool:
    if not sources or sources.keys() - set(SITES):
        given = f"{name} has sources for {_listed(sources) or 'no site'}"
        line = file.find("", f"relations.{name}")
        file.problem(line, given, "subject, answer or both", f"name them [relations.{name}.sources.SITE]")
        return False
    good = True
    for site, splits in sources.items():
        header = f"relations.{name}.sources.{site}"
        if not isinstance(splits, dict) or set(splits) != {"train", "test"}:
            given = f"{site} sources of {name} have {_listed(splits) or 'nothing'}"
            do = "what learns must not see the test phrasings: give both"
            file.problem(file.find("", header), given, "train = [...] and test = [...]", do)
            good = False
            continue
        for split, texts in splits.items():
            good &= _check_texts(file, header, split, texts)
    return good


def _check_texts(file: _File, header: str, key: str, texts: Any) -> bool:
    """Check a list of texts with one slot each."""
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        do = "write at least one"
        file.problem(file.find(key, header), f"{key} of [{header}] is {texts!r:.60}", "a list of texts", do)
        return False
    early = {"inspection": "an inspection prompt", "train": "a source text", "test": "a source text"}
    must_not_start = key in early and not header.endswith(".answer")
    good = True
    for text in texts:
        line, problem = file.find(key, header, text), None
        if text.count(SLOT) != 1 or re.search(r"[{}]", text.replace(SLOT, "", 1)):
            problem = ("exactly one {subject} and no other brace", "there is no other templating")
        elif must_not_start and text.startswith(SLOT):
            problem = (f"{early[key]} with words before the slot", "token 0 is an attention sink: put a word before it")
        elif text != text.strip():
            problem = ("no space at the ends", "the next token brings its own space")
        elif texts.count(text) > 1:
            problem = ("different texts", "remove one of them")
        if problem:
            file.problem(line, f"{text!r}", *problem)
            good = False
    return good


def _check_choice_sets(file: _File, name: str, table: Mapping[str, Any]) -> bool:
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
            problems.append((at, f"choices {_listed(given)} of {name} are the same", "each answer once", do))
    for problem in problems:
        file.problem(*problem)
    return not problems


def _read_facts(file: _File, relations: Mapping[str, Relation], declared: set[str]) -> list[Fact]:
    owner = {name: {normalise(choice): choice for choice in r.answers} for name, r in relations.items()}
    facts: list[Fact] = []
    seen: dict[tuple[str, str], int] = {}
    for number, line in enumerate(file.lines, 1):
        if not line.strip():
            continue
        row = _parse_fact(file, number, line, declared)
        if row is None:
            continue
        key = (row["relation"], normalise(row["subject"]))
        if key in seen:
            given = f"a second fact for {row['subject']!r} in {row['relation']} (first in line {seen[key]})"
            file.problem(number, given, "one fact for a subject and relation", "remove one")
        seen.setdefault(key, number)
        if row["relation"] in relations:
            _check_answer(file, number, row, owner[row["relation"]])
            aliases = tuple(row.get("aliases", ()))
            facts.append(Fact(row["relation"], row["subject"], row["answer"], aliases, fold_of(row["subject"]), number))
    return facts


def _parse_fact(file: _File, number: int, line: str, declared: set[str]) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        given = f"not JSON ({error.msg} at column {error.colno})"
        file.problem(number, given, "one JSON object a line", "repair the line")
        return None
    if not isinstance(row, dict):
        file.problem(number, f"a JSON {type(row).__name__}", "a JSON object", "write the fact as an object")
        return None
    kinds = _FACT_KEYS | ({"aliases": list} if "aliases" in row else {})
    if not _check_keys(file, number, row, kinds, "this fact"):
        return None
    if row["relation"] not in declared:
        near = difflib.get_close_matches(row["relation"], declared, n=1, cutoff=0.5)
        do = f"did you mean {near[0]!r}?" if near else "add it to task.toml or correct the name"
        file.problem(number, f"unknown relation {row['relation']!r}", "a relation of task.toml", do)
        return None
    if not row["subject"].strip() or row["subject"] != row["subject"].strip():
        file.problem(number, f"subject {row['subject']!r}", "a name without spaces at its ends", "write the name")
        return None
    if len(row["subject"]) > LONGEST or not _is_unicode(row["subject"]):
        given = f"subject {row['subject'][:40]!r} of {len(row['subject'])} characters"
        file.problem(number, given, f"at most {LONGEST} characters, all of them Unicode", "shorten or mend the name")
        return None
    return row


def _is_unicode(text: str) -> bool:
    """Half of a surrogate pair is valid in JSON, and is no character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_answer(file: _File, number: int, row: Mapping[str, Any], choices: Mapping[str, str]) -> None:
    answer, name = row["answer"], row["relation"]
    if answer not in choices.values():
        near = difflib.get_close_matches(answer, choices.values(), n=1)
        do = f"did you mean {near[0]!r}?" if near else "add it to a choice set in task.toml"
        file.problem(number, f"answer {answer!r} is in no choice set", f"a choice of {name}", do)
        return
    for alias in row.get("aliases", ()):
        if not isinstance(alias, str) or not alias.strip():
            file.problem(number, f"alias {alias!r}", "a text that is not empty", "write or remove it")
        elif choices.get(normalise(alias), answer) != answer:
            given = f"alias {alias!r} of {answer!r} is another choice of {name}"
            file.problem(number, given, "aliases of this answer only", "remove the alias or the choice")


def _check_coverage(toml: _File, items: _File, relation: Relation, facts: list[Fact]) -> None:
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
        given = f"{relation.name} has no subject in fold {_listed(empty)} ({subjects} subjects in all)"
        do = "add subjects (the fold is a hash of the name; about 25 fill all five)"
        items.problem(facts[-1].line, given, f"a subject in each of the {N_FOLDS} folds", do)


def _listed(names: Iterable[object]) -> str:
    return " and ".join(str(name) for name in sorted(names, key=str))
