"""The settings of a training, checked before a model is loaded."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from lensbench.errors import UsageError, unknown_name
from lensbench.inspectors.verbalizers.oracle import CONVENTIONS, Recipe
from lensbench.models.adapters import require_peft
from lensbench.tasks import Task, load_task

# All relations of the shipped task but those of the main job, and those that share most answers with one of them.
RELATIONS = (
    "country_capital", "country_language", "city_country", "us_city_state", "element_discovery", "person_nationality",
    "person_occupation", "film_director", "film_country", "film_decade", "film_language", "verb_past",
    "word_first_letter", "deity_culture", "food_kind", "object_kind", "plant_kind", "instrument_family",
    "language_family", "island_sea",
)  # fmt: skip


@dataclass(frozen=True)
class OracleTraining:
    """The settings of a training, with their defaults.

    Attributes:
        task: whose facts are learned.
        relations: of the task.
        subjects: how many subjects of each relation, at most.
        steps: training steps.
        batch: examples a step.
        prose: the share of examples that ask for the next tokens of a passage of prose (no labels).
        rank: of the adapter.
        learning_rate: after a short warm-up; it falls to zero by the end.
        convention: `oracle` or `latentqa`: where and how activations are written.
        prompt: in place of the convention's, see `Recipe`; `{question}` alone keeps the activation in the question.
        placeholder: likewise.
        seed: of the matrices, and of what is drawn at each step.
    """

    task: str = "attribute_extraction"
    relations: tuple[str, ...] = RELATIONS
    subjects: int = 60
    steps: int = 200
    batch: int = 16
    prose: float = 0.25
    rank: int = 16
    learning_rate: float = 1e-3
    convention: str = "oracle"
    prompt: str | None = None
    placeholder: str | None = None
    seed: int = 0

    @property
    def recipe(self) -> Recipe:
        """How the verbalizer will be asked."""
        recipe = CONVENTIONS[self.convention]
        return replace(recipe, prompt=self.prompt or recipe.prompt, placeholder=self.placeholder or recipe.placeholder)


def make_settings(given: Mapping[str, Any]) -> OracleTraining:
    """Check settings of a training before a model is loaded.

    Raises:
        UsageError: an unknown setting, or a value that cannot be.
    """
    known = {one.name: one.default for one in fields(OracleTraining)}
    for name in given:
        if name not in known:
            raise unknown_name("setting of oracle", name, known)
    settings = OracleTraining(**{name: _typed(name, value, known[name]) for name, value in given.items()})
    for name in ("subjects", "steps", "batch", "rank"):
        if getattr(settings, name) < 1:
            raise UsageError(f"oracle: {name} = {getattr(settings, name)}: expected 1 or more")
    if not 0 <= settings.prose < 1:
        raise UsageError(f"oracle: prose = {settings.prose}: expected a share from 0 to below 1")
    if not 0 < settings.learning_rate < math.inf:
        raise UsageError(f"oracle: learning_rate = {settings.learning_rate}: expected more than 0")
    if settings.convention not in CONVENTIONS:
        raise unknown_name("oracle: convention", settings.convention, CONVENTIONS)
    if settings.prompt is not None and "{question}" not in settings.prompt:
        raise UsageError(f"oracle: prompt = {settings.prompt!r}: expected a text with the slot {{question}}")
    task_of(settings)
    require_peft()
    return settings


def _typed(name: str, value: Any, default: object) -> Any:
    """Return a value in the form that the setting has: names as a tuple, a whole number as a share or rate.

    Raises:
        UsageError: another kind of value.
    """
    if isinstance(default, tuple):
        value = tuple(str(part) for part in (value.split(",") if isinstance(value, str) else value))
    elif isinstance(default, float) and isinstance(value, int):
        value = float(value)
    expected = str if default is None else type(default)
    if type(value) is not expected:
        raise UsageError(f"oracle: {name} = {value!r}: expected a value of the kind {expected.__name__}")
    return value


def task_of(settings: OracleTraining) -> Task:
    """Load the task, and check that it has the relations.

    Raises:
        UsageError: no such task or relation.
    """
    task = load_task(settings.task)
    for name in settings.relations:
        if name not in task.relations or "subject" not in task.relations[name].sources:
            raise unknown_name(f"relation of task {task.name} with subject sources", name, task.relations_at("subject"))
    return task
