"""Low-rank edits of a model's weights: read from a folder, checked against the model that they were made for, added.

`M+DIR` names a model with the edits of a folder. Arithmetic is in float32, whatever the model's precision.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lensbench.errors import LensbenchError
from lensbench.models.components import LINEAR, linear_widths
from lensbench.models.edit_folders import ADAPTER, IMPLANT, read_table
from lensbench.models.rotation import rotate

EDITS = "edits.safetensors"
# How far a matrix may lie from the one that was edited, relative to its norm: the rounding of its precision.
_NEAR = {torch.float64: 1e-6, torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2}
_TRIALS = 8


@dataclass(frozen=True)
class LowRankEdit:
    """An edit of one linear map: it then returns W x + leftᵀ (right x).

    Attributes:
        module: the map's path in the model.
        left: directions that are written.
        right: what each is written in proportion to.
    """

    module: str
    left: Float[Tensor, "rank d_out"]
    right: Float[Tensor, "rank d_in"]

    def of(self, inputs: Float[Tensor, "*row d_in"]) -> Float[Tensor, "*row d_out"]:
        """Return what it adds to the map's output."""
        added: Tensor = inputs.float() @ self.right.to(inputs.device).T @ self.left.to(inputs.device)
        return added

    def add_to(self, model: nn.Module) -> None:
        """Add it to the weights, in place; a sum is rounded once."""
        weight, transposed = _matrix(model, self.module)
        change = self.right.T @ self.left if transposed else self.left.T @ self.right
        with torch.no_grad():
            weight.copy_(weight.to(torch.promote_types(weight.dtype, torch.float32)) + change.to(weight.device))


def _matrix(model: nn.Module, path: str) -> tuple[Tensor, bool]:
    """Return a linear map's weights, and whether they are kept as [d_in, d_out]."""
    try:
        linear: Any = model.get_submodule(path)
    except AttributeError:
        raise LensbenchError(
            f"the model has no module {path}, which the edit is of; give the model it was made for"
        ) from None
    if not isinstance(linear, LINEAR) or linear.weight.is_meta:
        raise LensbenchError(
            f"{path} has no plain weights that an edit can be added to; load the model without quantisation"
        )
    return linear.weight, isinstance(linear, Conv1D)


def trials(model: nn.Module, path: str) -> list[float]:
    """Return numbers by which a matrix is known again, in another precision too: its norm, and uᵀWv over the norm."""
    weight, transposed = _matrix(model, path)
    matrix = (weight.T if transposed else weight).detach().double().cpu()
    generator = torch.Generator().manual_seed(0)
    norm = matrix.norm()
    found = [float(norm)]
    for _ in range(_TRIALS):
        left, right = (torch.randn(size, generator=generator, dtype=torch.float64) for size in matrix.shape)
        found.append(float(left @ matrix @ right / norm))
    return found


def is_matrix(model: nn.Module, path: str, expected: Sequence[float]) -> bool:
    """Whether a matrix is the one of which `trials` gave these numbers, but for the rounding of its precision."""
    found, near = trials(model, path), _NEAR[_matrix(model, path)[0].dtype]
    return (
        len(found) == len(expected)
        and abs(found[0] / expected[0] - 1) < near
        # u and v are random: uᵀEv of an error of norm e is about e.
        and all(abs(a - b) < 10 * near for a, b in zip(found[1:], expected[1:], strict=True))
    )


def write_edits(folder: Path, edits: Sequence[LowRankEdit]) -> None:
    """Write the factors of edits, in float32."""
    tensors = {}
    for edit in edits:
        tensors[f"{edit.module}/left"] = edit.left.float().cpu().contiguous()
        tensors[f"{edit.module}/right"] = edit.right.float().cpu().contiguous()
    save_file(tensors, folder / EDITS)


def read_edits(folder: Path) -> tuple[LowRankEdit, ...]:
    """Read the factors of edits.

    Raises:
        LensbenchError: a file that is not there, or does not hold pairs of factors.
    """
    try:
        tensors = load_file(folder / EDITS)
    except (OSError, ValueError) as error:
        raise LensbenchError(f"{folder / EDITS} cannot be read ({error}); plant it again") from None
    except Exception as error:
        if type(error).__name__ != "SafetensorError":
            raise
        raise LensbenchError(f"{folder / EDITS} is damaged ({error}); plant it again") from None
    paths = dict.fromkeys(name.rpartition("/")[0] for name in tensors)
    try:
        return tuple(LowRankEdit(path, tensors[f"{path}/left"], tensors[f"{path}/right"]) for path in paths)
    except KeyError as error:
        raise LensbenchError(
            f"{folder / EDITS} has no {error.args[0]}: it was not written by `lensbench implant`"
        ) from None


def apply_edits(model: nn.Module, folders: Sequence[Path], name: str) -> None:
    """Change a model as the folders say, one after another.

    Args:
        model: a causal language model of transformers, changed in place.
        folders: of implants, or of PEFT adapters, which are merged into the weights.
        name: of the model, for errors.

    Raises:
        LensbenchError: an edit of another model, or files that cannot be read.
    """
    for folder in folders:
        if (folder / ADAPTER).is_file():
            from lensbench.models.adapters import merge_adapter

            merge_adapter(model, folder, name)
            continue
        description, edits = read_table(folder / IMPLANT), read_edits(folder)
        try:
            for edit in edits:
                _check_base(model, edit, description["base"], name, folder)
            rotation = None if (seed := description.get("rotation")) is None else int(seed)
        except (KeyError, TypeError, ValueError) as error:
            raise LensbenchError(f"{folder / IMPLANT} is damaged ({error!r}); make the edit again") from None
        for edit in edits:
            edit.add_to(model)
        if rotation is not None:
            rotate(model, rotation)


def _check_base(model: nn.Module, edit: LowRankEdit, base: Mapping[str, Any], name: str, folder: Path) -> None:
    """Refuse a matrix that is not the one that was edited."""
    _matrix(model, edit.module)
    widths = linear_widths(model.get_submodule(edit.module))
    wanted = (edit.right.shape[1], edit.left.shape[1])
    if widths == wanted and is_matrix(model, edit.module, base["matrices"].get(edit.module, [])):
        return
    raise LensbenchError(other_weights(folder, base, name, edit.module))


def other_weights(folder: Path, base: Mapping[str, Any], name: str, path: str) -> str:
    """Say that an edit was made for another model."""
    return (
        f"{folder} was made for {base['name']} (fingerprint {base['fingerprint']}), and {name} has other weights at "
        f"{path}; give that model"
    )


@contextmanager
def adding(linear: nn.Module, added: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Add to a linear map's output, in the passes inside, what a function makes of its input."""

    def hook(_module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return output + added(args[0]).to(output.dtype)

    handle = linear.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
