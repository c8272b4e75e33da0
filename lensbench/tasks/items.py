"""Items: one question with one gold answer each, and the tasks that they are drawn from."""

import hashlib
import random
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from lensbench.errors import LensbenchError
from lensbench.tasks.extents import Extent, split_site
from lensbench.tasks.facts import ANSWER_SLOT, HOP_SITES, SLOT, SOURCE_SLOT, Fact, Relation, Site, TaskFolder
from lensbench.tasks.names import name_key, plain_words
from lensbench.tasks.turns import Turn

Split = Literal["train", "test"]


@dataclass(frozen=True)
class Item:
    """One question with one gold answer.

    Attributes:
        id: `relation/subject/site/template`.
        source: The text that the target model runs on.
        site: Which tokens of the source are read: its place, and after a slash how many; see `split_site`.
        subject: What the question is about.
        subject_span: First character of the subject in the source, and the one after its last.
        question: The inspection prompt, its `{subject}` slot unfilled.
        choices: The closed set of answers, in alphabetical order; none for prose.
        answer: The gold answer, one of the choices; empty for prose, whose gold is the model's own next token.
        aliases: Other spellings of the answer that count as right where text is generated.
        relation: Name of the relation.
        fold: Fold of the subject, the same in all relations and tasks.
        template: Name of the source text, such as `test0`; `test0@1/3` for a name cut after the first of its three
            tokens.
        bridge: The middle of a chain.
        swap: The subject of another chain of the relation, with another bridge and answer: for methods and rivals that
            patch another's activation.
        facets: What a right description says, each facet with the spellings that count.
        hop_span: First character of the first hop's phrase in the source of a chain, and the one after its last; None
            where the relation names no phrases.
        turns: Who says the source, where it is a conversation that no chat template has written yet.
    """

    id: str
    source: str
    site: str
    subject: str
    subject_span: tuple[int, int]
    question: str
    choices: tuple[str, ...]
    answer: str
    aliases: tuple[str, ...]
    relation: str
    fold: int
    template: str
    bridge: str | None = None
    swap: str | None = None
    facets: tuple[tuple[str, tuple[str, ...]], ...] = ()
    hop_span: tuple[int, int] | None = None
    turns: tuple[Turn, ...] = ()

    @property
    def place(self) -> str:
        """Which token of the source is read last: that of the subject, or of the text."""
        return split_site(self.site)[0]

    @property
    def extent(self) -> Extent:
        """How many tokens up to that one are read."""
        return split_site(self.site)[1]

    @property
    def mention(self) -> str:
        """The subject as far as the source has it; the whole name where a text of another kind does not hold it."""
        return self.source[slice(*self.subject_span)] or self.subject


@dataclass(frozen=True)
class Task:
    """A loaded and checked task.

    Attributes:
        name: The task's name.
        version: Digest of the two files, so that results are filed under what they were made from.
        summary: What the task measures, in a sentence.
        folder: Where it was read.
        relations: Relations by name.
        facts: All facts of these relations, in the file's order.
        sites: The read sites for which there are sources.
        every: All relations and facts of where it was read: those left out may be the hops of chains.
        spec: What `load_task` was given.
    """

    name: str
    version: str
    summary: str
    folder: Path
    relations: Mapping[str, Relation]
    facts: tuple[Fact, ...]
    sites: tuple[Site, ...]
    every: TaskFolder
    spec: str = ""

    def relations_at(self, site: str) -> dict[str, Relation]:
        """The relations that have sources for a site's place, whatever its extent."""
        place = split_site(site)[0]
        return {name: relation for name, relation in self.relations.items() if place in relation.sources}

    def about(self, subjects: Iterable[str]) -> "Task":
        """Return the task of these subjects alone; its version says so.

        Raises:
            LensbenchError: no fact of the task is about any of them.
        """
        wanted = {name_key(subject) for subject in subjects}
        facts = tuple(fact for fact in self.facts if name_key(fact.subject) in wanted)
        if not facts:
            raise LensbenchError(
                f"task {self.name} has no fact about any of the {len(wanted)} subjects; give its own names"
            )
        names = "\n".join(sorted({name_key(fact.subject) for fact in facts}))
        version = hashlib.sha256(f"{self.version}\n{names}".encode()).hexdigest()[: len(self.version)]
        return replace(self, facts=facts, version=version)

    def with_own_version(self) -> "Task":
        """Return the task with a version that tells what was changed in it since it was read; itself if nothing was."""
        read = {name: self.every.relations.get(name) for name in self.relations}
        facts = tuple(fact for fact in self.every.facts if fact.relation in self.relations)
        if (dict(self.relations), self.facts) == (read, facts):
            return self
        content = f"{self.version}\n{self.relations!r}\n{self.facts!r}"
        return replace(self, version=hashlib.sha256(content.encode()).hexdigest()[: len(self.version)])

    def items(self, site: str, split: Split, limit: int | None = None, seed: int = 0) -> tuple[Item, ...]:
        """Make the items of one read site.

        Training items: one for each fact, its source text chosen by a hash of the subject. Test items: each fact with
        each test text. A limit draws evenly over relations (one that is too short leaves its share to the others), and
        in a relation new subjects before second texts, with answers and folds in the proportions that they have there.
        The facts drawn depend on the seed, and not on the site where all relations have the same sites.

        Args:
            site: The read site.
            split: Whether to use the training texts or the test texts.
            limit: The most items to draw; None means all.
            seed: Seed of the draw.

        Returns:
            Items in the order of relations, facts and templates.

        Raises:
            LensbenchError: If the task has no sources for the site.
        """
        if site not in self.sites:
            raise LensbenchError(f"task {self.name} has no {site!r} sources; its sites are {', '.join(self.sites)}")
        draw = _Draw(self, site, split, seed)
        texts = {name: relation.templates(site, split) for name, relation in self.relations_at(site).items()}
        texts = {name: templates for name, templates in texts.items() if templates}
        quota = draw.quotas(limit) if limit is not None else dict.fromkeys(texts)
        rows: list[tuple[int, int, str, Fact]] = []
        for place, (name, templates) in enumerate(texts.items()):
            drawn = draw.relation(name, len(templates), quota[name])
            rows += [(place, fact.line, templates[i], fact) for fact, i in drawn]
        return tuple(self._item(fact, site, template) for _, _, template, fact in sorted(rows, key=lambda row: row[:3]))

    def _item(self, fact: Fact, site: Site, template: str) -> Item:
        relation = self.relations[fact.relation]
        source, span = _filled(fact, site, relation.sources[site][template])
        return Item(
            id=f"{fact.relation}/{fact.subject}/{site}/{template}",
            source=source,
            site=site,
            subject=fact.subject,
            subject_span=span,
            question=relation.inspection[0] if relation.inspection else "",
            choices=relation.choices_of(fact.answer) if relation.choice_sets else (),
            answer=fact.answer,
            aliases=fact.aliases,
            relation=fact.relation,
            fold=fact.fold,
            template=template,
            bridge=fact.bridge,
            swap=fact.swap,
            facets=tuple(fact.facets.items()),
            hop_span=_hop_span(fact, site, relation, template),
            turns=fact.turns,
        )


def _filled(fact: Fact, site: Site, template: str) -> tuple[str, tuple[int, int]]:
    """The source text, and where the last mention of the subject stands in it (nowhere: an empty span)."""
    text = fact.texts[site] if template == SOURCE_SLOT else template
    return filled(text, fact.subject, fact.answer) if SLOT in text else (text, (0, 0))


def filled(text: str, subject: str, answer: str) -> tuple[str, tuple[int, int]]:
    """Return a text with its slots filled, and where the last mention of the subject stands in it.

    Args:
        text: with the slot of the subject, and before its last mention perhaps that of the answer.
        subject: the subject.
        answer: the answer.
    """
    before, _, after = text.rpartition(SLOT)
    before = before.replace(SLOT, subject).replace(ANSWER_SLOT, answer)
    return before + subject + after, (len(before), len(before) + len(subject))


def _hop_span(fact: Fact, site: Site, relation: Relation, template: str) -> tuple[int, int] | None:
    """Where the first hop of a chain stands in the source text, its slot filled."""
    phrases = relation.hops.phrases if relation.hops and site in HOP_SITES else ()
    text = relation.sources[site][template]
    phrase = next((phrase for phrase in phrases if phrase in text), None)
    if phrase is None:
        return None
    before = text.partition(phrase)[0].replace(SLOT, fact.subject).replace(ANSWER_SLOT, fact.answer)
    return len(before), len(before) + len(phrase.replace(SLOT, fact.subject))


class _Draw:
    """A seeded choice of facts and texts: the same for all sites where their relations are the same."""

    def __init__(self, task: Task, site: Site, split: Split, seed: int) -> None:
        self.split, self.seed = split, seed
        self.task = task.name.split("/")[0]
        self.relations = task.relations_at(site)
        self.facts = {name: [fact for fact in task.facts if fact.relation == name] for name in self.relations}

    def quotas(self, limit: int) -> dict[str, int]:
        """Share a limit evenly; what a short relation cannot use is shared evenly by the others."""
        open_to = {name: len(facts) * self._turns(name) for name, facts in self.facts.items()}
        names = sorted(open_to)
        # Who gets the odd ones must not always be the first by name.
        random.Random(f"{self.seed}/{self.task}").shuffle(names)
        # The highest level to which all can be filled, as far as each has anything left.
        level = next(n for n in range(limit, -1, -1) if sum(min(n, most) for most in open_to.values()) <= limit)
        quota = {name: min(level, open_to[name]) for name in names}
        for name in [name for name in names if quota[name] < open_to[name]][: limit - sum(quota.values())]:
            quota[name] += 1
        return quota

    def relation(self, name: str, n_templates: int, quota: int | None) -> list[tuple[Fact, int]]:
        """Draw facts of one relation, each with the index of a text: all facts once before any of them twice."""
        facts = list(self.facts[name])
        if self.split == "train":
            first = [_hash(plain_words(fact.subject)) % n_templates for fact in facts]
            pairs = list(zip(facts, first, strict=True))
        else:
            pairs = [(fact, 0) for fact in facts]
        if quota is None:
            turns = range(self._all_turns(n_templates))
            return [(fact, (i + turn) % n_templates) for turn in turns for fact, i in pairs]
        rng = random.Random(f"{self.seed}/{self.task}/{name}")
        rng.shuffle(pairs)
        pairs = _stratified(pairs, rng)
        if self.split == "test":
            pairs = [(fact, int(rng.random() * n_templates)) for fact, _ in pairs]
        turns = range(self._turns(name))
        return [(fact, (i + turn) % n_templates) for turn in turns for fact, i in pairs][:quota]

    def _all_turns(self, n_templates: int) -> int:
        return n_templates if self.split == "test" else 1

    def _turns(self, name: str) -> int:
        """How often each fact can be drawn at every site of its relation."""
        relation = self.relations[name]
        return min(self._all_turns(len(relation.templates(site, self.split))) for site in relation.sources)


def _stratified(pairs: list[tuple[Fact, int]], rng: random.Random) -> list[tuple[Fact, int]]:
    """Order facts so that every beginning has answers and folds in the proportions of the whole.

    Each stratum is spread evenly over the order, from a random start. An answer that only one fact has is no stratum of
    its own: those facts are spread by fold alone.
    """
    counts = Counter(fact.answer for fact, _ in pairs)
    strata: dict[tuple[str, int], list[tuple[Fact, int]]] = {}
    for fact, text in pairs:
        strata.setdefault((fact.answer if counts[fact.answer] > 1 else "", fact.fold), []).append((fact, text))
    placed = []
    for group in strata.values():
        start = rng.random()
        placed += [((start + rank) / len(group), pair) for rank, pair in enumerate(group)]
    return [pair for _, pair in sorted(placed, key=lambda one: one[0])]


def _hash(text: str) -> int:
    return int(hashlib.sha256(text.encode()).hexdigest(), 16)
