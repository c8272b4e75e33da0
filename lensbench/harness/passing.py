"""What is passed between processes: messages whose arrays are mapped from files, and objects that stay where they are.

A method's process gets arrays as private mappings: it can change its copy, and nobody else sees it. What runs a model
for it (`TargetRuns`, `Components`) stays in the run's own process, and answers questions from there. What comes back is
read by an unpickler that makes nothing but plain values, arrays and scores.
"""

import builtins
import io
import os
import pickle
import shutil
import tempfile
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import partial
from importlib import import_module
from io import BufferedIOBase
from pathlib import Path
from types import FunctionType
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from lensbench.errors import LensbenchError
from lensbench.harness.isolation import SealedError, measure
from lensbench.inspectors.access import Components, Runs, TargetRuns
from lensbench.inspectors.scores import AttemptName, Scores
from lensbench.models.corpus import Spent
from lensbench.models.language_model import LanguageModel

SMALL = 2**16
"""Arrays of fewer bytes travel in the message itself."""
_PREFIX = "lensbench-arrays-"
STAYING = (Components, Runs, TargetRuns)


class Arrays:
    """A folder of arrays that processes map, and of the models that are made of them."""

    def __init__(self) -> None:
        for old in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*-*"):
            owner = old.name.removeprefix(_PREFIX).partition("-")[0]
            if owner.isdecimal() and not psutil.pid_exists(int(owner)):
                shutil.rmtree(old, ignore_errors=True)  # of a process that was killed
        self.folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))
        self._count = 0
        self._models: dict[tuple[int, bool], tuple[LanguageModel, Path]] = {}

    def new_file(self) -> Path:
        """Return the name of a file that is not there yet."""
        self._count += 1
        return self.folder / str(self._count)

    def new_folder(self) -> Path:
        """Make a folder, and return it."""
        folder = self.new_file()
        folder.mkdir()
        return folder

    def file_of(self, model: LanguageModel, *, without_blocks: bool) -> Path:
        """Return the file of a model, written once; its weights are files beside it."""
        key = id(model), without_blocks
        if key not in self._models:
            measure(model)
            path = self.new_file()
            with path.open("wb") as file:
                _ModelPickler(file, self, model if without_blocks else None).dump(model)
            self._models[key] = model, path  # the model is held, so that no other gets its id
        return self._models[key][1]

    def close(self) -> None:
        """Remove the folder. What a process has mapped stays readable for it."""
        shutil.rmtree(self.folder, ignore_errors=True)


class WithheldBlock(nn.Module):
    """What stands for a block of a target that the method does not declare to run."""

    def __init__(self, model: str) -> None:
        super().__init__()
        self._model_name = model

    def forward(self, *_given: Any, **_more: Any) -> Tensor:
        """Refuse.

        Raises:
            SealedError: always.
        """
        raise SealedError(
            f"the method ran {self._model_name} without declaring it; add 'target' to its `reads`, or leave it alone"
        )


def _described(tensor: Tensor, arrays: Arrays | None) -> tuple[Any, ...]:
    """Return a tensor as plain values: how it lies in memory, where it belongs, and its bytes or the file of them."""
    own = tensor.detach()
    # Without gaps in memory; else it keeps its strides, by which products of matrices may differ in the last digit.
    dense = torch.empty_like(own, device="cpu").copy_(own)
    content = dense.as_strided((own.numel(),), (1,)).view(torch.uint8).numpy()
    held: Any = content.tobytes() if arrays is None or content.nbytes < SMALL else arrays.new_file()
    if isinstance(held, Path):
        content.tofile(held)
    return "tensor", str(own.dtype).removeprefix("torch."), tuple(own.shape), dense.stride(), str(own.device), held


def _restored(dtype: str, shape: tuple[int, ...], strides: tuple[int, ...], device: str, held: Any) -> Tensor:
    kind: torch.dtype = getattr(torch, dtype)
    if isinstance(held, bytes):
        flat = torch.frombuffer(bytearray(held), dtype=kind) if held else torch.empty(0, dtype=kind)
    else:
        size = Path(held).stat().st_size // kind.itemsize
        # Not shared: what is written here is seen by this process alone.
        flat = torch.from_file(str(held), shared=False, size=size, dtype=kind)
    return flat.as_strided(shape, strides).to(device)


class _ModelPickler(pickle.Pickler):
    """Writes a model, its weights into files of their own."""

    def __init__(self, file: BufferedIOBase, arrays: Arrays, without_blocks: LanguageModel | None) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self._arrays = arrays
        self._model = without_blocks
        self._blocks = {id(block) for block in without_blocks.parts.blocks} if without_blocks else set()

    def persistent_id(self, found: Any) -> Any:
        """Take out weights, and blocks that are withheld."""
        if type(found) is Tensor:
            return _described(found, self._arrays)
        if self._model is not None and id(found) in self._blocks:
            return "withheld", self._model.name
        return None


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


class Sender(pickle.Pickler):
    """Writes a message.

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
            return _described(found, self._arrays)
        if self._arrays is not None and isinstance(found, LanguageModel):
            return "model", self._arrays.file_of(found, without_blocks=found is self._without_blocks)
        stays = isinstance(found, STAYING) or (isinstance(found, FunctionType) and "<" in found.__qualname__)
        if self._held is not None and stays:
            return "remote", self._held.number(found), *_described_class(type(found))
        return None


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
            return _restored(*rest)
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
        return _restored(*rest)


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
