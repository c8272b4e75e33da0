"""The settings of trainings: pydantic models that are checked before a model is loaded."""

import hashlib
import json
import random
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import version
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from lensbench.errors import UsageError, unknown_name
from lensbench.inspectors.verbalizers.recipe import published_layers
from lensbench.tasks import Item, Task, load_task
from lensbench.utils.layer_spec import layer_numbers

STRICT = ConfigDict(extra="forbid", frozen=True, strict=True)
Settings = TypeVar("Settings", bound=BaseModel)
# All relations of the shipped task but those of the main job, and those that share most answers with one of them.
RELATIONS = (
    "country_capital", "country_language", "city_country", "us_city_state", "element_discovery", "person_nationality",
    "person_occupation", "film_director", "film_country", "film_decade", "film_language", "verb_past",
    "word_first_letter", "deity_culture", "food_kind", "object_kind", "plant_kind", "instrument_family",
    "language_family", "island_sea",
)  # fmt: skip
# Subjects of this fold are never trained on: figures beside an adapter are of them.
HELD_OUT = 0


class TrainingSettings(BaseModel):
    """The settings that all trainings of verbalizers have, with their defaults.

    Attributes:
        steps: training steps.
        batch: examples a step.
        seed: of what is drawn.
    """

    model_config = STRICT

    steps: int = Field(200, ge=1)
    batch: int = Field(16, ge=1)
    seed: int = 0

    def digest(self, fingerprint: str) -> str:
        """Return a digest of the settings and of the model that is trained: of all that the training depends on."""
        named = json.dumps([fingerprint, self.model_dump()], sort_keys=True)
        return hashlib.sha256(named.encode()).hexdigest()[:12]

    def record(self, model: str, site: str, figures: Mapping[str, Any], *packages: str) -> dict[str, Any]:
        """Return what is written beside what was trained: the model's name, what was read, settings, figures, versions.

        Args:
            model: its name.
            site: what was read.
            figures: of the training.
            packages: whose versions matter besides ours, torch's and that of transformers.
        """
        versions = {name: version(name) for name in sorted({"lensbench", "torch", "transformers", *packages})}
        return {
            "base_model": model,
            "site": site,
            "settings": self.model_dump(),
            "figures": dict(figures),
            "versions": versions,
        }


class FactTraining(TrainingSettings):
    """The settings of trainings on facts, with their defaults.

    Attributes:
        task: whose facts are learned.
        relations: of the task.
        subjects: how many subjects of each relation, at most.
        prose: the share of examples that are about prose (no labels).
        layers: the layers to read; by default those of the published oracles, after the blocks at a quarter, half and
            three quarters of the depth.
    """

    prose_alone: ClassVar[bool] = False

    task: str = "attribute_extraction"
    relations: tuple[str, ...] = RELATIONS
    subjects: int = Field(60, ge=1)
    prose: float = 0.25
    layers: tuple[int, ...] = ()

    @field_validator("layers", mode="before")
    @classmethod
    def _numbers(cls, value: object) -> tuple[int, ...]:
        """Numbers may be given with commas between; none stand for the published ones."""
        return layer_numbers(value) if value != () else ()

    @field_validator("relations", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        """Names may be given with commas between."""
        names = value.split(",") if isinstance(value, str) else value
        return tuple(map(str, names)) if isinstance(names, Iterable) else value

    @field_validator("prose")
    @classmethod
    def _share(cls, value: float) -> float:
        if not 0 <= value < 1 and not (cls.prose_alone and value == 1):
            raise ValueError(f"expected a share from 0 to {'' if cls.prose_alone else 'below '}1")
        return value

    def layers_of(self, depth: int, name: str, what: str) -> tuple[int, ...]:
        """Return the layers to read of a model so deep.

        Raises:
            UsageError: one that the model `name` does not have.
        """
        layers = self.layers or published_layers(depth)
        if not set(layers) <= set(range(1, depth + 1)):
            raise UsageError(f"{what}: layers {layers}; {name} has layers 1 to {depth} to read")
        return layers

    def load_task(self) -> Task:
        """Load the task, and check that it has the relations.

        Raises:
            UsageError: no such task or relation.
        """
        task = load_task(self.task)
        for name in self.relations:
            if name not in task.relations or "subject" not in task.relations[name].sources:
                raise unknown_name(
                    f"relation of task {task.name} with subject sources", name, task.relations_at("subject")
                )
        return task

    def items(self, task: Task) -> Iterator[Item]:
        """Draw the subjects of each relation, in training phrasings."""
        items = [item for item in task.items("subject", "train") if item.relation in self.relations]
        for relation in self.relations:
            own = [item for item in items if item.relation == relation]
            random.Random(f"{self.seed}/{relation}").shuffle(own)
            yield from own[: self.subjects]


def check_settings(kind: type[Settings], given: Mapping[str, Any], what: str, form: str) -> Settings:
    """Make settings; those that are not given have their defaults.

    Args:
        kind: the settings' class.
        given: settings by name.
        what: the settings are of, for errors.
        form: how errors write a setting: `--{option} {value}`, or with its `{name}`.

    Raises:
        UsageError: an unknown setting, or a value that cannot be.
    """
    try:
        settings = kind.model_validate(dict(given))
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:  # of several settings together
            raise UsageError(f"{what}: {_expected(first['type'], first['msg'], {})}") from None
        name = str(first["loc"][0])
        if first["type"] == "extra_forbidden":
            raise unknown_name(f"setting of {what}", name, kind.model_fields) from None
        shown = form.format(name=name, option=name.replace("_", "-"), value=repr(first["input"]))
        raise UsageError(f"{shown}: {_expected(first['type'], first['msg'], first.get('ctx', {}))}") from None
    return settings


def _expected(kind: str, message: str, limits: Mapping[str, Any]) -> str:
    if kind == "greater_than_equal":
        return f"expected {limits['ge']} or more"
    if kind == "greater_than":
        return f"expected more than {limits['gt']:g}"
    if kind.endswith("_type"):
        return f"expected a value of the kind {kind.removesuffix('_type').replace('string', 'str')}"
    return message.removeprefix("Value error, ")
