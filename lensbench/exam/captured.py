"""Exams about models that do not run here: what to capture of them, and what was captured."""

import hashlib
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.numpy import load_file

from lensbench.errors import LensbenchError, NotApplicableError, UsageError
from lensbench.evaluation.config import RunConfig
from lensbench.evaluation.plan import check_job
from lensbench.harness.context import RunContext
from lensbench.models.activations import Reading, ResidualCache, Residuals, find_site
from lensbench.models.language_model import LanguageModel
from lensbench.tasks import Item, Task
from lensbench.utils.foreign import read_text, reading
from lensbench.utils.settings import settings_error

ABOUT, ROWS, TENSORS = "capture.toml", "capture.parquet", "capture.safetensors"
HEAD = ("norm_weight", "unembedding", "logits")
ROW_SCHEMA = pa.schema([pa.field("text", pa.string(), nullable=False), pa.field("end", pa.int64(), nullable=False)])
NEAR = 0.02
"""How far logits may be off that the last layer's vectors give, as a share of the largest: other precisions differ."""
_SEE = "see docs/exam.md"


class CapturedModel(BaseModel):
    """What `capture.toml` says of the model.

    Attributes:
        model: its name.
        n_layers: how many blocks it has.
        revision: which weights.
        dtype: in which it was run.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(min_length=1)
    n_layers: int = Field(ge=1)
    revision: str = ""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"


@dataclass(frozen=True, eq=False)
class Capture:
    """Activations that were captured elsewhere.

    Attributes:
        about: the model.
        places: text and end of each row → its place.
        layers: that were captured.
        values: the activations.
    """

    about: CapturedModel
    places: Mapping[tuple[str, int], int]
    layers: tuple[int, ...]
    values: Float[np.ndarray, "layer row d_model"]

    @property
    def precision(self) -> torch.dtype:
        """The precision in which the model was run."""
        found: torch.dtype = getattr(torch, self.about.dtype)
        return found

    @property
    def fingerprint(self) -> str:
        """A digest of all of it: of the weights nothing is known."""
        return hashlib.sha256(self.values.tobytes()).hexdigest()[:16]


def require_one_vector(config: RunConfig) -> None:
    """Refuse sites of several tokens: a row of an exam is one vector.

    Raises:
        UsageError: there is such a site.
    """
    if config.sites_of_several:
        raise UsageError(f"--sites {config.sites_of_several[0]}: a row of an exam is one vector; give the place alone")


def plan_capture(config: RunConfig, out: Path) -> int:
    """Write which texts are to be run, and the end of what is read of each; return how many.

    The activation wanted is that at the token which holds the last character before `end`.

    Args:
        config: tasks, sites, subjects, limit and seed, as of an evaluation.
        out: a Parquet file.

    Raises:
        UsageError: settings that do not fit, or a file that is there.
    """
    if out.exists():
        raise UsageError(f"--out {out} is there already; give a new file")
    require_one_vector(config)
    tasks = check_job(config).tasks
    for task in tasks:
        for name, relation in task.relations.items():
            if not relation.inspection or relation.by_token:
                raise UsageError(f"task {task.name}, {name}, cannot be captured for an exam; give other relations")
        if any(fact.turns for fact in task.facts):
            raise UsageError(
                f"task {task.name} puts texts in a chat, whose template only the loaded model has; give other relations"
            )
    found = sorted({(item.source, end_of(item)) for task in tasks for item in _items(task, config)})
    texts, ends = zip(*found, strict=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"row": range(len(found)), "text": texts, "end": ends}), out)
    return len(found)


def _items(task: Task, config: RunConfig) -> Iterator[Item]:
    for site in task.sites:
        if site in (config.sites or task.sites):
            yield from task.items(site, "test", config.limit, config.seed)
            yield from task.items(site, "train")


def end_of(item: Item) -> int:
    """Return where the text ends that is read of an item."""
    return item.subject_span[1] if item.place == "subject" else len(item.source)


def read_capture(folder: Path) -> Capture:
    """Read what was captured elsewhere, and prove of it what can be proved.

    Raises:
        UsageError: something is missing, or is not what it should be.
    """
    with reading(folder / ABOUT, _SEE, UsageError):
        given = tomllib.loads(read_text(folder / ABOUT))
    try:
        about = CapturedModel.model_validate(given)
    except ValidationError as error:
        raise UsageError(f"{folder / ABOUT}: {settings_error(error, CapturedModel.model_fields, 'key')}") from None
    with reading(folder / ROWS, _SEE, UsageError):
        table = pq.read_table(folder / ROWS, memory_map=False, partitioning=None).select(["text", "end"])
        rows = table.cast(ROW_SCHEMA).to_pylist()
        if any(not 0 < row["end"] <= len(row["text"]) for row in rows):
            raise ValueError("an end lies outside its text")
    with reading(folder / TENSORS, _SEE, UsageError):
        tensors = load_file(folder / TENSORS)
    named = [name for name in tensors if re.fullmatch(r"layer\.[0-9]+", name)]
    odd = next((name for name in named if tensors[name].ndim != 2 or tensors[name].dtype.kind != "f"), None)
    if odd is not None:
        raise UsageError(
            f"{folder / TENSORS}: {odd} is {tensors[odd].dtype} {tensors[odd].shape}; expected [row, width]"
        )
    layers = tuple(sorted(int(name.removeprefix("layer.")) for name in named))
    shapes = {tensors[name].shape for name in named}
    if not layers or layers[0] != 0 or layers[-1] > about.n_layers:
        raise UsageError(
            f"{folder / TENSORS} has the layers {', '.join(map(str, layers)) or 'none'}; expected tensors layer.0 (the "
            f"embeddings) to, at most, layer.{about.n_layers}"
        )
    if len(shapes) > 1 or min(shapes)[:1] != (len(rows),):
        raise UsageError(f"{folder / TENSORS} has tensors of shape {min(shapes)}; expected {len(rows)} rows in each")
    values = np.stack([tensors[f"layer.{layer}"] for layer in layers]).astype(np.float32)
    places = {(row["text"], row["end"]): i for i, row in enumerate(rows)}
    _check_values(folder, values, layers, places, len(rows))
    _check_head(folder, about, values, layers, tensors)
    return Capture(about, places, layers, values)


def _check_values(
    folder: Path, values: Float[np.ndarray, "layer row d_model"], layers: Sequence[int],
    places: Mapping[tuple[str, int], int], rows: int,
) -> None:  # fmt: skip
    """Refuse numbers that no residual stream has, rows that are one, and layers that are one.

    Raises:
        UsageError: what is wrong, and where.
    """
    file = folder / TENSORS
    if len(places) < rows:
        raise UsageError(f"{folder / ROWS} has {rows - len(places)} rows twice; give each text and end once")
    lengths = np.linalg.norm(values, axis=-1)
    if not np.isfinite(lengths).all() or not lengths.all():
        layer, row = np.argwhere(~np.isfinite(lengths) | (lengths == 0))[0]
        raise UsageError(f"{file}: layer.{layers[layer]}, row {row} is zero or no number; capture it again")
    for i, layer in enumerate(layers):
        # Below the first block, texts that end alike are alike; above it, only those that are the same so far.
        if layer and len(np.unique(values[i], axis=0)) < len({text[:end] for text, end in places}):
            raise UsageError(f"{file}: layer.{layer} has one row for two texts; capture each at its own end")
        if i and np.array_equal(values[i], values[i - 1]):
            raise UsageError(f"{file}: layer.{layer} is layer.{layers[i - 1]}; capture each layer")


def _check_head(
    folder: Path, about: CapturedModel, values: Float[np.ndarray, "layer row d_model"], layers: Sequence[int],
    tensors: Mapping[str, np.ndarray],
) -> None:  # fmt: skip
    """Check that the last layer's vectors give the logits that came with them, through the model's norm and head.

    Raises:
        UsageError: they do not: what is called the last layer is another one, or is past the final norm.
    """
    given = [name for name in HEAD if name in tensors]
    if not given:
        return
    if len(given) < len(HEAD) or layers[-1] != about.n_layers:
        expected = f"{', '.join(HEAD)} and layer.{about.n_layers}"
        raise UsageError(f"{folder / TENSORS} has {', '.join(given)}; give {expected}, or none of them")
    shapes = tuple(tensors[name].shape for name in HEAD)
    (rows, width), tokens = values.shape[1:], shapes[1][:1]
    if (
        shapes[0] != (width,)
        or shapes[1] != (*tokens, width)
        or not 0 < len(tensors["logits"]) <= rows
        or shapes[2][1:] != tokens
    ):
        raise UsageError(
            f"{folder / TENSORS}: {', '.join(HEAD)} are {shapes}; expected [width], [token, width], [row, token]"
        )
    weight, head, logits = (tensors[name].astype(np.float64) for name in HEAD)
    last = values[-1].astype(np.float64)[: len(logits)]
    centred = last - last.mean(1, keepdims=True)
    norms = (last / np.sqrt((last**2).mean(1, keepdims=True)), centred / np.sqrt((centred**2).mean(1, keepdims=True)))
    bias = tensors.get("norm_bias", np.zeros(1)).astype(np.float64)
    # Gemma's norms multiply by one more than their weight.
    found = [(norm * scale + bias) @ head.T for norm in norms for scale in (weight, 1 + weight)]
    off = min(np.abs(one - logits).max() / np.abs(logits).max() for one in found)
    if not off <= NEAR:
        raise UsageError(
            f"{folder / TENSORS}: layer.{about.n_layers} does not give the logits through the final norm and the head "
            f"(off by {off:.2f} of the largest); it has to be the residual stream before the final norm"
        )


class CapturedResiduals(ResidualCache):
    """Gives activations that were captured elsewhere, in place of those of a model that runs here.

    Args:
        capture: what was captured.
        reader: the model whose tokenizer tells where items are read, and which reads texts.
    """

    def __init__(self, capture: Capture, reader: LanguageModel) -> None:
        super().__init__(None)
        self.capture, self.reader = capture, reader
        self._rows: dict[Reading, int] = {}

    def learn(self, items: Sequence[Item]) -> None:
        """Note where items are read.

        Raises:
            LensbenchError: one was not captured.
        """
        for item in items:
            place = self.capture.places.get((item.source, end_of(item)))
            if place is None:
                raise LensbenchError(f"{item.source!r}, up to {end_of(item)}, was not captured; capture the whole plan")
            self._rows[find_site(self.reader, item)] = place

    def read(self, model: LanguageModel, readings: Sequence[Reading], layers: Sequence[int]) -> Residuals:
        """Return what was captured.

        Raises:
            NotApplicableError: it is another model, or another text, that a baseline wants to read.
        """
        if model is not self.reader or not set(readings) <= set(self._rows):
            raise NotApplicableError("the model does not run here, and this was not captured")
        rows = [self._rows[one] for one in readings]
        at = [self.capture.layers.index(layer) for layer in layers]
        # In the precision of the model, so that what baselines make of them has it, too.
        return Residuals(tuple(layers), torch.from_numpy(self.capture.values[at][:, rows]).to(self.capture.precision))


def with_capture(context: RunContext, capture: Capture) -> RunContext:
    """Return a context in which the captured model is the target, and the model that was loaded reads texts."""
    return replace(context, layers=capture.layers, residuals=CapturedResiduals(capture, context.model))
