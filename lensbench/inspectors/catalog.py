"""Which inspectors there are, known without importing torch: by reading our files, and the entry points of plug-ins."""

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lensbench.errors import LensbenchError, UsageError, unknown_name
from lensbench.utils.imports import import_attribute, split_location

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from lensbench.inspectors.base import Inspector

# What a method may learn from, and what it may read: the harness withholds the rest.
SUPERVISION = ("nothing", "corpus", "labels")
SOURCES = ("activation", "question", "choices", "text", "components", "target")
GROUP = "lensbench.inspectors"
OURS = Path(__file__).parent


@dataclass(frozen=True)
class InspectorListing:
    """An inspector, as far as its file tells without being run.

    Attributes:
        name: as command line and records call it.
        location: `module:Class`.
        summary: first line of the class's docstring.
        reads: the sources that it declares.
        learns_from: the supervision that it declares.
        tries: how many attempts it makes, in words.
        cost: what it takes, in words.
        parameters: names and defaults of its constructor's arguments.
    """

    name: str
    location: str
    summary: str
    reads: tuple[str, ...]
    learns_from: str
    tries: str
    cost: str
    parameters: dict[str, str]


def find_inspectors() -> dict[str, InspectorListing]:
    """List our inspectors and the installed plug-ins.

    Raises:
        LensbenchError: two inspectors of one name, or a plug-in whose file cannot be found or does not hold its class.
    """
    ours: dict[str, InspectorListing] = {}
    # No two classes of ours have one name.
    known = {node.name: node for path in OURS.rglob("*.py") for node in _classes(path)}
    for path in sorted(OURS.rglob("*.py")):
        module = ".".join(("lensbench", "inspectors", *path.relative_to(OURS).with_suffix("").parts))
        for node in _classes(path):
            if listing := _listing(node, module, known):
                _add(ours, listing)
    found = dict(sorted(ours.items()))
    from importlib.metadata import entry_points  # takes longer to import than this module

    for entry in entry_points(group=GROUP):
        _add(found, _plugged(entry, known))
    return found


def _add(found: dict[str, InspectorListing], listing: InspectorListing) -> None:
    if listing.name in found:
        other = found[listing.name].location
        raise LensbenchError(
            f"two inspectors are called {listing.name!r}: {other} and {listing.location}; rename or uninstall one"
        )
    found[listing.name] = listing


def _plugged(entry: "EntryPoint", known: Mapping[str, ast.ClassDef]) -> InspectorListing:
    module, _, attribute = entry.value.partition(":")
    try:
        spec = find_spec(module)
    except ImportError:
        spec = None
    if spec is None or spec.origin is None:
        raise LensbenchError(
            f"plug-in {entry.name} names module {module!r}, which does not exist; reinstall or uninstall the package"
        )
    for node in _classes(Path(spec.origin)):
        if node.name == attribute and (listing := _listing(node, module, known)):
            return listing
    raise LensbenchError(
        f"plug-in {entry.name}: {spec.origin} defines no inspector {attribute!r} with a `name`; reinstall or "
        "uninstall it"
    )


def _classes(path: Path) -> Iterable[ast.ClassDef]:
    state = path.stat()
    return _parsed(path, state.st_mtime_ns, state.st_size)


@cache
def _parsed(path: Path, _changed: int, _size: int) -> Iterable[ast.ClassDef]:
    """Parse a file, again only where it has changed: names are looked up many times in a run."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except SyntaxError as error:
        raise LensbenchError(f"{path}:{error.lineno}: {error.msg}; fix the file") from None
    return [node for node in tree.body if isinstance(node, ast.ClassDef)]


def _listing(node: ast.ClassDef, module: str, known: Mapping[str, ast.ClassDef]) -> InspectorListing | None:
    """Read a class's declarations and those that it inherits; None for a class without a name of its own."""
    name = _literal(_declared(node).get("name"))
    if not isinstance(name, str):
        return None
    lineage = list(_lineage(node, known))
    declared = {key: value for one in reversed(lineage) for key, value in _declared(one).items()}
    return InspectorListing(
        name=name,
        location=f"{module}:{node.name}",
        summary=(ast.get_docstring(node) or "").partition("\n")[0],
        reads=tuple(sorted(_literal(declared.get("reads")) or ("activation",))),
        learns_from=str(_literal(declared.get("learns_from")) or "nothing"),
        tries=str(_literal(declared.get("tries")) or "one"),
        cost=str(_literal(declared.get("cost")) or "-"),
        parameters=next((found for one in lineage if (found := _parameters(one))), {}),
    )


def _lineage(node: ast.ClassDef, known: Mapping[str, ast.ClassDef]) -> Iterator[ast.ClassDef]:
    """Yield a class and the known ones that it is derived from, the nearest first."""
    yield node
    for base in node.bases:
        if isinstance(base, ast.Name) and base.id in known and base.id != node.name:
            yield from _lineage(known[base.id], known)


def _declared(node: ast.ClassDef) -> dict[str, ast.expr | None]:
    return {
        target.id: value
        for statement in node.body
        for target, value in _assigned(statement)
        if isinstance(target, ast.Name)
    }


def _assigned(statement: ast.stmt) -> list[tuple[ast.expr, ast.expr | None]]:
    if isinstance(statement, ast.AnnAssign):
        return [(statement.target, statement.value)]
    if isinstance(statement, ast.Assign):
        return [(target, statement.value) for target in statement.targets]
    return []


def _literal(node: ast.expr | None) -> Any:
    """Return the value of a literal, `frozenset({...})` included; None for anything that would have to be run."""
    if isinstance(node, ast.Call) and node.args:
        node = node.args[0]
    try:
        return ast.literal_eval(node) if node is not None else None
    except ValueError:
        return None


def _parameters(node: ast.ClassDef) -> dict[str, str]:
    for statement in node.body:
        if isinstance(statement, ast.FunctionDef) and statement.name == "__init__":
            arguments = statement.args
            names = [argument.arg for argument in arguments.args[1:]]
            defaults = [""] * (len(names) - len(arguments.defaults)) + [ast.unparse(d) for d in arguments.defaults]
            return dict(zip(names, defaults, strict=True))
    return {}


def check_inspector(given: "str | type[Inspector]") -> None:
    """Refuse what is not an inspector, without importing it if possible.

    Raises:
        UsageError: no inspector of that name; the nearest names are given.
    """
    if not isinstance(given, str):
        _check_class(given.__name__, given)
    elif ":" in given:
        split_location(given)
    elif given not in (known := find_inspectors()):
        hint = "or give module:Class or file.py:Class; see `lensbench list inspectors`"
        raise unknown_name("inspector", given, known, hint)


def load_inspector(given: "str | type[Inspector]") -> "type[Inspector]":
    """Return an inspector's class, by its name, by `module:Class` or `file.py:Class`, or as it is given.

    Raises:
        UsageError: no such inspector, or not a concrete subclass of Inspector with a name.
    """
    check_inspector(given)
    if not isinstance(given, str):
        return given
    found = import_attribute(f"inspector {given!r}", given if ":" in given else find_inspectors()[given].location)
    _check_class(given, found)
    checked: type[Inspector] = found
    return checked


def _check_class(given: str, found: Any) -> None:
    """Refuse what is not a concrete inspector with a name that can be a file's.

    Raises:
        UsageError: it is not, or it declares sources or supervision that do not exist.
    """
    from lensbench.inspectors.base import Inspector  # imports torch

    if not (isinstance(found, type) and issubclass(found, Inspector)):
        raise UsageError(f"inspector {given!r} is not a subclass of lensbench.Inspector")
    missing = sorted(getattr(found, "__abstractmethods__", ()))
    if missing or not isinstance(getattr(found, "name", None), str):
        what = f"has no {', '.join(missing)}" if missing else "has no `name`"
        raise UsageError(f"inspector {given!r} {what}; see docs/adding-a-method.md")
    if not re.fullmatch(r"[A-Za-z]\w*", found.name) or found.name == "none":
        raise UsageError(f"inspector {given!r} has the name {found.name!r}; use letters, digits and _, and not 'none'")
    if found.learns_from not in SUPERVISION:
        raise unknown_name(f"learns_from of inspector {found.name}:", str(found.learns_from), SUPERVISION)
    for source in found.reads:
        if source not in SOURCES:
            raise unknown_name(f"source in reads of inspector {found.name}:", str(source), SOURCES)
