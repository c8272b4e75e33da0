"""Reading `items.jsonl`: one fact a line."""

import difflib
import json
from collections.abc import Mapping
from typing import Any

from lensbench.tasks.facts import Fact, Relation, fold_of, normalise
from lensbench.tasks.problems import File, check_keys

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
    owner = {name: {normalise(choice): choice for choice in r.answers} for name, r in relations.items()}
    facts: list[Fact] = []
    seen: dict[tuple[str, str], int] = {}
    for number, line in enumerate(file.lines, 1):
        if not line.strip():
            continue
        row = _parse_fact(file, number, line, relations, declared)
        if row is None:
            continue
        key = (row["relation"], normalise(row["subject"]))
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


def _parse_fact(
    file: File, number: int, line: str, relations: Mapping[str, Relation], declared: set[str]
) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        given = f"not JSON ({error.msg} at column {error.colno})"
        file.problem(number, given, "one JSON object a line", "repair the line")
        return None
    if not isinstance(row, dict):
        file.problem(number, f"a JSON {type(row).__name__}", "a JSON object", "write the fact as an object")
        return None
    own = relations.get(str(row.get("relation")))
    prose = own is not None and own.kind == "next_token"
    kinds, more = (_PASSAGE_KEYS, {}) if prose else (_FACT_KEYS, _MORE_KEYS)
    if not check_keys(file, number, row, kinds, "this passage" if prose else "this fact", more):
        return None
    for name, values in row.get("facets", {}).items():
        if not isinstance(values, list) or not values or not all(isinstance(v, str) and v.strip() for v in values):
            file.problem(number, f"facet {name!r} is {values!r:.60}", "a list of spellings", "write at least one")
            return None
    if row["relation"] not in declared:
        near = difflib.get_close_matches(row["relation"], declared, n=1, cutoff=0.5)
        do = f"did you mean {near[0]!r}?" if near else "add it to task.toml or correct the name"
        file.problem(number, f"unknown relation {row['relation']!r}", "a relation of task.toml", do)
        return None
    if not row["subject"].strip() or row["subject"] != row["subject"].strip():
        file.problem(number, f"subject {row['subject']!r}", "a name without spaces at its ends", "write the name")
        return None
    if len(row["subject"]) > LONGEST or not is_unicode(row["subject"]):
        given = f"subject {row['subject'][:40]!r} of {len(row['subject'])} characters"
        file.problem(number, given, f"at most {LONGEST} characters, all of them Unicode", "shorten or mend the name")
        return None
    return row


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
        elif choices.get(normalise(alias), answer) != answer:
            given = f"alias {alias!r} of {answer!r} is another choice of {name}"
            file.problem(number, given, "aliases of this answer only", "remove the alias or the choice")
