"""LoRA adapters as PEFT writes them: checked before their weights are read, and merged into a copy of their base."""

import hashlib
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from lensbench.errors import LensbenchError, UsageError
from lensbench.models.edits import LowRankEdit, is_matrix, other_weights
from lensbench.models.language_model import LanguageModel
from lensbench.models.linear_parts import linear_widths
from lensbench.models.sources import ADAPTER, FINETUNED, read_table
from lensbench.utils.foreign import reading

AGAIN = "get the adapter again"
WEIGHTS, PICKLE = "adapter_model.safetensors", "adapter_model.bin"
# Settings of an adapter that is W + scale · B A and nothing else: those that do not matter once it is trained, and
# those that matter, with the values that do not make it anything else.
_FREE = {
    "auto_mapping", "base_model_name_or_path", "peft_type", "peft_version", "revision", "task_type", "inference_mode",
    "r", "lora_alpha", "alpha_pattern", "rank_pattern", "use_rslora", "lora_dropout", "fan_in_fan_out",
    "target_modules", "target_parameters", "exclude_modules", "layers_to_transform", "layers_pattern",
    "qalora_group_size", "runtime_config", "megatron_core", "ensure_weight_tying",
}  # fmt: skip
_PLAIN: Mapping[str, tuple[object, ...]] = {"bias": ("none",), "init_lora_weights": (True, False, "gaussian")}
# What PEFT puts before the path of a module, and after it.
BEFORE, A, B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"


@dataclass(frozen=True)
class Adapter:
    """A folder with a LoRA adapter, as far as it can be read without its weights.

    Attributes:
        folder: where it is.
        settings: what PEFT wrote beside the weights.
        shapes: module path -> shapes of A, [rank, in], and of B, [out, rank].
        digest: of both files.
    """

    folder: Path
    settings: Mapping[str, Any]
    shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
    digest: str

    @property
    def base(self) -> str:
        """What it calls the model that it is for."""
        return str(self.settings.get("base_model_name_or_path"))

    def check_plain(self) -> None:
        """Refuse an adapter that does more, or less, than to add scale · B A to matrices.

        Settings that say nothing (null, false, empty) are those of any adapter, whatever they are called.

        Raises:
            UsageError: another kind, such as DoRA, aLoRA, or one whose base was changed when it began (PiSSA, OLoRA).
        """
        for key, value in self.settings.items():
            if key in _FREE or (key not in _PLAIN and not value):
                continue
            if value not in _PLAIN.get(key, ()):
                raise UsageError(
                    f"{self.folder / ADAPTER}: {key} is {value!r}; only plain LoRA is read (W + scale · BA)"
                )
        for path, (a, _) in self.shapes.items():
            expected = self._own("rank_pattern", "r", path)
            if expected is not None and expected != a[0]:
                raise UsageError(
                    f"{self.folder}: {ADAPTER} says that {path} has rank {expected}, {WEIGHTS} has {a[0]}; {AGAIN}"
                )
        for key, values in (
            ("lora_alpha", [self.settings.get("lora_alpha", 8)]),
            ("alpha_pattern", self._table("alpha_pattern").values()),
        ):
            if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
                raise UsageError(f"{self.folder / ADAPTER}: {key} is {self.settings.get(key)!r}; expected numbers")

    def _own(self, patterns: str, key: str, module: str) -> Any:
        """A setting of a module: by the first pattern that fits it, else that of all."""
        given = self._table(patterns)
        own = (value for pattern, value in given.items() if re.match(rf"(.*\.)?({pattern})$", module))
        return next(own, self.settings.get(key, 8))

    def _table(self, key: str) -> Mapping[str, Any]:
        """A setting that has values by pattern."""
        given = self.settings.get(key) or {}
        if not isinstance(given, dict):
            raise UsageError(f"{self.folder / ADAPTER}: {key} is {given!r}; expected values by pattern")
        return given

    def scale(self, module: str, rank: int) -> float:
        """Return by what the product of two matrices of a rank is multiplied for a module."""
        alpha = float(self._own("alpha_pattern", "lora_alpha", module))
        return alpha / (rank**0.5 if self.settings.get("use_rslora") else rank)


def require_peft() -> None:
    """Check that PEFT is installed, without importing it.

    Raises:
        UsageError: it is not.
    """
    if find_spec("peft") is None:
        raise UsageError("adapters need the package peft, which is not installed: pip install 'lensbench[adapters]'")


def read_adapter(folder: Path) -> Adapter:
    """Read the settings of a LoRA adapter, and the names and shapes of its matrices; PEFT need not be installed.

    Raises:
        UsageError: no such folder or file, another kind of adapter, or a file that is damaged.
    """
    config, weights = folder / ADAPTER, folder / WEIGHTS
    if not config.is_file():
        raise UsageError(f"{folder} holds no {ADAPTER}; give a folder that save_pretrained of PEFT wrote")
    if not weights.is_file():
        pickled = f" (its {PICKLE} is a pickle, which could run code)" if (folder / PICKLE).exists() else ""
        raise UsageError(f"{folder} holds no {WEIGHTS}{pickled}; save the adapter again, as safetensors")
    settings = read_table(config, AGAIN, UsageError)
    if settings.get("peft_type") != "LORA":
        raise UsageError(f"{config}: peft_type is {settings.get('peft_type')!r}; only LORA adapters are read")
    digest = hashlib.sha256(config.read_bytes() + weights.read_bytes()).hexdigest()[:16]
    adapter = Adapter(folder, settings, _shapes(weights), digest)
    with reading(config, AGAIN, UsageError):  # its patterns are regular expressions of a stranger
        adapter.check_plain()
    return adapter


def _shapes(weights: Path) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    with reading(weights, AGAIN, UsageError), safe_open(weights, framework="pt") as file:
        found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    modules = {name.removesuffix(A).removesuffix(B) for name in found}
    for name in found:
        if not (name.startswith(BEFORE) and name.endswith((A, B))):
            raise UsageError(f"{weights}: {name} is no LoRA matrix of a linear layer; only those are read")
    for module in sorted(modules):
        missing = [name for name in (module + A, module + B) if name not in found]
        if missing:
            raise UsageError(f"{weights} has no {missing[0]}; {AGAIN}")
    if not modules:
        raise UsageError(f"{weights} holds no matrices; {AGAIN}")
    return {module.removeprefix(BEFORE): (found[module + A], found[module + B]) for module in sorted(modules)}


def check_base(adapter: Adapter, module: nn.Module, name: str, option: str = "--verbalizer") -> None:
    """Check that every matrix of an adapter has its place in a module, and name the option for another model.

    Raises:
        UsageError: a module that the model does not have, or that takes or gives other widths.
    """
    if any(parameter.is_meta for parameter in module.parameters()):
        raise UsageError(f"the weights of {name} are not all in memory; adapters need them: no --device-map")
    linear = {path: linear_widths(part) for path, part in module.named_modules()}
    head = _tied_head(module)
    if head in adapter.shapes:
        raise UsageError(
            f"adapter {adapter.folder}: it changes {head}, whose weights are {name}'s embeddings as well, and merging "
            "would change both; train it without the head"
        )
    begin, use = f"adapter {adapter.folder}: ", f"it is for {adapter.base}: give that as {option}, or another adapter"
    for path, (a, b) in adapter.shapes.items():
        widths = linear.get(path)
        if widths is None:
            raise UsageError(f"{begin}it changes {path}, which is no linear layer of {name}; {use}")
        if (len(a), len(b)) != (2, 2) or (a[1], b[0]) != widths or a[0] != b[1]:
            raise UsageError(
                f"{begin}its matrices of {path} are {a} and {b}; that of {name} takes {widths[0]} and gives "
                f"{widths[1]}; {use}"
            )


def adapted(model: LanguageModel, adapter: Adapter) -> LanguageModel:
    """Return a model with an adapter merged into a copy of its weights; the model itself stays as it is.

    The copy takes as much memory as the model. It is made once, and lives as long as the model does.

    Raises:
        UsageError: the adapter is for another model, or damaged.
    """
    return model.cache.get_or_compute(("adapted", adapter.digest), lambda: _merge(model, adapter))


def _merge(model: LanguageModel, adapter: Adapter) -> LanguageModel:
    merged = deepcopy(model.module)
    merge_adapter(merged, adapter.folder, model.name, "--verbalizer")
    return model.with_module(merged, f"{model.name}+{adapter.folder.name}")


def _tied_head(module: nn.Module) -> str | None:
    """The path of the head, where its weights are the embeddings' own."""
    transformer: Any = module
    head, embeddings = transformer.get_output_embeddings(), transformer.get_input_embeddings()
    if head is None or getattr(head, "weight", None) is not getattr(embeddings, "weight", None):
        return None
    return next((path for path, part in module.named_modules() if part is head), None)


def merge_adapter(module: nn.Module, folder: Path, name: str = "the model", option: str = "--model") -> None:
    """Add an adapter to the weights of a plain module, in place, as PEFT's `merge_and_unload`: W + scale · B A.

    Arithmetic is in float32, or in the module's own float64. PEFT need not be installed.

    Raises:
        UsageError: the adapter is for another model, of a kind that is no plain LoRA, or damaged.
    """
    adapter = read_adapter(folder)
    check_base(adapter, module, name, option)
    _check_weights(adapter, module, name)
    with reading(folder / WEIGHTS, AGAIN, UsageError):
        state = load_file(folder / WEIGHTS)
    for path, (shape, _) in adapter.shapes.items():
        a, b = (state[BEFORE + path + end].float() for end in (A, B))
        if not bool((b @ a).isfinite().all()):
            raise UsageError(f"adapter {folder}: numbers of {path} are not finite; {AGAIN}")
        LowRankEdit(path, b.T, adapter.scale(path, shape[0]) * a).add_to(module)


def _check_weights(adapter: Adapter, module: nn.Module, name: str) -> None:
    """Refuse a base with other weights than the adapter was trained on, where the folder says which they were."""
    notes = adapter.folder / FINETUNED
    if not notes.is_file():
        return
    base = read_table(notes, AGAIN, UsageError).get("base", {})
    for path, expected in base.get("matrices", {}).items():
        if not is_matrix(module, path, expected):
            raise UsageError(other_weights(adapter.folder, base, name, path))


@contextmanager
def _quiet_peft() -> Iterator[None]:
    """Keep the program's random state, and silence PEFT's warnings about its own calls and corrections."""
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # it uses a name that transformers will drop
        warnings.filterwarnings("ignore", message="fan_in_fan_out")  # it sets what GPT-2's layers need
        yield


class FreshAdapter:
    """A new LoRA adapter on all linear layers but the head, in a copy of a model; with B = 0 it changes nothing yet.

    Args:
        model: the base; it stays as it is.
        rank: of the matrices; their product counts twice (alpha = 2 rank).
        seed: of the matrices A.
        first: the first layer that may change: the adapter is in the blocks from the one whose output it is.

    Raises:
        UsageError: PEFT is not installed.
        LensbenchError: an architecture that PEFT refuses.

    Attributes:
        model: the copy, the adapter at work in it.
        weights: what is to be trained, by name.
    """

    def __init__(self, model: LanguageModel, rank: int, seed: int, first: int = 1) -> None:
        require_peft()
        from peft import LoraConfig, get_peft_model

        copy: Any = deepcopy(model.module)
        self.model = model.with_module(copy, model.name)
        begins = tuple(f"{model.parts.paths.blocks}.{block}." for block in range(first - 1, model.n_layers))
        inside = [
            path for path, part in model.module.named_modules() if path.startswith(begins) and linear_widths(part)
        ]
        where = "all-linear" if first == 1 else inside
        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=where, task_type="CAUSAL_LM")
        with _quiet_peft():
            torch.manual_seed(seed)
            try:
                self._wrapped: Any = get_peft_model(copy, config)
            except ValueError as error:
                raise LensbenchError(f"PEFT makes no adapter on all linear layers of {model.name}: {error}") from None
        self.weights: dict[str, Tensor] = {
            name: weight for name, weight in self._wrapped.named_parameters() if weight.requires_grad
        }

    def save_merged(self, folder: Path) -> None:
        """Write the model with the adapter merged into it, and its tokenizer; nothing can be trained afterwards."""
        with _quiet_peft():
            self._wrapped.merge_and_unload().save_pretrained(str(folder))
        self.model.tokens.tokenizer.save_pretrained(str(folder))

    def save(self, folder: Path) -> None:
        """Write the adapter into a folder, as PEFT does."""
        config: Any = self._wrapped.peft_config["default"]
        config.base_model_name_or_path = self.model.name
        self._wrapped.save_pretrained(str(folder), save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)  # a form to be filled in
