"""Where converted models and fitted lenses are kept, how a folder appears there whole, and what makes it stale."""

import ast
import hashlib
import os
import re
import shutil
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from lensbench.errors import LensbenchError, UsageError

VARIABLE = "LENSBENCH_CACHE"
LIMIT = "LENSBENCH_CACHE_LIMIT"
_DEFAULT = "~/.cache/lensbench"
_DEFAULT_LIMIT = "20GB"
# What is kept in it, each in a folder of that name.
MODELS, LENSES, RESIDUALS, KNOWLEDGE, CALIBRATIONS, PROOFS, CHECKS = KINDS = (
    "models", "lenses", "residuals", "knowledge", "calibrations", "proofs", "checks",
)  # fmt: skip
# What half-written files are called.
TEMPORARY = ".*.tmp"


def cache_path() -> Path:
    """Name the cache folder without touching the disk: what `LENSBENCH_CACHE` says, else `~/.cache/lensbench`."""
    # absolute, not resolve: the path stays as the user knows it, symbolic links included.
    return Path(os.environ.get(VARIABLE) or _DEFAULT).expanduser().absolute()


def cache_root() -> Path:
    """Find the cache folder, and make it where it is missing.

    Returns:
        The folder that `cache_path` names; absolute and writable.

    Raises:
        UsageError: It cannot be made or written to.
    """
    root = cache_path()
    origin = VARIABLE if os.environ.get(VARIABLE) else "the default place"
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(_not_writable(root, origin, error.strerror or str(error))) from error
    if not os.access(root, os.W_OK | os.X_OK):
        raise UsageError(_not_writable(root, origin, "permission denied"))
    return root


def parse_size(text: str) -> int:
    """Return the bytes of a size such as `500MB`, `4GB` or `1073741824`.

    Raises:
        ValueError: another form.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)i?B?", text.strip(), flags=re.IGNORECASE)
    if found is None:
        raise ValueError("is no size; expected a number of bytes, or one with a unit such as 500MB or 4GB")
    return int(float(found[1]) * 2 ** (10 * " KMGT".index(found[2].upper() or " ")))


def size_limit() -> int:
    """Return how many bytes of residuals the cache may hold: what `LENSBENCH_CACHE_LIMIT` says, else 20 GB.

    Raises:
        UsageError: it says something else than a size.
    """
    given = os.environ.get(LIMIT) or _DEFAULT_LIMIT
    try:
        return parse_size(given)
    except ValueError as error:
        raise UsageError(f"{LIMIT} = {given!r}: {error}") from None


def folder_size(folder: Path) -> int:
    """Return the bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def contents() -> dict[str, tuple[int, int]]:
    """Return for each kind of thing in the cache how many there are, and their bytes."""
    found = {}
    for kind in KINDS:
        folder = cache_path() / kind
        entries = list(folder.glob("[!.]*"))
        found[kind] = (len(entries), folder_size(folder) if folder.is_dir() else 0)
    return found


def clear(kinds: Iterable[str]) -> int:
    """Remove kinds of things from the cache; return the bytes freed.

    Raises:
        LensbenchError: something cannot be removed.
    """
    freed = 0
    for kind in kinds:
        folder = cache_path() / kind
        if folder.is_dir():
            freed += folder_size(folder)
            try:
                shutil.rmtree(folder)
            except OSError as error:
                raise LensbenchError(f"{error.filename} cannot be removed: {error.strerror}") from None
    return freed


@contextmanager
def atomic_file(final: Path) -> Iterator[BinaryIO]:
    """Let a file be written next to its place, and move it there only when it is complete and on the disk.

    A process that is killed leaves a hidden file that `TEMPORARY` matches, which nothing reads.

    Args:
        final: Where the file is to stand. Its parents are made; what stands there is replaced.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    partial = final.parent / f".{final.name}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(final)
    finally:
        # Nothing to remove after the move; after a failure, what there is of it.
        partial.unlink(missing_ok=True)


@contextmanager
def atomic_folder(final: Path) -> Iterator[Path]:
    """Let a folder be written next to its place, and move it there only when it is complete.

    Two processes may write the same folder at once: the first to finish wins, and the work of the other is dropped.
    For that, what is written must depend on the name alone. A process that is killed leaves a hidden
    `.NAME.*.partial` folder behind, which nothing reads.

    Args:
        final: Where the folder is to stand. Its parents are made.

    Yields:
        An empty folder next to `final`.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    partial = final.parent / f".{final.name}.{uuid.uuid4().hex}.partial"
    partial.mkdir()
    try:
        yield partial
        _flush(partial)
        _move(partial, final)
    finally:
        # Nothing to remove after the move; after a failure or a lost race, all of it.
        shutil.rmtree(partial, ignore_errors=True)


def code_digest(what: type | Callable[..., Any]) -> str:
    """Return a digest of the files that define a function, or a class and what it inherits from, and of their helpers.

    Helpers are the modules of the same package that these files take a function or class from. Results are filed under
    the digest, so that what was made by other code is made again.
    """
    parts = [part for part in what.__mro__ if part.__module__ != "builtins"] if isinstance(what, type) else [what]
    digest = hashlib.sha256()
    names = dict.fromkeys(part.__module__ for part in parts)
    helpers = {helper for name in names for helper in _helpers(name)} - set(names)
    for name in (*names, *sorted(helpers)):
        # By its module: a decorator may have put the code that runs elsewhere.
        file = getattr(sys.modules.get(name), "__file__", None)
        if file is not None and file.endswith(".py"):
            digest.update(code_of(Path(file)))
        else:  # made at run time, or compiled: its name is all there is
            digest.update("".join(f"{part.__module__}.{part.__qualname__}" for part in parts).encode())
    return digest.hexdigest()[:12]


def code_of(file: Path) -> bytes:
    """Return what a Python file does, without comments, docstrings and layout: what cannot change a result."""
    state = file.stat()
    return _code_of(file, state.st_mtime_ns, state.st_size)


@cache
def _code_of(file: Path, _changed: int, _size: int) -> bytes:
    # Digests of cells ask for the same files again and again.
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree).encode()


def _helpers(name: str) -> set[str]:
    """Return the modules of a module's package that it has functions and classes of."""
    package = name.partition(".")[0]
    held = vars(sys.modules[name]).values() if name in sys.modules else ()
    modules = {getattr(value, "__module__", None) for value in held if callable(value)}
    return {module for module in modules if isinstance(module, str) and module.partition(".")[0] == package}


def _move(partial: Path, final: Path) -> None:
    try:
        partial.rename(final)
    except OSError:
        if not final.is_dir():
            raise


def _flush(folder: Path) -> None:
    """Write every file through to the disk: after a power cut, a folder with its final name must be whole."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb+") as file:
                os.fsync(file.fileno())


def _not_writable(root: Path, origin: str, reason: str) -> str:
    return f"the cache {root} ({origin}) is not writable: {reason}; set {VARIABLE} to a folder that is"
