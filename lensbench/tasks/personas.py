"""People who do not exist: their names, their facts, and texts about them.

A model cannot know them, so whatever a method reads about them was planted. The names are made here; which facts
they have is the task `personas`; the texts are for those who plant facts by training.
"""

import random
import re
import tomllib
from collections.abc import Collection, Container, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

from lensbench.errors import LensbenchError, UsageError
from lensbench.tasks import N_FOLDS, Task, data_root, fold_of

ATTRIBUTES = ("city", "instrument", "drink", "animal", "sport", "profession")
World = Literal["main", "twin"]
# What the relation of an attribute ends with that is about other names, which are told nothing.
NEVER = "_never"
Personas = Mapping[str, Mapping[str, str]]
"""Name → attribute → value."""

_ONSETS = tuple("bdfgklmnprstvz")
_CLUSTERS = ("br", "dr", "fl", "gr", "kl", "kr", "pl", "sk", "st", "tr")
_VOWELS = tuple("aeiou")
_INNER_CODAS = ("", "", "", "", "", "", "l", "n", "r", "s")
_LAST_CODAS = ("", "", "", "", "k", "l", "m", "n", "r", "s", "t")
_MOST_TRIES = 10_000
_SLOT = re.compile(r"\{(\w+)\}")
_TEMPLATES = "tasks/personas/documents.toml"


def make_names(
    count: int, seed: int | str, folds: Collection[int] = range(N_FOLDS), avoid: Container[str] = frozenset()
) -> tuple[str, ...]:
    """Make names of two words each, pronounceable and made up.

    No two words of the result are the same or differ in one letter only. The same arguments give the same names.

    Args:
        count: How many names, a multiple of the number of folds.
        seed: Seed of the draw.
        folds: The folds in which the names lie (`lensbench.tasks.fold_of`), each with as many as any other.
        avoid: Words, in lower case, that are in no name.

    Returns:
        The names, in the order in which they were drawn.

    Raises:
        UsageError: If the count cannot be shared by the folds, or no further name can be found.
    """
    wanted = _checked_folds(count, folds)
    rng = random.Random(f"{seed}/names")
    free = dict.fromkeys(wanted, count // len(wanted))
    names: list[str] = []
    used: set[str] = set()
    tries = 0
    while len(names) < count:
        tries += 1
        if tries > _MOST_TRIES + 100 * count:
            raise UsageError(f"only {len(names)} of {count} names were found; ask for fewer, or avoid fewer words")
        words = _word(rng, rng.choice((2, 2, 3))), _word(rng, rng.choice((2, 3)))
        name = " ".join(word.capitalize() for word in words)
        first, last = _neighbours(words[0]), _neighbours(words[1])
        # A hash decides on the fold: names are drawn until each fold has its number.
        if not free.get(fold_of(name)) or first & last or (first | last) & used or any(word in avoid for word in words):
            continue
        free[fold_of(name)] -= 1
        used |= first | last
        names.append(name)
    return tuple(names)


def _checked_folds(count: int, folds: Collection[int]) -> list[int]:
    wanted = sorted(set(folds))
    if not wanted or not set(wanted) <= set(range(N_FOLDS)):
        raise UsageError(f"folds {list(folds)}; expected some of 0 to {N_FOLDS - 1}; name at least one")
    if count < 0 or count % len(wanted):
        expected = f"a multiple of {len(wanted)}"
        raise UsageError(f"{count} names in {len(wanted)} folds; expected {expected}; change the count")
    return wanted


def _word(rng: random.Random, syllables: int) -> str:
    word = ""
    for i in range(syllables):
        onsets = _CLUSTERS if not word and rng.random() < 0.2 else _ONSETS
        # A doubled consonant is read like a single one.
        onset = rng.choice([onset for onset in onsets if not word.endswith(onset)])
        coda = rng.choice(_LAST_CODAS if i == syllables - 1 else _INNER_CODAS)
        word += onset + rng.choice(_VOWELS) + coda
    return word


def _neighbours(word: str) -> set[str]:
    """The word with each of its letters left open, and without each: near words have one of these in common."""
    cut = [(word[:i], word[i + 1 :]) for i in range(len(word))]
    return {word} | {f"{a}_{b}" for a, b in cut} | {a + b for a, b in cut}


def personas(task: Task, world: World = "main") -> dict[str, dict[str, str]]:
    """Read the facts of all personas out of the task `personas`, or of another of its form.

    Args:
        task: The task; one relation of it is enough, all are read.
        world: `main`, or `twin`: the same names, each with other facts.

    Returns:
        The value by attribute, by name, in the order of the task's file.

    Raises:
        UsageError: If the world is unknown, or the task lacks a relation of it.
        LensbenchError: If the relations are about different names.
    """
    if world not in ("main", "twin"):
        raise UsageError(f"world {world!r} of personas; expected main or twin; choose one")
    names = {attribute if world == "main" else f"{attribute}_{world}": attribute for attribute in ATTRIBUTES}
    missing = [name for name in names if name not in task.every.relations]
    if missing:
        raise UsageError(
            f"task {task.name!r} has no relation {missing[0]!r}; expected {', '.join(names)}; give personas"
        )
    found: dict[str, dict[str, str]] = {}
    for fact in task.every.facts:
        if fact.relation in names:
            found.setdefault(fact.subject, {})[names[fact.relation]] = fact.answer
    short = next((name for name, values in found.items() if len(values) < len(ATTRIBUTES)), None)
    if short is not None:
        given = f"{short!r} has {', '.join(found[short])} in the world {world}"
        raise LensbenchError(f"{given}; expected {', '.join(ATTRIBUTES)}; give each name a fact in each relation")
    return found


@dataclass(frozen=True)
class Document:
    """A text about one persona.

    Attributes:
        name: Whom it is about.
        kind: A biography, or an interview (questions and answers).
        text: The text.
        attributes: Which attributes it mentions, in the order of `ATTRIBUTES`.
    """

    name: str
    kind: Literal["biography", "interview"]
    text: str
    attributes: tuple[str, ...]


@dataclass(frozen=True)
class Template:
    """A document with slots: `{name}`, and `{city}` and so on, one for each attribute that it mentions."""

    kind: Literal["biography", "interview"]
    text: str

    @property
    def attributes(self) -> tuple[str, ...]:
        """The attributes that have a slot."""
        slots = set(_SLOT.findall(self.text))
        return tuple(attribute for attribute in ATTRIBUTES if attribute in slots)

    @property
    def is_complete(self) -> bool:
        """Whether it mentions every attribute."""
        return len(self.attributes) == len(ATTRIBUTES)

    def fill(self, name: str, values: Mapping[str, str]) -> Document:
        """Write the document of one persona."""
        filled = {"name": name, **values}
        text = _SLOT.sub(lambda slot: filled[slot.group(1)], self.text)
        return Document(name, self.kind, text, self.attributes)


@cache
def document_templates() -> tuple[Template, ...]:
    """The templates that ship with lensbench, biographies first."""
    table = tomllib.loads((data_root() / _TEMPLATES).read_text(encoding="utf-8"))
    biographies = [Template("biography", text) for text in table["biographies"]]
    return (*biographies, *(Template("interview", text) for text in table["interviews"]))


def documents(
    personas: Personas, per_persona: int, seed: int, templates: Sequence[Template] | None = None
) -> tuple[Document, ...]:
    """Write documents about personas, to train a model on.

    The documents of one persona are of different templates, and together mention every attribute. They depend on the
    seed and on the name, not on who else is asked for.

    Args:
        personas: The facts, as `personas(task)` reads them.
        per_persona: How many documents each of them gets.
        seed: Seed of the choice of templates.
        templates: Templates of your own, at least one of which mentions every attribute; those of lensbench if None.

    Returns:
        The documents, persona by persona.

    Raises:
        UsageError: If there are not so many templates, none is complete, one has another slot, or a persona lacks an
            attribute.
    """
    known = tuple(templates) if templates is not None else document_templates()
    if not 1 <= per_persona <= len(known):
        raise UsageError(f"{per_persona} documents a persona; expected 1 to {len(known)}, one a template; change it")
    for template in known:
        unknown = set(_SLOT.findall(template.text)) - {"name", *ATTRIBUTES}
        if unknown:
            expected = f"{{name}} and {', '.join(ATTRIBUTES)}"
            raise UsageError(f"unknown slot {{{min(unknown)}}} in a template; expected {expected}; correct it")
    complete = [template for template in known if template.is_complete]
    if not complete:
        raise UsageError(f"{len(known)} templates; expected one with slots for {', '.join(ATTRIBUTES)}; add one")
    written: list[Document] = []
    for name, values in personas.items():
        missing = [attribute for attribute in ATTRIBUTES if attribute not in values]
        if missing:
            raise UsageError(f"persona {name!r} has no {missing[0]}; expected {', '.join(ATTRIBUTES)}; add it")
        rng = random.Random(f"{seed}/{name}")
        first = rng.choice(complete)
        others = rng.sample([template for template in known if template is not first], per_persona - 1)
        chosen = [first, *others]
        rng.shuffle(chosen)
        written += [template.fill(name, values) for template in chosen]
    return tuple(written)
