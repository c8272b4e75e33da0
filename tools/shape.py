"""Print the shape of the package: rooms, storeys, arrows between rooms, chains of imports, files and lines.

A room is a folder or a module directly inside `lensbench/`; `__init__` and `__main__` are doors, not rooms. Imports
inside functions and under TYPE_CHECKING count as any others. Run by `make shape`.
"""

import ast
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "lensbench"
DOORS = {"__init__", "__main__"}


def modules(root: Path) -> dict[str, Path]:
    """Return the path of each module by its dotted name."""
    found = {}
    for path in sorted((root / PACKAGE).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def at_import_time(nodes: list[ast.stmt]) -> list[ast.stmt]:
    """Return the statements that run when a module is imported, those for type checkers left out."""
    found: list[ast.stmt] = []
    for node in nodes:
        if isinstance(node, ast.If):
            guarded = "TYPE_CHECKING" in ast.unparse(node.test)
            found += at_import_time(node.orelse if guarded else [*node.body, *node.orelse])
        else:
            found.append(node)
    return found


def imports_of(path: Path, known: set[str], *, only_at_import: bool = False) -> set[str]:
    """Return the modules of the package that a file imports, wherever in the file the import stands."""
    found = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in at_import_time(tree.body) if only_at_import else ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            if not name.startswith(f"{PACKAGE}."):
                continue
            # `from package.module import name` imports `package.module`; `from package import module` the module.
            found.add(name if name in known else name.rpartition(".")[0])
    return found & known


def room_of(module: str) -> str:
    """Return the room that a module stands in."""
    return module.split(".")[1] if "." in module else "__init__"


@cache
def graph(root: Path, *, only_at_import: bool = False) -> dict[str, frozenset[str]]:
    """Return for each module those that it imports."""
    paths = modules(root)
    known = set(paths)
    return {
        name: frozenset(imports_of(path, known, only_at_import=only_at_import) - {name}) for name, path in paths.items()
    }


def rooms(root: Path) -> dict[str, set[str]]:
    """Return for each room those that it imports from."""
    found: dict[str, set[str]] = {}
    for module, imported in graph(root).items():
        if room_of(module) in DOORS:
            continue
        found.setdefault(room_of(module), set()).update({room_of(one) for one in imported} - {room_of(module), *DOORS})
    return found


def circles(arrows: dict[str, frozenset[str]]) -> list[list[str]]:
    """Return the strongly connected components of more than one node (Tarjan)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for after in arrows.get(node, ()):
            if after not in index:
                visit(after)
                low[node] = min(low[node], low[after])
            elif after in stack:
                low[node] = min(low[node], index[after])
        if low[node] == index[node]:
            component = []
            while not component or component[-1] != node:
                component.append(stack.pop())
            if len(component) > 1:
                found.append(sorted(component))

    for node in sorted(arrows):
        if node not in index:
            visit(node)
    return found


def longest_chain(arrows: dict[str, frozenset[str]]) -> list[str]:
    """Return the longest chain of nodes each of which points to the next; an arrow that closes a circle is left out."""
    best: dict[str, list[str]] = {}

    def visit(node: str, above: frozenset[str]) -> list[str]:
        if node not in best:
            chains = [visit(after, above | {node}) for after in sorted(arrows.get(node, ())) if after not in above]
            best[node] = [node, *max(chains, key=len, default=[])]
        return best[node]

    return max((visit(node, frozenset({node})) for node in sorted(arrows)), key=len, default=[])


def asserts(path: Path) -> int:
    """Count `assert x is not None`, alone or joined by `and`."""
    checks = 0
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Assert):
            checks += any(
                isinstance(one, ast.IsNot) for part in ast.walk(node.test) for one in getattr(part, "ops", ())
            )
    return checks


def double_classes(root: Path) -> list[str]:
    """Return the class names that more than one module defines."""
    homes: dict[str, set[str]] = {}
    for module, path in modules(root).items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                homes.setdefault(node.name, set()).add(module)
    return sorted(name for name, where in homes.items() if len(where) > 1)


def shape(root: Path = ROOT) -> dict[str, object]:
    """Return every figure by its name."""
    paths, between, arrows = modules(root), rooms(root), graph(root)
    inner = {name: imported for name, imported in arrows.items() if room_of(name) not in DOORS}
    early = {name: to for name, to in graph(root, only_at_import=True).items() if room_of(name) not in DOORS}
    return {
        "files": len(paths),
        "lines": sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths.values()),
        "modules at the top": len(list((root / PACKAGE).glob("*.py"))),
        "rooms": len(between),
        "storeys": len(longest_chain({room: frozenset(to) for room, to in between.items()})),
        "arrows between rooms": sum(map(len, between.values())),
        "longest chain of modules": len(longest_chain(early)),
        "with lazy and typing-only imports": len(longest_chain(inner)),
        "circles of modules": len(circles(inner)),
        "circles of rooms": len(circles({room: frozenset(to) for room, to in between.items()})),
        "asserts that something is not None": sum(map(asserts, paths.values())),
        "class names that stand twice": len(double_classes(root)),
        "longest module": max(len(path.read_text(encoding="utf-8").splitlines()) for path in paths.values()),
    }


def main() -> None:
    """Print the figures, and with --details the longest chain, circles and names that stand twice."""
    for name, figure in shape().items():
        print(f"{name:36} {figure:>6}")
    if "--details" in sys.argv:
        inner = {name: imported for name, imported in graph(ROOT).items() if room_of(name) not in DOORS}
        print("chain:", " > ".join(longest_chain(inner)))
        print("circles:", circles(inner), circles({room: frozenset(to) for room, to in rooms(ROOT).items()}))
        print("twice:", ", ".join(double_classes(ROOT)))
        for room, to in sorted(rooms(ROOT).items()):
            print(f"{room:12} > {', '.join(sorted(to))}")


if __name__ == "__main__":
    main()
