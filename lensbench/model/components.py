"""The parts of a block: what attention, its heads, the MLP and its neurons add to the residual stream.

Found by structure and proved by numbers, as blocks and norm are: the two modules whose outputs, each times a constant,
add up to what the block adds.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lensbench.errors import LensbenchError
from lensbench.model.architecture import hidden_of
from lensbench.model.frozen_norm import FrozenNorm, fit_frozen_norm
from lensbench.model.language_model import LanguageModel

# How far the parts' sum may lie from what a block adds, relative to the largest coordinate.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
PROBE_TOKENS = 24
LINEAR = (nn.Linear, Conv1D)


class ComponentError(LensbenchError):
    """A model's blocks do not come apart into attention and MLP."""


@dataclass(frozen=True)
class Part:
    """One of the two things that a block adds to the residual stream.

    Attributes:
        module: what it adds is this module's output, times `factor`.
        factor: 1, or a model's residual multiplier.
        linear: the last linear map before that: of heads, or of neurons; None where there is no single one (experts).
        norm: what stands between that map's output and the module's; a plain gain of 1 for nothing.
    """

    module: nn.Module
    factor: float
    linear: nn.Module | None
    norm: FrozenNorm | None


@dataclass(frozen=True)
class BlockParts:
    """Attention and MLP of one block; attention alone where a block has one part (state-space models: their mixer)."""

    attention: Part
    mlp: Part | None


@dataclass
class _Call:
    """One call of a module inside a block, in the order in which calls end."""

    module: nn.Module
    given: Tensor | None
    output: Tensor


def find_parts(model: LanguageModel) -> tuple[BlockParts, ...]:
    """Return the parts of each block; found once a model.

    Raises:
        ComponentError: no two modules' outputs add up to what a block adds.
    """
    if "parts" not in model.companions:
        model.companions["parts"] = tuple(_found(model))
    parts: tuple[BlockParts, ...] = model.companions["parts"]
    return parts


def probe_text(model: LanguageModel) -> Int[Tensor, "1 token"]:
    """Return two dozen token ids to try a model on."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, model.vocabulary, (1, PROBE_TOKENS), generator=generator).to(model.device)


def _found(model: LanguageModel) -> Iterator[BlockParts]:
    ids = probe_text(model)
    for place, block in enumerate(model.parts.blocks):
        calls: list[_Call] = []
        with _watching(block, calls), torch.no_grad():
            model.module(ids, use_cache=False)
        whole = calls[-1]  # the block itself ends last
        assert whole.given is not None
        added = (whole.output.double() - whole.given.double()).flatten(0, 1)
        yield _split(model, place, added, calls[:-1])


@contextmanager
def _watching(block: nn.Module, calls: list[_Call]) -> Iterator[None]:
    def after(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        first = args[0] if args else kwargs.get("hidden_states", next(iter(kwargs.values()), None))
        out = output[0] if isinstance(output, tuple) and output else output
        if isinstance(out, Tensor) and out.dim() >= 2:
            # Copied: some blocks add into what their parts put out.
            calls.append(_Call(module, first if isinstance(first, Tensor) else None, out.detach().clone()))

    handles = [module.register_forward_hook(after, with_kwargs=True) for module in block.modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _split(model: LanguageModel, place: int, added: Tensor, calls: list[_Call]) -> BlockParts:
    """Find which module outputs add up to what the block added."""
    width = added.shape[1]
    fitting = [
        i for i, call in enumerate(calls) if call.output.shape[-1] == width and call.output.numel() == added.numel()
    ]
    columns = {i: calls[i].output.double().reshape(added.shape) for i in fitting}
    tolerance = TOLERANCE[model.dtype] * float(added.abs().max())
    for i in fitting:
        factor = float((columns[i] * added).sum() / columns[i].square().sum().clamp(min=1e-30))
        if float((factor * columns[i] - added).abs().max()) < tolerance:
            return BlockParts(_part(model, calls, i, factor), None)
    for n, i in enumerate(fitting):
        for j in fitting[n + 1 :]:
            factors = _two_factors(columns[i], columns[j], added)
            if factors is None:
                continue
            if float((factors[0] * columns[i] + factors[1] * columns[j] - added).abs().max()) < tolerance:
                return BlockParts(_part(model, calls, i, factors[0]), _part(model, calls, j, factors[1]))
    raise ComponentError(
        f"{model.name}: no two modules of block {place + 1} add up to what it adds to the residual stream; methods "
        "that read components cannot read this model"
    )


def _two_factors(a: Tensor, b: Tensor, added: Tensor) -> tuple[float, float] | None:
    """Return the least-squares α, β of αa + βb = added; None for two that are one, or where one is not needed."""
    gram = torch.stack([torch.stack([(a * a).sum(), (a * b).sum()]), torch.stack([(a * b).sum(), (b * b).sum()])])
    if float(torch.linalg.det(gram)) <= 1e-9 * float(gram[0, 0] * gram[1, 1]):
        return None
    alpha, beta = torch.linalg.solve(gram, torch.stack([(a * added).sum(), (b * added).sum()])).tolist()
    return None if min(abs(alpha), abs(beta)) < 1e-3 else (alpha, beta)


def _part(model: LanguageModel, calls: list[_Call], place: int, factor: float) -> Part:
    """Describe a part by the last linear map that ended before its module did, if that map alone makes the output."""
    # A residual multiplier of 1 is 1, whatever rounding says.
    factor = round(factor) if abs(factor - round(factor)) < 1e-3 else factor
    linears = [call for call in calls[: place + 1] if isinstance(call.module, LINEAR)]
    module, output = calls[place].module, calls[place].output
    if not linears or linears[-1].output.shape[-1] != output.shape[-1] or linears[-1].output.numel() != output.numel():
        return Part(module, factor, None, None)
    try:
        norm = fit_frozen_norm(linears[-1].output.flatten(0, -2).float(), output.flatten(0, -2).float())
    except LensbenchError:
        return Part(module, factor, None, None)
    return Part(module, factor, linears[-1].module, norm)


def final_norm(model: LanguageModel) -> FrozenNorm:
    """Return the model's final norm with its scale to be frozen; found once a model.

    Raises:
        ComponentError: it is of another form.
    """
    if "final_norm" not in model.companions:
        seen: list[tuple[Tensor, Tensor]] = []

        def after(_module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
            seen.append((args[0] if args else next(iter(kwargs.values())), hidden_of(output)))

        handle = model.parts.final.register_forward_hook(after, with_kwargs=True)
        try:
            with torch.no_grad():
                model.module(probe_text(model), use_cache=False)
        finally:
            handle.remove()
        (x, y), *_ = seen
        try:
            model.companions["final_norm"] = fit_frozen_norm(x.flatten(0, 1).float(), y.flatten(0, 1).float())
        except LensbenchError as error:
            raise ComponentError(f"{model.name}: {error}") from None
    norm: FrozenNorm = model.companions["final_norm"]
    return norm


def heads_of(model: LanguageModel) -> int:
    """Return how many attention heads a block has."""
    config: Any = model.module.config
    return int(config.get_text_config().num_attention_heads)


def each_head(part: Part, given: Float[Tensor, "row width"], heads: int) -> Float[Tensor, "row head_and_bias d_model"]:
    """Return what each head's slice of the output map's input becomes, and last what its bias does.

    Before the norm and the factor. The map is called as a module: quantised weights have no plain matrix.
    """
    assert part.linear is not None
    rows, width = given.shape
    masked = given.new_zeros(rows, heads, heads, width // heads)
    own = torch.arange(heads, device=given.device)
    masked[:, own, own] = given.reshape(rows, heads, -1)
    bias = part.linear(given.new_zeros(1, width))
    out: Tensor = part.linear(masked.reshape(rows * heads, width)) - bias
    return torch.cat([out.reshape(rows, heads, -1), bias.expand(rows, -1)[:, None]], dim=1)


def pulled_back(
    linear: nn.Module, directions: Float[Tensor, "answer d_model"], width: int
) -> Float[Tensor, "answer width"]:
    """Return Wᵀu for each direction u: what one unit of each neuron adds along it."""
    weight: Any = linear.weight
    with torch.enable_grad():
        inputs = torch.zeros(len(directions), width, device=weight.device, dtype=torch.float32, requires_grad=True)
        out = linear(inputs.to(weight.dtype if weight.is_floating_point() else torch.float32)).float()
        (found,) = torch.autograd.grad((out * directions.to(out)).sum(), inputs)
    result: Tensor = found
    return result
