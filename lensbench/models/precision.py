"""In which precision a model computes: how weights are quantised, and how near two ways to a number must be."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lensbench.errors import LensbenchError
from lensbench.models.model_args import ATTENTION, PARALLEL, QUANTISATION, TORCHAO

# How far numbers of two ways to the same result may lie apart (relative to the largest logit, where that is above 1).
TOLERANCE = {torch.float64: 1e-9, torch.float32: 5e-4, torch.bfloat16: 1e-1, torch.float16: 2e-2}
# Activations in 8 bits are rounded to 1/127 of the largest of a row, by at most half of that: as coarse as bfloat16,
# which rounds to 2^-8 of each number.
ROUNDED_ACTIVATIONS = TOLERANCE[torch.bfloat16]


def in_float64(tensor: Tensor) -> Tensor:
    """Return a tensor in float64: where it is, or on the CPU for a device that lacks float64 (MPS)."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()


def keywords(args: Mapping[str, Any], device: torch.device, device_map: str | None) -> dict[str, Any]:
    """Return model arguments, once they are checked, as keyword arguments of `from_pretrained`."""
    made: dict[str, Any] = {"device_map": device_map}
    if ATTENTION in args:
        made[ATTENTION] = args[ATTENTION]
    if QUANTISATION in args:
        made[QUANTISATION] = _configuration(args[QUANTISATION])
        # Weights are quantised where they will be: they cannot be moved there afterwards.
        made["device_map"] = device_map or {"": device}
    if PARALLEL in args:
        from transformers import DistributedConfig

        made = {**made, "distributed_config": DistributedConfig(tp_plan=args[PARALLEL])}
        del made["device_map"]
    return made


def _configuration(given: Mapping[str, Any]) -> Any:
    from transformers import BitsAndBytesConfig, TorchAoConfig

    settings = {name: value for name, value in given.items() if name != "quant_method"}
    if given["quant_method"] != TORCHAO:
        return BitsAndBytesConfig(**settings)
    import torchao.quantization

    kind = getattr(torchao.quantization, settings.pop("quant_type"))
    return TorchAoConfig(kind(**settings))


def plain_parts(name: str, tensor: Any) -> Iterator[tuple[str, Tensor]]:
    """Take a quantised tensor apart into those that it is made of, and put together one that processes share."""
    if hasattr(tensor, "full_tensor"):
        yield name, tensor.full_tensor()
        return
    if not hasattr(tensor, "__tensor_flatten__"):
        yield name, tensor
        return
    for part in tensor.__tensor_flatten__()[0]:
        yield from plain_parts(f"{name}.{part}", getattr(tensor, part))


def held_as(weight: Tensor) -> str | None:
    """Return how a quantised weight is held, such as `int8 (Int8Params)`; None for plain numbers."""
    parts = [part for _, part in plain_parts("", weight)]
    if len(parts) == 1 and parts[0].is_floating_point() and parts[0].element_size() > 1:
        return None
    inner = min(parts, key=lambda part: part.element_size())
    return f"{str(inner.dtype).removeprefix('torch.')} ({type(weight).__name__})"


def quantised_maps(module: nn.Module) -> Counter[str | None]:
    """Count the linear maps of a model by how their weights are held; None are plain ones."""
    maps = (part for part in module.modules() if isinstance(part, nn.Linear))
    return Counter(held_as(part.weight) for part in maps)


def check_quantised(name: str, module: nn.Module, args: Mapping[str, Any]) -> None:
    """Refuse a model that was to be quantised and is not: packages leave what does not fit them as it was.

    Raises:
        LensbenchError: no linear map is quantised.
    """
    if QUANTISATION in args and set(quantised_maps(module)) <= {None}:
        kind = args[QUANTISATION].get("quant_type", args[QUANTISATION]["quant_method"])
        raise LensbenchError(f"{name}: {kind} quantised none of its linear maps; try another quantisation, or none")


def tolerance_of(module: nn.Module, dtype: torch.dtype) -> float:
    """Return how far numbers of two ways to the same result may lie apart, in a model's coarsest precision.

    Coarse weights are the same weights in both ways: only the precision of what is computed with them counts.

    Args:
        module: the model.
        dtype: of its plain weights.
    """
    config: Any = getattr(module, "config", None)
    found = {TOLERANCE[dtype]}
    quantised: Any = getattr(config, "quantization_config", None)
    if quantised is None:
        return max(found)
    if getattr(quantised, "load_in_4bit", False):
        found.add(TOLERANCE[quantised.bnb_4bit_compute_dtype])
    elif type(getattr(quantised, "quant_type", None)).__name__.endswith("WeightOnlyConfig"):
        pass
    else:  # 8 bits of bitsandbytes, the kinds of torchao that round activations, and what we know nothing of
        found.add(ROUNDED_ACTIVATIONS)
    return max(found)
