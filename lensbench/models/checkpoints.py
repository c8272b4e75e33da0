"""What a checkpoint must be so that its model can be read: a decoder, complete, and able to run as it was loaded."""

import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lensbench.errors import LensbenchError
from lensbench.models.model_args import QUANTISATION
from lensbench.models.sources import ModelSource

LOG = logging.getLogger("lensbench")


@contextmanager
def running(name: str, args: Mapping[str, Any]) -> Iterator[None]:
    """Turn what the kernels of quantised weights raise in a first pass into one line."""
    try:
        yield
    except LensbenchError:
        raise
    except Exception as error:
        if QUANTISATION not in args:
            raise
        package = args[QUANTISATION]["quant_method"]
        raise LensbenchError(
            f"{name} does not run with weights quantised by {package} here ({line_of(error)}); try another "
            "quantisation, or another --device"
        ) from None


def class_for(source: ModelSource) -> Any:
    """Return what loads a model: for decoders inside a model of images and text, the class that knows the whole."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMaskedLM

    config: Any = AutoConfig.from_pretrained(**source.arguments)
    known = type(config)
    if known in AutoModelForMaskedLM._model_mapping and not (config.is_decoder or config.is_encoder_decoder):
        raise LensbenchError(
            f"{source.name} is an encoder ({known.__name__.removesuffix('Config')}): every state has seen the whole "
            "text; lensbench reads decoders"
        )
    loaders = (AutoModelForCausalLM, AutoModelForImageTextToText)
    found = next((loader for loader in loaders if known in loader._model_mapping), None)
    if found is None:
        raise LensbenchError(
            f"{source.name} is a {known.__name__.removesuffix('Config')}, not a decoder of text; give one"
        )
    return found


def check_complete(name: str, info: Mapping[str, Collection[str]]) -> None:
    """Refuse a checkpoint that lacks weights, and tell of those that the model has no place for.

    transformers fills what is missing with random numbers, and leaves out what is left over, and says neither where a
    program would notice. Weights that are tied to others are not missing.

    Args:
        name: of the model.
        info: what `from_pretrained` reports with `output_loading_info`.

    Raises:
        LensbenchError: weights are missing.
    """
    missing, unexpected = (sorted(info.get(kind, ())) for kind in ("missing_keys", "unexpected_keys"))
    left_over = f"; it has {len(unexpected)} others that fit nowhere, such as {unexpected[0]}" if unexpected else ""
    if missing:
        raise LensbenchError(
            f"{name} lacks {len(missing)} weights of its architecture, such as {missing[0]}{left_over}; they would be "
            "random numbers: get the checkpoint again, or correct its config.json"
        )
    if unexpected:
        LOG.warning(
            "%s: %d weights of the checkpoint have no place in the model and are not used, such as %s",
            name, len(unexpected), unexpected[0],
        )  # fmt: skip


def line_of(error: Exception) -> str:
    """Return what an error of a library says in one line, and not a long one."""
    return " ".join(str(error).split())[:300]
