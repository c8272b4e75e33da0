"""A task's files: the facts in `items.jsonl`, and all problems of a file, which are collected and shown together."""

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from lensbench.errors import LensbenchError
from lensbench.tasks.facts import Fact, Relation, fold_of
from lensbench.tasks.names import name_key
from lensbench.utils.foreign import read_bytes, reason_of

_SHOWN_PROBLEMS = 1000


class TaskError(LensbenchError):
    """A task's files are wrong. The message has one line for each problem."""


@dataclass
class Problems:
    """The problems found so far, each a file, line and text."""

    found: list[tuple[str, int, str]] = field(default_factory=list)

    def stop_if_any(self) -> None:
        """Raise if anything was found.

        Raises:
            TaskError: with a line for each problem.
        """
        if self.found:
            lines = [f"{path}:{line}: {text}" for path, line, text in sorted(set(self.found))]
            more = len(lines) - _SHOWN_PROBLEMS
            raise TaskError("\n".join([*lines[:_SHOWN_PROBLEMS], *([f"... and {more} more"] if more > 0 else [])]))


class Report:
    """A list of the problems of one file, or of a data set whose rows are counted instead of lines."""

    def __init__(self, path: Path, problems: Problems) -> None:
        self.path, self._problems = path, problems

    @property
    def n_problems(self) -> int:
        """The number of problems so far, of all files that are read together."""
        return len(self._problems.found)

    def problem(self, line: int, given: str, expected: str, do: str) -> None:
        """Note what was given in a line, what was expected, and what to do."""
        self._problems.found.append((str(self.path), line, f"{given}; expected {expected}; {do}"))


class File(Report):
    """A text file of a task, and the way to say what is wrong with it.

    Args:
        path: the file; one that cannot be read, or is no UTF-8, is a problem.
        problems: where its problems are noted.
        do: what to do where it cannot be read.
    """

    def __init__(
        self, path: Path, problems: Problems, do: str = "a task is a folder with task.toml and items.jsonl"
    ) -> None:
        super().__init__(path, problems)
        self.content = b""
        try:
            self.content = read_bytes(path)
            self.text = self.content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            self.text = ""
            line = self.content[: error.start].count(b"\n") + 1
            self.problem(line, f"byte {self.content[error.start]:#04x}", "UTF-8 text", "save the file as UTF-8")
        except OSError as error:
            self.text = ""
            self.problem(1, f"cannot be read ({error.strerror})", "a readable file", f"{do} (docs/tasks.md)")
        self.lines = self.text.split("\n")

    def find(self, key: str, header: str = "", text: str = "") -> int:
        """Line of `text`, else of `key`, else of the header, in the TOML table under it (tomllib keeps no lines)."""
        start = next((i for i, line in enumerate(self.lines) if header and line.strip() == f"[{header}]"), 0)
        ends = (i for i, line in enumerate(self.lines) if i > start and re.match(r"\s*\[[\w.\"]+\]\s*$", line))
        table = range(start, next(ends, len(self.lines)))
        keyed = next((i for i in table if re.match(rf"\s*{re.escape(key)}\s*=", self.lines[i])), start)
        quoted = json.dumps(text, ensure_ascii=False)
        return next((i for i in table if text and i >= keyed and quoted in self.lines[i]), keyed) + 1

    def json_lines(self) -> list[tuple[int, dict[str, Any]]]:
        """Return the objects of a file with one JSON object a line, each with its line."""
        rows: list[tuple[int, dict[str, Any]]] = []
        for number, line in enumerate(self.lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                why = (
                    f"{error.msg} at column {error.colno}"
                    if isinstance(error, json.JSONDecodeError)
                    else reason_of(error)
                )
                self.problem(number, f"not JSON ({why})", "one JSON object a line", "repair the line")
                continue
            if isinstance(row, dict):
                rows.append((number, row))
            else:
                self.problem(number, f"a JSON {type(row).__name__}", "a JSON object", "write the line as an object")
        return rows


def check_keys(
    file: File,
    line: int,
    table: Mapping[str, Any],
    kinds: Mapping[str, type | tuple[type, ...]],
    where: str,
    optional: Mapping[str, type | tuple[type, ...]] = MappingProxyType({}),
) -> bool:
    """Report missing, unknown and ill-typed keys. True when there are none."""
    before = file.n_problems
    every = {**kinds, **optional}
    for key in table.keys() - every.keys():
        near = difflib.get_close_matches(key, every, n=1)
        do = f"did you mean {near[0]!r}?" if near else "remove it"
        file.problem(line, f"unknown key {key!r} in {where}", f"only {', '.join(every)}", do)
    for key, kind in every.items():
        if key not in table and key in optional:
            continue
        if key not in table:
            file.problem(line, f"no {key!r} in {where}", f"the keys {', '.join(kinds)}", f"add {key!r}")
        elif not isinstance(table[key], kind):
            given = f"{key!r} of {where} is a {type(table[key]).__name__}"
            names = " or ".join(one.__name__ for one in (kind if isinstance(kind, tuple) else (kind,)))
            file.problem(line, given, f"a {names}", "write it so")
    return file.n_problems == before


def listed(names: Iterable[object]) -> str:
    """Join names, sorted."""
    return " and ".join(str(name) for name in sorted(names, key=str))


LONGEST = 500
_FACT_KEYS = {"relation": str, "subject": str, "answer": str}
_PASSAGE_KEYS = {"relation": str, "subject": str, "text": str}
_MORE_KEYS: dict[str, type | tuple[type, ...]] = {
    "aliases": list,
    "popularity": (int, float),
    "bridge": str,
    "swap": str,
    "facets": dict,
}


def read_facts(file: File, relations: Mapping[str, Relation], declared: set[str]) -> list[Fact]:
    """Read and check all facts; those of relations that have a problem themselves are left out.

    Args:
        file: `items.jsonl`.
        relations: those that could be read.
        declared: the names of all relations of the task.
    """
    owner = {name: {name_key(choice): choice for choice in r.answers} for name, r in relations.items()}
    facts: list[Fact] = []
    seen: dict[tuple[str, str], int] = {}
    for number, row in file.json_lines():
        if not _check_fact(file, number, row, relations, declared):
            continue
        key = (row["relation"], name_key(row["subject"]))
        if key in seen:
            given = f"a second fact for {row['subject']!r} in {row['relation']} (first in line {seen[key]})"
            file.problem(number, given, "one fact for a subject and relation", "remove one")
        seen.setdefault(key, number)
        if row["relation"] in relations:
            if "answer" in row:
                _check_answer(file, number, row, owner[row["relation"]])
            facts.append(_fact(row, number))
    _check_chains(file, facts, relations)
    return facts


def _fact(row: Mapping[str, Any], line: int) -> Fact:
    return Fact(
        relation=row["relation"],
        subject=row["subject"],
        answer=row.get("answer", ""),
        aliases=tuple(row.get("aliases", ())),
        fold=fold_of(row["subject"]),
        line=line,
        popularity=None if row.get("popularity") is None else float(row["popularity"]),
        bridge=row.get("bridge"),
        swap=row.get("swap"),
        texts={"answer": row["text"]} if "text" in row else {},
        facets={name: tuple(values) for name, values in row.get("facets", {}).items()},
    )


def _check_chains(file: File, facts: list[Fact], relations: Mapping[str, Relation]) -> None:
    """A chain's bridge is the answer of its first hop, and its swap another chain that can stand in for it."""
    by_subject = {(fact.relation, fact.subject): fact for fact in facts}
    for fact in facts:
        relation = relations[fact.relation]
        if relation.hops is not None and relation.hops.first in relations:
            hop = by_subject.get((relation.hops.first, fact.subject))
            if hop is None or hop.answer != fact.bridge:
                given = f"bridge {fact.bridge!r} of {fact.subject!r}"
                expected = f"its answer in the first hop, {relation.hops.first} ({hop.answer if hop else 'no fact'})"
                file.problem(fact.line, given, expected, "give both hops of the chain")
        if fact.swap is None or fact.answer not in relation.answers:
            continue
        other = by_subject.get((fact.relation, fact.swap))
        fits = other is not None and other.bridge != fact.bridge and other.answer != fact.answer
        if other is None or not fits or other.answer not in relation.choices_of(fact.answer):
            expected = f"the subject of another fact of {fact.relation}, of another bridge and answer in one choice set"
            file.problem(fact.line, f"swap {fact.swap!r} of {fact.subject!r}", expected, "give another one")


def _check_fact(
    file: File, number: int, row: Mapping[str, Any], relations: Mapping[str, Relation], declared: set[str]
) -> bool:
    """Check all of a fact but its answer, which only a relation without problems can tell."""
    before = file.n_problems
    own = relations.get(str(row.get("relation")))
    prose = own is not None and own.kind == "next_token"
    kinds, more = (_PASSAGE_KEYS, {}) if prose else (_FACT_KEYS, _MORE_KEYS)
    if not check_keys(file, number, row, kinds, "this passage" if prose else "this fact", more):
        return False
    subject = row["subject"]
    if row["relation"] not in declared:
        near = difflib.get_close_matches(row["relation"], declared, n=1, cutoff=0.5)
        do = f"did you mean {near[0]!r}?" if near else "add it to task.toml or correct the name"
        file.problem(number, f"unknown relation {row['relation']!r}", "a relation of task.toml", do)
    elif not subject.strip() or subject != subject.strip():
        file.problem(number, f"subject {subject!r}", "a name without spaces at its ends", "write the name")
    elif len(subject) > LONGEST or not is_unicode(subject):
        given = f"subject {subject[:40]!r} of {len(subject)} characters"
        file.problem(number, given, f"at most {LONGEST} characters, all of them Unicode", "shorten or mend the name")
    for name, values in row.get("facets", {}).items():
        if not isinstance(values, list) or not values or not all(isinstance(v, str) and v.strip() for v in values):
            file.problem(number, f"facet {name!r} is {values!r:.60}", "a list of spellings", "write at least one")
    return file.n_problems == before


def is_unicode(text: str) -> bool:
    """Whether a text has no half of a surrogate pair, which is valid in JSON and is no character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_answer(file: File, number: int, row: Mapping[str, Any], choices: Mapping[str, str]) -> None:
    answer, name = row["answer"], row["relation"]
    if answer not in choices.values():
        near = difflib.get_close_matches(answer, choices.values(), n=1)
        do = f"did you mean {near[0]!r}?" if near else "add it to a choice set in task.toml"
        file.problem(number, f"answer {answer!r} is in no choice set", f"a choice of {name}", do)
        return
    for alias in row.get("aliases", ()):
        if not isinstance(alias, str) or not alias.strip():
            file.problem(number, f"alias {alias!r}", "a text that is not empty", "write or remove it")
        elif choices.get(name_key(alias), answer) != answer:
            given = f"alias {alias!r} of {answer!r} is another choice of {name}"
            file.problem(number, given, "aliases of this answer only", "remove the alias or the choice")
