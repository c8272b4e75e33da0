"""Files to start from: a method, a task, a baseline, each of which passes the project's checks as it is written."""

import json
import keyword
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from string import Template

from lensbench.errors import UsageError, unknown_name
from lensbench.utils.cache import atomic_file

KINDS = ("inspector", "task", "baseline")
_TEMPLATES = Path(__file__).parent / "templates" / "scaffold"
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_A = {"inspector": "an inspector", "task": "a task", "baseline": "a baseline"}


@dataclass(frozen=True)
class Written:
    """What was written, and what to do with it.

    Attributes:
        files: the new files.
        next_steps: commands that try it, to be run in `folder`.
        folder: where they are to be run.
    """

    files: tuple[Path, ...]
    next_steps: tuple[str, ...]
    folder: Path


def new(kind: str, name: str, out: Path | str = ".") -> Written:
    """Write a file (of a task: a folder) to start from.

    Args:
        kind: inspector, task or baseline.
        name: lower-case letters, digits and `_`, as it will be called in commands and records.
        out: the folder that it is put into.

    Raises:
        UsageError: a name that cannot be used or is taken, or a place that cannot be written to.
    """
    if kind not in KINDS:
        raise unknown_name("kind", kind, KINDS)
    _check_name(kind, name)
    folder = Path(out)
    contents = {folder / path: text for path, text in _files(kind, name)}
    for path in contents:
        if path.exists():
            raise UsageError(f"{path} is already there, and is left as it is; choose another NAME or --out")
    try:
        for path, text in contents.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(path) as file:
                file.write(text.encode())
    except OSError as error:
        raise UsageError(f"--out {out} cannot be written to: {error.strerror}; choose another folder") from None
    return Written(tuple(contents), _NEXT[kind](name), folder)


def _check_name(kind: str, name: str) -> None:
    expected = "expected lower-case letters, digits and _, beginning with a letter, such as my_method"
    if not _NAME.fullmatch(name):
        raise UsageError(f"NAME {name!r}: {expected}")
    if keyword.iskeyword(name) or name == "none":
        raise UsageError(f"NAME {name!r} means something else in Python, or in lensbench; choose another")
    if name in _taken(kind):
        raise UsageError(f"NAME {name!r}: there is already {_A[kind]} of this name in `lensbench list {kind}s`")
    if kind != "task" and find_spec(name) is not None and not (Path.cwd() / f"{name}.py").exists():
        raise UsageError(f"NAME {name!r}: a Python module of this name is installed, and would be imported instead")


def _taken(kind: str) -> set[str]:
    if kind == "inspector":
        from lensbench.inspectors.catalog import find_inspectors

        return set(find_inspectors())
    if kind == "baseline":
        from lensbench.baselines.spec import GROUP, find_baselines

        return {*find_baselines(), *(entry.name for entry in entry_points(group=GROUP))}
    from lensbench.tasks import find_tasks

    return set(find_tasks())


def _files(kind: str, name: str) -> Iterator[tuple[str, str]]:
    """The files of a kind, as (path below the folder, text)."""
    words = {
        "name": name,
        "title": name.replace("_", " ").capitalize(),
        "class_name": "".join(part.capitalize() for part in name.split("_")),
    }
    if kind == "inspector":
        yield f"{name}.py", _filled("inspector.py.txt", **words)
        yield f"test_{name}.py", _filled("inspector_test.py.txt", **words)
    elif kind == "baseline":
        yield f"{name}.toml", _filled("baseline.toml.txt", **words)
        yield f"{name}.py", _filled("baseline.py.txt", **words)
    else:
        facts = list(_facts())
        yield f"{name}/task.toml", _filled("task.toml.txt", **words)
        yield f"{name}/items.jsonl", "".join(json.dumps(fact) + "\n" for fact in facts)
        yield f"{name}/README.md", _filled("README.md.txt", **words, facts=str(len(facts)))


def _filled(template: str, **words: str) -> str:
    return Template((_TEMPLATES / template).read_text(encoding="utf-8")).substitute(words)


def _facts() -> Iterator[dict[str, str]]:
    for line in (_TEMPLATES / "items.txt").read_text(encoding="utf-8").splitlines():
        answer, _, subjects = line.partition(": ")
        for subject in subjects.split(", "):
            yield {"relation": "instrument_family", "subject": subject, "answer": answer}


def _inspector_steps(name: str) -> tuple[str, ...]:
    location = f"{name}:{''.join(part.capitalize() for part in name.split('_'))}"
    tried = "--tasks attribute_extraction/country_continent --layers stride:6 --limit 60"
    return f"pytest test_{name}.py", f"lensbench evaluate --inspectors {location},logit_lens {tried}"


def _task_steps(name: str) -> tuple[str, ...]:
    return f"lensbench audit ./{name}", f"lensbench evaluate --tasks ./{name} --layers stride:6"


def _baseline_steps(name: str) -> tuple[str, ...]:
    tried = "--tasks attribute_extraction/country_capital --layers stride:6 --limit 60"
    return (f"lensbench evaluate --baselines ./{name}.toml,shuffled --inspectors logit_lens {tried}",)


_NEXT = {"inspector": _inspector_steps, "task": _task_steps, "baseline": _baseline_steps}
