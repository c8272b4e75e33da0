"""Edits of a model's weights: low-rank changes, read from a folder and checked against their model, and rotations.

Arithmetic is in float32, whatever the model's precision.
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
from lensbench.models.architecture import removing
from lensbench.models.linear_parts import LINEAR, linear_widths
from lensbench.models.precision import held_as, in_float64
from lensbench.utils.foreign import reading

EDITS = "edits.safetensors"
# How far a matrix may lie from the one that was edited, relative to its norm: the rounding of its precision.
_NEAR = {torch.float64: 1e-6, torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2}
_TRIALS = 8
# How far logits may move, relative to the largest: the rounding of a rotation in each precision.
_ROTATION_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 1e-1, torch.float16: 2e-2}
_ROTATION_TOKENS = 16


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

    def output(self, inputs: Float[Tensor, "*row d_in"]) -> Float[Tensor, "*row d_out"]:
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
    if not isinstance(linear, LINEAR) or linear.weight.is_meta or held_as(linear.weight) is not None:
        raise LensbenchError(
            f"{path} has no plain weights that an edit can be added to; load the model without quantisation"
        )
    return linear.weight, isinstance(linear, Conv1D)


def trials(model: nn.Module, path: str) -> list[float]:
    """Return numbers by which a matrix is known again, in another precision too: its norm, and uᵀWv over the norm."""
    weight, transposed = _matrix(model, path)
    matrix = (weight.T if transposed else weight).detach().cpu().double()
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
    with reading(folder / EDITS, "plant it again"):
        tensors = load_file(folder / EDITS)
    paths = dict.fromkeys(name.rpartition("/")[0] for name in tensors)
    try:
        return tuple(LowRankEdit(path, tensors[f"{path}/left"], tensors[f"{path}/right"]) for path in paths)
    except KeyError as error:
        raise LensbenchError(
            f"{folder / EDITS} has no {error.args[0]}: it was not written by `lensbench implant`"
        ) from None


def require_base(model: nn.Module, edit: LowRankEdit, base: Mapping[str, Any], name: str, folder: Path) -> None:
    """Refuse a matrix that is not the one that was edited.

    Raises:
        LensbenchError: there is no such matrix, or it is another one.
    """
    expected = base["matrices"].get(edit.module, [])
    same = is_matrix(model, edit.module, expected)
    if not same or linear_widths(model.get_submodule(edit.module)) != (edit.right.shape[1], edit.left.shape[1]):
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

    with removing([linear.register_forward_hook(hook)]):
        yield


def rotation(width: int, seed: int = 0) -> Float[Tensor, "width width"]:
    """Return a random rotation, in float64."""
    generator = torch.Generator().manual_seed(seed)
    q, r = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))
    q = q * r.diagonal().sign()
    q[:, 0] *= torch.linalg.det(q).sign()
    result: Tensor = q
    return result


@torch.no_grad()
def rotate(module: nn.Module, seed: int) -> Float[Tensor, "d_model d_model"]:
    """Rotate a model of Llama's shape in place: its residuals become R h in place of h, its logits stay; return R.

    RMSNorm divides by a length, which a rotation keeps, and multiplies by gains, which it does not commute with: they
    are moved into the weights that read behind them first.

    Raises:
        LensbenchError: a model of another shape, or one whose logits do not stay.
    """
    model: Any = module
    try:
        inner, head = model.model, model.lm_head
        reads = [*((block.input_layernorm, _attention_maps(block)) for block in inner.layers)]
        reads += [(block.post_attention_layernorm, [block.mlp.gate_proj, block.mlp.up_proj]) for block in inner.layers]
        writes = [linear for block in inner.layers for linear in (block.self_attn.o_proj, block.mlp.down_proj)]
    except AttributeError as error:
        raise LensbenchError(f"only models of Llama's shape can be rotated: {error}; use another design") from None
    if any(linear.bias is not None for linear in writes):
        raise LensbenchError("only models without biases on what they write can be rotated; use another design")
    ids = torch.arange(_ROTATION_TOKENS)[None].to(inner.embed_tokens.weight.device) + 100
    ids %= inner.embed_tokens.num_embeddings
    before = model(ids, use_cache=False).logits.float()
    exact = rotation(inner.embed_tokens.weight.shape[1], seed)
    turn = exact.to(in_float64(head.weight).device)
    # A head that is tied to the embeddings takes gains that the embeddings do not.
    head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    model.config.tie_word_embeddings = False
    for norm, linears in (*reads, (inner.norm, [head])):
        _turn_reading(norm, linears, turn)
    for linear in writes:
        linear.weight.copy_((turn @ in_float64(linear.weight)).to(linear.weight.dtype))
    embeddings = inner.embed_tokens.weight
    embeddings.copy_((in_float64(embeddings) @ turn.T).to(embeddings.dtype))
    off = float((model(ids, use_cache=False).logits.float() - before).abs().max() / before.abs().max())
    if not off < _ROTATION_TOLERANCE[embeddings.dtype]:
        raise LensbenchError(
            f"the model in another basis is another model (logits off by {off:.0e}); use another design"
        )
    return exact


def _attention_maps(block: Any) -> list[nn.Module]:
    return [block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj]


def _turn_reading(norm: Any, linears: list[Any], turn: Tensor) -> None:
    for linear in linears:
        linear.weight.copy_(((in_float64(linear.weight) * in_float64(norm.weight)) @ turn.T).to(linear.weight.dtype))
    norm.weight.fill_(1.0)
