"""The parts of a block: what attention and the MLP add to the residual stream.

Found by structure and proved by numbers, as blocks and norm are: the two modules whose outputs, each times a constant,
add up to what the block adds.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lensbench.errors import LensbenchError
from lensbench.models.architecture import removing
from lensbench.models.language_model import LanguageModel
from lensbench.models.linear_parts import LINEAR, FrozenNorm, fit_frozen_norm, no_norm, pulled_back
from lensbench.models.precision import in_float64

# How far the parts' sum may lie from what a block adds, relative to the largest coordinate at the same token...
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 5e-3}
# ...and, for the rounding of the residual stream itself, in steps of its precision.
STEPS = 4
# A second part must take this share of what one alone leaves unexplained.
SHARE = 0.1
PROBE_TOKENS = 24


class ComponentError(LensbenchError):
    """A model's blocks do not come apart into attention and MLP."""


@dataclass(frozen=True)
class OutputMap:
    """The last linear map of a part, of its heads or of its neurons.

    Attributes:
        linear: the map.
        norm: what stands between its output and the part's; a plain gain of 1 for nothing.
    """

    linear: nn.Module
    norm: FrozenNorm

    def pulled_back(self, directions: Float[Tensor, "answer d_model"]) -> Float[Tensor, "answer width"]:
        """Return what one unit of each of the map's inputs adds along each direction, the norm's scale frozen."""
        return pulled_back(self.linear, self.norm.back(directions))


@dataclass(frozen=True)
class Part:
    """One of the two things that a block adds to the residual stream.

    Attributes:
        module: what it adds is this module's output, times `factor`.
        factor: 1, or a model's residual multiplier.
        output_map: the last linear map before that; None where there is no single one (experts).
    """

    module: nn.Module
    factor: float
    output_map: OutputMap | None = None

    def require_map(self) -> OutputMap:
        """Return the output map.

        Raises:
            ComponentError: there is none.
        """
        if self.output_map is None:
            raise ComponentError(f"{type(self.module).__name__} has no single output map")
        return self.output_map


@dataclass(frozen=True)
class BlockParts:
    """Attention and MLP of one block; attention alone where a block has one part (state-space models: their mixer)."""

    attention: Part
    mlp: Part | None

    def require_mlp(self) -> Part:
        """Return the MLP.

        Raises:
            ComponentError: the block has one part.
        """
        if self.mlp is None:
            raise ComponentError("the block has one part, no MLP of its own")
        return self.mlp


@dataclass
class _Call:
    """One call of a module inside a block that returned something of the residual stream's shape."""

    module: nn.Module
    given: Tensor | None
    output: Tensor


@dataclass
class _Watched:
    """One block in one pass: what it was given and put out, and the calls inside, in the order in which they ended."""

    given: Tensor | None = None
    output: Tensor | None = None
    calls: list[_Call] = field(default_factory=list)
    times: Counter[nn.Module] = field(default_factory=Counter)


def find_parts(model: LanguageModel) -> tuple[BlockParts, ...]:
    """Return the parts of each block; found once a model.

    Raises:
        ComponentError: no two modules' outputs add up to what a block adds.
    """

    def find() -> tuple[BlockParts, ...]:
        watched = [_Watched() for _ in model.parts.blocks]
        with _watching(model, watched), torch.no_grad():
            model.module(probe_text(model), use_cache=False)
            return tuple(_split(model, i + 1, one) for i, one in enumerate(watched))

    return model.cache.get_or_compute("parts", find)


def probe_text(model: LanguageModel) -> Int[Tensor, "1 token"]:
    """Return two dozen token ids to try a model on."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, model.vocabulary, (1, PROBE_TOKENS), generator=generator).to(model.device)


@contextmanager
def _watching(model: LanguageModel, watched: Sequence[_Watched]) -> Iterator[None]:
    pairs = zip(model.parts.blocks, watched, strict=True)
    with removing([handle for block, seen in pairs for handle in _watch(block, seen)]):
        yield


def _watch(block: nn.Module, seen: _Watched) -> Iterator[Any]:
    """Hook a block and what is in it. All is copied: some blocks add into what they are given, or parts put out."""

    def before(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        seen.given = _copied(_first(args, kwargs))

    def end(_module: nn.Module, _args: Any, output: Any) -> None:
        seen.output = _copied(_tensor(output))

    def after(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        seen.times[module] += 1
        given, out = _first(args, kwargs), _tensor(output)
        if out is None or seen.given is None:
            return
        if out.numel() == seen.given.numel() and out.shape[-1] == seen.given.shape[-1]:
            seen.calls.append(_Call(module, _copied(given), out.detach().clone()))

    yield block.register_forward_pre_hook(before, with_kwargs=True)
    yield block.register_forward_hook(end)
    for module in block.modules():
        if module is not block:
            yield module.register_forward_hook(after, with_kwargs=True)


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    first = args[0] if args else kwargs.get("hidden_states", next(iter(kwargs.values()), None))
    return first if isinstance(first, Tensor) else None


def _tensor(output: Any) -> Tensor | None:
    first = output[0] if isinstance(output, tuple) and output else output
    return first if isinstance(first, Tensor) else None


def _copied(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().clone()


def _split(model: LanguageModel, layer: int, seen: _Watched) -> BlockParts:
    """Find which module outputs add up to what the block added.

    Every number is divided by how far it may be off: at a sink token a block adds thousands of times what it adds
    elsewhere, which must not hide the rest.
    """
    if seen.given is None or seen.output is None:
        raise ComponentError(f"{model.name}: block {layer} neither takes nor returns a residual stream")
    given, output = (in_float64(one).flatten(0, -2) for one in (seen.given, seen.output))
    added = output - given
    unit = TOLERANCE[model.dtype] * added.abs().amax(1, keepdim=True)
    unit = (unit + STEPS * torch.finfo(model.dtype).eps * (given.abs() + output.abs())).clamp(min=1e-30)
    # What is called several times, such as a part that blocks share, cannot be told by its module.
    calls = [call for call in seen.calls if seen.times[call.module] == 1]
    columns = [in_float64(call.output).reshape(added.shape) / unit for call in calls]
    best: tuple[float, dict[int, float]] | None = None
    for size in (1, 2):
        for chosen in combinations(range(len(calls)), size):
            if (found := _explained([columns[i] for i in chosen], added / unit)) is None:
                continue
            left, factors = found
            # The first that fits, innermost modules first; a small attention beside a large MLP is a part all the same.
            if best is None or (size > len(best[1]) and left < (1 - SHARE) * best[0]):
                best = (left, dict(zip(chosen, factors, strict=True)))
    if best is None:
        raise ComponentError(
            f"{model.name}: no two modules of block {layer} add up to what it adds to the residual stream; methods "
            "that read components cannot read this model"
        )
    parts = [_part(model, calls, i, factor) for i, factor in sorted(best[1].items())]
    return BlockParts(parts[0], parts[1] if len(parts) > 1 else None)


def _explained(columns: list[Tensor], goal: Tensor) -> tuple[float, list[float]] | None:
    """Return what the best sum of multiples of these columns leaves, and the multiples; None where it is no fit."""
    gram = torch.stack([torch.stack([(a * b).sum() for b in columns]) for a in columns])
    if float(torch.linalg.det(gram)) <= 1e-9 * float(gram.diagonal().prod()):
        return None  # two that are one, or nothing
    factors = torch.linalg.solve(gram, torch.stack([(a * goal).sum() for a in columns])).tolist()
    if min(abs(factor) for factor in factors) < 1e-3:
        return None
    left = goal - sum(factor * column for factor, column in zip(factors, columns, strict=True))
    return (float(left.square().mean().sqrt()), factors) if float(left.abs().max()) <= 1 else None


def _part(model: LanguageModel, calls: list[_Call], place: int, factor: float) -> Part:
    """Describe a part by the last linear map that ended before its module did, if that map alone makes the output."""
    # A residual multiplier of 1 is 1, whatever rounding says.
    near = 1e-3 if model.dtype in (torch.float32, torch.float64) else 1e-2
    factor = 1.0 if abs(factor - 1) < near else factor
    call = calls[place]
    linears = [one for one in calls[: place + 1] if isinstance(one.module, LINEAR)]
    if not linears:
        return Part(call.module, factor)
    linear, width = linears[-1], call.output.shape[-1]
    rows = linear.output.reshape(-1, width)
    if torch.equal(rows, call.output.reshape(-1, width)):
        return Part(call.module, factor, OutputMap(linear.module, no_norm(width, rows.device)))
    if call.given is None or not torch.equal(rows, call.given.reshape(-1, width)):
        return Part(call.module, factor)
    try:
        norm = fit_frozen_norm(call.module, rows, model.dtype)
    except LensbenchError:
        return Part(call.module, factor)
    return Part(call.module, factor, OutputMap(linear.module, norm))


def final_norm(model: LanguageModel) -> FrozenNorm:
    """Return the model's final norm with its scale to be frozen; found once a model. No norm where there is none.

    Raises:
        ComponentError: it is of another form.
    """
    return model.cache.get_or_compute("final_norm", lambda: _find_final_norm(model))


@torch.no_grad()
def _find_final_norm(model: LanguageModel) -> FrozenNorm:
    last = model.text_residuals(probe_text(model))[0]
    if model.norm(last).shape != last.shape:  # a projection, or the head itself
        return no_norm(model.d_model, last.device)
    try:
        return fit_frozen_norm(model.norm, last, model.dtype)
    except LensbenchError as error:
        raise ComponentError(f"{model.name}: {error}") from None
