"""Code: digests of it, under which results are filed, and the source of classes that no file holds."""

import ast
import hashlib
import linecache
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

from lensbench.utils.cache import PROOFS, cache_path, read_sealed, write_sealed

SOURCE = "_lensbench_source"
"""The attribute in which a class that cannot be imported carries its source, to processes that cannot read it."""
_UNKNOWN = "unknown "
_DEFINITIONS = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


def code_digest(what: type | Callable[..., Any]) -> str:
    """Return a digest of the files that define a function, or a class and what it inherits from, and of their helpers.

    Helpers are the modules of the same package that these files take a function or class from. Results are filed under
    the digest, so that what was made by other code is made again.
    """
    parts = [part for part in what.__mro__ if part.__module__ != "builtins"] if isinstance(what, type) else [what]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(vars(part).get(SOURCE, "").encode())
    names = dict.fromkeys(part.__module__ for part in parts if SOURCE not in vars(part))
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


def digest_of_files(files: Sequence[Path]) -> str:
    """Return a digest of what files do, as `code_of` tells; it is kept: parsing a hundred files takes a second."""
    read = hashlib.sha256(repr(sys.version_info).encode())
    for file in files:
        read.update(hashlib.sha256(file.read_bytes()).digest())
    kept = cache_path() / PROOFS / f"code-{read.hexdigest()[:24]}.json"
    content = read_sealed(kept)
    if content is None:
        content = {"code": hashlib.sha256(b"".join(map(code_of, files))).hexdigest()[:12]}
        with suppress(OSError):  # it is only worked out again
            write_sealed(kept, content)
    return str(content["code"])


def _helpers(name: str) -> set[str]:
    """Return the modules of a module's package that it has functions and classes of."""
    package = name.partition(".")[0]
    held = vars(sys.modules[name]).values() if name in sys.modules else ()
    modules = {getattr(value, "__module__", None) for value in held if callable(value)}
    return {module for module in modules if isinstance(module, str) and module.partition(".")[0] == package}


def keep_source(found: type) -> str | None:
    """Let a class that no module keeps, such as one of a notebook cell, carry its source; return it.

    With it goes all that the class uses of the same session: functions and classes as source, other values as Python
    writes them. Results are filed under it. Where something cannot be told, such as a tensor, the class carries a text
    that no other class has, so that its results are not taken for those of another.

    Returns:
        The source; None where it cannot be told, or the class can be imported.
    """
    if _is_importable(found):
        return None
    if SOURCE not in vars(found):
        texts: dict[str, str] = {}
        whole = _collect(found, texts)
        own, *others = texts or [""]
        # In an order that is the same in every process: names are met in sets.
        text = "\n\n".join(texts[name] for name in (own, *sorted(others))) if whole else f"{_UNKNOWN}{uuid.uuid4()}"
        setattr(found, SOURCE, text)
    return source_of(found)


def source_of(found: type) -> str | None:
    """Return the source that a class carries; None where it carries none, or cannot tell it."""
    kept: str | None = vars(found).get(SOURCE)
    return None if kept is None or kept.startswith(_UNKNOWN) else kept


def _is_importable(found: Any) -> bool:
    module = sys.modules.get(found.__module__)
    file = None if found.__module__ == "__main__" else getattr(module, "__file__", None)  # in other processes another
    there = found.__module__ in sys.builtin_module_names or file is not None
    return there and getattr(module, found.__qualname__, None) is found


def _collect(found: Any, texts: dict[str, str]) -> bool:
    """Add the source of a class or function, and of what it uses, by name; return whether all could be told."""
    name = f"{found.__module__}.{found.__qualname__}"
    if name in texts:
        return True
    source = _source(found)
    if source is None:
        return False
    texts[name] = source
    used = [pair for function in _functions(found) for pair in _used(function)]
    if isinstance(found, type):
        used += [(base.__qualname__, base) for base in found.__bases__]
        # What a class holds may have been worked out from values that its source only names.
        held = {key: value for key, value in vars(found).items() if _is_setting(key, value)}
        used += [(f"{found.__qualname__}.{key}", value) for key, value in held.items()]
    return all(_tell(name, value, texts) for name, value in used)


def _is_setting(key: str, value: Any) -> bool:
    return not key.startswith("_") and not callable(_inner(value)) and not isinstance(value, property)


def _tell(name: str, value: Any, texts: dict[str, str]) -> bool:
    if isinstance(value, ModuleType):
        return True
    if isinstance(value, type | FunctionType):
        return _is_importable(value) or _collect(value, texts)
    if _is_plain(value):
        texts[name] = f"{name} = {_written(value)}"
        return True
    # A built-in function, or an object that a module which can be imported holds, such as a constant of a library.
    home = getattr(sys.modules.get(getattr(value, "__module__", None) or ""), getattr(value, "__name__", ""), None)
    return home is value


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list | frozenset | set):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(map(_is_plain, (*value.keys(), *value.values())))
    return value is None or type(value) in (bool, int, float, complex, str, bytes)


def _written(value: Any) -> str:
    """Write a plain value as Python does, but sets in one order: theirs differs from process to process."""
    if isinstance(value, set | frozenset):
        return f"{type(value).__name__}({', '.join(sorted(map(_written, value)))})"
    if isinstance(value, tuple | list):
        return f"{type(value).__name__}({', '.join(map(_written, value))})"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_written(key)}: {_written(held)}' for key, held in value.items())}}}"
    return repr(value)


def _functions(found: Any) -> Iterator[FunctionType]:
    if isinstance(found, FunctionType):
        yield found
        return
    for value in vars(found).values():
        parts = (value.fget, value.fset, value.fdel) if isinstance(value, property) else (value,)
        for part in parts:
            if isinstance(_inner(part), FunctionType):
                yield _inner(part)


def _inner(value: Any) -> Any:
    """The function in a static or class method, or in a cached property; anything else as it is."""
    return getattr(value, "__func__", None) or getattr(value, "func", None) or value


def _used(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """Name and value of what a function takes from around it, built-in names left out."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with suppress(ValueError):  # nothing has been put into it yet
            yield name, cell.cell_contents
    for name in _names(function.__code__):
        if name in function.__globals__:
            yield name, function.__globals__[name]


def _names(code: CodeType) -> set[str]:
    inner = (part for part in code.co_consts if isinstance(part, CodeType))
    return set(code.co_names).union(*map(_names, inner))


def _source(found: Any) -> str | None:
    """Return the text of a class or function, also of a notebook cell; None where it is not kept.

    A class of a cell has no file that `inspect.getsource` would look into, but its functions have. One without any is
    told by what it holds.
    """
    if isinstance(found, type) and not any(_functions(found)):
        return f"class {found.__qualname__}: ..."
    for function in _functions(found):
        code = function.__code__
        text = "".join(linecache.getlines(code.co_filename, function.__globals__))
        with suppress(SyntaxError):
            for node in ast.walk(ast.parse(text)):
                if not isinstance(node, _DEFINITIONS) or getattr(node, "name", "<lambda>") != found.__name__:
                    continue
                first = min([node.lineno, *(one.lineno for one in getattr(node, "decorator_list", ()))])
                if first <= code.co_firstlineno <= (node.end_lineno or first):
                    return "\n".join(text.splitlines()[first - 1 : node.end_lineno])
    return None
