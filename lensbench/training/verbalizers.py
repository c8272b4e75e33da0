"""Training a verbalizer to read activations: what `lensbench fit oracle` does."""

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from lensbench.errors import LensbenchError, UsageError, unknown_name
from lensbench.inspectors.verbalizers.recipe import (
    CONVENTIONS,
    ENDING,
    NEXT,
    PREVIOUS,
    Notes,
    Recipe,
    constant_like,
)
from lensbench.models.activations import capture, find_site
from lensbench.models.adapters import FreshAdapter, require_peft
from lensbench.models.corpus import Corpus, Spent
from lensbench.models.gradients import Lesson, answer_losses, mean_answer_loss
from lensbench.models.language_model import LanguageModel
from lensbench.models.optimization import Descent, TrainingSchedule, checkpoint_folder
from lensbench.tasks import Item, Task
from lensbench.training.settings import HELD_OUT, FactTraining, check_settings
from lensbench.utils.cache import atomic_folder

# A passage of prose: this many tokens are run, and some of the next or of the first ones asked for.
SEEN, AHEAD = 32, 10
YES_NO = "{question} Is it {answer}? Answer yes or no."
# The activations of so many tokens in a row are shown, at most.
MOST_VECTORS = 10
# The share of questions about a fact that are to be answered with yes or no.
DOUBTED = 0.25
# How many held-out subjects the figures are of.
CHECKED = 64


class OracleTraining(FactTraining):
    """The settings of an oracle's training, with their defaults; `prose` asks for the tokens before or after a passage.

    Attributes:
        rank: of the adapter.
        learning_rate: after a short warm-up; it falls to zero by the end.
        convention: how it is asked, see `lensbench.inspectors.verbalizers.recipe.CONVENTIONS`.
        prompt: a plain text in place of the convention's; `{question}` alone keeps the activation in the question.
        placeholder: likewise.
        together: whether half of the examples show all layers up to some layer at once, in one prompt.
        inverts: whether lessons on prose ask for the text that ends with what is shown, and for nothing else. With
            `prose=1` it learns no facts: it is a decoder of texts, see `Inversion`.
        constant: show one constant vector in place of every activation. What is trained so is a rival of what is
            trained with the same settings on activations, see `oracle.constant`.
    """

    prose_alone: ClassVar[bool] = True

    rank: int = Field(16, ge=1)
    learning_rate: float = Field(1e-3, gt=0, allow_inf_nan=False)
    convention: str = "activation_oracle"
    prompt: str | None = None
    placeholder: str | None = None
    together: bool = False
    inverts: bool = False
    constant: bool = False

    @model_validator(mode="after")
    def _prose_alone_inverts(self) -> "OracleTraining":
        if self.inverts and not self.prose:
            raise ValueError("inverts=true is about lessons on prose, and prose is 0; give prose=1, or leave it out")
        if self.prose == 1 and not self.inverts:
            raise ValueError("prose=1 teaches no facts, which is for inverts=true; give a smaller share")
        return self

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

    def recipe(self, model: LanguageModel) -> Recipe:
        """Return how a model's verbalizer is asked.

        Raises:
            UsageError: layers that the model does not have, or it has no chat template, or no such placeholder.
        """
        layers = self.layers_of(model.n_layers, model.name, "oracle")
        if self.together and len(set(layers)) < 2:
            raise UsageError(f"oracle: together=true reads several layers at once, and layers are {layers}; give more")
        recipe = CONVENTIONS[self.convention]
        prompt, placeholder = self.prompt or recipe.prompt, self.placeholder or recipe.placeholder
        every = tuple(sorted(layers))
        together = tuple(every[:count] for count in range(2, len(every) + 1)) if self.together else ()
        recipe = replace(recipe, prompt=prompt, placeholder=placeholder, layers=layers, together=together)
        try:
            recipe.make(model, "What is {subject}?", recipe.usual, 2 if recipe.takes_several else 1)
        except LensbenchError as error:
            advice = "leave together out" if together else "--set convention=plain needs no chat template"
            raise UsageError(f"oracle: {error}; {advice}") from None
        return recipe


def make_settings(given: Mapping[str, Any]) -> OracleTraining:
    """Check the settings of a training before a model is loaded.

    Raises:
        UsageError: an unknown setting, a value that cannot be, an unknown task or relation, or PEFT is not installed.
    """
    settings = check_settings(OracleTraining, given, "oracle", "oracle: {name} = {value}")
    require_peft()
    settings.load_task()
    return settings


@dataclass(frozen=True)
class TrainingFact:
    """A training item's place among the residuals, the question, its answer, and the answers that are not."""

    place: int
    question: str
    answer: str
    others: tuple[str, ...]


class Lessons:
    """What there is to learn from: residuals of subjects and of prose, and what to say of them."""

    def __init__(self, model: LanguageModel, corpus: Corpus, settings: OracleTraining) -> None:
        self._model = model
        self.recipe = settings.recipe(model)
        self._settings = settings
        task = settings.load_task()
        items = [replace(item, site=f"subject/segment:{MOST_VECTORS}") for item in settings.items(task)]
        read = capture(model, [find_site(model, item) for item in items], self.recipe.layers)
        self._segments = {i: values[:, j] for _, (rows, values) in read.by_count().items() for j, i in enumerate(rows)}
        of_facts = settings.prose < 1
        facts = [(item.fold, self._fact_of(task, i, item)) for i, item in enumerate(items) if of_facts]
        self.taught = [fact for fold, fact in facts if fold != HELD_OUT]
        self.held_out = [fact for fold, fact in facts if fold == HELD_OUT]
        self._windows = corpus.windows
        if of_facts and not self.taught:
            raise UsageError("oracle: no subject to learn from; name more relations or more subjects")

    def _fact_of(self, task: Task, place: int, item: Item) -> TrainingFact:
        relation = task.relations[item.relation]
        question = self.recipe.question((*relation.inspection, *relation.questions))
        return TrainingFact(place, question, item.answer, tuple(c for c in item.choices if c != item.answer))

    def norms(self) -> dict[str, float]:
        """Return the mean length of the subjects' last activations at each layer read."""
        lengths = torch.stack([segment[:, -1].float().norm(dim=1) for segment in self._segments.values()]).mean(0)
        return {str(layer): round(float(one), 3) for layer, one in zip(self.recipe.layers, lengths, strict=True)}

    def batch(self, step: int) -> list[Lesson]:
        """Draw the examples of a step, a layer each; those of prose are run on the way."""
        rng = random.Random(f"{self._settings.seed}/{step}")
        count = sum(rng.random() < self._settings.prose for _ in range(self._settings.batch))
        drawn = [self._prose(rng) for _ in range(count)]
        return drawn + [self._fact(rng.choice(self.taught), rng) for _ in range(self._settings.batch - count)]

    def checks(self) -> list[Lesson]:
        """Return held-out subjects, each with one question about one layer: the same ones each time."""
        rng = random.Random(f"{self._settings.seed}/checks")
        facts = self.held_out if len(self.held_out) <= CHECKED else rng.sample(self.held_out, CHECKED)
        return [self._fact(fact, rng, doubted=0) for fact in facts]

    def _fact(self, fact: TrainingFact, rng: random.Random, doubted: float = DOUBTED) -> Lesson:
        layers, whole = self._layers(rng), self._segments[fact.place]
        # One activation in half of the lessons, as it is read in most evaluations.
        count = 1 if rng.random() < 0.5 else rng.randint(1, self._most(whole.shape[1]))
        vectors = whole[[self.recipe.layers.index(layer) for layer in layers], -count:]
        question, answer = fact.question, fact.answer
        if fact.others and rng.random() < doubted:
            asked = rng.choice((fact.answer, rng.choice(fact.others)))
            question = YES_NO.replace("{question}", question).replace("{answer}", asked)
            answer = "Yes" if asked == fact.answer else "No"
        tokens = self._model.tokens
        said = tokens.answer_ids(answer, self.recipe.text(question, (1,)))
        return self._lesson(question, layers, (*said, tokens.turn_end), vectors)

    def _prose(self, rng: random.Random) -> Lesson:
        layers, k = self._layers(rng), rng.randint(1, AHEAD)
        count = 1 if rng.random() < 0.5 else rng.randint(1, self._most(MOST_VECTORS))
        window = self._windows[rng.randrange(len(self._windows))]
        begin = rng.randrange(len(window) - SEEN - AHEAD)
        ids = window[begin : begin + SEEN][None]
        sites = torch.arange(SEEN - count, SEEN)[None]
        found = self._model.residuals(ids, torch.ones_like(ids), sites, layers)[:, 0]
        ends = {NEXT: SEEN + k, PREVIOUS: SEEN - count, ENDING: SEEN}
        question = ENDING if self._settings.inverts else rng.choice((NEXT, PREVIOUS))
        end = begin + ends[question]
        answer = tuple(window[end - k : end].tolist())
        return self._lesson(question.replace("{k}", str(k)), layers, answer, found)

    def _layers(self, rng: random.Random) -> tuple[int, ...]:
        """Draw the layers that are shown: one, or as many as are read at once."""
        together = self.recipe.together
        if together and rng.random() < 0.5:
            return rng.choice(together)
        return (rng.choice(self.recipe.layers),)

    def _most(self, there: int) -> int:
        return there if self.recipe.takes_several else 1

    def _lesson(
        self,
        question: str,
        layers: tuple[int, ...],
        answer: tuple[int, ...],
        vectors: Float[Tensor, "layer token d_model"],
    ) -> Lesson:
        prompt = self.recipe.make(self._model, question, layers, vectors.shape[1])
        shown = constant_like(vectors) if self._settings.constant else vectors
        return Lesson(prompt, answer, shown.flatten(0, 1))


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
        asked = lessons.batch(step)
        tokens += sum(len(lesson.prompt.ids) + len(lesson.answer) for lesson in asked)
        return answer_losses(adapter.model, asked, lessons.recipe.layer)

    with checkpoint_folder(out, settings.digest(model.fingerprint)) as unfinished:
        figures = learner.descend(TrainingSchedule(unfinished, model.device), losses)
        notes = _notes(model, settings, lessons, {**figures, **_checked(adapter.model, model, lessons, settings)})
        with atomic_folder(out) as folder:
            adapter.save(folder)
            notes.write(folder)
    return Spent(time.perf_counter() - start, tokens)


@torch.no_grad()
def _checked(
    trained: LanguageModel, base: LanguageModel, lessons: Lessons, settings: OracleTraining
) -> dict[str, float | int]:
    """Return mean losses on held-out subjects: as trained, with a mean activation, with none, and untrained."""
    if not lessons.held_out:
        return {"held_out": 0}
    asked = lessons.checks()
    mean = torch.cat([lesson.vectors for lesson in asked if lesson.vectors is not None]).float().mean(0)

    def loss(model: LanguageModel, change: Callable[[Tensor], Tensor | None]) -> float:
        changed = [replace(one, vectors=None if one.vectors is None else change(one.vectors)) for one in asked]
        return mean_answer_loss(model, changed, lessons.recipe.layer, settings.batch)

    return {
        "held_out": len(asked),
        "held_out_loss": loss(trained, lambda vectors: vectors),
        "held_out_loss_mean_activation": loss(trained, lambda vectors: mean.to(vectors).expand_as(vectors)),
        "held_out_loss_no_activation": loss(trained, lambda vectors: None),
        "held_out_loss_untrained": loss(base, lambda vectors: vectors),
    }


def _notes(model: LanguageModel, settings: OracleTraining, lessons: Lessons, figures: Mapping[str, Any]) -> Notes:
    read = f"subject, up to {MOST_VECTORS} tokens"
    more = settings.record(model.name, read, figures, "peft") | {"norms": lessons.norms()}
    answers = tuple(sorted({fact.answer for fact in (*lessons.taught, *lessons.held_out)}))
    return Notes(lessons.recipe, model.fingerprint, str(model.dtype), answers, more)
