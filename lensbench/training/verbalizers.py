"""Training a verbalizer to read activations: what `lensbench fit oracle` does."""

import hashlib
import json
import random
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from pydantic import BaseModel, Field, field_validator
from torch import Tensor

from lensbench.errors import UsageError, unknown_name
from lensbench.inspectors.verbalizers.oracle import CONVENTIONS, Notes, Recipe
from lensbench.models.activations import Residuals, capture, find_site
from lensbench.models.adapters import FreshAdapter
from lensbench.models.corpus import Corpus, Spent
from lensbench.models.gradients import Lesson, answer_losses
from lensbench.models.language_model import LanguageModel
from lensbench.models.optimization import Descent, TrainingSchedule, checkpoint_folder
from lensbench.models.patching.passes import make_prompt
from lensbench.tasks import Item, Task, load_task
from lensbench.training.settings import STRICT, check_settings
from lensbench.utils.cache import atomic_folder

# All relations of the shipped task but those of the main job, and those that share most answers with one of them.
RELATIONS = (
    "country_capital", "country_language", "city_country", "us_city_state", "element_discovery", "person_nationality",
    "person_occupation", "film_director", "film_country", "film_decade", "film_language", "verb_past",
    "word_first_letter", "deity_culture", "food_kind", "object_kind", "plant_kind", "instrument_family",
    "language_family", "island_sea",
)  # fmt: skip
# Subjects of this fold are never trained on: figures beside the adapter are of them.
HELD_OUT = 0
# A passage of prose: this many tokens are run, and the next ones asked for.
SEEN, AHEAD = 24, 6
GOES_ON = "The text with {subject} goes on:"
# How many held-out subjects the figures are of.
CHECKED = 128


class OracleTraining(BaseModel):
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

    model_config = STRICT

    task: str = "attribute_extraction"
    relations: tuple[str, ...] = RELATIONS
    subjects: int = Field(60, ge=1)
    steps: int = Field(200, ge=1)
    batch: int = Field(16, ge=1)
    prose: float = 0.25
    rank: int = Field(16, ge=1)
    learning_rate: float = Field(1e-3, gt=0, allow_inf_nan=False)
    convention: str = "oracle"
    prompt: str | None = None
    placeholder: str | None = None
    seed: int = 0

    @field_validator("relations", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        """Names may be given with commas between."""
        names = value.split(",") if isinstance(value, str) else value
        return tuple(map(str, names)) if isinstance(names, Iterable) else value

    @field_validator("prose")
    @classmethod
    def _share(cls, value: float) -> float:
        if not 0 <= value < 1:
            raise ValueError("expected a share from 0 to below 1")
        return value

    @field_validator("convention")
    @classmethod
    def _known_convention(cls, value: str) -> str:
        if value not in CONVENTIONS:
            raise unknown_name("oracle: convention", value, CONVENTIONS)
        return value

    @field_validator("prompt")
    @classmethod
    def _slot(cls, value: str | None) -> str | None:
        if value is not None and "{question}" not in value:
            raise ValueError("expected a text with the slot {question}")
        return value

    @property
    def recipe(self) -> Recipe:
        """The prompts for the verbalizer."""
        recipe = CONVENTIONS[self.convention]
        return replace(recipe, prompt=self.prompt or recipe.prompt, placeholder=self.placeholder or recipe.placeholder)


def make_settings(given: Mapping[str, Any]) -> OracleTraining:
    """Check the settings of a training before a model is loaded.

    Raises:
        UsageError: an unknown setting, a value that cannot be, an unknown task or relation, or PEFT is not installed.
    """
    settings = check_settings(OracleTraining, given, "oracle", "oracle: {name} = {value}")
    task_of(settings)
    return settings


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


@dataclass(frozen=True)
class TrainingFact:
    """A training item's place among the residuals, the ways to ask for its answer, and the answer."""

    place: int
    questions: tuple[str, ...]
    answer: str


class Lessons:
    """What there is to learn from: residuals of subjects and of prose, and what to say of them."""

    def __init__(self, model: LanguageModel, corpus: Corpus, settings: OracleTraining) -> None:
        self._model = model
        self._recipe = settings.recipe
        self._settings = settings
        items = list(_drawn(task_of(settings), settings))
        sites = [find_site(model, item) for item in items]
        self.residuals: Residuals = capture(model, sites, range(model.n_layers + 1))
        relations = task_of(settings).relations.items()
        forms = {name: (*relation.inspection, *relation.questions) for name, relation in relations}
        facts = [(item.fold, TrainingFact(i, forms[item.relation], item.answer)) for i, item in enumerate(items)]
        self.taught = [fact for fold, fact in facts if fold != HELD_OUT]
        self.held_out = [fact for fold, fact in facts if fold == HELD_OUT]
        self._windows = corpus.windows
        if not self.taught:
            raise UsageError("oracle: no subject to learn from; name more relations or more subjects")

    def batch(self, step: int) -> tuple[list[Lesson], Float[Tensor, "row d_model"]]:
        """Draw the examples of a step, a layer each; those of prose are run on the way."""
        rng = random.Random(f"{self._settings.seed}/{step}")
        count = sum(rng.random() < self._settings.prose for _ in range(self._settings.batch))
        drawn = [self._prose(rng) for _ in range(count)]
        drawn += [self._fact(rng.choice(self.taught), rng) for _ in range(self._settings.batch - count)]
        return [lesson for lesson, _ in drawn], torch.stack([vector for _, vector in drawn])

    def checks(self) -> tuple[list[Lesson], Float[Tensor, "row d_model"]]:
        """Return held-out subjects, each with one question about one layer: the same ones each time."""
        rng = random.Random(f"{self._settings.seed}/checks")
        facts = self.held_out if len(self.held_out) <= CHECKED else rng.sample(self.held_out, CHECKED)
        drawn = [self._fact(fact, rng) for fact in facts]
        return [lesson for lesson, _ in drawn], torch.stack([vector for _, vector in drawn])

    def _fact(self, fact: TrainingFact, rng: random.Random) -> tuple[Lesson, Tensor]:
        layer = rng.randint(1, self._model.n_layers)
        answer = self._model.tokens.encode(f"is {fact.answer}").ids[len(self._model.tokens.encode("is").ids) :]
        return self._lesson(rng.choice(fact.questions), layer, answer), self.residuals.values[layer, fact.place]

    def _prose(self, rng: random.Random) -> tuple[Lesson, Tensor]:
        layer = rng.randint(1, self._model.n_layers)
        window = self._windows[rng.randrange(len(self._windows))]
        begin = rng.randrange(len(window) - SEEN - AHEAD)
        seen, ahead = window[begin : begin + SEEN], window[begin + SEEN : begin + SEEN + AHEAD]
        ids = seen[None]
        found = self._model.residuals(ids, torch.ones_like(ids), torch.tensor([[SEEN - 1]]), (layer,))
        return self._lesson(GOES_ON, layer, tuple(ahead.tolist())), found[0, 0, 0]

    def _lesson(self, question: str, layer: int, answer: tuple[int, ...]) -> Lesson:
        recipe = self._recipe
        return Lesson(make_prompt(self._model, recipe.text(question, layer), recipe.placeholder, recipe.write), answer)


def _drawn(task: Task, settings: OracleTraining) -> Iterator[Item]:
    """Draw the subjects of each relation, in training phrasings."""
    items = [item for item in task.items("subject", "train") if item.relation in settings.relations]
    for relation in settings.relations:
        own = [item for item in items if item.relation == relation]
        random.Random(f"{settings.seed}/{relation}").shuffle(own)
        yield from own[: settings.subjects]


def train(model: LanguageModel, corpus: Corpus, settings: OracleTraining, out: Path) -> Spent:
    """Train an adapter for a model that is target and verbalizer at once, and write it into a new folder.

    An interrupted training is resumed where model, settings and folder are the same.

    Args:
        model: the base; it stays as it is.
        corpus: prose of the model.
        settings: what to learn, and how long.
        out: the folder to write.
    """
    start = time.perf_counter()
    lessons = Lessons(model, corpus, settings)
    adapter = FreshAdapter(model, settings.rank, settings.seed)
    learner = Descent(adapter.weights, settings.learning_rate, settings.steps)
    tokens = 0

    def losses(step: int) -> Float[Tensor, " lesson"]:
        nonlocal tokens
        asked, vectors = lessons.batch(step)
        tokens += sum(len(lesson.prompt.ids) + len(lesson.answer) for lesson in asked)
        return answer_losses(adapter.model, asked, vectors, settings.recipe.layer)

    with checkpoint_folder(out, _digest(model, settings)) as unfinished:
        figures = learner.descend(TrainingSchedule(unfinished, model.device), losses)
        notes = _notes(model, settings, lessons, {**figures, **_checked(adapter.model, model, lessons, settings)})
        with atomic_folder(out) as folder:
            adapter.save(folder)
            notes.write(folder)
    return Spent(time.perf_counter() - start, tokens)


def _digest(model: LanguageModel, settings: OracleTraining) -> str:
    named = json.dumps([model.fingerprint, settings.model_dump()], sort_keys=True)
    return hashlib.sha256(named.encode()).hexdigest()[:12]


@torch.no_grad()
def _checked(
    trained: LanguageModel, base: LanguageModel, lessons: Lessons, settings: OracleTraining
) -> dict[str, float | int]:
    """Return mean losses on subjects that were not trained on: as trained, with one mean activation, and untrained."""
    if not lessons.held_out:
        return {"held_out": 0}
    asked, vectors = lessons.checks()
    same = vectors.float().mean(0, keepdim=True).to(vectors).expand_as(vectors)

    def loss(model: LanguageModel, given: Tensor) -> float:
        batches = range(0, len(asked), settings.batch)
        parts = [
            answer_losses(model, asked[i : i + settings.batch], given[i : i + settings.batch], settings.recipe.layer)
            for i in batches
        ]
        return round(float(torch.cat(parts).mean()), 4)

    return {
        "held_out": len(asked),
        "held_out_loss": loss(trained, vectors),
        "held_out_loss_mean_activation": loss(trained, same),
        "held_out_loss_untrained": loss(base, vectors),
    }


def _notes(model: LanguageModel, settings: OracleTraining, lessons: Lessons, figures: Mapping[str, Any]) -> Notes:
    more = {
        "base_model": model.name,
        "read_layers": list(range(1, model.n_layers + 1)),
        "site": "subject",
        "settings": settings.model_dump(),
        "figures": dict(figures),
        "versions": {name: version(name) for name in ("lensbench", "peft", "torch", "transformers")},
    }
    answers = tuple(sorted({fact.answer for fact in (*lessons.taught, *lessons.held_out)}))
    return Notes(settings.recipe, model.fingerprint, str(model.dtype), answers, more)
