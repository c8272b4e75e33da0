"""What there is to learn from: facts about subjects, and passages of prose, each with an activation."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lensbench.errors import UsageError
from lensbench.models.activations import Residuals, capture, find_site
from lensbench.models.corpus import Corpus
from lensbench.models.gradients import Lesson
from lensbench.models.language_model import LanguageModel
from lensbench.models.patching import make_prompt
from lensbench.tasks import Item, Task
from lensbench.training.verbalizers.settings import OracleTraining, task_of

# Subjects of this fold are never trained on: figures beside the adapter are of them.
HELD_OUT = 0
# A passage of prose: this many tokens are run, and the next ones asked for.
SEEN, AHEAD = 24, 6
GOES_ON = "The text with {subject} goes on:"
# How many held-out subjects the figures are of.
CHECKED = 128


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
        """Return held-out subjects, each asked once about one layer: the same ones each time."""
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
