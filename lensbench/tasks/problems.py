"""What is wrong with a task's file: all problems are collected and shown together, one line each.

A line says where, what was given, what was expected and what to do.
"""

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from lensbench.errors import LensbenchError

_SHOWN_PROBLEMS = 1000


class TaskError(LensbenchError):
    """A task's files are wrong. The message has one line for each problem."""


@dataclass
class Problems:
    """What was found wrong so far: (file, line, text)."""

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


class File:
    """A text file of a task, and the way to say what is wrong with it.

    Args:
        path: the file; one that cannot be read, or is no UTF-8, is a problem.
        problems: where its problems are noted.
        do: what to do where it cannot be read.
    """

    def __init__(
        self, path: Path, problems: Problems, do: str = "a task is a folder with task.toml and items.jsonl"
    ) -> None:
        self.path, self._problems, self.content, self.lines = path, problems, b"", [""]
        try:
            self.content = path.read_bytes()
            self.lines = self.content.decode("utf-8-sig").split("\n")
        except UnicodeDecodeError as error:
            line = self.content[: error.start].count(b"\n") + 1
            self.problem(line, f"byte {self.content[error.start]:#04x}", "UTF-8 text", "save the file as UTF-8")
        except OSError as error:
            self.problem(1, f"cannot be read ({error.strerror})", "a readable file", f"{do} (docs/tasks.md)")

    def problem(self, line: int, given: str, expected: str, do: str) -> None:
        """Note what was given in a line, what was expected, and what to do."""
        self._problems.found.append((str(self.path), line, f"{given}; expected {expected}; {do}"))

    def find(self, key: str, header: str = "", text: str = "") -> int:
        """Line of `text`, else of `key`, else of the header, in the TOML table under it (tomllib keeps no lines)."""
        start = next((i for i, line in enumerate(self.lines) if header and line.strip() == f"[{header}]"), 0)
        ends = (i for i, line in enumerate(self.lines) if i > start and re.match(r"\s*\[[\w.\"]+\]\s*$", line))
        table = range(start, next(ends, len(self.lines)))
        keyed = next((i for i in table if re.match(rf"\s*{re.escape(key)}\s*=", self.lines[i])), start)
        quoted = json.dumps(text, ensure_ascii=False)
        return next((i for i in table if text and i >= keyed and quoted in self.lines[i]), keyed) + 1


def check_keys(
    file: File,
    line: int,
    table: Mapping[str, Any],
    kinds: Mapping[str, type | tuple[type, ...]],
    where: str,
    optional: Mapping[str, type | tuple[type, ...]] = MappingProxyType({}),
) -> bool:
    """Report missing, unknown and ill-typed keys. True when there are none."""
    before = True
    every = {**kinds, **optional}
    for key in table.keys() - every.keys():
        near = difflib.get_close_matches(key, every, n=1)
        do = f"did you mean {near[0]!r}?" if near else "remove it"
        file.problem(line, f"unknown key {key!r} in {where}", f"only {', '.join(every)}", do)
        before = False
    for key, kind in every.items():
        if key not in table and key in optional:
            continue
        if key not in table:
            file.problem(line, f"no {key!r} in {where}", f"the keys {', '.join(kinds)}", f"add {key!r}")
            before = False
        elif not isinstance(table[key], kind):
            given = f"{key!r} of {where} is a {type(table[key]).__name__}"
            names = " or ".join(one.__name__ for one in (kind if isinstance(kind, tuple) else (kind,)))
            file.problem(line, given, f"a {names}", "write it so")
            before = False
    return before


def listed(names: Iterable[object]) -> str:
    """Join names, sorted."""
    return " and ".join(str(name) for name in sorted(names, key=str))
