"""Relations and facts: what a task folder holds, and which fold a subject is in."""

import hashlib
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Site = Literal["subject", "answer"]
SITES: tuple[Site, ...] = ("subject", "answer")
N_FOLDS = 5
SLOT = "{subject}"


@dataclass(frozen=True)
class Relation:
    """What one relation asks, and in which words.

    Attributes:
        name: The relation's name, such as `country_capital`.
        kind: `class` (one choice set for all) or `open` (fixed sets, each shared by the items whose answer it holds).
        summary: What leads to what, in a few words ("country → capital").
        inspection: Inspection prompts of a verbalizer, with the `{subject}` slot; the next word is the answer.
        questions: Question forms for readers of the text alone, with the slot.
        sources: For each site, the source texts by template name (`train0`, `test1`), with the slot.
        choice_sets: The closed sets of answers, each in alphabetical order.
    """

    name: str
    kind: Literal["class", "open"]
    summary: str
    inspection: tuple[str, ...]
    questions: tuple[str, ...]
    sources: Mapping[Site, Mapping[str, str]]
    choice_sets: tuple[tuple[str, ...], ...]

    @property
    def answers(self) -> tuple[str, ...]:
        """All choices of all sets, in alphabetical order."""
        return tuple(sorted(choice for choices in self.choice_sets for choice in choices))

    def templates(self, site: Site, split: str) -> tuple[str, ...]:
        """Names of the source texts of one site and split, in the file's order."""
        return tuple(name for name in self.sources.get(site, {}) if name.startswith(split))


@dataclass(frozen=True)
class Fact:
    """One line of `items.jsonl`, with the fold of its subject."""

    relation: str
    subject: str
    answer: str
    aliases: tuple[str, ...]
    fold: int
    line: int


@dataclass(frozen=True)
class TaskFolder:
    """The checked content of a task folder."""

    name: str
    summary: str
    version: str
    relations: Mapping[str, Relation]
    facts: tuple[Fact, ...]


def normalise(text: str) -> str:
    """Reduce a name to what makes it the same name: no case, accents or punctuation, single spaces."""
    decomposed = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
    kept = (" " if not (c.isalnum() or unicodedata.combining(c)) else c for c in decomposed)
    bare = "".join(c for c in kept if not unicodedata.combining(c))
    # A name of punctuation alone keeps it, or all such names would be one.
    return " ".join(bare.split()) or " ".join(decomposed.split())


def fold_of(subject: str) -> int:
    """Fold of a subject, from a hash of its normalised name: the same in every relation and every task."""
    return int(hashlib.sha256(normalise(subject).encode()).hexdigest(), 16) % N_FOLDS
