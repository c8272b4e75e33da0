"""Training a SelfIE adapter: what `lensbench fit selfie_adapter` does."""

import logging
import random
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from pydantic import Field, field_validator
from safetensors.torch import save_file
from torch import Tensor

from lensbench.errors import LensbenchError, UsageError, unknown_name
from lensbench.inspectors.verbalizers.recipe import Notes
from lensbench.inspectors.verbalizers.selfie_adapter import ADAPTER, KINDS, MEANS, RECIPE, SCALE, SoftToken
from lensbench.models.activations import capture, find_site
from lensbench.models.corpus import Corpus, Spent
from lensbench.models.gradients import Lesson, answer_losses, mean_answer_loss
from lensbench.models.language_model import LanguageModel
from lensbench.models.optimization import Descent, TrainingSchedule, checkpoint_folder
from lensbench.training.settings import HELD_OUT, FactTraining, check_settings
from lensbench.utils.cache import atomic_folder

LOG = logging.getLogger("lensbench")
NAME = "selfie_adapter"
# As published, with a rate that falls as a cosine does.
DECAY, CLIP = 0.01, 0.5
# So many words of prose are read, out of so many tokens.
WORDS, PROSE_TOKENS = 512, 2048
# How many held-out labels the figures are of.
CHECKED = 128


class SelfIETraining(FactTraining):
    """The settings of a SelfIE adapter's training, with their defaults; `prose` asks for the word that is read.

    Attributes:
        kind: `scalar_affine_plus_low_rank`, `scalar_affine` (scale and constant), `scale_only`, `low_rank_only` or
            `full_rank`.
        rank: of the kinds that have one.
        scale: to begin with; of the residual stream at layer 0, which some models have multiplied embeddings for.
        learning_rate: after a short warm-up; it falls to zero by the end.
        centre: subtract the mean activation of the subjects at each layer, as the paper does for its topic vectors.
        placeholder: the word that the soft token replaces; one token of the model.
    """

    steps: int = Field(150, ge=1)
    kind: str = "scalar_affine_plus_low_rank"
    rank: int = Field(64, ge=1)
    scale: float = Field(SCALE, gt=0, allow_inf_nan=False)
    learning_rate: float = Field(1e-2, gt=0, allow_inf_nan=False)
    centre: bool = True
    placeholder: str = RECIPE.placeholder

    @field_validator("kind")
    @classmethod
    def _known_kind(cls, value: str) -> str:
        if value not in KINDS:
            raise unknown_name(f"{NAME}: kind", value, KINDS)
        return value


def make_settings(given: Mapping[str, Any]) -> SelfIETraining:
    """Check the settings of a training before a model is loaded.

    Raises:
        UsageError: an unknown setting, a value that cannot be, or an unknown task or relation.
    """
    settings = check_settings(SelfIETraining, given, NAME, NAME + ": {name} = {value}")
    settings.load_task()
    return settings


@dataclass(frozen=True)
class LabelledVector:
    """An activation by its place, and what it may be called: a subject's name and its answer, or the word read."""

    place: int
    labels: tuple[str, ...]


class Labels:
    """What there is to learn from: activations of subjects and of words of prose, and their labels."""

    def __init__(self, model: LanguageModel, corpus: Corpus, settings: SelfIETraining) -> None:
        self._model, self._settings = model, settings
        self.layers = settings.layers_of(model.n_layers, model.name, NAME)
        self.recipe = replace(RECIPE, placeholder=settings.placeholder, layers=self.layers)
        try:
            self.prompt = self.recipe.make(model, "", (0,))
        except LensbenchError as error:
            raise UsageError(f"{NAME}: {error}; train one for a model that has a chat template") from None
        items = list(settings.items(settings.load_task()))
        readings = [find_site(model, item) for item in items]
        found = capture(model, readings, range(model.n_layers + 1)).values
        self.tokens = sum(len(reading.ids) for reading in readings)
        words = _words(corpus, model, settings.seed) if settings.prose else []
        facts = [(item.fold, LabelledVector(i, (item.mention, item.answer))) for i, item in enumerate(items)]
        self.taught = [fact for fold, fact in facts if fold != HELD_OUT]
        self.held_out = [fact for fold, fact in facts if fold == HELD_OUT]
        self.words = [LabelledVector(len(items) + i, (word,)) for i, (word, _) in enumerate(words)]
        if not self.taught:
            raise UsageError(f"{NAME}: no subject to learn from; name more relations or more subjects")
        known = [fact.place for fact in self.taught]
        self.means: Float[Tensor, "layer d_model"] | None = found[:, known].float().mean(1) if settings.centre else None
        layers = list(self.layers)
        kept = torch.cat([found, *(values[:, None].to(found) for _, values in words)], dim=1)[layers].float()
        self._values = kept if self.means is None else kept - self.means[layers, None]

    def batch(self, step: int, soft: SoftToken) -> list[Lesson]:
        """Draw the examples of a step, a layer and a label each."""
        rng = random.Random(f"{self._settings.seed}/{step}")
        drawn = []
        for _ in range(self._settings.batch):
            among = self.words if self.words and rng.random() < self._settings.prose else self.taught
            drawn.append(self._lesson(rng.choice(among), rng, soft))
        return drawn

    def checks(self, soft: Callable[[Tensor], Tensor]) -> list[Lesson]:
        """Return held-out subjects, each with one label at one layer: the same ones each time."""
        rng = random.Random(f"{self._settings.seed}/checks")
        facts = self.held_out if len(self.held_out) <= CHECKED else rng.sample(self.held_out, CHECKED)
        return [self._lesson(fact, rng, soft) for fact in facts]

    def _lesson(self, one: LabelledVector, rng: random.Random, soft: Callable[[Tensor], Tensor]) -> Lesson:
        vector = self._values[rng.randrange(len(self.layers)), one.place]
        return Lesson(self.prompt, self._said(rng.choice(one.labels)), soft(vector[None]))

    def _said(self, label: str) -> tuple[int, ...]:
        """The tokens of a label, of the closing quotation mark, and of the end of the turn."""
        text = self.recipe.text("", (0,))
        return (*self._model.tokens.answer_ids(f'{label}"', text), self._model.tokens.turn_end)


Word = tuple[str, Float[Tensor, "layer d_model"]]


def _words(corpus: Corpus, model: LanguageModel, seed: int) -> list[Word]:
    """Draw words of prose that are one token each, with the activations there."""
    found: list[Word] = []
    windows = iter(corpus.windows)
    for values in corpus.residuals_in_windows(PROSE_TOKENS):
        for own, window in zip(values.unbind(1), windows, strict=False):
            found += _words_of(model, window, own)
    return random.Random(f"{seed}/words").sample(found, min(WORDS, len(found)))


def _words_of(
    model: LanguageModel, window: Int[Tensor, " token"], values: Float[Tensor, "layer position d_model"]
) -> list[Word]:
    """Return the words of a window that are one token; the first position of a window is not among the values."""
    said = [model.tokens.decode([token]) for token in window.tolist()]
    return [
        (said[i].strip(), values[:, i - 1].clone())
        for i in range(1, len(said) - 1)
        if re.fullmatch(r" [A-Za-z]{3,}", said[i]) and not said[i + 1][:1].isalnum()
    ]


def train(model: LanguageModel, corpus: Corpus, settings: SelfIETraining, out: Path) -> Spent:
    """Train an adapter for a model that is target and verbalizer at once, and write it into a new folder.

    An interrupted training is resumed where model, settings and folder are the same.

    Args:
        model: it stays as it is.
        corpus: prose of the model.
        settings: what to learn, and how long.
        out: the folder to write.
    """
    start = time.perf_counter()
    labels = Labels(model, corpus, settings)
    soft = SoftToken.fresh(settings.kind, model.d_model, settings.scale, settings.rank, settings.seed)
    soft = replace(soft, weights={name: one.to(model.device).requires_grad_() for name, one in soft.weights.items()})
    learner = Descent(
        soft.weights, settings.learning_rate, settings.steps, decay=DECAY, clip=CLIP, cosine=True
    )  # fmt: skip
    tokens = labels.tokens
    LOG.info("%d labelled activations, %d words of prose", len(labels.taught), len(labels.words))

    def losses(step: int) -> Float[Tensor, " lesson"]:
        nonlocal tokens
        asked = labels.batch(step, soft)
        tokens += sum(len(lesson.prompt.ids) + len(lesson.answer) for lesson in asked)
        return answer_losses(model, asked, RECIPE.layer, frozen=True)

    with checkpoint_folder(out, settings.digest(model.fingerprint)) as unfinished:
        figures = learner.descend(TrainingSchedule(unfinished, model.device), losses)
        figures |= _checked(model, labels, soft, settings.batch)
        more = settings.record(model.name, "subject", figures)
        answers = tuple(sorted({label for fact in (*labels.taught, *labels.held_out) for label in fact.labels[1:]}))
        with atomic_folder(out) as folder:
            soft.write(folder / ADAPTER, settings.steps)
            if labels.means is not None:
                save_file({str(layer): mean.cpu().clone() for layer, mean in enumerate(labels.means)}, folder / MEANS)
            Notes(labels.recipe, model.fingerprint, str(model.dtype), answers, more).write(folder)
    return Spent(time.perf_counter() - start, tokens)


@torch.no_grad()
def _checked(model: LanguageModel, labels: Labels, soft: SoftToken, batch: int) -> dict[str, float]:
    """Return mean losses on held-out subjects: as trained, with the constant alone, untrained, and with none."""
    if not labels.held_out:
        return {"held_out": 0}

    def loss(token: Callable[[Tensor], Tensor] | None) -> float:
        asked = labels.checks(token or soft)
        asked = asked if token else [replace(one, vectors=None) for one in asked]
        return mean_answer_loss(model, asked, RECIPE.layer, batch, frozen=True)

    found = {
        "held_out": len(labels.checks(soft)),
        "held_out_loss": loss(soft),
        "held_out_loss_no_activation": loss(None),
    }
    if constant := soft.without("activation"):
        found["held_out_loss_constant_token"] = loss(constant)
    if untrained := soft.without("training"):
        found["held_out_loss_untrained"] = loss(untrained)
    return found
