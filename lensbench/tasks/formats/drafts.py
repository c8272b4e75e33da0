"""From a file's rows to a task: one fact a subject, choice sets, folds, and one line on what was left out."""

import hashlib
import logging
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Literal

from lensbench.errors import UsageError
from lensbench.tasks.facts import N_FOLDS, SLOT, Fact, Hops, Relation, Site, TaskFolder, fold_of
from lensbench.tasks.files import TaskError, listed
from lensbench.tasks.formats.sources import FILE_SCHEMES, Source
from lensbench.tasks.formats.texts import EXPECTED_TEMPLATE, LEAD_IN, NO_MENTION, is_template, knowledge_of, slug
from lensbench.tasks.names import name_key, plain_words
from lensbench.tasks.turns import Turn

LARGEST_CLASS = 24
SET_SIZE = 8
_SUBJECTS_AN_ANSWER = 3
Sets = tuple[tuple[str, ...], ...]


def spellings(answers: Iterable[str]) -> dict[str, str]:
    """For each answer the one spelling that stands for it: the first that is the same name (`name_key`)."""
    first: dict[str, str] = {}
    return {answer: first.setdefault(name_key(answer), answer) for answer in answers}


def make_sets(count: Mapping[str, int], relation: str) -> tuple[Literal["class", "open"], Sets]:
    """Choose kind and choice sets of a relation.

    A relation of at most 24 answers with three subjects each, on average, is a class relation: one set. Others are
    dealt once, by a fixed seed, into sets of equal size, at most 8.

    Args:
        count: how many subjects have each answer.
        relation: the relation's name, the seed of the deal.
    """
    answers = sorted(count)
    if len(answers) <= LARGEST_CLASS and sum(count.values()) >= _SUBJECTS_AN_ANSWER * len(answers):
        return "class", (tuple(answers),)
    return "open", _deal(answers, random.Random(f"readers/{relation}"))


def _deal(answers: list[str], rng: random.Random) -> Sets:
    """Deal answers evenly, those that begin alike into different sets: a model cannot tell them apart in one."""
    starts = {answer: _start(answer) for answer in answers}
    first_word = Counter(word for word, _ in starts.values())
    order = rng.sample(answers, len(answers))
    # Those with the most like them first, while all sets are still open to them.
    order.sort(key=lambda answer: -first_word[starts[answer][0]])
    sets: list[list[str]] = [[] for _ in range(-(-len(answers) // SET_SIZE))]
    # How often each set has a first word, and first letters.
    used: list[tuple[Counter[str], Counter[str]]] = [(Counter(), Counter()) for _ in sets]
    largest = -(-len(answers) // len(sets))
    at_largest = len(answers) - (largest - 1) * len(sets)
    for answer in order:
        is_full = sum(len(one) == largest for one in sets) == at_largest
        fitting = [i for i, one in enumerate(sets) if len(one) < largest - is_full]
        word, letters = starts[answer]
        alike = {i: (used[i][0][word], used[i][1][letters]) for i in fitting}
        fewest = min(alike.values())
        chosen = rng.choice([i for i in fitting if alike[i] == fewest])
        sets[chosen].append(answer)
        used[chosen][0][word] += 1
        used[chosen][1][letters] += 1
    return tuple(sorted(tuple(sorted(one)) for one in sets))


def _start(answer: str) -> tuple[str, str]:
    """First word and first two letters."""
    bare = plain_words(answer)
    return bare.split(" ")[0], bare[:2]


LOG = logging.getLogger("lensbench")


@dataclass(frozen=True)
class SourceRow:
    """One fact in the words of a file.

    Attributes:
        relation: name of its relation.
        subject: what the question is about.
        answer: the gold answer, in the file's spelling.
        line: its line in the file, or row in a data set.
        aliases: other spellings of the answer.
        texts: for each site a text of its own, where the relation has no templates.
        rank: how well the text fits (0 best); of several rows that say the same, the best is kept.
        bridge: the middle of a chain.
        popularity: how well known the answer is.
        choices: the closed set that the file gives.
        turns: who says the text, where it is a conversation.
    """

    relation: str
    subject: str
    answer: str
    line: int
    aliases: tuple[str, ...] = ()
    texts: Mapping[Site, str] = field(default_factory=dict)
    rank: int = 0
    bridge: str | None = None
    popularity: float | None = None
    choices: tuple[str, ...] = ()
    turns: tuple[Turn, ...] = ()


@dataclass(frozen=True)
class Wording:
    """The words in which a relation is asked: the texts of `Relation`."""

    summary: str
    inspection: tuple[str, ...]
    questions: tuple[str, ...]
    sources: Mapping[Site, Mapping[str, str]]
    hops: Hops | None = None
    knowledge: tuple[str, ...] = ()


@dataclass(frozen=True)
class Draft:
    """The contents of a file before it is a task.

    Attributes:
        name: the task's name, without the `name` option.
        summary: what the task measures.
        content: the bytes of the file.
        rows: all rows that can be read.
        wordings: by relation.
        left_out: what was left out before, and how many rows.
    """

    name: str
    summary: str
    content: bytes
    rows: tuple[SourceRow, ...]
    wordings: Mapping[str, Wording]
    left_out: Mapping[str, int] = field(default_factory=dict)


def build(draft: Draft, source: Source) -> TaskFolder:
    """Make the task of a draft.

    Raises:
        TaskError: no relation can be evaluated.
        UsageError: a question that is no text with a slot, or is to serve several relations.
    """
    left_out: Counter[str] = Counter(draft.left_out)
    wordings = _asked(draft.wordings, source)
    reasons: dict[str, str] = {}
    relations: dict[str, Relation] = {}
    facts: list[Fact] = []
    replaced = 0
    for name, wording in wordings.items():
        rows = one_a_subject((row for row in draft.rows if row.relation == name), left_out)
        replaced += sum(row.rank == NO_MENTION for row in rows)
        reason = why_not(rows)
        if reason:
            reasons[name] = reason
            continue
        relations[name], own = _relation(name, wording, rows, left_out)
        facts += own
    _require(relations, reasons, source, draft)
    facts.sort(key=lambda fact: fact.line)
    _log(source, f"{len(facts)} facts of {len(draft.rows)} rows", replaced, left_out, reasons)
    made = repr((source.options, relations, facts)).encode()
    version = hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in (draft.content, made))).hexdigest()
    return TaskFolder(slug(source.option("name") or draft.name), draft.summary, version[:12], relations, tuple(facts))


def _asked(wordings: Mapping[str, Wording], source: Source) -> Mapping[str, Wording]:
    """Replace the inspection prompt by the one given as an option; tables have read theirs with their columns."""
    given = source.option("question")
    if given is None or source.scheme not in FILE_SCHEMES:
        return wordings
    text = given.removeprefix("=")
    if len(wordings) != 1:
        names = ", ".join(wordings)
        raise UsageError(f"{source.path}: one question for the relations {names}; leave the option out")
    if not is_template(text) or text != text.strip() or text.startswith(SLOT):
        raise UsageError(f"{source.path}: question={given!r}: {EXPECTED_TEMPLATE}; see docs/readers.md")
    return {name: replace(wording, inspection=(text,)) for name, wording in wordings.items()}


def one_a_subject(rows: Iterable[SourceRow], left_out: Counter[str]) -> list[SourceRow]:
    """Keep one row for each subject: of those that agree with the first the best, and count the rest."""
    by_subject: dict[str, list[SourceRow]] = defaultdict(list)
    for row in rows:
        by_subject[name_key(row.subject)].append(row)
    kept = []
    for group in by_subject.values():
        same = [row for row in group if name_key(row.answer) == name_key(group[0].answer)]
        left_out["the same fact again"] += len(same) - 1
        other = next((row for row in group if row not in same), None)
        if other is not None:
            lines = f"lines {group[0].line} and {other.line}"
            left_out[f"another answer for the subject {group[0].subject!r} ({lines})"] += len(group) - len(same)
        kept.append(min(same, key=lambda row: row.rank))
    return kept


def why_not(rows: Iterable[SourceRow]) -> str:
    """Why a relation of these rows cannot be evaluated; "" where it can."""
    subjects = {row.subject for row in rows}
    empty = set(range(N_FOLDS)) - {fold_of(subject) for subject in subjects}
    if empty:
        return f"{len(subjects)} subjects, none in fold {listed(empty)}"
    if len({name_key(row.answer) for row in rows}) < 2:
        return f"{len(subjects)} subjects, all with one answer"
    return ""


def _relation(
    name: str, wording: Wording, rows: list[SourceRow], left_out: Counter[str]
) -> tuple[Relation, list[Fact]]:
    own_choices = [choice for row in rows for choice in row.choices]
    spelling = spellings([*(row.answer for row in rows), *own_choices])
    count = Counter(spelling[row.answer] for row in rows)
    kind, sets = make_sets(count, name)
    if own_choices:
        sets = _given_sets(rows, spelling)
        kind = "class" if len(sets) == 1 else "open"
    relation = Relation(
        name=name,
        kind=kind,
        summary=wording.summary,
        inspection=wording.inspection,
        questions=wording.questions,
        sources=wording.sources,
        choice_sets=sets,
        hops=wording.hops,
        knowledge=wording.knowledge or knowledge_of(wording.inspection[0]),
    )
    taken = {name_key(choice) for choices in sets for choice in choices}
    return relation, [_fact(row, spelling[row.answer], rows, relation, taken, left_out) for row in rows]


def _given_sets(rows: Iterable[SourceRow], spelling: Mapping[str, str]) -> Sets:
    return tuple(sorted({tuple(sorted({spelling[choice] for choice in row.choices})) for row in rows}))


def _fact(
    row: SourceRow, answer: str, rows: list[SourceRow], relation: Relation, taken: set[str], left_out: Counter[str]
) -> Fact:
    others = dict.fromkeys(alias for alias in (row.answer, *row.aliases) if alias != answer)
    aliases = tuple(alias for alias in others if name_key(alias) not in taken or name_key(alias) == name_key(answer))
    left_out["aliases that are another answer"] += len(others) - len(aliases)
    return Fact(
        relation=row.relation,
        subject=row.subject,
        answer=answer,
        aliases=aliases,
        fold=fold_of(row.subject),
        line=row.line,
        popularity=row.popularity,
        bridge=row.bridge,
        swap=_swap(row, answer, rows, relation.choices_of(answer)) if relation.hops else None,
        texts=row.texts,
        turns=row.turns,
    )


def _swap(row: SourceRow, answer: str, rows: list[SourceRow], choices: tuple[str, ...]) -> str | None:
    """The next chain, by a hash of both subjects, with another bridge and answer in the same choice set."""
    allowed = {name_key(choice) for choice in choices} - {name_key(answer)}
    fitting = [other for other in rows if other.bridge != row.bridge and name_key(other.answer) in allowed]
    drawn = min(fitting, key=lambda other: _hash(f"{row.subject}/{other.subject}"), default=None)
    return drawn.subject if drawn else None


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _require(relations: Mapping[str, Relation], reasons: Mapping[str, str], source: Source, draft: Draft) -> None:
    if relations:
        return
    found = "; ".join(f"{name}: {reason}" for name, reason in list(reasons.items())[:5]) or "no rows"
    raise TaskError(
        f"{source.path}: no relation of its {len(draft.rows)} rows can be cross-fitted ({found}); expected two answers "
        f"and a subject in each of the {N_FOLDS} folds; give more subjects (folds are hashes of names; about 25 do)"
    )


def _log(source: Source, kept: str, replaced: int, left_out: Counter[str], reasons: Mapping[str, str]) -> None:
    """Tell what became of a file's rows, in a line; of many subjects with two answers each, the first three."""
    parts = [f"{n} {what}" for what, n in left_out.items() if n]
    doubled = [part for part in parts if " another answer for the subject " in part]
    parts = [part for part in parts if part not in doubled[3:]]
    parts += [f"other answers for {len(doubled) - 3} more subjects"] if len(doubled) > 3 else []
    parts += [f"relation {name} ({reason})" for name, reason in reasons.items()]
    told = [f"left out: {', '.join(parts)}"] if parts else []
    if replaced:
        told.insert(0, f"{replaced} texts replaced by {LEAD_IN!r}, as the subject does not stand in them after a word")
    if told:
        _say_once("; ".join([f"{source.path}: {kept}", *told]))


@cache
def _say_once(message: str) -> None:
    """A run reads its tasks more than once."""
    LOG.warning(message)
