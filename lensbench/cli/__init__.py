"""The command line. Each command checks what it was given and calls one public function."""

import ast
import os
import sys
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from types import FunctionType
from typing import Any

# A plugin of pydantic has nothing to do here, and looking for one takes a tenth of what the help takes.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "1")

from lensbench.cli import application, commands
from lensbench.cli.application import group

# The order of `lensbench --help`; commands that are not named here come last.
_ORDER = (
    "evaluate", "list", "cache", "plot", "report", "compare", "export", "judge", "calibrate", "exam", "implant",
    "finetune", "inspect", "tune", "fit", "new", "doctor", "audit", "knowledge", "analyze", "push",
)  # fmt: skip


def _names() -> list[str]:
    """Return the names of the files in `commands/`, in the order of the help."""
    found = (module.name for module in iter_modules(commands.__path__))
    return sorted(found, key=lambda name: (_ORDER.index(name) if name in _ORDER else len(_ORDER), name))


def _load(names: Iterable[str]) -> None:
    """Import the modules of commands: each adds its command to the application."""
    for name in names:
        import_module(f"{commands.__name__}.{name}")


def _list(names: Iterable[str]) -> None:
    """Add each command with its description alone: their list is shown without importing what they need."""
    for name in names:
        tree = ast.parse((Path(commands.__path__[0]) / f"{name}.py").read_text(encoding="utf-8"))
        functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.decorator_list]
        described = FunctionType((lambda: None).__code__, {}, name)
        described.__doc__ = next(filter(None, map(ast.get_docstring, functions)), None)
        if text := _text_of_group(tree):
            with_commands = group(name, text)
            with_commands.command()(described)
            application.app.add_typer(with_commands)
        else:
            application.app.command(name)(described)


def _text_of_group(tree: ast.Module) -> str | None:
    """The help of a command that has commands of its own: the second argument of `group`."""
    calls = (node.value for node in tree.body if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call))
    texts = (ast.literal_eval(call.args[1]) for call in calls if getattr(call.func, "id", "") == group.__name__)
    return next(texts, None)


def main() -> None:
    """Run the command line. Only the command that is asked for is imported, or none to list them."""
    if sys.argv[1:] in ([], ["--help"]) and "_LENSBENCH_COMPLETE" not in os.environ:
        _list(_names())
    else:
        asked = [name for name in sys.argv[1:2] if name in _names() and "_LENSBENCH_COMPLETE" not in os.environ]
        _load(asked or _names())
    application.main()


def __getattr__(name: str) -> Any:
    """Return `app`, with all commands."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    _load(_names())
    return application.app
