"""Relations and facts: what a task holds, which fold a subject is in, and how right a generated text is."""

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from rapidfuzz.distance import LCSseq

from lensbench.tasks.names import plain_words, says
from lensbench.tasks.turns import Turn

Site = Literal["subject", "t1", "t2", "answer"]
SITES: tuple[Site, ...] = ("subject", "t1", "t2", "answer")
# Where the source of a chain goes on to ask: it holds the first hop.
HOP_SITES: tuple[Site, ...] = ("t1", "t2", "answer")
N_FOLDS = 5
SLOT = "{subject}"
ANSWER_SLOT = "{answer}"
BRIDGE_SLOT = "{bridge}"
SOURCE_SLOT = "{source}"
OWN = "own"
"""The name of the one source template of a relation whose facts bring texts of their own."""


@dataclass(frozen=True)
class Hops:
    """The two single hops of a chain: subject → bridge → answer.

    Attributes:
        first: the relation that asks for the bridge.
        second: two prompts with the slot `{bridge}` that ask for the answer, for knowledge of the second hop.
        correct: whether only items are kept whose hops the model knows and whose chain it fails (docs/tasks.md).
        phrases: the first hop as the sources say it, each with the slot `{subject}`; may be empty.
    """

    first: str
    second: tuple[str, ...]
    correct: bool = False
    phrases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Relation:
    """One relation: what it asks, and in which words.

    Attributes:
        name: The relation's name, such as `country_capital`.
        kind: `class` (one choice set for all), `open` (fixed sets, each shared by the items whose answer it holds) or
            `next_token` (passages of prose; the answer is the model's own next token, so there are no choices).
        summary: What leads to what, in a few words ("country → capital").
        inspection: Inspection prompts of a verbalizer, with the `{subject}` slot; the next word is the answer.
        questions: Question forms for readers of the text alone, with the slot.
        sources: For each site, the source texts by template name (`train0`, `test1`), with the slot; or the one
            template `own`, which is `{source}`: each fact brings its text.
        choice_sets: The closed sets of answers, each in alphabetical order.
        knowledge: Two prompts that ask whether the model knows the fact, like none of the texts above; may be empty.
        hops: For the answer of a chain: how its two hops are asked.
        by_token: Whether the name is also cut after each of its tokens, each cut an item.
        describe: How many tokens a method that generates says of an item; 0 for none.
        given: Whether the sources state the answer (a ceiling), in the slot `{answer}`.
    """

    name: str
    kind: Literal["class", "open", "next_token"]
    summary: str
    inspection: tuple[str, ...]
    questions: tuple[str, ...]
    sources: Mapping[Site, Mapping[str, str]]
    choice_sets: tuple[tuple[str, ...], ...]
    knowledge: tuple[str, ...] = ()
    hops: Hops | None = None
    by_token: bool = False
    describe: int = 0
    given: bool = False

    @property
    def answers(self) -> tuple[str, ...]:
        """All choices of all sets, in alphabetical order."""
        return tuple(sorted(choice for choices in self.choice_sets for choice in choices))

    def templates(self, site: Site, split: str) -> tuple[str, ...]:
        """Names of the source texts of one site and split, in the file's order."""
        return tuple(name for name in self.sources.get(site, {}) if name == OWN or name.startswith(split))

    def choices_of(self, answer: str) -> tuple[str, ...]:
        """The choice set that holds an answer."""
        return next(choices for choices in self.choice_sets if answer in choices)


@dataclass(frozen=True)
class Fact:
    """One line of `items.jsonl`, with the fold of its subject.

    Attributes:
        relation: name of the relation.
        subject: what the question is about.
        answer: the gold answer; empty for a passage of prose.
        aliases: other spellings of the answer.
        fold: fold of the subject.
        line: its line in the file.
        popularity: how well known the answer is, by any measure that grows with it.
        bridge: the middle of a chain.
        swap: the subject of another chain of the relation, with another bridge and answer in the same choice set.
        facets: for open descriptions: what a right text says, each facet with the spellings that count.
        texts: for each site, the fact's own source text, where the relation has no templates.
        turns: who says it, where this text is a conversation; the last turn is the assistant's, and may be empty yet.
    """

    relation: str
    subject: str
    answer: str
    aliases: tuple[str, ...]
    fold: int
    line: int
    popularity: float | None = None
    bridge: str | None = None
    swap: str | None = None
    facets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    texts: Mapping[Site, str] = field(default_factory=dict)
    turns: tuple[Turn, ...] = ()


@dataclass(frozen=True)
class TaskFolder:
    """The checked content of a task: a folder's, or another file's.

    Attributes:
        name: the task's name.
        summary: what it measures, in a sentence.
        version: a digest of what it was read from.
        relations: by name.
        facts: of all relations, in the file's order.
    """

    name: str
    summary: str
    version: str
    relations: Mapping[str, Relation]
    facts: tuple[Fact, ...]


def fold_of(subject: str) -> int:
    """Fold of a subject, from a hash of its plain words: the same in every relation and every task.

    Names that are nearly the same (Malmö and Malmo) share a fold, so that none is learned from the other.
    """
    return int(hashlib.sha256(plain_words(subject).encode()).hexdigest(), 16) % N_FOLDS


def facet_recall(text: str, facets: Mapping[str, Iterable[str]]) -> float:
    """Return the share of the facets of which the text has one of the spellings.

    Raises:
        ValueError: no facets.
    """
    if not facets:
        raise ValueError("facet_recall needs at least one facet")
    return sum(says(text, spellings) for spellings in facets.values()) / len(facets)


def rouge_l(text: str, reference: str) -> float:
    """Return ROUGE-L as an F-measure: the longest common subsequence of words (Lin 2004).

    Words are runs of letters and digits, without case.
    """
    said, wanted = _words(text), _words(reference)
    common = LCSseq.similarity(said, wanted)
    return 2 * common / (len(said) + len(wanted)) if common else 0.0


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())
