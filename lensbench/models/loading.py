"""Loading a model by name."""

import logging
from dataclasses import dataclass
from typing import Any

import torch

from lensbench.errors import LensbenchError, UsageError, unknown_name
from lensbench.models.architecture import ModulePaths
from lensbench.models.edits import apply_edits
from lensbench.models.language_model import LanguageModel
from lensbench.models.sources import ModelSource, resolve
from lensbench.models.tokens import Tokens

LOG = logging.getLogger("lensbench")

DTYPES = ("float32", "bfloat16", "float16", "float64")


@dataclass(frozen=True)
class Loading:
    """How models are loaded.

    Attributes:
        device: `auto` (a GPU where there is one), or a torch device.
        dtype: `auto` (float32 on CPU; the checkpoint's own on a GPU), or a torch dtype's name.
        revision: a branch, tag or commit of the Hub.
        offline: never ask the Hub.
        chat_template: put texts at the beginning of the assistant's turn.
        paths: module paths, for a model whose structure is not found.
        device_map: `auto` spreads a model over all GPUs, and over the machine's memory where they do not suffice.
    """

    device: str = "auto"
    dtype: str = "auto"
    revision: str | None = None
    offline: bool = False
    chat_template: bool = False
    paths: ModulePaths | None = None
    device_map: str | None = None

    def torch_device(self) -> torch.device:
        """Return the device.

        Raises:
            UsageError: not a device, or not one of this machine.
        """
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            device = torch.device(self.device)
            torch.empty(1, device=device).item()
        except (RuntimeError, AssertionError, NotImplementedError):
            there = [f"cuda:{place}" for place in range(torch.cuda.device_count())]
            raise UsageError(
                f"--device {self.device!r} is not to be had on this machine; it has {', '.join(['cpu', *there])}"
            ) from None
        return device

    def torch_dtype(self, device: torch.device) -> Any:
        """Return the dtype to load in; "auto" leaves it to the checkpoint.

        Raises:
            UsageError: not a floating-point dtype of torch.
        """
        if self.dtype != "auto":
            if self.dtype not in DTYPES:
                raise unknown_name("dtype", self.dtype, ("auto", *DTYPES))
            return getattr(torch, self.dtype)
        return torch.float32 if device.type == "cpu" else "auto"


def count_layers(source: ModelSource) -> int:
    """Read from a model's configuration how many layers it has, without its weights.

    Raises:
        LensbenchError: a configuration that transformers does not know.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(**source.arguments).get_text_config()
        return int(config.num_hidden_layers)
    except (OSError, ValueError, AttributeError) as error:
        raise LensbenchError(f"{source.name}: no configuration of a decoder ({_line(error)})") from None


def load_tokens(name: str, *, revision: str | None = None, offline: bool = False) -> Tokens:
    """Load a model's tokenizer without its weights; names are those of `load_model`.

    Built-in models and GGUF files are still converted once: their tokenizer is made from the same file.

    Raises:
        UsageError: a name that cannot be a model.
        LensbenchError: no tokenizer there, or one that gives no character offsets.
    """
    from transformers import AutoTokenizer

    source = resolve(name, revision=revision, offline=offline)
    try:
        return Tokens(AutoTokenizer.from_pretrained(**source.arguments))
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise LensbenchError(f"{source.name} has no tokenizer that can be loaded: {_line(error)}") from None


def load_model(name: str, how: Loading | None = None) -> LanguageModel:
    """Load a built-in model, a folder, a GGUF file or a Hub id; `M+DIR` is M with the edits of a folder.

    Raises:
        UsageError: a name that cannot be a model, or a device that is not there.
        LensbenchError: weights that cannot be loaded or edited, or a model whose residual stream is not found.
    """
    how = how or Loading()
    device = how.torch_device()
    return load_source(resolve(name, revision=how.revision, offline=how.offline), how, device)


def load_source(source: ModelSource, how: Loading, device: torch.device) -> LanguageModel:
    """Load a model from where its weights were found."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    LOG.info("loading %s", source.name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(**source.arguments)
        module = AutoModelForCausalLM.from_pretrained(
            **source.arguments, dtype=how.torch_dtype(device), device_map=how.device_map
        )
        if how.device_map is None:
            module = torch.nn.Module.to(module, device)
    except torch.OutOfMemoryError:
        raise LensbenchError(
            f"{source.name} does not fit into the memory of {device}; try --dtype bfloat16, another --device, or a "
            "smaller model"
        ) from None
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise LensbenchError(f"{source.name} cannot be loaded as a causal language model: {_line(error)}") from None
    apply_edits(module, source.edits, source.name)
    tokens = Tokens(tokenizer, chat_template=how.chat_template)
    model = LanguageModel(module, tokens, source.name, how.paths)
    # For what else of the Hub belongs to it, such as a lens.
    model.companions |= {"revision": source.revision, "offline": how.offline}
    return model


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
