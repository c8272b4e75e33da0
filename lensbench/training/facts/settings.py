"""The settings of a fine-tuning on facts, checked before a model is loaded."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, get_args

from lensbench.errors import UsageError, unknown_name
from lensbench.models.adapters import require_peft
from lensbench.tasks import N_FOLDS
from lensbench.tasks.personas import ATTRIBUTES, World

PERSONAS = "personas"
# The task has so many names.
MOST_NAMES = 120
WORLDS = get_args(World)


@dataclass(frozen=True)
class Finetuning:
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

    facts: str = PERSONAS
    attributes: tuple[str, ...] = ("city", "drink")
    names: int = 40
    world: World = "main"
    epochs: int = 5
    batch: int = 16
    documents: int = 1
    forms: int = 6
    prose: int = 2
    first_layer: int = 1
    fetched: bool = True
    rank: int = 16
    rate: float = 1e-3
    seed: int = 0


def make_settings(given: Mapping[str, Any]) -> Finetuning:
    """Check settings before a model is loaded.

    Raises:
        UsageError: an unknown setting, a value that cannot be, or PEFT is not installed.
    """
    known = {one.name for one in fields(Finetuning)}
    for name in given:
        if name not in known:
            raise unknown_name("setting of finetune", name, sorted(known))
    if given.get("world", "main") not in WORLDS:
        raise unknown_name("--world", str(given["world"]), WORLDS)
    settings = Finetuning(**given)
    _check_facts(settings)
    for name in ("epochs", "batch", "rank", "first_layer"):
        if getattr(settings, name) < 1:
            raise UsageError(f"{_option(name)} {getattr(settings, name)}: expected 1 or more")
    for name in ("documents", "forms", "prose"):
        if getattr(settings, name) < 0:
            raise UsageError(f"{_option(name)} {getattr(settings, name)}: expected 0 or more")
    if settings.documents + settings.forms == 0:
        raise UsageError("--documents 0 and --forms 0: nothing tells the facts; give some of either")
    if not 0 < settings.rate < math.inf:
        raise UsageError(f"--rate {settings.rate}: expected more than 0, such as 0.001")
    require_peft()
    return settings


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _check_facts(settings: Finetuning) -> None:
    if settings.facts != PERSONAS:
        raise UsageError(f"--facts {settings.facts}: expected {PERSONAS}: there are documents of these alone")
    if not settings.attributes:
        raise UsageError(f"--attributes: expected one or more of {', '.join(ATTRIBUTES)}")
    for attribute in settings.attributes:
        if attribute not in ATTRIBUTES:
            raise unknown_name("attribute of personas", attribute, ATTRIBUTES)
    if len(set(settings.attributes)) < len(settings.attributes):
        raise UsageError(f"--attributes {','.join(settings.attributes)}: one is named twice; name each once")
    if not 0 < settings.names <= MOST_NAMES or settings.names % N_FOLDS:
        raise UsageError(f"--names {settings.names}: expected a multiple of {N_FOLDS}, from {N_FOLDS} to {MOST_NAMES}")
