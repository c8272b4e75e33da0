"""Training an adapter step by step, and writing it with what is to be known of it."""

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lensbench.cache import atomic_folder
from lensbench.corpus import Corpus, Spent
from lensbench.inspectors.oracle import Notes
from lensbench.learning import Learning, Resumable
from lensbench.model.adapters import FreshAdapter
from lensbench.model.language_model import LanguageModel
from lensbench.oracle_training.lessons import Lessons
from lensbench.oracle_training.settings import OracleTraining
from lensbench.patching.training import answer_losses

LOG = logging.getLogger("lensbench")
WARM_UP = 10
CLIP = 1.0


class _Learner(Resumable):
    """Adam on an adapter; the moments belong to its state."""

    def __init__(self, adapter: FreshAdapter, settings: OracleTraining) -> None:
        self.weights = adapter.weights
        self._settings = settings
        self._adam = torch.optim.Adam(self.weights.values(), lr=settings.learning_rate)
        self.losses: list[float] = []

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        return self._settings.learning_rate * min((step + 1) / WARM_UP, 1 - step / self._settings.steps)

    def step(self, number: int, losses: Float[Tensor, " row"]) -> None:
        """Go one step down the mean of the losses."""
        self._adam.zero_grad()
        losses.mean().backward()
        torch.nn.utils.clip_grad_norm_(self.weights.values(), CLIP)
        self._adam.param_groups[0]["lr"] = self.rate(number)
        self._adam.step()
        self.losses.append(float(losses.detach().mean()))

    def state(self) -> dict[str, Tensor]:
        """Weights, moments, and the losses so far."""
        kept: dict[str, Tensor] = {"losses": torch.tensor(self.losses)}
        for name, weight in self.weights.items():
            moments = self._adam.state[weight]
            kept |= {f"w.{name}": weight, f"m.{name}": moments["exp_avg"], f"v.{name}": moments["exp_avg_sq"]}
        return kept

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from such a state."""
        self.losses = state["losses"].tolist()
        for name, weight in self.weights.items():
            weight.data.copy_(state[f"w.{name}"])
            self._adam.state[weight] = {
                "step": torch.tensor(float(len(self.losses))),
                "exp_avg": state[f"m.{name}"].clone(),
                "exp_avg_sq": state[f"v.{name}"].clone(),
            }


def train(model: LanguageModel, corpus: Corpus, settings: OracleTraining, out: Path) -> Spent:
    """Train an adapter for a model that is target and verbalizer at once, and write it into a new folder.

    What was cut off is gone on with: the same model, settings and folder.

    Args:
        model: the base; it stays as it is.
        corpus: prose of the model.
        settings: what to learn, and how long.
        out: the folder to write.
    """
    begun, digest = time.perf_counter(), _digest(model, settings)
    lessons = Lessons(model, corpus, settings)
    adapter = FreshAdapter(model, settings.rank, settings.seed)
    learner = _Learner(adapter, settings)
    unfinished = out.with_name(f".{out.name}.{digest}.begun")
    tokens = 0
    for step in Learning(unfinished, model.device).steps(settings.steps, learner):
        asked, vectors = lessons.batch(step)
        tokens += sum(len(lesson.prompt.ids) + len(lesson.answer) for lesson in asked)
        with torch.enable_grad():
            learner.step(step, answer_losses(adapter.model, asked, vectors, settings.recipe.layer))
        if step % 10 == 9:
            LOG.info("step %d of %d: loss %.3f", step + 1, settings.steps, _mean(learner.losses[-10:]))
    figures = {"loss_first": _mean(learner.losses[:10]), "loss_last": _mean(learner.losses[-10:])}
    notes = _notes(model, settings, lessons, {**figures, **_checked(adapter.model, model, lessons, settings)})
    with atomic_folder(out) as folder:
        adapter.save(folder)
        notes.write(folder)
    shutil.rmtree(unfinished, ignore_errors=True)
    return Spent(time.perf_counter() - begun, tokens)


def _digest(model: LanguageModel, settings: OracleTraining) -> str:
    named = json.dumps([model.fingerprint, asdict(settings)], sort_keys=True)
    return hashlib.sha256(named.encode()).hexdigest()[:12]


def _mean(values: Sequence[float]) -> float:
    return round(sum(values) / len(values), 4)


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
