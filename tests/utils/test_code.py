"""The source of classes that no file holds, and the digests that follow it."""

import linecache
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lensbench.utils.code import code_digest, keep_source, source_of

CELL = '''
import math
import numpy as np

SCALE = 2.0


def helper(x):
    return math.sqrt(x) * SCALE


class Base:
    kind = "a"


class Mine(Base):
    """Doc."""

    def inspect(self, x):
        return [helper(value) for value in np.asarray(x)]

    @staticmethod
    def other():
        return 1
'''


def made(text: str, name: str = "Mine", **more: Any) -> type:
    """Run a text as a notebook does: no file, the lines in the cache of lines."""
    module = types.ModuleType("cell_session")
    sys.modules["cell_session"] = module
    vars(module).update(more)
    file = f"<cell {hash(text)}>"
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    exec(compile(text, file, "exec"), vars(module))
    return vars(module)[name]


def test_source_has_all_that_the_class_uses_of_the_session() -> None:
    source = keep_source(made(CELL))
    assert source is not None
    for part in ("class Mine(Base):", "def helper(x):", "class Base:", "SCALE = 2.0"):
        assert part in source


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("return 1", "return 2"), ("SCALE = 2.0", "SCALE = 3.0"), ("math.sqrt(x)", "math.exp(x)"),
        ('kind = "a"', 'kind = "b"'),
    ],
)  # fmt: skip
def test_digest_changes_with_everything_that_is_used(old: str, new: str) -> None:
    digests = []
    for text in (CELL, CELL, CELL.replace(old, new)):
        found = made(text)
        keep_source(found)
        digests.append(code_digest(found))
    assert digests[0] == digests[1] != digests[2]


def test_a_setting_worked_out_from_another_value_is_in_it() -> None:
    text = "BASE = {}\nclass Mine:\n    wide = BASE * 2\n    def inspect(self): ...\n"
    one, two = (keep_source(made(text.format(value))) for value in (1, 2))
    assert one != two


@pytest.mark.parametrize("held", [np.ones(3), object(), [object()]])
def test_what_cannot_be_told_gets_a_digest_of_its_own(held: Any) -> None:
    text = "class Mine:\n    def inspect(self): return HELD\n"
    digests = set()
    for _ in range(2):
        found = made(text, HELD=held)
        assert keep_source(found) is None
        digests.add(code_digest(found))
    assert len(digests) == 2, "results of one would be taken for those of the other"


def test_without_its_lines_a_class_is_not_told() -> None:
    found = type("Typed", (), {"inspect": eval("lambda self: 1")})
    assert keep_source(found) is None
    assert source_of(found) is None


def test_a_class_of_a_module_carries_nothing() -> None:
    assert keep_source(Importable) is None
    assert not hasattr(Importable, "_lensbench_source")


class Importable:
    """A class that can be imported."""


def test_a_class_made_in_a_function_has_what_it_closes_over() -> None:
    def make(k: int) -> type:
        class Mine:
            def inspect(self) -> int:
                return k

        return Mine

    one, two = make(1), make(2)
    keep_source(one), keep_source(two)
    assert code_digest(one) != code_digest(two)


def test_the_source_is_the_same_in_every_process(tmp_path: Path) -> None:
    """The order of sets differs from process to process: what was made yesterday would be made again."""
    (tmp_path / "mine.py").write_text(
        "from lensbench.utils.code import keep_source\n"
        "ONE, TWO, THREE = 1, {'a': {'x', 'y', 'z'}}, 3\n"
        "def first(): return ONE\ndef second(): return TWO\n"
        "class Mine:\n    reads = frozenset({'activation', 'question', 'choices', 'text'})\n"
        "    def inspect(self): return first(), second(), THREE\n"
        "print(keep_source(Mine))\n",
        encoding="utf-8",
    )
    told = {
        subprocess.run(
            [sys.executable, "mine.py"], cwd=tmp_path, env={**os.environ, "PYTHONHASHSEED": str(seed)},
            capture_output=True, text=True, check=True,
        ).stdout
        for seed in range(4)
    }  # fmt: skip
    assert len(told) == 1
    assert told.pop().startswith("class Mine:")
