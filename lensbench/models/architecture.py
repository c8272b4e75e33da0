"""Where a decoder keeps its blocks, final norm and head: found by structure, proved by numbers."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lensbench.errors import LensbenchError


class ArchitectureError(LensbenchError):
    """The blocks, the final norm or the head of a model were not found, or failed the proof."""


@dataclass(frozen=True)
class ModulePaths:
    """Module paths given by a user for a model whose structure is not found: `model.layers`, `model.norm`."""

    blocks: str
    norm: str


@dataclass(frozen=True)
class Architecture:
    """The parts of a decoder that lensbench touches.

    Attributes:
        owner: the module that holds the list of blocks in its attribute `attribute`.
        blocks: the blocks; block i takes layer i to layer i + 1.
        final: the module that receives the residual stream after the last block (the final norm, or what stands in
            its place).
        paths: the names of blocks and final norm in the model.
        called: for each block, whether a pass over text calls it: cross-attention to images is left out. The residual
            stream passes by a block that is not called.
    """

    owner: nn.Module
    attribute: str
    blocks: nn.ModuleList
    final: nn.Module
    paths: ModulePaths
    called: tuple[bool, ...]

    @contextmanager
    def without_blocks(self) -> Iterator[None]:
        """Run the model without its blocks: what is left are the embeddings, the final norm and the head."""
        setattr(self.owner, self.attribute, nn.ModuleList())
        try:
            yield
        finally:
            setattr(self.owner, self.attribute, self.blocks)


@contextmanager
def removing(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Remove hooks at the end, whatever happens inside."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def on_input(
    modules: Sequence[nn.Module], look: Callable[[int, Tensor], Tensor | None], *, prepend: bool = False
) -> Iterator[None]:
    """Look at the residual stream that modules are called with, in the passes inside.

    Args:
        modules: blocks, or the final norm.
        look: gets the module's place among `modules` and what it is called with; what it returns is passed on instead,
            unless it returns None.
        prepend: look before hooks that are there already.
    """

    def hook_for(place: int) -> Callable[[nn.Module, Any, dict[str, Any]], Any]:
        def hook(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
            name = "hidden_states" if "hidden_states" in kwargs else next(iter(kwargs), "")
            changed = look(place, args[0] if args else kwargs[name])
            if changed is None:
                return None
            return ((changed, *args[1:]), kwargs) if args else (args, {**kwargs, name: changed})

        return hook

    with removing(
        [
            module.register_forward_pre_hook(hook_for(place), with_kwargs=True, prepend=prepend)
            for place, module in enumerate(modules)
        ]
    ):
        yield


def hidden_of(output: Any) -> Tensor:
    """Return the residual stream from a block's output: a tensor, or the first of a tuple or list (BLOOM, GPT)."""
    hidden = output[0] if isinstance(output, tuple | list) and len(output) else output
    if not isinstance(hidden, Tensor):
        raise ArchitectureError(f"a block returns {type(hidden).__name__}, expected a tensor")
    return hidden


def find_architecture(model: nn.Module, n_layers: int, paths: ModulePaths | None = None) -> Architecture:
    """Find blocks and final norm.

    The blocks are the list of `n_layers` modules with the most parameters. The final norm is the first module that is
    called with the last block's output.

    Args:
        model: a causal language model of transformers.
        n_layers: how many blocks its configuration announces.
        paths: where they are, for a model that keeps them elsewhere.

    Raises:
        ArchitectureError: nothing of that shape, or no module at the paths.
    """
    blocks_path = paths.blocks if paths else _blocks_path(model, n_layers)
    blocks = _module_at(model, blocks_path)
    if not isinstance(blocks, nn.ModuleList) or not len(blocks):
        raise ArchitectureError(
            f"{blocks_path} is {type(blocks).__name__}, expected the ModuleList of blocks; see --module-paths"
        )
    called = _called(model, blocks)
    blocks_called = [block for block, is_called in zip(blocks, called, strict=True) if is_called]
    if not blocks_called:
        raise ArchitectureError(f"no block of {blocks_path} is called in a pass over text; see --module-paths")
    norm_path = paths.norm if paths else _called_after(model, blocks_path, blocks_called[-1])
    if paths:
        _require_stream(model, blocks_called[-1], _module_at(model, norm_path), norm_path)
    owner_path, _, attribute = blocks_path.rpartition(".")
    return Architecture(
        owner=_module_at(model, owner_path),
        attribute=attribute,
        blocks=blocks,
        final=_module_at(model, norm_path),
        paths=ModulePaths(blocks_path, norm_path),
        called=called,
    )


def _called(model: nn.Module, blocks: nn.ModuleList) -> tuple[bool, ...]:
    """Return which blocks are called in a pass over text."""
    seen: set[int] = set()

    def note(place: int) -> Callable[[nn.Module, Any], None]:
        return lambda _module, _args: seen.add(place)

    _probe_pass(model, [block.register_forward_pre_hook(note(place)) for place, block in enumerate(blocks)])
    return tuple(place in seen for place in range(len(blocks)))


def _module_at(model: nn.Module, path: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError:
        raise ArchitectureError(
            f"no module {path!r} in {type(model).__name__}; its parts: {_children(model)}"
        ) from None


def _children(model: nn.Module) -> str:
    return ", ".join(name for name, _ in model.named_modules() if name and name.count(".") < 2)


def _blocks_path(model: nn.Module, n_layers: int) -> str:
    sizes: dict[str, int] = {
        name: sum(p.numel() for p in module.parameters())
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == n_layers
    }
    if not sizes:
        raise ArchitectureError(
            f"{type(model).__name__} has no list of {n_layers} blocks; name them with --module-paths "
            f"blocks=PATH,norm=PATH (its parts: {_children(model)})"
        )
    return max(sizes, key=lambda name: sizes[name])


def _called_after(model: nn.Module, blocks_path: str, block: nn.Module) -> str:
    """Return the path of the first module that receives the last block's output itself."""
    last: list[Tensor] = []
    found: list[str] = []
    before: set[str] = set()

    def remember(_module: nn.Module, _args: Any, output: Any) -> None:
        last[:] = [hidden_of(output)]

    def look(name: str) -> Callable[[nn.Module, Any, dict[str, Any]], None]:
        def hook(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            if not last:
                before.add(name)
            elif not found and any(value is last[0] for value in (*args, *kwargs.values())):
                found.append(name)

        return hook

    handles = [block.register_forward_hook(remember)]
    handles += [
        module.register_forward_pre_hook(look(name), with_kwargs=True)
        for name, module in model.named_modules()
        if name and not name.startswith(blocks_path)
    ]
    _probe_pass(model, handles)
    if not found:
        raise ArchitectureError(
            f"no module of {type(model).__name__} takes the last block's output; name the final norm with "
            f"--module-paths blocks={blocks_path},norm=PATH"
        )
    if found[0] in before:
        raise ArchitectureError(
            f"{type(model).__name__} calls its final norm {found[0]} before the blocks as well; it cannot be read"
        )
    return found[0]


def _require_stream(model: nn.Module, block: nn.Module, final: nn.Module, path: str) -> None:
    """Refuse a final norm whose input is not the last block's output: all layers would be read on another scale."""
    seen: dict[str, Tensor] = {}

    def after(_module: nn.Module, _args: Any, output: Any) -> None:
        seen["blocks"] = hidden_of(output).detach()

    def before(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        given = args[0] if args else next(iter(kwargs.values()), None)
        if isinstance(given, Tensor):
            seen["final"] = given.detach()

    handles = [block.register_forward_hook(after), final.register_forward_pre_hook(before, with_kwargs=True)]
    _probe_pass(model, handles)
    end, start = seen.get("blocks"), seen.get("final")
    if end is None or start is None or end.shape != start.shape or not torch.allclose(end, start, rtol=1e-3, atol=1e-4):
        raise ArchitectureError(f"{path} does not take the last block's output; give the final norm as norm=PATH")


def _probe_pass(model: nn.Module, handles: list[RemovableHandle]) -> None:
    """Run the model once on a few tokens for what the hooks behind these handles see, and remove them."""
    with removing(handles), torch.no_grad():
        model(probe_ids(model), use_cache=False)


def probe_ids(model: nn.Module) -> Int[Tensor, "1 token"]:
    """Return five ordinary token ids on the model's device, for the passes that look at its structure."""
    size = int(model.get_input_embeddings().num_embeddings)  # type: ignore[operator]
    ids = [size // 7, size // 5, size // 3, size // 2, size - size // 3]
    return torch.tensor([ids], device=input_device(model))


def input_device(model: nn.Module) -> torch.device:
    """Return the device that token ids go to; of a model that accelerate has spread, that of its embeddings."""
    embeddings: Any = model.get_input_embeddings()  # type: ignore[operator]
    hook = getattr(embeddings, "_hf_hook", None)
    if hook is not None and getattr(hook, "execution_device", None) is not None:
        return torch.device(hook.execution_device)
    device: torch.device = next(embeddings.parameters()).device
    return device


def unembed(
    model: nn.Module, parts: Architecture, residuals: Float[Tensor, "row d_model"]
) -> Float[Tensor, "row vocab"]:
    """Apply the model's own final norm and head, soft-cap and logit scale included, by running it without blocks.

    Differentiable in `residuals`. Not safe to run from two threads on one model.
    """
    with on_input([parts.final], lambda _, given: residuals[:, None].to(given)), parts.without_blocks():
        logits = model(probe_ids(model)[:, :1].expand(len(residuals), 1), use_cache=False).logits
    result: Tensor = logits[:, 0].float().to(residuals.device)
    return result


@contextmanager
def only_tokens(head: nn.Linear, tokens: Int[Tensor, " token"]) -> Iterator[None]:
    """Give the head only the rows of some tokens; embeddings that share its matrix keep all of it."""
    weight, bias = head.weight, head.bias
    head.weight = nn.Parameter(weight[tokens], requires_grad=False)
    if bias is not None:
        head.bias = nn.Parameter(bias[tokens], requires_grad=False)
    try:
        yield
    finally:
        head.weight, head.bias = weight, bias


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """Return every weight, also those that accelerate keeps outside of the module until they are needed."""
    if any(parameter.is_meta for parameter in module.parameters()):
        from accelerate.utils.modeling import get_state_dict_offloaded_model

        weights: dict[str, Tensor] = get_state_dict_offloaded_model(module)
        return weights
    return module.state_dict()


def checksum(tensor: Tensor) -> tuple[int, int]:
    """Return two sums over the bits of all elements, one of them weighted by place: any one change shows."""
    kinds = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    plain = weighted = 0
    for chunk in tensor.detach().contiguous().flatten().split(2**22):
        bits = chunk.view(kinds[chunk.element_size()]).long()
        places = torch.arange(1, len(bits) + 1, device=bits.device)
        plain = (plain * 31 + int(bits.sum())) % 2**61
        weighted = (weighted * 31 + int((bits * places).sum())) % 2**61
    return plain, weighted
