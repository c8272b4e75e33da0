"""Derivatives under the rules of relevance propagation (RelP, arXiv 2508.21258); what passes compute stays as it is.

Norms of the residual stream count as linear, their denominators as constants; an activation f(x) = x φ(x) as φ(x) times
x; of a gate u·v each factor gets half of its gradient. Attention, norms inside it, and linear maps are differentiated
as always.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lensbench.errors import LensbenchError
from lensbench.models.architecture import removing
from lensbench.models.components import probe_text
from lensbench.models.language_model import LanguageModel
from lensbench.models.linear_parts import LINEAR, FrozenNorm, fit_frozen_norm


@dataclass
class _Rules:
    """Where a model has what the rules are about.

    Attributes:
        norms: of the residual stream, in their form with a frozen scale.
        activations: the modules that are called between the linear maps of an MLP.
        gated: the linear maps that are given a gate's product.
    """

    norms: dict[nn.Module, FrozenNorm] = field(default_factory=dict)
    activations: set[nn.Module] = field(default_factory=set)
    gated: set[nn.Module] = field(default_factory=set)


@dataclass(frozen=True)
class _Applied:
    """One call of a module, inside a block, that takes and returns a tensor."""

    module: nn.Module
    given: Tensor
    output: Tensor


def require_relevance_rules(model: LanguageModel) -> None:
    """Refuse a model whose blocks are not of the kind that the rules are for.

    Raises:
        LensbenchError: which block, and what was not found there.
    """
    _find_rules(model)


@contextmanager
def relevance_rules(model: LanguageModel) -> Iterator[None]:
    """Have the graphs of passes inside follow the rules.

    Raises:
        LensbenchError: the model has blocks of another kind.
    """
    rules = _find_rules(model)

    def normed(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        norm, x = rules.norms[module], args[0].float()
        return _with_gradient_of(output, norm.linear(x) * norm.scale(x).detach())

    def activated(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = args[0]
        share = torch.where(x == 0, 0.5, output / torch.where(x == 0, 1.0, x))
        return _with_gradient_of(output, share.detach() * x)

    def halved(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (_with_gradient_of(args[0], args[0] / 2),)

    with removing(
        [
            *(module.register_forward_hook(normed) for module in rules.norms),
            *(module.register_forward_hook(activated) for module in rules.activations),
            *(module.register_forward_pre_hook(halved) for module in rules.gated),
        ]
    ):
        yield


def _with_gradient_of(value: Tensor, other: Tensor) -> Tensor:
    """Return a value, to be differentiated as if it were another: to this nothing is added but zeros."""
    return value.detach() + (other - other.detach()).to(value.dtype)


def _find_rules(model: LanguageModel) -> _Rules:
    def find() -> _Rules:
        rules = _Rules()
        calls: list[list[_Applied]] = [[] for _ in model.parts.blocks]
        pairs = list(zip(model.parts.blocks, calls, strict=True))
        with removing([handle for block, own in pairs for handle in _watch(block, own)]), torch.no_grad():
            model.module(probe_text(model), use_cache=False)
        with torch.no_grad():
            for layer, (block, own) in enumerate(pairs, start=1):
                _add_block(model, rules, layer, block, own)
        return rules

    return model.cache.get_or_compute("relevance rules", find)


def _watch(block: nn.Module, calls: list[_Applied]) -> Iterator[Any]:
    def after(module: nn.Module, args: Any, output: Any) -> None:
        if args and isinstance(args[0], Tensor) and isinstance(output, Tensor):
            calls.append(_Applied(module, args[0].clone(), output.clone()))

    for module in block.modules():
        if not any(module.children()):
            yield module.register_forward_hook(after)


def _add_block(model: LanguageModel, rules: _Rules, layer: int, block: nn.Module, calls: Sequence[_Applied]) -> None:
    """Add what one block has: norms right below it, one activation, and what is called with its output."""
    unknown = f"{model.name}: the rules of the R-lens are not known for block {layer}: "
    children = set(block.children())
    for call in calls:
        if call.module in children and "norm" in type(call.module).__name__.lower():
            rules.norms[call.module] = fit_frozen_norm(call.module, call.given.flatten(0, -2), model.dtype)
    active = [call for call in calls if _is_activation(call)]
    if len(active) != 1 or not any(norm in children for norm in rules.norms):
        raise LensbenchError(
            f"{unknown}it has {len(active)} activations, expected 1, after a norm; use estimator later"
        )
    linears = [call for call in calls if isinstance(call.module, LINEAR)]
    after = [call for call in linears if call.given.shape == active[0].output.shape]
    plain = [call.module for call in after if torch.equal(call.given, active[0].output)]
    gated = [
        call.module for call in after if any(_is_gate(call.given, active[0].output, one.output) for one in linears)
    ]
    if len(plain) + len(gated) != 1:
        raise LensbenchError(f"{unknown}no linear map is given its activation, gated or not; use estimator later")
    rules.activations.add(active[0].module)
    rules.gated.update(gated)


def _is_activation(call: _Applied) -> bool:
    """Whether a module without weights changes each number by itself, and leaves zero as it is."""
    weights = sum(1 for _ in call.module.parameters())
    if weights or call.given.shape != call.output.shape or torch.equal(call.given, call.output):
        return False
    turned = call.module(call.given.flip(-1)).flip(-1)
    return torch.allclose(turned, call.output) and not call.module(torch.zeros_like(call.given)).any()


def _is_gate(product: Tensor, activated: Tensor, linear: Tensor) -> bool:
    """Whether a product is an activation times a linear map's output, or times a half of it."""
    width = product.shape[-1]
    parts = linear.split(width, dim=-1) if linear.shape[-1] in (width, 2 * width) else ()
    return any(torch.equal(product, activated * part) for part in parts if part.shape == product.shape)
