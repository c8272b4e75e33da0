"""What the parts of blocks hold at the read sites, in one pass a batch of texts."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lensbench.models.architecture import hidden_of, removing
from lensbench.models.components import BlockParts, ComponentError, Part, final_norm, find_parts, probe_text
from lensbench.models.language_model import LanguageModel
from lensbench.models.linear_parts import width_of
from lensbench.models.replay import record_pass

Component = Literal["attention", "mlp", "mlp_input", "heads", "head_values", "neurons", "final_scale"]
"""What may be read of block l, for layer l:

- `attention`, `mlp`: what it adds to the residual stream [d_model];
- `mlp_input`: the layer without what its MLP adds; where attention goes first, what the MLP reads, before its norm
  [d_model];
- `heads`: what each head adds, and last the bias of their output map [(heads + 1) * d_model];
- `head_values`: what each head hands to the output map, in units of what one adds along its own output direction, for
  `head_directions`: all that heads say, (heads + 1) times smaller than `heads` [heads * head_dim];
- `neurons`: the neurons of the MLP, in the same units, for `neuron_directions` [d_ff];
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
    if name in ("heads", "head_values") and not _has_heads(model, parts):
        raise ComponentError(f"{model.name}: no attention heads were found whose outputs add up")
    if name == "neurons" and any(one.mlp is None or one.mlp.output_map is None for one in parts):
        raise ComponentError(f"{model.name}: the MLP has no single output map (experts), so no neurons of its own")


def heads_of(model: LanguageModel) -> int:
    """Return how many attention heads a block has, as the configuration says; 0 where it says nothing."""
    config: Any = model.module.config
    return int(getattr(config.get_text_config(), "num_attention_heads", 0) or 0)


def _has_heads(model: LanguageModel, parts: Sequence[BlockParts]) -> bool:
    """Whether each block's first part is attention, and what its output map takes is as wide as its heads together.

    Mixers of another kind (state spaces, linear attention) have an output map too, and channels in place of heads.
    """
    config: Any = model.module.config
    config = config.get_text_config()
    heads, kinds = heads_of(model), getattr(config, "layer_types", None) or ()
    if not heads or any(not kind.endswith("attention") or kind.startswith("linear") for kind in kinds):
        return False
    each = [getattr(config, name, None) for name in ("v_head_dim", "head_dim")] + [model.d_model // heads]
    width = heads * next(one for one in each if one)
    maps = [one.attention.output_map for one in parts if one.mlp is not None]
    return len(maps) == len(parts) and all(one is not None and width_of(one.linear) == width for one in maps)


_Values = dict[Literal["output", "given", "mapped"], Tensor]
"""One part at the read sites of one pass: what its module put out, and input and output of its linear map."""


@contextmanager
def _capturing(part: Part, positions: Tensor, seen: _Values) -> Iterator[None]:
    rows = torch.arange(len(positions))

    def picked(tensor: Tensor) -> Tensor:
        # Some models call their maps on all tokens of all rows in one axis. Indexing copies: some blocks go on to add
        # into what a part put out.
        shaped = tensor.reshape(len(rows), -1, tensor.shape[-1])
        return shaped[rows.to(tensor.device), positions.to(tensor.device)].float()

    def whole(_module: nn.Module, _args: Any, output: Any) -> None:
        seen["output"] = picked(hidden_of(output))

    def inner(_module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        seen["given"] = picked(args[0] if args else next(iter(kwargs.values())))
        seen["mapped"] = picked(output)

    handles = [part.module.register_forward_hook(whole)]
    if part.output_map is not None:
        handles.append(part.output_map.linear.register_forward_hook(inner, with_kwargs=True))
    with removing(handles):
        yield


@torch.no_grad()
def capture_component(
    model: LanguageModel, texts: Sequence[tuple[int, ...]], name: Component, layers: Sequence[int]
) -> Float[Tensor, "layer text width"]:
    """Read one component at the last token of each text; layer 0, which no block makes, holds zeros.

    Raises:
        ComponentError: the model has no such component.
    """
    require_component(model, name)
    order = sorted(range(len(texts)), key=lambda i: (len(texts[i]), texts[i]))
    parts = model.budget.in_token_batches(
        [len(texts[i]) for i in order],
        lambda: model.budget.rows(2 * model.token_bytes, cpu_most=512),
        lambda batch: _read(model, [texts[i] for i in order[batch]], name, layers),
    )
    found = torch.cat(parts, dim=1)
    place = torch.tensor(order).argsort()
    return found[:, place.to(found.device)]


def _read(model: LanguageModel, texts: list[tuple[int, ...]], name: Component, layers: Sequence[int]) -> Tensor:
    ids, mask = model.tokens.pad(texts)
    positions = torch.tensor([len(text) - 1 for text in texts])
    if name == "final_scale":
        last = model.residuals(ids, mask, positions[:, None], (model.n_layers,))[0, :, 0]
        scale: Tensor = final_norm(model).scale(last.float())
        return scale.repeat(len(layers), 1, 1)
    parts = find_parts(model)
    wanted = {layer: _part_of(parts[layer - 1], name) for layer in layers if layer > 0}
    if not wanted:
        return torch.zeros(len(layers), len(texts), _width(model, parts[0], name), device=model.device)
    seen: dict[int, _Values] = {layer: {} for layer in wanted}
    with ExitStack() as stack:
        for layer, part in wanted.items():
            stack.enter_context(_capturing(part, positions, seen[layer]))
        asked = list(wanted) if name == "mlp_input" else [max(wanted)]
        residuals = model.residuals(ids, mask, positions[:, None], asked)[:, :, 0].float()
    values = {layer: _value(model, part, seen[layer], name).to(model.device) for layer, part in wanted.items()}
    if name == "mlp_input":
        values = {layer: residuals[asked.index(layer)] - value for layer, value in values.items()}
    widths = {value.shape[1] for value in values.values()}
    if len(widths) > 1:
        raise ComponentError(f"{model.name}: {name} are of different widths at different layers, {sorted(widths)}")
    zeros = torch.zeros_like(next(iter(values.values())))
    return torch.stack([values.get(layer, zeros) for layer in layers])


def _part_of(parts: BlockParts, name: Component) -> Part:
    return parts.attention if name in ("attention", "heads", "head_values") else parts.require_mlp()


def _width(model: LanguageModel, parts: BlockParts, name: Component) -> int:
    """Return how wide a component is."""
    if name == "heads":
        return (heads_of(model) + 1) * model.d_model
    if name not in ("head_values", "neurons"):
        return model.d_model
    return width_of(_part_of(parts, name).require_map().linear)


def _value(model: LanguageModel, part: Part, seen: _Values, name: Component) -> Tensor:
    if name not in ("heads", "head_values", "neurons"):
        return part.factor * seen["output"]
    # What the output map takes, times all that comes after it and is frozen.
    scaled = part.factor * part.require_map().norm.scale(seen["mapped"]) * seen["given"]
    return _each_head(model, part, seen, scaled).flatten(1) if name == "heads" else scaled


def _each_head(
    model: LanguageModel, part: Part, seen: _Values, scaled: Float[Tensor, "row width"]
) -> Float[Tensor, "row head_and_bias d_model"]:
    """Return what each head's slice of the map's input becomes, and last what its bias and the norm's do: nobody's."""
    output_map = part.require_map()
    norm, heads = output_map.norm, heads_of(model)
    read = output_map.pulled_back(torch.eye(model.d_model, device=scaled.device))
    each = torch.einsum("rhw,dhw->rhd", scaled.unflatten(1, (heads, -1)), read.unflatten(1, (heads, -1)))
    bias: Tensor = output_map.linear(scaled.new_zeros(1, scaled.shape[1]).to(model.dtype)).float()
    alone = part.factor * (norm.scale(seen["mapped"]) * norm.linear(bias) + norm.bias.to(bias.device))
    return torch.cat([each, alone[:, None]], dim=1)


@torch.no_grad()
def head_directions(
    model: LanguageModel, layer: int, directions: Float[Tensor, "answer d_model"]
) -> Float[Tensor, "answer head head_dim"]:
    """Return what one unit of each of the `head_values` of block `layer` adds along each direction.

    Raises:
        ComponentError: no heads.
    """
    require_component(model, "heads")
    found = find_parts(model)[layer - 1].attention.require_map().pulled_back(directions.float())
    each: Tensor = found.to(directions.device).unflatten(1, (heads_of(model), -1))
    return each


@torch.no_grad()
def neuron_directions(
    model: LanguageModel, layer: int, directions: Float[Tensor, "answer d_model"]
) -> Float[Tensor, "answer neuron"]:
    """Return what one unit of each of the `neurons` of block `layer` adds along each direction.

    Raises:
        ComponentError: no neurons.
    """
    require_component(model, "neurons")
    found = find_parts(model)[layer - 1].require_mlp().require_map().pulled_back(directions.float())
    return found.to(directions.device)


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
    found: Tensor = _through(model, layer, values, "heads").unflatten(1, (-1, model.d_model))
    return found


def values_through_heads(
    model: LanguageModel, layer: int, values: Float[Tensor, "row d_model"]
) -> Float[Tensor, "row width"]:
    """Return the `head_values` of block `layer` where its heads attend to this residual alone: see `through_heads`."""
    return _through(model, layer, values, "head_values")


@torch.no_grad()
def _through(model: LanguageModel, layer: int, values: Tensor, name: Component) -> Tensor:
    require_component(model, "heads")
    recorded = model.cache.get_or_compute("single_token", lambda: record_pass(model, probe_text(model)[:, :1], None))
    call, part = recorded.calls[layer - 1], find_parts(model)[layer - 1].attention

    def run(rows: slice) -> Tensor:
        seen: _Values = {}
        batch = values[rows]
        with _capturing(part, torch.zeros(len(batch), dtype=torch.long), seen):
            call(batch[:, None].to(model.device, model.dtype))
        return _value(model, part, seen, name).to(values.device)

    # A block's own numbers are a share of a token's; heads by themselves are many times a residual.
    row_bytes = 2 * model.token_bytes + 8 * _width(model, find_parts(model)[layer - 1], name)
    return torch.cat(model.budget.in_batches(len(values), lambda _begin: model.budget.rows(row_bytes, 512), run))
