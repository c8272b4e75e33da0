"""Arrays and models in files, which other processes map: each sees its own copy of what it changes."""

import os
import pickle
import shutil
import tempfile
from collections import OrderedDict
from io import BufferedIOBase
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from lensbench.harness.isolation import SealedError, measure
from lensbench.models.language_model import LanguageModel

SMALL = 2**16
"""Arrays of fewer bytes travel in the message itself."""
_PREFIX = "lensbench-arrays-"
# How transformers notes that its hooks are on a model.
_HOOKED = "_output_capturing_hooks_installed"


class Arrays:
    """A folder of arrays that processes map, and of the models that are made of them.

    Args:
        whole: of which this is the part of one process: the models are there.
    """

    def __init__(self, whole: "Arrays | None" = None) -> None:
        self._whole = whole
        self.folder = _new_folder() if whole is None else whole.new_folder()
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
        if self._whole is not None:
            return self._whole.file_of(model, without_blocks=without_blocks)
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


def _new_folder() -> Path:
    """Make a temporary folder, and remove those of processes that were killed."""
    for old in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*-*"):
        owner = old.name.removeprefix(_PREFIX).partition("-")[0]
        if owner.isdecimal() and not psutil.pid_exists(int(owner)):
            shutil.rmtree(old, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))


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


def described(tensor: Tensor, arrays: Arrays | None) -> tuple[Any, ...]:
    """Return a tensor as plain values: how it lies in memory, where it belongs, and its bytes or the file of them."""
    own = tensor.detach()
    # Without gaps in memory; else it keeps its strides, by which products of matrices may differ in the last digit.
    dense = torch.empty_like(own, device="cpu").copy_(own)
    content = dense.as_strided((own.numel(),), (1,)).view(torch.uint8).numpy()
    held: Any = content.tobytes() if arrays is None or content.nbytes < SMALL else arrays.new_file()
    if isinstance(held, Path):
        content.tofile(held)
    return "tensor", str(own.dtype).removeprefix("torch."), tuple(own.shape), dense.stride(), str(own.device), held


def restored(dtype: str, shape: tuple[int, ...], strides: tuple[int, ...], device: str, held: Any) -> Tensor:
    """Return the tensor of what `described` said after the first word."""
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
            return described(found, self._arrays)
        if self._model is not None and id(found) in self._blocks:
            return "withheld", self._model.name
        return None

    def reducer_override(self, found: Any) -> Any:
        """Leave out hooks that transformers has put on a model to collect hidden states, and puts on it again."""
        if not isinstance(found, nn.Module):
            return NotImplemented
        kept = {key: hook for key, hook in found._forward_hooks.items() if not _is_of_transformers(hook)}
        if len(kept) == len(found._forward_hooks) and _HOOKED not in vars(found):
            return NotImplemented
        made: Any = found.__reduce_ex__(pickle.HIGHEST_PROTOCOL)
        make, args, state, *rest = made
        changed = {name: value for name, value in state.items() if name != _HOOKED}
        return make, args, {**changed, "_forward_hooks": OrderedDict(kept)}, *rest


def _is_of_transformers(hook: Any) -> bool:
    return getattr(hook, "__module__", "") == "transformers.utils.output_capturing"
