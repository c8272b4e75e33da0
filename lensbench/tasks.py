"""Tasks: what is asked of a model, as data. A task is a folder; an item is one question with one gold answer.

Nothing in here imports torch, so that names and files are checked before a model is loaded.
"""

import hashlib
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal

from lensbench.errors import LensbenchError, UsageError, unknown_name
from lensbench.facts import N_FOLDS, SITES, SLOT, Fact, Relation, Site, TaskFolder, fold_of, normalise
from lensbench.task_files import TaskError, read_task_folder

__all__ = [
    "N_FOLDS",
    "SITES",
    "Fact",
    "Item",
    "Relation",
    "Site",
    "Split",
    "Task",
    "TaskError",
    "data_root",
    "find_tasks",
    "fold_of",
    "load_task",
    "load_tasks",
]

Split = Literal["train", "test"]


@dataclass(frozen=True)
class Item:
    """One question with one gold answer.

    Attributes:
        id: `relation/subject/site/template`.
        source: The text that the target model runs on.
        site: Which token of the source is read: the last of the subject, or the last of the text.
        subject: What the question is about.
        subject_span: First character of the subject in the source, and the one after its last.
        question: The inspection prompt, its `{subject}` slot unfilled.
        choices: The closed set of answers, in alphabetical order.
        answer: The gold answer, one of the choices.
        aliases: Other spellings of the answer that count as right where text is generated.
        relation: Name of the relation.
        fold: Fold of the subject, the same in all relations and tasks.
        template: Name of the source text, such as `test0`.
    """

    id: str
    source: str
    site: Site
    subject: str
    subject_span: tuple[int, int]
    question: str
    choices: tuple[str, ...]
    answer: str
    aliases: tuple[str, ...]
    relation: str
    fold: int
    template: str


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
    """

    name: str
    version: str
    summary: str
    folder: Path
    relations: Mapping[str, Relation]
    facts: tuple[Fact, ...]
    sites: tuple[Site, ...]

    def items(self, site: Site, split: Split, limit: int | None = None, seed: int = 0) -> tuple[Item, ...]:
        """Make the items of one read site.

        Training items: one for each fact, its source text chosen by a hash of the subject. Test items: each fact with
        each test text. A limit draws evenly over relations (one that is too short leaves its share to the others), and
        in a relation new subjects before second texts. The facts drawn depend on the seed and not on the site.

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
        draw = _Draw(self, split, seed)
        texts = {name: relation.templates(site, split) for name, relation in self.relations.items()}
        quota = draw.quotas(limit) if limit is not None else dict.fromkeys(texts)
        rows: list[tuple[int, int, str, Fact]] = []
        for place, (name, templates) in enumerate(texts.items()):
            drawn = draw.relation(name, len(templates), quota[name])
            rows += [(place, fact.line, templates[i], fact) for fact, i in drawn]
        return tuple(self._item(fact, site, template) for _, _, template, fact in sorted(rows, key=lambda row: row[:3]))

    def _item(self, fact: Fact, site: Site, template: str) -> Item:
        relation = self.relations[fact.relation]
        text = relation.sources[site][template]
        start = text.index(SLOT)
        return Item(
            id=f"{fact.relation}/{fact.subject}/{site}/{template}",
            source=text.replace(SLOT, fact.subject),
            site=site,
            subject=fact.subject,
            subject_span=(start, start + len(fact.subject)),
            question=relation.inspection[0],
            choices=next(choices for choices in relation.choice_sets if fact.answer in choices),
            answer=fact.answer,
            aliases=fact.aliases,
            relation=fact.relation,
            fold=fact.fold,
            template=template,
        )


class _Draw:
    """A seeded choice of facts and texts, which knows nothing of the site."""

    def __init__(self, task: Task, split: Split, seed: int) -> None:
        self.split, self.seed, self.sites = split, seed, task.sites
        self.task = task.name.split("/")[0]
        self.relations = task.relations
        self.facts = {name: [fact for fact in task.facts if fact.relation == name] for name in task.relations}

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
            first = [_hash(normalise(fact.subject)) % n_templates for fact in facts]
            pairs = list(zip(facts, first, strict=True))
        else:
            pairs = [(fact, 0) for fact in facts]
        if quota is None:
            turns = range(self._all_turns(n_templates))
            return [(fact, (i + turn) % n_templates) for turn in turns for fact, i in pairs]
        rng = random.Random(f"{self.seed}/{self.task}/{name}")
        rng.shuffle(pairs)
        if self.split == "test":
            pairs = [(fact, int(rng.random() * n_templates)) for fact, _ in pairs]
        turns = range(self._turns(name))
        return [(fact, (i + turn) % n_templates) for turn in turns for fact, i in pairs][:quota]

    def _all_turns(self, n_templates: int) -> int:
        return n_templates if self.split == "test" else 1

    def _turns(self, name: str) -> int:
        """How often each fact can be drawn at every site."""
        return min(self._all_turns(len(self.relations[name].templates(site, self.split))) for site in self.sites)


def data_root() -> Path:
    """Folder that holds `tasks/` and `baselines/`: the checkout, or the package's own data where it is installed."""
    package = Path(__file__).resolve().parent
    return package.parent if (package.parent / "pyproject.toml").is_file() else package / "_data"


def find_tasks() -> dict[str, Path]:
    """Folders of the tasks that ship with lensbench, by name. Reads no file."""
    return {path.parent.name: path.parent for path in sorted((data_root() / "tasks").glob("*/task.toml"))}


def load_task(spec: str) -> Task:
    """Load and check a task.

    Args:
        spec: A name (`attribute_extraction`), a name and a relation (`attribute_extraction/country_capital`), or the
            path of a folder, to which a relation may be added in the same way. A shipped name wins over a folder.

    Returns:
        The task; with a relation given, only that relation of it.

    Raises:
        UsageError: If there is no such task or relation.
        TaskError: If the task's files are wrong.
    """
    return _task(spec, read_task_folder)


def _task(spec: str, reader: Callable[[Path], TaskFolder]) -> Task:
    known = find_tasks()
    folder, wanted = _resolve(spec, known)
    read = reader(folder)
    if known.get(folder.name) == folder and read.name != folder.name:
        expected = f"expected the folder's name {folder.name!r}; rename one of them"
        raise TaskError(f"{folder / 'task.toml'}:1: name {read.name!r}; {expected}")
    sites = tuple(site for site in SITES if any(site in relation.sources for relation in read.relations.values()))
    if wanted and wanted not in read.relations:
        raise unknown_name(f"relation of task {read.name}", wanted, read.relations)
    names = [wanted] if wanted else list(read.relations)
    return Task(
        name=read.name,
        version=read.version,
        summary=read.summary,
        folder=folder,
        relations={name: read.relations[name] for name in names},
        facts=tuple(fact for fact in read.facts if fact.relation in names),
        sites=sites,
    )


def load_tasks(specs: Iterable[str]) -> list[Task]:
    """Load several tasks; relations of one task that are named one by one become one task again.

    Raises:
        UsageError: If there is no such task or relation, or two different tasks have one name.
        TaskError: If a task's files are wrong.
    """
    merged: dict[str, Task] = {}
    read_once = cache(read_task_folder)
    for task in (_task(spec, read_once) for spec in specs):
        before = merged.setdefault(task.name, task)
        if before.folder != task.folder:
            raise UsageError(f"two tasks are called {task.name!r}: {before.folder} and {task.folder}; rename one")
        relations = {**before.relations, **task.relations}
        facts = {fact.line: fact for fact in (*before.facts, *task.facts)}
        merged[task.name] = replace(before, relations=relations, facts=tuple(facts[line] for line in sorted(facts)))
    return list(merged.values())


def _resolve(spec: str, known: Mapping[str, Path]) -> tuple[Path, str]:
    """Folder and relation ("" for all) that a task's specification means."""
    if spec in known:
        return known[spec], ""
    name, _, relation = spec.partition("/")
    if name in known and relation:
        return known[name], relation
    path = Path(spec).expanduser()
    if path.is_dir():
        return path, ""
    if (path.parent / "task.toml").is_file():
        return path.parent, path.name
    raise unknown_name("task", spec, known, "or give the path of a folder with task.toml and items.jsonl")


def _hash(text: str) -> int:
    return int(hashlib.sha256(text.encode()).hexdigest(), 16)
