"""The command line. Each command checks what it was given and calls one public function."""

from importlib import import_module
from pkgutil import iter_modules

from lensbench.cli import commands
from lensbench.cli.application import app, main

__all__ = ["app", "main"]

# The order of `lensbench --help`; commands that are not named here come last.
_ORDER = (
    "evaluate", "list", "cache", "plot", "report", "compare", "export", "judge", "calibrate", "implant", "finetune",
    "inspect", "tune", "fit", "new", "doctor", "audit", "knowledge", "analyze",
)  # fmt: skip


def _place(name: str) -> tuple[int, str]:
    return (_ORDER.index(name) if name in _ORDER else len(_ORDER), name)


# Importing a command's module adds the command to `app`.
for _name in sorted((module.name for module in iter_modules(commands.__path__)), key=_place):
    import_module(f"{commands.__name__}.{_name}")
