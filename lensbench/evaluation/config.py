"""The settings of a run, checked before anything is loaded. Nothing in here imports torch."""

import tomllib
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from lensbench.baselines.spec import Baseline, choose_baselines
from lensbench.errors import LensbenchError, UsageError, unknown_name
from lensbench.evaluation.control_models import check_control_models, control_models
from lensbench.evaluation.given import (
    GivenBaseline,
    GivenInspector,
    GivenModel,
    GivenTask,
    edits_of,
    name_of,
    with_parameters_of_objects,
)
from lensbench.inspectors.catalog import check_inspector
from lensbench.models.model_args import check_model_args, parse_model_args, refuse_edits, with_dtype
from lensbench.models.sources import check_model_name, planted_facts, read_facts
from lensbench.tasks import SITES, Task, load_tasks
from lensbench.tasks.extents import split_site
from lensbench.utils.cache import parse_size
from lensbench.utils.foreign import read_text, reading
from lensbench.utils.layer_spec import parse_layers
from lensbench.utils.settings import settings_error

PLANTED = "planted"
"""What `--subjects` says for those that the target has planted facts about."""


def parse_module_paths(text: str) -> dict[str, str]:
    """Return the paths of `blocks=PATH,norm=PATH` by name.

    Raises:
        ValueError: another form.
    """
    pairs = [part.partition("=") for part in text.split(",")]
    if sorted(name for name, _, _ in pairs) != ["blocks", "norm"] or not all(path for _, _, path in pairs):
        raise ValueError("expected blocks=PATH,norm=PATH, such as blocks=model.layers,norm=model.norm")
    return {name: path for name, _, path in pairs}


def require_tracker(name: str) -> None:
    """Check that a tracker is installed, without importing it.

    Raises:
        UsageError: it is not.
    """
    if find_spec(name) is None:
        raise UsageError(
            f"--log {name} needs the package {name}, which is not installed: pip install 'lensbench[{name}]'"
        )


class RunConfig(BaseModel):
    """The settings of one evaluation; the keys of `--config run.toml`, and the options of `lensbench evaluate`."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    model: GivenModel = "smollm2-135m"
    """Built-in name, folder, GGUF file or Hub id; NAME@REVISION for a revision of the Hub."""
    verbalizer: GivenModel | None = None
    """The model that turns activations into words. [default: the target]"""
    unplanted: GivenModel | None = None
    """The target without its facts, for baselines. [default: M if the target is M+DIR]"""
    twin: GivenModel | None = None
    """The target with other facts about the same names. [default: the implant's own twin]"""
    reference: GivenModel | None = None
    """A model without the facts, which is asked in text. [default: M if the target is M+DIR]"""
    tasks: tuple[GivenTask, ...] = ("attribute_extraction",)
    """Task names (also NAME/RELATION), folders, or files such as lre:FILE.json; separated by commas."""
    inspectors: tuple[GivenInspector, ...] = ("logit_lens", "tuned_lens", "probe", "patchscope")
    """Methods: names, module:Class or file.py:Class, separated by commas; --methods is the same."""
    baselines: tuple[GivenBaseline, ...] | None = None
    """Baseline names or .toml files, separated by commas; or none. [default: all that apply]"""
    sites: tuple[str, ...] | None = None
    """Read sites: subject, answer, t1, t2; with the last N tokens, the name or the whole text for methods that read
    several vectors: subject/segment:N, subject/span, answer/text. [default: all that a task has, a token each]"""
    layers: str = "all"
    """all; or stride:2; or a list such as 0,4-8,last. Layer 0 is the embeddings."""
    subjects: Path | None = None
    """Only these subjects: a file with one name on each line, an edit's facts.json, or planted (the target's own)."""
    limit: int | None = Field(None, ge=1)
    """Draw this many test items for each task and site."""
    score: Literal["corrected", "raw"] = "corrected"
    """The score that decides verdicts: prior-corrected, or raw. It cannot be changed after a run."""
    whole_answers: bool = False
    """Also score each answer by all of its tokens, wherever a model says it; reported as accuracy_whole_answers."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Seed of everything random."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps, ..."""
    dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"] = "auto"
    """auto, float32, bfloat16, float16, float64."""
    device_map: Literal["auto"] | None = None
    """auto spreads a large model over all GPUs and the machine's memory."""
    memory: int | Literal["auto"] = "auto"
    """The most memory that a batch may take, such as 4GB."""
    executor: Literal["local", "ray"] = "local"
    """local: this process; ray: a Ray cluster, or several processes."""
    workers: int | None = Field(None, ge=1)
    """With ray: the number of workers. [default: one for each GPU, or for each node without GPUs]"""
    isolate: bool = False
    """Fit each fold in a process of its own, where a method finds no notes of other fits."""
    revision: str | None = None
    """Branch, tag or commit of a Hub model."""
    offline: bool = False
    """Do not contact the Hub."""
    chat_template: bool = False
    """Put prompts at the beginning of the assistant's turn."""
    module_paths: dict[Literal["blocks", "norm"], str] | None = None
    """blocks=PATH,norm=PATH, if the structure of the model is not recognised."""
    log: Literal["wandb", "trackio"] | None = None
    """Tell an experiment tracker of the finished run: wandb or trackio."""
    model_args: dict[str, Any] | None = None
    """How the target is loaded: attn_implementation=eager,load_in_8bit=true, ..."""
    out: Path | None = None
    """Run folder; an existing run is resumed. [default: reports/TIME-MODEL]"""
    parameters: dict[str, dict[str, Any]] = Field(default_factory=dict)

    @field_validator("tasks", "inspectors", "baselines", "sites", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        """Names may be given with commas between, and one object without a list around it."""
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value if value is None or (isinstance(value, Iterable) and not isinstance(value, type)) else (value,)

    @field_validator("baselines", mode="after")
    @classmethod
    def _none(cls, value: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
        return () if value == ("none",) else value

    @field_validator("memory", mode="before")
    @classmethod
    def _bytes(cls, value: Any) -> Any:
        """A number of bytes, or one with a unit: `4GB`."""
        size = parse_size(value) if isinstance(value, str) and value != "auto" else value
        if isinstance(size, int) and size < 1:
            raise ValueError("holds no batch; expected a size such as 500MB or 4GB, or auto")
        return size

    @field_validator("layers", mode="before")
    @classmethod
    def _joined(cls, value: Any) -> Any:
        return ",".join(map(str, value)) if isinstance(value, list | tuple | range) else value

    @field_validator("out")
    @classmethod
    def _named(cls, value: Path | None) -> Path | None:
        if value is not None and not value.name:
            raise ValueError("is not a folder of its own; give a name")
        return value

    @field_validator("tasks", "inspectors", "sites")
    @classmethod
    def _some(cls, value: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
        if value is None:
            return None
        if not value:
            raise ValueError("is empty; name at least one")
        return tuple(one for place, one in enumerate(value) if one not in value[:place])

    @field_validator("sites")
    @classmethod
    def _extents(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for site in value or ():
            place, _ = split_site(site)
            if place not in ("", *SITES):
                raise unknown_name("sites", place, SITES)
        return value

    @model_validator(mode="after")
    def _one_vector(self) -> "RunConfig":
        if self.isolate and self.sites_of_several:
            several = self.sites_of_several[0]
            raise ValueError(f"isolate shows one vector at a time, and site {several} has several; leave one out")
        if self.isolate and self.whole_answers:
            raise ValueError("isolate cannot score whole answers; leave out isolate or whole_answers")
        return self

    @property
    def sites_of_several(self) -> tuple[str, ...]:
        """The sites where more than one vector is read."""
        return tuple(site for site in self.sites or () if split_site(site)[1].kind != "token")

    @model_validator(mode="after")
    def _objects_stay(self) -> "RunConfig":
        if self.executor == "ray" and not all(isinstance(one, str | None) for one in self.models()):
            raise ValueError("workers load models themselves: with --executor ray, give models by name")
        return self

    @model_validator(mode="after")
    def _workers_need_ray(self) -> "RunConfig":
        if self.workers is not None and self.executor == "local":
            raise ValueError("workers are for --executor ray; the local executor is this process")
        return self

    @model_validator(mode="after")
    def _isolated_models_are_whole(self) -> "RunConfig":
        if self.isolate and self.device_map is not None:
            raise ValueError("isolate passes whole models to processes, and device_map spreads them; leave one out")
        return self

    @field_validator("module_paths", mode="before")
    @classmethod
    def _paths(cls, value: Any) -> Any:
        """Paths may be given as `blocks=PATH,norm=PATH`."""
        return parse_module_paths(value) if isinstance(value, str) else value

    @field_validator("module_paths")
    @classmethod
    def _both(cls, value: dict[str, str] | None) -> dict[str, str] | None:
        if value is not None and set(value) != {"blocks", "norm"}:
            raise ValueError("needs both blocks=PATH and norm=PATH")
        return value

    @field_validator("log")
    @classmethod
    def _tracker(cls, value: str | None) -> str | None:
        if value is not None:
            require_tracker(value)
        return value

    @field_validator("model_args", mode="before")
    @classmethod
    def _arguments(cls, value: Any) -> Any:
        """Model arguments may be given as `KEY=VALUE,KEY=VALUE`."""
        return parse_model_args(value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _arguments_are_known(self) -> "RunConfig":
        if self.model_args is None:
            return self
        args = check_model_args(with_dtype(self.model_args, self.dtype)[0], self.device_map)
        target, _ = edits_of(self.model, offline=self.offline)
        for given in self.models():
            base, edits = edits_of(given or "", offline=self.offline)
            if edits and base == target:
                refuse_edits(args, name_of(given))
        return self

    def models(self) -> tuple["GivenModel | None", ...]:
        """Return every model that was given, the target first."""
        return self.model, self.verbalizer, self.unplanted, self.twin, self.reference

    def named_baselines(self) -> tuple[str, ...]:
        """Return the baselines that were named one by one, of which none may be left out in silence."""
        return tuple(choose_baselines([one for one in self.baselines or () if one != "all"]))

    def control_models(self) -> dict[str, Any]:
        """Return role -> model, of the models that baselines read in the target's place."""
        given = {"unplanted": self.unplanted, "twin": self.twin, "reference": self.reference}
        return control_models(self.model, given)


def make_config(settings: dict[str, Any], file: Path | None = None) -> RunConfig:
    """Merge a configuration file and explicit settings, which win.

    Raises:
        UsageError: a file that is not there or not TOML, an unknown key, a wrong value.
    """
    merged = with_parameters_of_objects({**_read(file), **settings} if file else settings)
    try:
        return RunConfig.model_validate(merged)
    except ValidationError as error:
        raise settings_error(error, RunConfig.model_fields) from None


def _read(file: Path) -> dict[str, Any]:
    with reading(f"--config {file}", "give a file in TOML", UsageError):
        return tomllib.loads(read_text(file))


def check_config(config: RunConfig) -> tuple[list[Task], dict[str, Baseline]]:
    """Check every name that can be checked without a model, and load tasks and baselines.

    Raises:
        UsageError: an unknown model, task, inspector, baseline or layer list.
        TaskError: a malformed task.
    """
    for model in config.models():
        if isinstance(model, str):
            check_model_name(model, offline=config.offline)
    for inspector in config.inspectors:
        check_inspector(inspector)
    classes = {one.name for one in config.inspectors if not isinstance(one, str)}
    for name in set(config.parameters) - classes - set(config.inspectors):
        check_inspector(name)
    parse_layers(config.layers, None)
    baselines = choose_baselines(config.baselines)
    check_control_models(config.control_models(), baselines, named=config.named_baselines(), offline=config.offline)
    tasks = load_tasks(config.tasks, offline=config.offline)
    if config.subjects is not None:
        names = _planted_names(config) if str(config.subjects) == PLANTED else read_subjects(config.subjects)
        tasks = [task.about(names) for task in tasks]
    return tasks, baselines


def _planted_names(config: RunConfig) -> frozenset[str]:
    """Return the names that the target has planted facts about."""
    return frozenset(name for told in planted_facts(name_of(config.model)).values() for name in told)


def read_subjects(path: Path) -> frozenset[str]:
    """Read names: one a line, or the names of a `facts.json` (attribute, name, value).

    Raises:
        UsageError: a file that cannot be read, or names nobody.
    """
    try:
        if path.suffix == ".json":
            names = {name for told in read_facts(path).values() for name in told}
        else:
            names = {line.strip() for line in path.read_text(encoding="utf-8").splitlines()} - {""}
    except LensbenchError as error:
        reason = str(error).partition("; ")[0]
        raise UsageError(
            f"--subjects: {reason}; expected one name on each line, or the facts.json of an edit"
        ) from None
    except (OSError, ValueError) as error:
        reason = str(error.strerror) if isinstance(error, OSError) else "it is not text in UTF-8"
        raise UsageError(
            f"--subjects {path}: {reason}; expected one name on each line, or the facts.json of an edit"
        ) from None
    if not names:
        raise UsageError(
            f"--subjects {path} contains no name; expected one name on each line, or the facts.json of an edit"
        )
    return frozenset(names)
