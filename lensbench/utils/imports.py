"""Functions and classes of users, by module or by file."""

import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lensbench.errors import UsageError

_importing: list[str] = []


def refuse_while_importing(what: str) -> None:
    """Refuse what a file of a user begins while it is imported for something that it defines.

    Raises:
        UsageError: one is being imported.
    """
    if _importing:
        raise UsageError(
            f"{_importing[-1]} calls {what} while it is imported; put the call under if __name__ == '__main__':"
        )


def look_here_last(folder: Path | None = None) -> None:
    """Let modules of a folder (the current one) be imported, after all others: a file may be called like a library."""
    wanted = str((folder or Path.cwd()).resolve())
    if wanted not in sys.path and not (folder is None and "" in sys.path):
        sys.path.append(wanted)


def split_location(given: str) -> tuple[str, str]:
    """Return module and attribute of `module:attribute` or `folder/file.py:attribute`.

    The folder of a file is put last on the path on which modules are found, and the file's name is the module's.

    Raises:
        UsageError: there is no such file or module, or another module has the file's name.
    """
    module, _, attribute = given.rpartition(":")
    if not module.endswith(".py"):
        look_here_last()
        if not _origin(module):
            raise UsageError(
                f"{given}: no module {module!r} on the Python path; give the file, as in folder/my_file.py:{attribute}"
            )
        return module, attribute
    file = Path(module).expanduser().resolve()
    if not file.is_file():
        raise UsageError(f"{given}: there is no file {module}; give the path of a Python file and a name in it")
    if not file.stem.isidentifier():
        raise UsageError(f"{given}: {file.stem!r} cannot be the name of a module; rename the file")
    look_here_last(file.parent)
    loaded = getattr(sys.modules.get(file.stem), "__file__", None)
    found = loaded or _origin(file.stem)
    if Path(found or "").resolve() != file:
        raise UsageError(f"{given}: a module called {file.stem} is there already ({found}); rename the file")
    return file.stem, attribute


def _origin(module: str) -> str | None:
    """Return where a module would be imported from; None where there is none."""
    try:
        found = find_spec(module)
    except (ImportError, ValueError):
        return None
    return None if found is None else found.origin or module


def import_attribute(what: str, given: str) -> Any:
    """Import `module:attribute` or `folder/file.py:attribute` of a user.

    Args:
        what: what it is, for the error.
        given: where it is.

    Raises:
        UsageError: it is not there, or the module fails on import.
    """
    module, attribute = split_location(given)
    _importing.append(module)
    try:
        imported = import_module(module)
    except (Exception, SystemExit) as error:  # a stranger's module may raise anything
        raise UsageError(f"{what}: importing {module} failed: {type(error).__name__}: {error}") from error
    finally:
        _importing.pop()
    if not hasattr(imported, attribute):
        raise UsageError(f"{what}: module {module} has no {attribute!r}")
    return getattr(imported, attribute)
