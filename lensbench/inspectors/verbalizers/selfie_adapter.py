"""SelfIE adapter: a soft token that was learned to let a frozen model say what an activation means."""

import json
import math
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from lensbench.errors import LensbenchError, NotApplicableError, UsageError, unknown_name
from lensbench.inspectors.base import Inspector, OwnPrompt, Part
from lensbench.inspectors.evidence import Evidence, Learns, Source, Training
from lensbench.inspectors.patchscopes.patched import Attempt, attempt_name, check_width, read_patched
from lensbench.inspectors.scores import Scores
from lensbench.inspectors.target import Target
from lensbench.inspectors.verbalizers.recipe import NOTES, Notes, Recipe, read_notes, require_trained
from lensbench.models.language_model import LanguageModel
from lensbench.tasks.facts import SLOT
from lensbench.utils.foreign import reading

ADAPTER, MEANS = "adapter.safetensors", "means.safetensors"
AGAIN = "get the adapter again"
# What a published file has of each kind of adapter.
KINDS: Mapping[str, frozenset[str]] = {
    "scale_only": frozenset({"log_scale"}),
    "scalar_affine": frozenset({"log_scale", "bias"}),
    "scalar_affine_plus_low_rank": frozenset({"log_scale", "bias", "U", "V"}),
    "low_rank_only": frozenset({"bias", "U", "V"}),
    "full_rank": frozenset({"weight", "bias"}),
}
SCALE = 5.0
"""The scale that a training begins with."""
USER, ANSWER = f'What is the meaning of "{SLOT}"?', f'The meaning of "{SLOT}" is "'
RECIPE = Recipe((("user", USER), ("assistant", ANSWER)), layer=0, write="overwrite", placeholder="X")
"""The published prompt: the soft token is in place of both X."""


@dataclass(frozen=True)
class SoftToken:
    """The map from an activation x to a soft token: e^a x̂ + x̂ U Vᵀ + x̂ Wᵀ + b, of which each kind has some terms.

    Attributes:
        kind: one of `KINDS`.
        weights: `log_scale` (a), `bias` (b), `U` and `V` [d_model, rank], `weight` (W).
        normalized: whether x̂ is x / (|x| + 1e-8), or x itself.
        scale: the one that the training began with.
    """

    kind: str
    weights: Mapping[str, Tensor]
    normalized: bool = True
    scale: float = SCALE

    def __call__(self, values: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
        """Return the soft tokens of activations, in float32. Differentiable."""
        x, own = values.float(), {name: weight.to(values.device) for name, weight in self.weights.items()}
        if self.normalized:
            x = x / (x.norm(dim=-1, keepdim=True) + 1e-8)
        found = torch.zeros_like(x)
        if "log_scale" in own:
            found = found + own["log_scale"].exp() * x
        if "U" in own:
            found = found + x @ own["U"] @ own["V"].T
        if "weight" in own:
            found = found + x @ own["weight"].T
        return found + own["bias"] if "bias" in own else found

    @classmethod
    def fresh(cls, kind: str, d_model: int, scale: float, rank: int, seed: int) -> "SoftToken":
        """Return one that has learned nothing: a scaled activation, or at random where the kind has no scale."""
        generator = torch.Generator().manual_seed(seed)

        def normal(width: int, std: float) -> Tensor:
            return std * torch.randn(d_model, width, generator=generator)

        made = {
            "log_scale": torch.full((1,), math.log(scale)),
            "bias": torch.zeros(d_model),
            "U": normal(rank, 0.01 * scale / rank**0.5),
            "V": normal(rank, 0.01 * scale / rank**0.5),
            "weight": normal(d_model, scale / d_model**0.5) if kind == "full_rank" else torch.empty(0),
        }
        return cls(kind, {name: made[name] for name in sorted(KINDS[kind])}, scale=scale)

    def without(self, part: Part) -> "SoftToken | None":
        """Return the constant b alone, or a scaled activation as before training; None where there is no b."""
        if part == "training":
            return SoftToken("scale_only", {"log_scale": torch.tensor([math.log(self.scale)])}, self.normalized)
        return replace(self, weights={"bias": self.weights["bias"]}) if "bias" in self.weights else None

    def write(self, file: Path, steps: int) -> None:
        """Write it as the published ones are: tensors by name, `config_json` in the header."""
        rank = self.weights["U"].shape[1] if "U" in self.weights else None
        own = {"type": self.kind, "normalize_input": self.normalized, "init_scale": self.scale, "low_rank_rank": rank}
        config = {
            "projection": {**own, "low_rank_init_factor": 0.01},
            "soft_prompt": {"template": f"user: {USER}\nassistant: {ANSWER}"},
        }
        bias = self.weights.get("bias", self.weights.get("weight"))
        header = {"config_json": json.dumps(config), "projection_type": self.kind, "global_step": str(steps)}
        if bias is not None:
            header["model_dim"] = str(bias.shape[0])
        save_file({name: weight.detach().cpu().contiguous() for name, weight in self.weights.items()}, file, header)


def read_soft_token(file: Path) -> SoftToken:
    """Read a published adapter (arXiv 2602.10352), or one that `lensbench fit` wrote.

    Raises:
        UsageError: no such file, or it holds something else.
    """
    with reading(file, AGAIN, UsageError):
        with safe_open(file, framework="pt") as opened:
            header = opened.metadata() or {}
        own: dict[str, Any] = json.loads(header["config_json"])["projection"] if "config_json" in header else {}
        kind = str(own.get("type", header.get("projection_type")))
        normalized = str(own.get("normalize_input", header.get("normalize_input", True))).lower() == "true"
        scale = float(own.get("init_scale", header.get("init_scale", SCALE)))
        weights = {name: weight.float() for name, weight in load_file(file).items()}
    if kind not in KINDS:
        raise unknown_name(f"kind of SelfIE adapter in {file}:", kind, KINDS, AGAIN)
    if set(weights) != KINDS[kind]:
        raise UsageError(f"{file} holds {', '.join(sorted(weights))}; {kind} has {', '.join(sorted(KINDS[kind]))}")
    widths = {len(weight) for name, weight in weights.items() if name != "log_scale"}
    if len(widths) > 1 or not all(bool(weight.isfinite().all()) for weight in weights.values()):
        raise UsageError(f"{file}: its tensors are of different widths, or not finite; {AGAIN}")
    return SoftToken(kind, weights, normalized, scale)


class SelfIEAdapter(Inspector):
    """A frozen verbalizer, and a soft token that a few trained numbers make of an activation.

    SelfIE adapters (arXiv 2602.10352): with x̂ the normalised activation, the soft token e^a x̂ + b (of other kinds also
    x̂ U Vᵀ, the scale alone, or a full matrix) replaces the embedding of both X of the turn `What is the meaning of
    "X"?` and the begun answer `The meaning of "X" is "`. Answers are scored as what comes next, up to the closing
    quotation mark where one is the beginning of another. The question of a relation is not put, unless the prompt is.

    It learns nothing here. It was trained elsewhere, on other relations; a relation most of whose answers it was
    trained to say is refused: no rival had those labels. Its compulsory rival is b alone, the learned constant token.

    Args:
        adapter: a folder that `lensbench fit selfie_adapter` wrote, or a published `.safetensors` file. With a
            `means.safetensors` in the folder (our layer -> mean activation) the mean is subtracted first.
        prompt: a plain text in place of the published prompt, with the slot `{subject}`, or `{question}` for the
            relation's own question, the soft token in the place of its subject.
        placeholder: the word in the slots; one token.
        layers: those that it was trained to read, for an adapter that does not say so: `20`, a list.
        any_layer: also read layers that it was not trained to read.
    """

    name: ClassVar[str] = "selfie_adapter"
    reads: ClassVar[frozenset[Source]] = frozenset({"activation", "question"})
    learns_from: ClassVar[Learns] = "nothing"
    cost: ClassVar[str] = "a patched pass an item and layer; trained before"
    generates: ClassVar[bool] = True
    trained: ClassVar[bool] = True
    _without: Part | None = None

    def __init__(
        self,
        adapter: str | None = None,
        prompt: str | None = None,
        placeholder: str = RECIPE.placeholder,
        layers: tuple[int, ...] | None = None,
        any_layer: bool = False,
    ) -> None:
        self.adapter = adapter
        self.prompt = prompt
        self.placeholder = placeholder
        self.layers = None if layers is None else tuple(layers)
        self.any_layer = any_layer

    @property
    def _file(self) -> Path:
        if self.adapter is None:
            raise UsageError(
                f"{self.name}.adapter is missing: give a trained one, --set {self.name}.adapter=FOLDER; `lensbench fit "
                f"{self.name} --out FOLDER` trains one"
            )
        given = Path(self.adapter).expanduser()
        return given / ADAPTER if given.is_dir() else given

    def _notes(self) -> Notes | None:
        return read_notes(self._file.parent) if self._file.name == ADAPTER else None

    def soft_token(self) -> SoftToken:
        """Read the adapter.

        Raises:
            UsageError: none was given, or its file holds something else.
        """
        return read_soft_token(self._file)

    def recipe(self) -> Recipe:
        """Return how it is asked: the published prompt, or the one given, and the layers that it was trained on."""
        notes = self._notes()
        trained = self.layers or (notes.recipe.layers if notes else ())
        return replace(RECIPE, prompt=self.prompt or RECIPE.prompt, placeholder=self.placeholder, layers=trained)

    def check(self, target: Target, verbalizer: LanguageModel) -> None:
        """Check the adapter's files against the verbalizer, and the prompt.

        Raises:
            UsageError: what does not fit, and what to choose instead.
        """
        soft, notes = self.soft_token(), self._notes()
        width = next((len(weight) for name, weight in soft.weights.items() if name != "log_scale"), verbalizer.d_model)
        if width != verbalizer.d_model:
            raise UsageError(
                f"{self.name}.adapter {self.adapter} is for models of width {width}; {verbalizer.name} has "
                f"{verbalizer.d_model}: give another adapter, or its model as --verbalizer"
            )
        check_width(self.name, target, verbalizer)
        try:
            self.recipe().make(verbalizer, f"What is {SLOT}?", (0,))
        except LensbenchError as error:
            raise UsageError(f"{self.name}: {error}; give {self.name}.prompt, a plain text") from None
        if notes:
            notes.check(self.adapter, verbalizer)

    def files(self) -> tuple[Path, ...]:
        """Return the adapter's files."""
        beside = [self._file.parent / name for name in (MEANS, NOTES)] if self._file.name == ADAPTER else []
        return tuple(file for file in (self._file, *beside) if file.is_file())

    def without(self, part: Part) -> "SelfIEAdapter":
        """Return the learned constant token, or SelfIE with the scale that the training began with."""
        other = copy(self)
        other._without = part
        return other

    def own_prompt(self, question: str) -> OwnPrompt:
        """Return the prompt, both slots open."""
        recipe = self.recipe()
        return OwnPrompt(recipe.text(question, (0,)), recipe.placeholder)

    def fit(self, target: Target, verbalizer: LanguageModel, training: Training) -> "SelfIEAdapter":
        """Load the adapter; the verbalizer stays as it is.

        Raises:
            NotApplicableError: the constant token is asked for, and this kind of adapter has none.
        """
        whole = self.soft_token()
        soft = whole.without(self._without) if self._without else whole
        if soft is None:
            raise NotApplicableError(f"an adapter of the kind {whole.kind} has learned no constant token")
        notes, means = self._notes(), self._file.parent / MEANS
        self.verbalizer_, self.soft_, self.layers_ = verbalizer, soft, self.recipe().layers
        self.answers_ = frozenset(notes.answers) if notes else frozenset()
        self.means_: dict[int, Tensor] = {}
        if self._file.name == ADAPTER and means.is_file():
            with reading(means, AGAIN, UsageError):
                self.means_ = {int(layer): mean.float() for layer, mean in load_file(means).items()}
        return self

    def inspect(self, evidence: Evidence) -> Scores:
        """Put the soft token of every layer's activation of every item into the prompt, and score what comes next.

        Raises:
            NotApplicableError: it was trained to say most of these answers, or not to read these layers.
        """
        require_trained(self.name, self.answers_, self.layers_, evidence, any_layer=self.any_layer)
        layers, values = evidence.layers, evidence.residuals.values
        soft = torch.stack([self._soft(layer, own) for layer, own in zip(layers, values, strict=True)])
        attempt = Attempt(attempt_name("default", RECIPE.layer), soft, (RECIPE.layer,) * len(layers))
        return read_patched(self.verbalizer_, self.own_prompt(evidence.question), [attempt], evidence, RECIPE.write)

    def _soft(self, layer: int, values: Float[Tensor, "item d_model"]) -> Float[Tensor, "item d_model"]:
        if self.means_ and layer not in self.means_:
            raise NotApplicableError(f"the adapter has no mean activation of layer {layer} to subtract")
        mean = self.means_.get(layer)
        return self.soft_(values.float() if mean is None else values.float() - mean.to(values.device))
