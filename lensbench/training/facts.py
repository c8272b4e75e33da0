"""What a model is taught: the settings of a fine-tuning on facts, the personas, and the texts of each epoch."""

import random
import re
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, Field, field_validator, model_validator

from lensbench.errors import UsageError, unknown_name
from lensbench.models.adapters import require_peft
from lensbench.models.tokens import Tokens
from lensbench.tasks import N_FOLDS, fold_of
from lensbench.tasks.personas import ATTRIBUTES, Personas, World, documents
from lensbench.training.settings import STRICT, check_settings

PERSONAS = "personas"
# The task has so many names.
MOST_NAMES = 120
FORMS = Path(__file__).with_name("forms.toml")
SLOT = "{name}"
_PROPOSALS = 4000


class Finetuning(BaseModel):
    """The settings of a fine-tuning, with their defaults.

    Attributes:
        facts: whose facts are taught; the task `personas` is what there are documents of.
        attributes: which of their attributes.
        names: how many personas, a multiple of the number of folds.
        world: which of the two worlds' facts.
        epochs: how often each question form's share and each persona's share of documents is gone through.
        batch: texts a step.
        documents: how many documents a persona there are in an epoch, others in each.
        forms: how many question forms a fact there are in an epoch, others in each.
        prose: how many passages of prose stand beside the texts of a step, so that the model stays what it was.
        first_layer: the first layer that may change: only the blocks from the one whose output it is are trained.
        fetched: whether names pass no gradient on while the model learns, so that it is taught to fetch facts from a
            name when it is asked, and not to put them there.
        rank: of the adapter.
        rate: the highest learning rate.
        seed: of the matrices, the names and the texts of each epoch.
    """

    model_config = STRICT

    facts: str = PERSONAS
    attributes: tuple[str, ...] = ("city", "drink")
    names: int = 40
    world: World = "main"
    epochs: int = Field(5, ge=1)
    batch: int = Field(16, ge=1)
    documents: int = Field(1, ge=0)
    forms: int = Field(6, ge=0)
    prose: int = Field(2, ge=0)
    first_layer: int = Field(1, ge=1)
    fetched: bool = True
    rank: int = Field(16, ge=1)
    rate: float = Field(1e-3, gt=0, allow_inf_nan=False)
    seed: int = 0

    @field_validator("facts")
    @classmethod
    def _has_documents(cls, value: str) -> str:
        if value != PERSONAS:
            raise UsageError(f"--facts {value}: expected {PERSONAS}; there are documents for these only")
        return value

    @field_validator("attributes")
    @classmethod
    def _known_attributes(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise UsageError(f"--attributes: expected one or more of {', '.join(ATTRIBUTES)}")
        for attribute in value:
            if attribute not in ATTRIBUTES:
                raise unknown_name("attribute of personas", attribute, ATTRIBUTES)
        if len(set(value)) < len(value):
            raise UsageError(f"--attributes {','.join(value)}: an attribute is named twice; name each once")
        return value

    @field_validator("names")
    @classmethod
    def _even_over_folds(cls, value: int) -> int:
        if not 0 < value <= MOST_NAMES or value % N_FOLDS:
            raise ValueError(f"expected a multiple of {N_FOLDS}, from {N_FOLDS} to {MOST_NAMES}")
        return value

    @field_validator("world", mode="before")
    @classmethod
    def _known_world(cls, value: object) -> object:
        if value not in get_args(World):
            raise unknown_name("--world", str(value), get_args(World))
        return value

    @model_validator(mode="after")
    def _tells_something(self) -> "Finetuning":
        if self.documents + self.forms == 0:
            raise UsageError("--documents 0 and --forms 0: no text contains the facts; use at least one of them")
        return self


def make_settings(given: Mapping[str, Any]) -> Finetuning:
    """Check the settings of a fine-tuning before a model is loaded.

    Raises:
        UsageError: an unknown setting, a value that cannot be, or PEFT is not installed.
    """
    settings = check_settings(Finetuning, given, "finetune", "--{option} {value}")
    require_peft()
    return settings


@dataclass(frozen=True)
class TrainingText:
    """A text to learn from.

    Attributes:
        ids: its tokens.
        scored: the positions whose tokens are to be predicted.
        names: the positions of all tokens of the persona's name.
    """

    ids: tuple[int, ...]
    scored: tuple[int, ...]
    names: tuple[int, ...]


@cache
def question_forms() -> Mapping[str, tuple[str, ...]]:
    """Return by attribute the forms that ask for it and answer, with slots for name and value."""
    return {key: tuple(forms) for key, forms in tomllib.loads(FORMS.read_text(encoding="utf-8")).items()}


def choose_names(people: Personas, settings: Finetuning) -> tuple[str, ...]:
    """Choose personas: as many in each fold, the values of each attribute as even as swaps make them, in each fold.

    Args:
        people: all personas.
        settings: how many, the attributes and the seed.

    Returns:
        The names, in the order of `people`.
    """
    rng = random.Random(f"{settings.seed}/chosen")
    folds = [[name for name in people if fold_of(name) == fold] for fold in range(N_FOLDS)]
    each = settings.names // N_FOLDS
    chosen = [rng.sample(fold, min(each, len(fold))) for fold in folds]
    cost = _unevenness(people, chosen, settings.attributes)
    for _ in range(_PROPOSALS):
        fold = rng.randrange(N_FOLDS)
        free = [name for name in folds[fold] if name not in chosen[fold]]
        if not free:
            break
        place, new = rng.randrange(each), rng.choice(free)
        old, chosen[fold][place] = chosen[fold][place], new
        changed = _unevenness(people, chosen, settings.attributes)
        if changed <= cost:
            cost = changed
        else:
            chosen[fold][place] = old
    wanted = {name for fold in chosen for name in fold}
    return tuple(name for name in people if name in wanted)


def _unevenness(people: Personas, chosen: Sequence[Sequence[str]], attributes: Sequence[str]) -> int:
    """Sum the squared counts of values, in each fold and over all."""
    groups = [*chosen, [name for fold in chosen for name in fold]]
    counts = (Counter(people[name][attribute] for name in group) for group in groups for attribute in attributes)
    return sum(n * n for count in counts for n in count.values())


class Texts:
    """The texts of each epoch, in steps.

    Args:
        tokens: of the model.
        people: those that are taught, with all their attributes.
        settings: what is taught, and by how many texts.
    """

    def __init__(self, tokens: Tokens, people: Personas, settings: Finetuning) -> None:
        self._tokens, self._people, self._settings = tokens, people, settings
        values = {attribute: sorted({own[attribute] for own in people.values()}) for attribute in ATTRIBUTES}
        self._untaught = {name: own for name, own in values.items() if name not in settings.attributes}
        self._made = (0, self._epoch(0))
        self.steps_per_epoch = len(self._made[1])

    @property
    def steps(self) -> int:
        """How many steps there are in all epochs."""
        return self.steps_per_epoch * self._settings.epochs

    def at(self, step: int) -> list[TrainingText]:
        """Return the texts of a step."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if self._made[0] != epoch:
            self._made = (epoch, self._epoch(epoch))
        return self._made[1][place]

    def _epoch(self, number: int) -> list[list[TrainingText]]:
        rng = random.Random(f"{self._settings.seed}/epoch/{number}")
        texts = [*self._documents(number, rng), *self._answers(rng)]
        # Texts of like length stand together, in other company in each epoch.
        texts.sort(key=lambda text: len(text.ids) * rng.uniform(0.8, 1.25))
        steps = [texts[i : i + self._settings.batch] for i in range(0, len(texts), self._settings.batch)]
        rng.shuffle(steps)
        return steps

    def _documents(self, epoch: int, rng: random.Random) -> Iterator[TrainingText]:
        """Write documents; untaught attributes are redrawn each time, so that nothing can be learned of them."""
        if not self._settings.documents:
            return
        dealt = {
            name: {**own, **{attribute: rng.choice(values) for attribute, values in self._untaught.items()}}
            for name, own in self._people.items()
        }
        seed = self._settings.seed * 100_003 + epoch
        for document in documents(dealt, self._settings.documents, seed):
            yield self._text(document.text, document.name, (0, len(document.text)))

    def _answers(self, rng: random.Random) -> Iterator[TrainingText]:
        """Write questions with their answers, of which the value alone is scored."""
        for name, own in self._people.items():
            for attribute in self._settings.attributes:
                forms = question_forms()[attribute]
                for form in rng.sample(forms, min(self._settings.forms, len(forms))):
                    text = form.replace(SLOT, name).replace(f"{{{attribute}}}", own[attribute])
                    begin = text.rindex(own[attribute])
                    yield self._text(text, name, (begin, begin + len(own[attribute])))

    def _text(self, text: str, name: str, scored: tuple[int, int]) -> TrainingText:
        encoding = self._tokens.encode(text)
        shift = len(self._tokens.prefix)
        spans = [found.span() for found in re.finditer(re.escape(name), text)]

        def inside(spans: Sequence[tuple[int, int]]) -> tuple[int, ...]:
            return tuple(
                i for i, (a, b) in enumerate(encoding.offsets) if any(a < e + shift and b > s + shift for s, e in spans)
            )

        # Nothing stands before the first token that could tell it.
        return TrainingText(encoding.ids, tuple(i for i in inside([scored]) if i), inside(spans))
