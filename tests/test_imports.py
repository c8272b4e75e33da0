"""What must not be imported early. The order of the rooms is held by import-linter (`make lint`)."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools import shape

PACKAGE = Path(__file__).resolve().parent.parent / "lensbench"


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(PACKAGE).parts[0].removesuffix(".py"), path


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Every module that a file imports, inside functions too, with its line."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: import from lensbench by its full name"
            # `from lensbench import tasks` imports lensbench.tasks.
            names = [f"lensbench.{alias.name}" for alias in node.names] if node.module == "lensbench" else [node.module]
            yield from ((node.lineno, name) for name in names if name)


def test_nothing_postpones_annotations() -> None:
    # jaxtyping reads shapes at run time.
    wrong = [str(path) for _, path in modules() for _, name in imported(path) if name == "__future__"]
    assert not wrong


def test_a_name_is_of_one_class() -> None:
    assert shape.double_classes(shape.ROOT) == []


def early_imports(code: str, watched: frozenset[str] = frozenset({"torch", "transformers"})) -> set[str]:
    script = f"import sys\n{code}\nprint('early:', *sorted({set(watched)} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=PACKAGE.parent, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].removeprefix("early:").split())


@pytest.mark.parametrize(
    "module",
    [
        "lensbench",
        "tasks",
        "results.records",
        "results.bands",
        "results.summary",
        "utils.cache",
        "models.sources",
        "cli",
    ],
)
def test_importing_does_not_import_torch(module: str) -> None:
    name = module if module == "lensbench" else f"lensbench.{module}"
    assert early_imports(f"import {name}") == set()


def test_the_command_line_waits_for_nothing_that_is_slow_to_import() -> None:
    slow = frozenset({"torch", "transformers", "pandas", "matplotlib", "scipy", "sklearn", "pyarrow", "datasets"})
    assert early_imports("import lensbench.cli", slow) == set()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["evaluate", "--help"],
        ["list"],
        ["list", "models"],
        ["list", "tasks"],
        ["list", "baselines"],
        ["evaluate", "--model", "smollm2-135n"],
        ["evaluate", "--tasks", "no_such_task"],
    ],
    ids=" ".join,
)
def test_help_lists_and_validation_do_not_import_torch(arguments: list[str]) -> None:
    code = (
        "from lensbench.cli import main\n"
        f"sys.argv = {['lensbench', *arguments]!r}\n"
        "try:\n    main()\nexcept SystemExit:\n    pass"
    )
    assert early_imports(code) == set()
