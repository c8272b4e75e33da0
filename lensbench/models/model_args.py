"""What else may be said about how a model is loaded (`--model-args`): a whitelist, checked before anything is loaded.

Nothing here imports torch or transformers.
"""

import os
import re
import sys
import tomllib
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from lensbench.errors import UsageError, unknown_name

ATTENTION, QUANTISATION, PARALLEL = "attn_implementation", "quantization_config", "tp_plan"
ATTENTIONS = ("eager", "sdpa", "flash_attention_2")
DTYPES = ("float32", "bfloat16", "float16", "float64")
DTYPE_NAMES, SHORT = ("dtype", "torch_dtype"), ("load_in_4bit", "load_in_8bit")
KNOWN = (ATTENTION, *DTYPE_NAMES, *SHORT, QUANTISATION, PARALLEL)
# The packages that quantise, with what may be said to each; those of torchao's kinds that round activations as well.
TORCHAO, BITSANDBYTES = "torchao", "bitsandbytes"
ROUNDS_ACTIVATIONS = ("Float8DynamicActivationFloat8WeightConfig", "Int8DynamicActivationInt8WeightConfig")
KINDS = ("Float8WeightOnlyConfig", "Int4WeightOnlyConfig", "Int8WeightOnlyConfig", *ROUNDS_ACTIVATIONS)
SETTINGS = {
    TORCHAO: ("quant_type", "group_size"),
    BITSANDBYTES: (
        *SHORT, "llm_int8_threshold", "llm_int8_skip_modules", "bnb_4bit_compute_dtype", "bnb_4bit_quant_type",
        "bnb_4bit_use_double_quant",
    ),
}  # fmt: skip
_FORM = "expected KEY=VALUE,KEY=VALUE, such as attn_implementation=eager,load_in_8bit=true"
# A value in braces or brackets may have commas of its own.
_PART = re.compile(r"(?:\{[^{}]*\}|\[[^\[\]]*\]|[^,])+")


def parse_model_args(text: str) -> dict[str, Any]:
    """Read `key=value,key=value`; each value as TOML, as Python's True and False, or as plain text.

    Raises:
        UsageError: another form, or a key that is given twice.
    """
    found: dict[str, Any] = {}
    for part in _PART.findall(text):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not (name and equals and value):
            raise UsageError(f"--model-args {text!r}: {_FORM}")
        if name in found:
            raise UsageError(f"--model-args {text!r}: {name} is given twice; give it once")
        found[name] = _value(value)
    return found


def _value(text: str) -> Any:
    if text in ("True", "False"):
        return text == "True"
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError, ValueError):
        return text


def with_dtype(given: Mapping[str, Any], dtype: str) -> tuple[dict[str, Any], str]:
    """Take the dtype out of model arguments, where it stands under either of its names.

    Args:
        given: the model arguments.
        dtype: what `--dtype` says; `auto` says nothing.

    Returns:
        The other arguments, and the dtype.

    Raises:
        UsageError: they say different things, or name no dtype.
    """
    said = {name: str(given[name]).removeprefix("torch.") for name in DTYPE_NAMES if name in given}
    for value in said.values():
        if value not in ("auto", *DTYPES):
            raise unknown_name("dtype", value, ("auto", *DTYPES))
    told = ({"--dtype": dtype} if dtype != "auto" else {}) | said
    if len(set(told.values())) > 1:
        both = ", ".join(f"{name} {value}" for name, value in told.items())
        raise UsageError(f"--model-args: {both} are different dtypes; give one")
    rest = {name: value for name, value in given.items() if name not in DTYPE_NAMES}
    return rest, next(iter(told.values()), dtype)


def check_model_args(given: Mapping[str, Any], device_map: str | None = None) -> dict[str, Any]:
    """Return model arguments in one form, whichever way they were said; nothing is loaded.

    What says nothing (`load_in_8bit=false`) is left out, and `load_in_8bit=true` is written as a `quantization_config`.

    Args:
        given: the arguments, without dtypes.
        device_map: what is asked of `--device-map`.

    Raises:
        UsageError: an unknown key or value, two that exclude each other, or a package that is not installed.
    """
    for name in given:
        if name not in KNOWN:
            raise unknown_name("model argument", name, KNOWN)
    made: dict[str, Any] = {}
    if ATTENTION in given:
        made[ATTENTION] = _attention(given[ATTENTION])
    quantised = _quantisation(given)
    if quantised is not None:
        made[QUANTISATION] = quantised
    if PARALLEL in given:
        made[PARALLEL] = _parallel(given[PARALLEL], device_map)
    return made


def refuse_edits(args: Mapping[str, Any], name: str) -> None:
    """Refuse to quantise a model with edits, which are added to weights that a quantised model does not have.

    Raises:
        UsageError: that is asked.
    """
    if QUANTISATION in args:
        raise UsageError(
            f"--model-args: {name} has edits, which cannot be added to quantised weights; leave the quantisation out, "
            "or save the edited model in a folder of its own and give that"
        )


def _attention(value: Any) -> str:
    if value not in ATTENTIONS:
        raise unknown_name("attention", str(value), ATTENTIONS)
    if value == "flash_attention_2" and find_spec("flash_attn") is None:
        raise UsageError(
            "--model-args attn_implementation=flash_attention_2 needs the package flash-attn, which is not installed: "
            "pip install flash-attn; or give sdpa"
        )
    return str(value)


def _quantisation(given: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return how weights are quantised, its package first; None where they are not."""
    for name in SHORT:
        if not isinstance(given.get(name, False), bool):
            raise UsageError(f"--model-args {name}={given[name]}: expected true or false")
    asked = [name for name in SHORT if given.get(name)]
    config = given.get(QUANTISATION)
    if len(asked) + (config is not None) > 1:
        both = ", ".join([*asked, *([QUANTISATION] if config is not None else [])])
        raise UsageError(f"--model-args: {both} exclude each other; give one")
    if asked:
        config = {"quant_method": BITSANDBYTES, asked[0]: True}
    if config is None:
        return None
    if isinstance(config, str):
        package, _, kind = config.partition(":")
        config = {"quant_method": package, "quant_type": kind}
    if not isinstance(config, Mapping):
        raise UsageError(f"--model-args {QUANTISATION}={config!r}: expected a table, or torchao:KIND")
    made = dict(sorted(config.items(), key=lambda pair: (pair[0] != "quant_method", pair[0])))
    _check_quantisation(made)
    return made


def _check_quantisation(config: Mapping[str, Any]) -> None:
    package = config.get("quant_method")
    if package not in SETTINGS:
        raise unknown_name("quant_method", str(package), SETTINGS)
    for name in config:
        if name not in ("quant_method", *SETTINGS[package]):
            raise unknown_name(f"setting of {package}", name, SETTINGS[package])
    if package == TORCHAO and config.get("quant_type") not in KINDS:
        raise unknown_name("quant_type", str(config.get("quant_type")), KINDS)
    if package == BITSANDBYTES and sum(config.get(name) is True for name in SHORT) != 1:
        raise UsageError(f"--model-args {QUANTISATION}: bitsandbytes needs one of {' and '.join(SHORT)} to be true")
    if find_spec(str(package)) is None:
        raise UsageError(
            f"--model-args: quantising needs the package {package}, which is not installed: "
            f"pip install 'lensbench[{package}]'"
        )


def _parallel(value: Any, device_map: str | None) -> str:
    if value != "auto":
        raise unknown_name("tp_plan", str(value), ("auto",))
    if device_map is not None:
        raise UsageError("--model-args tp_plan=auto and --device-map exclude each other; give one")
    if not _is_distributed():
        raise UsageError(
            "--model-args tp_plan=auto needs torch.distributed, which does not run here; start lensbench with "
            "torchrun, or use --device-map auto"
        )
    return "auto"


def _is_distributed() -> bool:
    """Whether this process is one of several that torchrun started; torch is not imported to find out."""
    if {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= set(os.environ):
        return True
    torch: Any = sys.modules.get("torch")
    return torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized()
