"""What is passed between processes: messages whose arrays are mapped from files, and objects that stay where they are.

A method's process gets arrays as private mappings: it can change its copy, and nobody else sees it. What runs a model
for it (`TargetRuns`, `Components`) stays in the run's own process, and answers questions from there. What comes back is
read by an unpickler that makes nothing but plain values, arrays and scores.
"""

import builtins
import io
import pickle
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import partial
from importlib import import_module
from io import BufferedIOBase
from pathlib import Path
from types import FunctionType
from typing import Any

import cloudpickle
from torch import Tensor

from lensbench.errors import LensbenchError
from lensbench.harness.mapped import Arrays, WithheldBlock, described, restored
from lensbench.inspectors.access import Components, Runs, TargetRuns
from lensbench.inspectors.scores import AttemptName, Scores
from lensbench.models.corpus import Spent
from lensbench.models.language_model import LanguageModel

STAYING = (Components, Runs, TargetRuns)


class Remote:
    """An object of another process: its public methods and properties are asked for there.

    Args:
        ask: asks for something of it, by name.
        kind: the name of its class.
        methods: their names.
        properties: their names.
    """

    def __init__(
        self, ask: Callable[..., Any], kind: str, methods: Collection[str], properties: Collection[str]
    ) -> None:
        self._ask, self._kind, self._methods, self._properties = ask, kind, methods, properties

    def __getattr__(self, name: str) -> Any:
        if name in self._properties:
            return self._ask(name)
        if name in self._methods:
            return partial(self._ask, name)
        raise AttributeError(f"{self._kind} has no {name!r}")

    def __len__(self) -> int:
        return int(self._ask("__len__"))

    def __call__(self, *given: Any) -> Any:
        """Call the function that it stands for."""
        return self._ask("__call__", *given)


def _described_class(kind: type) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    public = {name: value for name, value in vars(kind).items() if not name.startswith("_")}
    properties = tuple(name for name, value in public.items() if isinstance(value, property))
    return kind.__name__, tuple(public.keys() - set(properties)), properties


class Held:
    """The objects that stay in this process, by the number under which another one asks for them."""

    def __init__(self) -> None:
        self._objects: list[Any] = []

    def number(self, held: Any) -> int:
        """Return the number of an object."""
        self._objects.append(held)
        return len(self._objects) - 1

    def answer(self, number: int, name: str, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """Return what a property is, or what a method returns."""
        held = self._objects[number]
        if name.startswith("_") and name not in ("__len__", "__call__"):
            raise AttributeError(f"{type(held).__name__} has no {name!r}")
        found = getattr(held, name)
        return found(*given, **named) if callable(found) else found


class Sender(cloudpickle.Pickler):  # type: ignore[misc]  # it has no types
    """Writes a message. A class that no module keeps, such as one of a notebook cell, goes with it.

    Args:
        file: where to.
        arrays: where large arrays and models are put; None sends all arrays in the message, and no model.
        held: where objects are kept that stay.
        without_blocks: the model that is sent without its blocks.
    """

    def __init__(
        self,
        file: BufferedIOBase,
        arrays: Arrays | None = None,
        held: Held | None = None,
        without_blocks: LanguageModel | None = None,
    ) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self._arrays, self._held, self._without_blocks = arrays, held, without_blocks

    def persistent_id(self, found: Any) -> Any:
        """Take out arrays, models, and what stays."""
        if type(found) is Tensor:
            return described(found, self._arrays)
        if self._arrays is not None and isinstance(found, LanguageModel):
            return "model", self._arrays.file_of(found, without_blocks=found is self._without_blocks)
        stays = isinstance(found, STAYING) or _is_ours_alone(found)
        if self._held is not None and stays:
            return "remote", self._held.number(found), *_described_class(type(found))
        return None


def _is_ours_alone(found: Any) -> bool:
    """Whether it is a function that the harness has made on the way; those of a method are the method's to run."""
    return isinstance(found, FunctionType) and "<" in found.__qualname__ and found.__module__.startswith("lensbench.")


def packed(message: Any, *given: Any) -> bytes:
    """Return a message as `Sender` writes it.

    Args:
        message: what is sent.
        given: the arguments of `Sender` after the file.

    Raises:
        LensbenchError: something that cannot be sent.
    """
    file = io.BytesIO()
    try:
        Sender(file, *given).dump(message)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise LensbenchError(
            f"this cannot be passed between processes: {error}; define a method in a module that can be imported, and "
            "return plain arrays and texts"
        ) from error
    return file.getvalue()


class Receiver(pickle.Unpickler):
    """Reads a message in a method's process.

    Args:
        file: where from.
        models: the models that were read before, by file.
        ask: asks the other process for something of an object that stayed there.
    """

    def __init__(self, file: BufferedIOBase, models: dict[Path, LanguageModel], ask: Callable[..., Any]) -> None:
        super().__init__(file)
        self._models, self._ask = models, ask

    def persistent_load(self, described: Any) -> Any:
        """Map arrays and models, and make what asks for the rest."""
        kind, *rest = described
        if kind == "tensor":
            return restored(*rest)
        if kind == "withheld":
            return WithheldBlock(*rest)
        if kind == "remote":
            number, *what = rest
            return Remote(partial(self._ask, number), *what)
        (path,) = rest
        if path not in self._models:
            with path.open("rb") as file:
                self._models[path] = Receiver(file, self._models, self._ask).load()
        return self._models[path]


class ReplyReceiver(pickle.Unpickler):
    """Reads a reply of a method's process: results of lensbench's own classes, and nothing that could run code."""

    def find_class(self, module: str, name: str) -> Any:
        """Return a result's class, an error's, or what arrays are made of.

        Raises:
            LensbenchError: anything else.
        """
        if (module, name) in _PLAIN:
            return getattr(import_module(module), name)
        if module.partition(".")[0] == "lensbench" and "." not in name:
            found = getattr(import_module(module), name, None)
            if isinstance(found, type) and (found in _RESULTS or issubclass(found, LensbenchError)):
                return found
        raise LensbenchError(f"a method's process sent {module}.{name}, which is no result")

    def persistent_load(self, described: Any) -> Tensor:
        """Make an array of its bytes."""
        kind, *rest = described
        if kind != "tensor" or not isinstance(rest[-1], bytes):
            raise LensbenchError("a method's process sent something that is no result")
        return restored(*rest)


_RESULTS = (Scores, AttemptName, Spent)
_PLAIN = {
    *((module, "_reconstruct") for module in ("numpy._core.multiarray", "numpy.core.multiarray")),
    *((module, "scalar") for module in ("numpy._core.multiarray", "numpy.core.multiarray")),
    ("numpy._core.numeric", "_frombuffer"), ("numpy.core.numeric", "_frombuffer"),
    ("numpy", "ndarray"), ("numpy", "dtype"), ("torch", "Size"), ("builtins", "frozenset"), ("builtins", "set"),
    ("collections", "OrderedDict"),
}  # fmt: skip


def described_error(error: BaseException) -> tuple[str, str, str]:
    """Return an error as plain text: module and name of its class, and what it says."""
    return type(error).__module__, type(error).__qualname__, str(error)


def restored_error(module: str, name: str, text: str) -> BaseException:
    """Return an error of another process; of a class that is neither Python's nor lensbench's, a RuntimeError."""
    found: Any = getattr(builtins, name, None) if module == "builtins" else None
    if module.partition(".")[0] == "lensbench":
        with suppress(LensbenchError, ImportError):
            found = ReplyReceiver(io.BytesIO()).find_class(module, name)
    if isinstance(found, type) and issubclass(found, Exception):
        with suppress(TypeError):  # one that is made of something else than a text
            return found(text)
    return RuntimeError(f"{name}: {text}")
