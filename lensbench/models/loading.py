"""Loading a model by name, with its edits; and making small or random models on the spot."""

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lensbench.errors import LensbenchError, NotApplicableError, UsageError, unknown_name
from lensbench.models.adapters import merge_adapter
from lensbench.models.architecture import ModulePaths, weights_of
from lensbench.models.checkpoints import check_complete, class_for, line_of, running
from lensbench.models.edits import read_edits, require_base, rotate
from lensbench.models.language_model import LanguageModel
from lensbench.models.memory import is_out_of_memory
from lensbench.models.model_args import ATTENTION, DTYPES, check_model_args, refuse_edits, with_dtype
from lensbench.models.precision import check_quantised, keywords
from lensbench.models.sources import ADAPTER, IMPLANT, ModelSource, read_table, resolve
from lensbench.models.tokens import Tokens
from lensbench.utils.foreign import reading

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

LOG = logging.getLogger("lensbench")
VOCAB = 600


@dataclass(frozen=True)
class Loading:
    """How models are loaded.

    Attributes:
        device: `auto` (a GPU where there is one: CUDA, then MPS), or a torch device.
        dtype: `auto` (float32 on CPU and MPS; the checkpoint's own on CUDA), or a torch dtype's name.
        revision: a branch, tag or commit of the Hub.
        offline: never ask the Hub.
        chat_template: put texts at the beginning of the assistant's turn.
        paths: module paths, for a model whose structure is not found.
        device_map: `auto` spreads a model over all GPUs, and over the machine's memory where they do not suffice.
        model_args: attention, quantisation and the like, by name; see `lensbench.models.model_args`. They are brought
            into one form, and a dtype among them becomes `dtype`.

    Raises:
        UsageError: model arguments that are not known, or exclude each other.
    """

    device: str = "auto"
    dtype: str = "auto"
    revision: str | None = None
    offline: bool = False
    chat_template: bool = False
    paths: ModulePaths | None = None
    device_map: str | None = None
    model_args: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rest, dtype = with_dtype(self.model_args, self.dtype)
        object.__setattr__(self, "model_args", check_model_args(rest, self.device_map))
        object.__setattr__(self, "dtype", dtype)

    def torch_device(self) -> torch.device:
        """Return the device.

        Raises:
            UsageError: not a device, not one of this machine, or one that lacks what was asked.
        """
        device = self._device()
        if device.type != "cuda" and self.model_args.get(ATTENTION) == "flash_attention_2":
            raise UsageError(f"flash_attention_2 runs on CUDA alone, not on {device}; give attn_implementation=sdpa")
        if device.type == "mps" and self.dtype == "float64":
            raise UsageError("--dtype float64 is not available on mps; give --device cpu, or another dtype")
        return device

    def _device(self) -> torch.device:
        if self.device == "auto":
            if torch.cuda.is_available():
                return torch.device("cuda")
            return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
        try:
            device = torch.device(self.device)
            torch.empty(1, device=device).item()
        except (RuntimeError, AssertionError, NotImplementedError):
            there = [f"cuda:{place}" for place in range(torch.cuda.device_count())]
            there += ["mps"] if torch.backends.mps.is_available() else []
            raise UsageError(
                f"--device {self.device!r} is not available on this machine, which has {', '.join(['cpu', *there])}"
            ) from None
        return device

    def torch_dtype(self, device: torch.device) -> Any:
        """Return the dtype to load in; "auto" leaves it to the checkpoint.

        On MPS it is float32, as on a CPU: not every version of macOS knows bfloat16, in which most checkpoints are.

        Raises:
            UsageError: not a floating-point dtype of torch.
        """
        if self.dtype != "auto":
            if self.dtype not in DTYPES:
                raise unknown_name("dtype", self.dtype, ("auto", *DTYPES))
            return getattr(torch, self.dtype)
        return torch.float32 if device.type in ("cpu", "mps") else "auto"


def count_layers(source: ModelSource) -> int:
    """Read from a model's configuration how many layers it has, without its weights.

    Raises:
        LensbenchError: a configuration that transformers does not know.
    """
    from transformers import AutoConfig

    with reading(f"the configuration of {source.name}", "give a decoder in the format of transformers"):
        config = AutoConfig.from_pretrained(**source.arguments).get_text_config()
        return int(config.num_hidden_layers)


def load_tokens(name: str, *, revision: str | None = None, offline: bool = False) -> Tokens:
    """Load a model's tokenizer without its weights; names are those of `load_model`.

    Built-in models and GGUF files are still converted once: their tokenizer is made from the same file.

    Raises:
        UsageError: a name that cannot be a model.
        LensbenchError: no tokenizer there, or one that gives no character offsets.
    """
    from transformers import AutoTokenizer

    source = resolve(name, revision=revision, offline=offline)
    with reading(f"the tokenizer of {source.name}", "save it again, or install what it needs"):
        return Tokens(AutoTokenizer.from_pretrained(**source.arguments))


def load_model(
    given: "str | PreTrainedModel",
    how: Loading | None = None,
    *,
    tokenizer: Any = None,
    model_args: Mapping[str, Any] | None = None,
) -> LanguageModel:
    """Load a model by name, or take one of transformers that has been loaded, with its tokenizer.

    Args:
        given: a built-in name, a folder, a GGUF file or a Hub id (`M+DIR` is M with the edits of a folder); or a causal
            language model of transformers, which is used as it is, in evaluation mode and without gradients.
        how: device, dtype and the like; of these, only module paths and chat template apply to a loaded model.
        tokenizer: of a model that has been loaded: a fast tokenizer of transformers.
        model_args: attention, quantisation and the like, in place of those of `how`:
            `{"attn_implementation": "eager"}`.

    Raises:
        UsageError: a name that cannot be a model, a device that is not there, a wrong model argument, or a loaded model
            without its tokenizer.
        LensbenchError: weights that cannot be loaded or edited, or a model whose residual stream is not found.
    """
    how = how or Loading()
    if isinstance(given, str):
        if tokenizer is not None:
            raise UsageError(f"{given} has a tokenizer of its own; leave tokenizer out")
        how = how if model_args is None else replace(how, model_args=model_args)
        device = how.torch_device()
        how.torch_dtype(device)  # a wrong one is refused before weights are looked for, and perhaps converted
        return load_source(resolve(given, revision=how.revision, offline=how.offline), how, device)
    if not isinstance(given, nn.Module) or not hasattr(given, "config") or tokenizer is None:
        raise UsageError(
            f"{type(given).__name__} is no name of a model; give one, or a model of transformers and its tokenizer="
        )
    if model_args is not None:
        raise UsageError("model_args say how a model is loaded, and this one has been: leave them out")
    name = str(getattr(given.config, "_name_or_path", "")) or type(given).__name__
    return LanguageModel(given, Tokens(tokenizer, chat_template=how.chat_template), name, how.paths)


def load_source(source: ModelSource, how: Loading, device: torch.device) -> LanguageModel:
    """Load a model from where its weights were found."""
    from transformers import AutoTokenizer

    if source.edits:
        refuse_edits(how.model_args, source.name)
    LOG.info("loading %s", source.name)
    asked = keywords(how.model_args, device, how.device_map)
    try:
        tokenizer = AutoTokenizer.from_pretrained(**source.arguments)
        loaded: Any = class_for(source).from_pretrained(
            **source.arguments, **asked, dtype=how.torch_dtype(device), output_loading_info=True
        )
        module, info = loaded
        check_complete(source.name, info)
        check_quantised(source.name, module, how.model_args)
        if asked.get("device_map", "") is None:  # else it is where it belongs
            module = torch.nn.Module.to(module, device)
    except torch.OutOfMemoryError:
        raise LensbenchError(
            f"{source.name} does not fit into the memory of {device}; try --dtype bfloat16, another --device, or a "
            "smaller model"
        ) from None
    except LensbenchError:
        raise
    except Exception as error:  # configurations, tokenizers and weights raise whatever a damaged file leads them to
        raise LensbenchError(f"{source.name} cannot be loaded as a causal language model: {line_of(error)}") from None
    apply_edits(module, source.edits, source.name)
    tokens = Tokens(tokenizer, chat_template=how.chat_template)
    with running(source.name, how.model_args):
        model = LanguageModel(module, tokens, source.name, how.paths)
    model.revision, model.offline, model.model_args = source.revision, how.offline, how.model_args
    return model


def apply_edits(model: nn.Module, folders: Sequence[Path], name: str) -> None:
    """Change a model as the folders say, one after another.

    Raises:
        LensbenchError: an edit of another model, or files that cannot be read.
    """
    for folder in folders:
        if (folder / ADAPTER).is_file():
            merge_adapter(model, folder, name)
            continue
        description, edits = read_table(folder / IMPLANT), read_edits(folder)
        try:
            for edit in edits:
                require_base(model, edit, description["base"], name, folder)
            rotation = None if (seed := description.get("rotation")) is None else int(seed)
        except (KeyError, TypeError, ValueError) as error:
            raise LensbenchError(f"{folder / IMPLANT} is damaged ({error!r}); make the edit again") from None
        for edit in edits:
            edit.add_to(model)
        if rotation is not None:
            rotate(model, rotation)


def with_random_weights(model: LanguageModel, seed: int) -> LanguageModel:
    """Return a model of the same configuration, as its architecture initialises it; made once for a model and seed.

    It has the tokenizer, precision, device and memory budget of the model.

    Raises:
        NotApplicableError: the model is spread over devices, or a second one of its size does not fit beside it.
    """
    return model.cache.get_or_compute(("random_weights", seed), lambda: _random_model(model, seed))


def _random_model(model: LanguageModel, seed: int) -> LanguageModel:
    if len({weight.device for weight in weights_of(model.module).values()}) > 1:
        raise NotApplicableError(f"{model.name} is spread over devices: there is no room for another of its size")
    kind: Any = type(model.module)
    config = copy.deepcopy(model.module.config)
    on_gpu = [model.device] if model.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=on_gpu), torch.device(model.device):
            torch.manual_seed(seed)
            module = kind._from_config(config, dtype=model.dtype)
        return model.with_module(module, f"{model.name} with random weights")
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise NotApplicableError(f"a second model of the size of {model.name} does not fit into memory") from None


def train_tokenizer(text: str, *, bos: bool = False) -> "PreTrainedTokenizerFast":
    """Return a byte-level BPE tokenizer of 600 tokens, trained on a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<bos>", "<eos>", "<pad>"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=special,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    bpe.train_from_iterator([text], trainer)
    if bos:
        bpe.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=bpe, **names)


def small_model(text: str, seed: int = 0, layers: int = 4) -> LanguageModel:
    """Return a random Llama of 32 dimensions."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = LlamaForCausalLM(config).float().eval()
    enlarge(module)
    return LanguageModel(module, Tokens(train_tokenizer(text)), "small-random-llama")


@torch.no_grad()
def enlarge(module: torch.nn.Module) -> None:
    """Make a fresh model's matrices four times as large, so that its layers differ by more than rounding."""
    for parameter in module.parameters():
        if parameter.dim() >= 2:
            parameter.mul_(4.0)
