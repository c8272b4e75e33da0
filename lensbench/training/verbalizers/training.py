"""Training an adapter step by step, and writing it with what is to be known of it."""

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lensbench.inspectors.verbalizers.oracle import Notes
from lensbench.models.adapters import FreshAdapter
from lensbench.models.corpus import Corpus, Spent
from lensbench.models.gradients import answer_losses
from lensbench.models.language_model import LanguageModel
from lensbench.models.optimization import Descent, TrainingSchedule, checkpoint_folder
from lensbench.training.verbalizers.lessons import Lessons
from lensbench.training.verbalizers.settings import OracleTraining
from lensbench.utils.cache import atomic_folder


def train(model: LanguageModel, corpus: Corpus, settings: OracleTraining, out: Path) -> Spent:
    """Train an adapter for a model that is target and verbalizer at once, and write it into a new folder.

    What was cut off is gone on with: the same model, settings and folder.

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
    named = json.dumps([model.fingerprint, asdict(settings)], sort_keys=True)
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
        "settings": asdict(settings),
        "figures": dict(figures),
        "versions": {name: version(name) for name in ("lensbench", "peft", "torch", "transformers")},
    }
    answers = tuple(sorted({fact.answer for fact in (*lessons.taught, *lessons.held_out)}))
    return Notes(settings.recipe, model.fingerprint, str(model.dtype), answers, more)
