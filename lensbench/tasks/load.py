"""Where tasks are: those that ship, folders, and files of other people's formats."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

from lensbench.errors import UsageError, unknown_name
from lensbench.tasks.facts import SITES, TaskFolder
from lensbench.tasks.files import Problems, TaskError
from lensbench.tasks.formats.banks import read_workspace
from lensbench.tasks.formats.chains import read_hopping, read_patchscopes
from lensbench.tasks.formats.drafts import Draft, build
from lensbench.tasks.formats.public import (
    read_counterfact,
    read_mquake,
    read_pararel,
    read_popqa,
    read_ravel,
    read_twohopfact,
)
from lensbench.tasks.formats.relations import read_lre, read_personaqa
from lensbench.tasks.formats.sources import Source, parse_spec
from lensbench.tasks.formats.table_files import read_mapped
from lensbench.tasks.items import Task
from lensbench.tasks.task_toml import read_task_folder

_READERS: dict[str, Callable[[Source, Problems], Draft]] = {
    "lre": read_lre,
    "patchscopes": read_patchscopes,
    "hopping": read_hopping,
    "personaqa": read_personaqa,
    "counterfact": read_counterfact,
    "popqa": read_popqa,
    "pararel": read_pararel,
    "ravel": read_ravel,
    "mquake": read_mquake,
    "twohopfact": read_twohopfact,
    "workspace": read_workspace,
    "hf": read_mapped,
    "table": read_mapped,
}


def data_root() -> Path:
    """Folder that holds `tasks/` and `baselines/`: the checkout, or the package's own data where it is installed."""
    package = Path(__file__).resolve().parent.parent
    return package.parent if (package.parent / "pyproject.toml").is_file() else package / "_data"


def find_tasks() -> dict[str, Path]:
    """Folders of the tasks that ship with lensbench, by name. Reads no file."""
    return {path.parent.name: path.parent for path in sorted((data_root() / "tasks").glob("*/task.toml"))}


def load_task(spec: str) -> Task:
    """Load and check a task.

    Args:
        spec: A name (`attribute_extraction`), a name and a relation (`attribute_extraction/country_capital`), or the
            path of a folder, to which a relation may be added in the same way. A shipped name wins over a folder.
            Also a file of another format, or a data set: `lre:FILE.json`, `data.csv?subject=name&answer=capital`,
            `hf:ORG/NAME?...` (docs/readers.md).

    Returns:
        The task; with a relation given, only that relation of it.

    Raises:
        UsageError: If there is no such task or relation.
        TaskError: If the task's files are wrong.
    """
    return _task(spec, _read)


def _read(place: Path | Source) -> TaskFolder:
    if isinstance(place, Path):
        return read_task_folder(place)
    problems = Problems()
    draft = _READERS[place.scheme](place, problems)
    problems.stop_if_any()
    return build(draft, place)


def _read_local(place: Path | Source) -> TaskFolder:
    if isinstance(place, Source) and place.is_remote:
        do = "download it elsewhere and give the file, or set HF_HUB_OFFLINE=1 instead (what is cached)"
        raise UsageError(f"{place.path} would be asked for at the Hub, and --offline was given; {do}")
    return _read(place)


def _task(spec: str, reader: Callable[[Path | Source], TaskFolder]) -> Task:
    known = find_tasks()
    place, wanted = (None if spec in known else parse_spec(spec)) or _resolve(spec, known)
    read = reader(place)
    folder = place if isinstance(place, Path) else place.path
    if known.get(folder.name) == folder and read.name != folder.name:
        expected = f"expected the folder's name {folder.name!r}; rename one of them"
        raise TaskError(f"{folder / 'task.toml'}:1: name {read.name!r}; {expected}")
    if wanted and wanted not in read.relations:
        raise unknown_name(f"relation of task {read.name}", wanted, read.relations)
    names = [wanted] if wanted else list(read.relations)
    sites = tuple(site for site in SITES if any(site in read.relations[name].sources for name in names))
    return Task(
        name=read.name,
        version=read.version,
        summary=read.summary,
        folder=folder,
        relations={name: read.relations[name] for name in names},
        facts=tuple(fact for fact in read.facts if fact.relation in names),
        sites=sites,
        every=read,
        spec=spec,
    )


def load_tasks(specs: Iterable[str | Task], *, offline: bool = False) -> list[Task]:
    """Load several tasks; relations of one task that are named one by one become one task again.

    Args:
        specs: As `load_task` takes them, or tasks.
        offline: Whether data sets of the Hub are refused.

    Raises:
        UsageError: If there is no such task or relation, two different tasks have one name, or the Hub would be asked.
        TaskError: If a task's files are wrong.
    """
    merged: dict[str, Task] = {}
    read_once = cache(_read_local if offline else _read)
    for task in (_task(one, read_once) if isinstance(one, str) else one.with_own_version() for one in specs):
        before = merged.setdefault(task.name, task)
        if (before.folder, before.version) != (task.folder, task.version):
            do = "rename one (a file of another format: add ?name=NAME)"
            raise UsageError(f"two tasks are called {task.name!r}: {before.folder} and {task.folder}; {do}")
        if before is task:
            continue
        relations = {**before.relations, **task.relations}
        sites = tuple(site for site in SITES if site in (*before.sites, *task.sites))
        kept = tuple(fact for fact in before.every.facts if fact.relation in relations)
        merged[task.name] = replace(before, relations=relations, facts=kept, sites=sites)
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
        if not any((path / name).exists() for name in ("task.toml", "items.jsonl")):
            raise UsageError(f"{spec} holds no task: expected task.toml and items.jsonl in it (docs/tasks.md)")
        return path, ""
    if (path.parent / "task.toml").is_file():
        return path.parent, path.name
    hint = "or give the path of a folder with task.toml and items.jsonl; see `lensbench list tasks`"
    raise unknown_name("task", spec, known, hint)
