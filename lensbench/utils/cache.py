"""Where converted models and fitted lenses are kept, how a folder appears there whole, and what makes it stale."""

import hashlib
import json
import logging
import os
import re
import shutil
import socket
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from lensbench.errors import LensbenchError, UsageError
from lensbench.utils.foreign import regular

LOG = logging.getLogger("lensbench")
SEAL = "seal.json"
"""The file of an entry that says what is in it."""
VARIABLE = "LENSBENCH_CACHE"
LIMIT = "LENSBENCH_CACHE_LIMIT"
_DEFAULT = "~/.cache/lensbench"
_DEFAULT_LIMIT = "20GB"
# What is kept in it, each in a folder of that name.
MODELS, LENSES, RESIDUALS, KNOWLEDGE, CALIBRATIONS, PROOFS, CHECKS = KINDS = (
    "models", "lenses", "residuals", "knowledge", "calibrations", "proofs", "checks",
)  # fmt: skip
LEFT = "unfinished"
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
    """Return for each kind of thing in the cache, and what was left unfinished, how many there are, and their bytes."""
    found = {}
    unfinished = [path for folder in ("", *KINDS) for path in (cache_path() / folder).glob(UNFINISHED)]
    for kind in KINDS:
        folder = cache_path() / kind
        entries = list(folder.glob("[!.]*"))
        left = sum(folder_size(path) for path in unfinished if path.parent == folder)
        found[kind] = (len(entries), folder_size(folder) - left if folder.is_dir() else 0)
    return found | {LEFT: (len(unfinished), sum(folder_size(path) for path in unfinished))}


def clear(kinds: Iterable[str]) -> int:
    """Remove kinds of things from the cache; return the bytes freed.

    Raises:
        LensbenchError: something cannot be removed.
    """
    freed = sum(sweep(cache_path() / folder) for folder in ("", *KINDS))
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
    `.NAME.*.partial` folder behind, which nothing reads, and which the next to write there removes.

    Args:
        final: Where the folder is to stand. Its parents are made.

    Yields:
        An empty folder next to `final`.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    sweep(final.parent)
    partial = final.parent / f"{unfinished_prefix(final.name)}{uuid.uuid4().hex[:8]}.partial"
    partial.mkdir()
    try:
        yield partial
        _flush(partial)
        _move(partial, final)
    finally:
        # Nothing to remove after the move; after a failure or a lost race, all of it.
        shutil.rmtree(partial, ignore_errors=True)


def sha256_of(path: Path) -> str:
    """Return a regular file's SHA-256, in hexadecimal; worked out again only where the file has changed since."""
    state = regular(path)
    return _sha256_of(path, state.st_ino, state.st_mtime_ns, state.st_size)


@cache
def _sha256_of(path: Path, _file: int, _changed: int, _size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal(folder: Path, name: str) -> None:
    """Write into a finished entry of the cache what is in it, and which entry it is, so that any change is noticed."""
    content = {"entry": name, "files": {path.name: sha256_of(path) for path in sorted(folder.iterdir())}}
    (folder / SEAL).write_text(json.dumps(content, sort_keys=True), encoding="utf-8")


def is_whole(folder: Path) -> bool:
    """Return whether an entry of the cache is there, and what was written; one that is not is removed, with a word."""
    if not folder.exists():
        return False
    try:
        content = json.loads((folder / SEAL).read_text(encoding="utf-8"))
        there = {path.name: sha256_of(path) for path in sorted(folder.iterdir()) if path.name != SEAL}
        if content == {"entry": folder.name, "files": there}:
            return True
    except (OSError, ValueError, RecursionError):
        pass
    LOG.warning("%s is damaged, or not what its name says: it is discarded and made again", folder)
    shutil.rmtree(folder, ignore_errors=True)
    return False


UNFINISHED = ".*.partial"
"""What half-written folders are called."""
_DAY = 24 * 3600.0


def unfinished_prefix(name: str) -> str:
    """Return how half-written folders of this process are called, so that others can tell whether it still works."""
    return f".{name}.{_host()}.{os.getpid()}."


def _host() -> str:
    return socket.gethostname().replace(".", "-")


def sweep(folder: Path) -> int:
    """Remove what killed processes left half-written in a folder; return the bytes freed.

    A process of another machine cannot be asked whether it is alive: its work is given a day.
    """
    freed = 0
    for path in folder.glob(UNFINISHED):
        parts = path.name.rsplit(".", 4)
        own = len(parts) == 5 and parts[1] == _host() and parts[2].isdigit()
        with suppress(OSError):
            left = not _is_alive(int(parts[2])) if own else time.time() - path.stat().st_mtime > _DAY
            if left:
                freed += folder_size(path)
                shutil.rmtree(path, ignore_errors=True)
    return freed


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # of another user
    return True


def write_sealed(file: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object as a file of the cache, with a checksum and the name of the file it is."""
    whole = {"content": content, "file": file.name}
    with atomic_file(file) as opened:
        opened.write(json.dumps({**whole, "checksum": _checksum(whole)}, ensure_ascii=False).encode())


def read_sealed(file: Path) -> dict[str, Any] | None:
    """Return what `write_sealed` wrote; None where there is nothing, or, with a word, where it is damaged."""
    try:
        read = json.loads(file.read_text(encoding="utf-8"))
        checksum = read.pop("checksum")
        if checksum == _checksum(read) and read["file"] == file.name:
            content: dict[str, Any] = read["content"]
            return content
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    LOG.warning("%s is damaged, or not what its name says: it is not used, and made again", file)
    return None


def _checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


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
