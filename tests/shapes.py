"""Checks at each call in the tests that arrays have the shapes which annotations of jaxtyping say.

Functions and data classes that hold arrays are checked, and no others: what other values are is known to mypy, and
checking all of them at each call makes the tests take twice as long.
"""

import ast
import re
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType, ModuleType
from typing import Any

PACKAGE = "lensbench"
ARRAYS = re.compile(r"\b(Float|Int|Bool|Shaped|Num|Complex|UInt|Integer|Real|Inexact)\[")
CHECK = "__import__('jaxtyping').jaxtyped(typechecker=__import__('beartype').beartype)"


class _AddChecks(ast.NodeTransformer):
    """Decorates what is annotated with arrays."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        self.generic_visit(node)
        every = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg)
        if any(map(_is_array, [node.returns, *(one.annotation for one in every if one)])):
            node.decorator_list.append(_check(node))  # the function itself is checked, not what decorators make of it
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        self.generic_visit(node)
        if any(_is_array(one.annotation) for one in node.body if isinstance(one, ast.AnnAssign)):
            node.decorator_list.insert(0, _check(node))  # after `dataclass` has made its constructor
        return node


def _is_array(annotation: ast.expr | None) -> bool:
    return annotation is not None and ARRAYS.search(ast.unparse(annotation)) is not None


def _check(node: ast.AST) -> ast.expr:
    made = ast.parse(CHECK, mode="eval").body
    for part in ast.walk(made):
        ast.copy_location(part, node)
    return made


class _Loader(SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType:
        """Compile the module anew: compiled files on the disk are of modules without checks."""
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)

    def source_to_code(self, data: Any, path: Any, *, _optimize: int = -1) -> CodeType:
        found: CodeType = compile(_AddChecks().visit(ast.parse(data)), path, "exec", dont_inherit=True)
        return found


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] != PACKAGE:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


def check_shapes() -> None:
    """Check arrays in all modules of lensbench that are imported from now on."""
    sys.meta_path.insert(0, _Finder())
