"""What the parts of blocks hold at the read sites, in one pass a batch of texts."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lensbench.model.architecture import hidden_of
from lensbench.model.block_calls import record_pass
from lensbench.model.components import (
    BlockParts,
    ComponentError,
    Part,
    each_head,
    final_norm,
    find_parts,
    heads_of,
    probe_text,
)
from lensbench.model.language_model import LanguageModel

Component = Literal["attention", "mlp", "mlp_input", "heads", "neurons", "final_scale"]
"""What may be read of block l, for layer l:

- `attention`, `mlp`: what it adds to the residual stream [d_model];
- `mlp_input`: the residual stream that the MLP reads, before its norm: the layer without what the MLP adds [d_model];
- `heads`: what each head adds, and last the bias of their output map [(heads + 1) * d_model];
- `neurons`: the neurons of the MLP, in units of what one adds along its own output direction [d_ff];
- `final_scale`: one over the final norm's denominator at the end of the stream, the same at each layer [1].
"""
COMPONENTS: tuple[Component, ...] = get_args(Component)


def require_component(model: LanguageModel, name: Component) -> None:
    """Refuse what a model's blocks do not have.

    Raises:
        ComponentError: which part is missing.
    """
    if name == "final_scale":
        final_norm(model)
        return
    parts = find_parts(model)
    if name in ("mlp", "mlp_input", "neurons") and any(one.mlp is None for one in parts):
        raise ComponentError(f"{model.name}: blocks have one part, no MLP of their own")
    if name == "heads" and not _has_heads(model, parts):
        raise ComponentError(f"{model.name}: no attention heads were found whose outputs add up")
    if name == "neurons" and any(one.mlp is None or one.mlp.linear is None for one in parts):
        raise ComponentError(f"{model.name}: the MLP has no single output map (experts), so no neurons of its own")


def _has_heads(model: LanguageModel, parts: Sequence[BlockParts]) -> bool:
    if any(one.mlp is None or one.attention.linear is None for one in parts):
        return False
    try:
        return heads_of(model) > 0
    except AttributeError:
        return False


@dataclass
class _Seen:
    """One part at the read sites of one pass: what its module put out, and input and output of its linear map."""

    output: Float[Tensor, "row d_model"] | None = None
    given: Float[Tensor, "row width"] | None = None
    mapped: Float[Tensor, "row d_model"] | None = None


@contextmanager
def _seeing(part: Part, positions: Tensor, seen: _Seen) -> Iterator[None]:
    rows = torch.arange(len(positions))

    def picked(tensor: Tensor) -> Tensor:
        # Some models call their maps on all tokens of all rows in one axis. Indexing copies: some blocks go on to add
        # into what a part put out.
        shaped = tensor.reshape(len(rows), -1, tensor.shape[-1])
        return shaped[rows.to(tensor.device), positions.to(tensor.device)].float()

    def whole(_module: nn.Module, _args: Any, output: Any) -> None:
        seen.output = picked(hidden_of(output))

    def inner(_module: nn.Module, args: Any, output: Any) -> None:
        seen.given, seen.mapped = picked(args[0]), picked(output)

    handles = [part.module.register_forward_hook(whole)]
    handles += [part.linear.register_forward_hook(inner)] if part.linear is not None else []
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def capture_component(
    model: LanguageModel, texts: Sequence[tuple[int, ...]], name: Component, layers: Sequence[int]
) -> Float[Tensor, "layer text width"]:
    """Read one component at the last token of each text; layer 0, which no block makes, holds zeros.

    Args:
        model: whose blocks are read.
        texts: token ids, each up to its read site.
        name: what to read.
        layers: 0 to L.

    Raises:
        ComponentError: the model has no such component.
    """
    require_component(model, name)
    order = sorted(range(len(texts)), key=lambda i: (len(texts[i]), texts[i]))

    def size(begin: int) -> int:
        longest = len(texts[order[min(begin + 16, len(order)) - 1]])
        return max(1, model.budget.rows(2 * model.token_bytes * longest, cpu_most=16))

    def run(batch: slice) -> Tensor:
        return _read(model, [texts[i] for i in order[batch]], name, layers)

    found = torch.cat(model.budget.in_batches(len(texts), size, run), dim=1)
    place = torch.tensor(order).argsort()
    return found[:, place.to(found.device)]


def _read(model: LanguageModel, texts: list[tuple[int, ...]], name: Component, layers: Sequence[int]) -> Tensor:
    ids, mask = model.tokens.pad(texts)
    positions = torch.tensor([len(text) - 1 for text in texts])
    if name == "final_scale":
        last = model.residuals(ids, mask, positions[:, None], (model.n_layers,))[0, :, 0]
        scale: Tensor = final_norm(model).scale(last.float())
        return scale.expand(len(layers), -1, -1)
    parts = find_parts(model)
    wanted = {layer: _part_of(parts[layer - 1], name) for layer in layers if layer > 0}
    seen = {layer: _Seen() for layer in wanted}
    with ExitStack() as stack:
        for layer, part in wanted.items():
            stack.enter_context(_seeing(part, positions, seen[layer]))
        asked = [layer for layer in layers if layer > 0] if name == "mlp_input" else [max(layers)]
        residuals = model.residuals(ids, mask, positions[:, None], asked)[:, :, 0].float()
    values = {layer: _value(model, part, seen[layer], name).to(model.device) for layer, part in wanted.items()}
    if name == "mlp_input":
        values = {layer: residuals[asked.index(layer)] - value for layer, value in values.items()}
    width = next(iter(values.values())).shape[1] if values else model.d_model
    zeros = torch.zeros(len(texts), width, device=model.device)
    return torch.stack([values.get(layer, zeros) for layer in layers])


def _part_of(parts: BlockParts, name: Component) -> Part:
    if name in ("attention", "heads"):
        return parts.attention
    assert parts.mlp is not None
    return parts.mlp


def _value(model: LanguageModel, part: Part, seen: _Seen, name: Component) -> Tensor:
    if name not in ("heads", "neurons"):
        assert seen.output is not None
        whole: Tensor = part.factor * seen.output
        return whole
    norm = part.norm
    if norm is None or seen.given is None or seen.mapped is None:
        raise ComponentError(f"{model.name}: no output map was found for {name}")
    scale = norm.scale(seen.mapped)
    if name == "neurons":
        own: Tensor = part.factor * scale * seen.given
        return own
    found = each_head(part, seen.given.to(model.dtype), heads_of(model)).float()
    whole = part.factor * norm.linear(found) * scale[:, None]
    # What the norm adds by itself is nobody's: it goes with the bias.
    whole[:, -1] += part.factor * norm.bias
    return whole.flatten(1)


@torch.no_grad()
def through_heads(
    model: LanguageModel, layer: int, values: Float[Tensor, "row d_model"]
) -> Float[Tensor, "row head_and_bias d_model"]:
    """Return what each head of block `layer` adds where it attends to this residual alone, and last its map's bias.

    That is W_O W_V N(h): a text of one token attends to nothing but itself.

    Raises:
        ComponentError: no heads.
        ReplayError: the block cannot be called by itself.
    """
    require_component(model, "heads")
    if "single_token" not in model.companions:
        model.companions["single_token"] = record_pass(model, probe_text(model)[:, :1], None)
    call, part = model.companions["single_token"].calls[layer - 1], find_parts(model)[layer - 1].attention
    seen = _Seen()
    found = []
    for rows in values.split(64):
        with _seeing(part, torch.zeros(len(rows), dtype=torch.long), seen):
            call(rows[:, None].to(model.device, model.dtype))
        found.append(_value(model, part, seen, "heads"))
    return torch.cat(found).unflatten(1, (-1, model.d_model))
