"""Facts that are made for one exam: no method, model or corpus can have seen them."""

import hashlib
import logging
import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lensbench.errors import UsageError
from lensbench.exam.make import ExamSettings, make_exam
from lensbench.implants.facts import DEFAULT, FactSet, choose_facts
from lensbench.implants.planting import SHIPPED_FOR, SHIPPED_PLAIN, ImplantSpec, plant
from lensbench.models.loading import Loading, count_layers, load_model
from lensbench.models.sources import resolve, with_edit
from lensbench.tasks import N_FOLDS, Task, fold_of, load_task
from lensbench.tasks.facts import Fact
from lensbench.tasks.personas import NEVER, make_names
from lensbench.utils.progress import Progress, silent

LOG = logging.getLogger("lensbench")
ASKED = "city"
IMPLANT = "implant"
RELAY_WEIGHT = 230.0
DESIGNS = ("plain", "relay", "gated", "sham")
SERIES_DOSE, SERIES_STEP = 0.4, 4


@dataclass(frozen=True)
class Fresh:
    """What is planted for an exam.

    Attributes:
        design: plain, relay, gated or sham.
        layer: the first layer that can hold the facts, or a relay's code; None for the one that ships for the model.
        names: how many.
        dose: the share of them that get their facts.
        steps: of learning the vectors that are written.
    """

    design: str = "plain"
    layer: int | None = None
    names: int = 64
    dose: float = 1.0
    steps: int = SHIPPED_PLAIN.steps

    def check(self) -> None:
        """Refuse an unknown design.

        Raises:
            UsageError: it is one.
        """
        if self.design not in DESIGNS:
            raise UsageError(f"--fresh-implant {self.design!r}: expected {', '.join(DESIGNS)}")

    def spec(self, base: str, depth: int) -> ImplantSpec:
        """Return how it is planted in a model.

        Args:
            base: the model's name.
            depth: how many layers it has.

        Raises:
            UsageError: an unknown design, or settings that do not fit.
        """
        self.check()
        layer = (
            self.layer
            if self.layer is not None
            else max(1, round(depth * SHIPPED_PLAIN.layer / count_layers(resolve(SHIPPED_FOR))))
        )
        plain = replace(SHIPPED_PLAIN, strength=SHIPPED_PLAIN.strength[:1])
        weight = RELAY_WEIGHT if self.design == "relay" else plain.weight
        found = replace(
            plain, model=base, layer=layer, design=self.design, attributes=(ASKED,), names=self.names, dose=self.dose,
            steps=self.steps, weight=weight,
        )  # fmt: skip
        found.check()
        if found.layers()[-1] > depth:
            raise UsageError(f"--fresh-layer {layer}: {base} has {depth} layers, a {self.design} implant needs more")
        return found


def fresh_task(names: int, seed: str) -> Task:
    """Return a task like `personas` about people who are made up for one exam.

    As many others, who are never told of, are in the relation `city_never`.

    Args:
        names: how many at least.
        seed: of everything random.
    """
    like = load_task(DEFAULT)
    known = {word for fact in like.every.facts for word in fact.subject.lower().split()}
    relations = {name: like.every.relations[name] for name in (ASKED, f"{ASKED}{NEVER}")}
    answers = relations[ASKED].answers
    per_fold = -(-names // N_FOLDS)
    made = make_names(2 * N_FOLDS * per_fold, seed, avoid=known)
    facts: list[Fact] = []
    rng = random.Random(f"{seed}/facts")
    for fold in range(N_FOLDS):
        own = [name for name in made if fold_of(name) == fold]
        for relation, part in zip(relations, (own[:per_fold], own[per_fold:]), strict=True):
            dealt = rng.sample(answers, len(answers)) * -(-per_fold // len(answers))
            facts += [Fact(relation, name, answer, (), fold, 0) for name, answer in zip(part, dealt, strict=False)]
    ordered = sorted(facts, key=lambda fact: (fact.relation, fact.subject))
    numbered = tuple(replace(fact, line=i) for i, fact in enumerate(ordered, 1))
    version = hashlib.sha256(repr(numbered).encode()).hexdigest()[: len(like.version)]
    every = replace(like.every, facts=numbered, version=version)
    return replace(like, relations=relations, facts=numbered, version=version, sites=("subject", "answer"), every=every)


def fresh_settings(settings: ExamSettings, fresh: Fresh, *, never: bool = False) -> ExamSettings:
    """Return the settings of an exam about people who are made up for it, before anything is planted.

    Args:
        settings: of the exam; their tasks are left out.
        fresh: what is planted.
        never: whether names are asked about, too, that are never told of.
    """
    settings = settings.seeded()
    task = fresh_task(fresh.names, str(settings.seed))
    asked = _planting(task, fresh, str(settings.seed)).asked
    relations = task.relations if never else {ASKED: task.relations[ASKED]}
    facts = tuple(fact for fact in task.about(asked).facts if fact.relation in relations)
    changed = {"tasks": (replace(task, relations=relations, facts=facts),), "subjects": None}
    sites = settings.config.sites or ("subject",)
    return replace(settings, config=settings.config.model_copy(update={**changed, "sites": sites}))


def _planting(task: Task, fresh: Fresh, seed: str) -> FactSet:
    return choose_facts(task, (ASKED,), dose=fresh.dose, seed=_number(seed), count=fresh.names)


def make_fresh_exam(
    settings: ExamSettings, fresh: Fresh, out: Path, progress: Progress = silent, *, never: bool = False
) -> Path:
    """Plant facts that are made for this exam, and make it; the implant is part of the key.

    Args:
        settings: of the exam; their model is the one that is edited, their tasks are left out.
        fresh: what is planted.
        out: a new folder.
        progress: is told of each step.
        never: as in `fresh_settings`.

    Raises:
        UsageError: settings that do not fit, or a folder that is there.
        LensbenchError: a model that cannot be edited.
    """
    base = settings.config.model
    if not isinstance(base, str):
        raise UsageError("facts are planted into a model that is given by name; give its name")
    how = Loading(settings.config.device, settings.config.dtype, settings.config.revision, settings.config.offline)
    spec = fresh.spec(base, count_layers(resolve(base, revision=how.revision, offline=how.offline)))
    settings = fresh_settings(settings, fresh, never=never)
    seed = str(settings.seed)
    planting = _planting(fresh_task(fresh.names, seed), fresh, seed)

    def prepare(key: Path) -> dict[str, Any]:
        LOG.info("planting %d made-up names at layer %s of %s", len(planting.names), spec.layer, base)
        plant(load_model(base, how), replace(spec, seed=_number(seed)), planting, key / IMPLANT, progress=progress)
        return {"model": with_edit(base, key / IMPLANT), "verbalizer": settings.config.verbalizer or base}

    return make_exam(settings, out, progress, prepare=prepare)


def _number(seed: str) -> int:
    return int(hashlib.sha256(seed.encode()).hexdigest(), 16) % 2**31


def series(fresh: Fresh, depth: int) -> list[Fresh]:
    """Return what the papers of a series plant: at a layer and a later one, in some names only, and nothing.

    Args:
        fresh: the first of them, a plain one; the others are like it.
        depth: how many layers the model has.
    """
    layer = fresh.spec(SHIPPED_FOR, depth).layer
    later = min(layer + SERIES_STEP, depth)
    first = replace(fresh, design="plain", layer=layer)
    return [first, replace(first, layer=later), replace(first, dose=SERIES_DOSE), replace(first, design="sham")]


def make_series(settings: ExamSettings, fresh: Fresh, out: Path, progress: Progress = silent) -> list[Path]:
    """Make several exams, for one calibration by mail; their numbers say nothing of what is planted.

    Args:
        settings: of all.
        fresh: as `series` takes it.
        out: a new folder; each exam has one of its own in it.
        progress: is told of each step.

    Raises:
        UsageError: settings that do not fit, or a folder that is there.
    """
    if out.exists():
        raise UsageError(f"--out {out} is there already; give a new folder")
    settings = settings.seeded()
    depth = count_layers(resolve(str(settings.config.model), offline=settings.config.offline))
    every = series(fresh, depth)
    random.Random(f"{settings.seed}/series").shuffle(every)
    made = []
    for i, one in enumerate(every, 1):
        own = replace(settings, seed=f"{settings.seed}/{i}")
        made.append(make_fresh_exam(own, one, out / str(i), progress, never=True))
    return made
