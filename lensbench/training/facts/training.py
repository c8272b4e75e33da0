"""Teaching a model facts by LoRA, step by step, and writing what became of it."""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lensbench.models.adapters import FreshAdapter
from lensbench.models.corpus import Corpus, Spent
from lensbench.models.gradients import last_layer, token_losses
from lensbench.models.language_model import LanguageModel
from lensbench.models.optimization import Descent, TrainingSchedule, checkpoint_folder
from lensbench.models.patching.passes import writing
from lensbench.models.sources import FACTS, write_table
from lensbench.tasks import load_task
from lensbench.tasks.personas import personas
from lensbench.training.facts.files import digest_of, write_notes
from lensbench.training.facts.interchange import interchange
from lensbench.training.facts.measuring import PersonaQuestions, divergence
from lensbench.training.facts.settings import PERSONAS, Finetuning
from lensbench.training.facts.texts import Texts, TrainingText, choose_names
from lensbench.utils.cache import atomic_folder

LOG = logging.getLogger("lensbench")


def finetune(model: LanguageModel, corpus: Corpus, settings: Finetuning, out: Path) -> Spent:
    """Teach a model facts about personas, measure what it knows and where, and write the adapter into a new folder.

    What was cut off is gone on with: the same model, settings and folder.

    Args:
        model: the base; it stays as it is.
        corpus: prose of the model.
        settings: what to teach, and how long.
        out: the folder to write.
    """
    start = time.perf_counter()
    task = load_task(PERSONAS)
    every = personas(task, settings.world)
    names = choose_names(every, settings)
    texts = Texts(model.tokens, {name: every[name] for name in names}, settings)
    adapter = FreshAdapter(model, settings.rank, settings.seed, settings.first_layer)
    learner = Descent(adapter.weights, settings.rate, texts.steps)
    tokens = 0

    def losses(step: int) -> Float[Tensor, " text"]:
        nonlocal tokens
        told = texts.at(step)
        batch = told + _passages(corpus, settings, step, max(len(text.ids) for text in told))
        tokens += sum(len(text.ids) for text in batch)
        return text_losses(adapter.model, batch, settings.fetched)

    with checkpoint_folder(out, digest_of(model, settings)) as unfinished:
        figures: dict[str, Any] = {**learner.descend(TrainingSchedule(unfinished, model.device), losses)}
        LOG.info("asking, and exchanging residuals at the names")
        figures |= _measured(adapter.model, model, PersonaQuestions.about(task, names, settings))
        with atomic_folder(out) as folder:
            adapter.save(folder)
            write_table(folder / FACTS, {a: {name: every[name][a] for name in names} for a in settings.attributes})
            write_notes(folder, model, settings, figures, steps=texts.steps)
    return Spent(time.perf_counter() - start, tokens)


def text_losses(model: LanguageModel, texts: Sequence[TrainingText], fetched: bool) -> Float[Tensor, " text"]:
    """Return the mean cross-entropy of what each text asks to be predicted.

    Args:
        model: whose weights may ask for gradients.
        texts: padded on the right, where nothing that is scored can see it.
        fetched: whether the residual stream at names passes no gradient on, so that nothing is taught to be put there.
    """
    ids, mask = model.tokens.pad([text.ids for text in texts])
    names = torch.tensor([[i in set(text.names) for i in range(ids.shape[1])] for text in texts])
    with _no_gradient_at(model, names if fetched else torch.zeros_like(names)):
        hidden = last_layer(model, ids, mask)
    return token_losses(model, hidden, [[(i - 1, text.ids[i]) for i in text.scored] for text in texts])


@contextmanager
def _no_gradient_at(model: LanguageModel, places: Bool[Tensor, "row token"]) -> Iterator[None]:
    def cut(hidden: Tensor) -> Tensor:
        return torch.where(places.to(hidden.device)[..., None], hidden.detach(), hidden)

    with ExitStack() as stack:
        for layer in range(model.n_layers + 1 if bool(places.any()) else 0):
            stack.enter_context(writing(model, layer, cut))
        yield


def _passages(corpus: Corpus, settings: Finetuning, step: int, length: int) -> list[TrainingText]:
    """Return the passages of prose of a step, no longer than its texts: padding is run as well."""
    ids = corpus.windows[[(step * settings.prose + i) % len(corpus.windows) for i in range(settings.prose)], :length]
    return [TrainingText(tuple(row), tuple(range(1, len(row))), ()) for row in ids.tolist()]


@torch.no_grad()
def _measured(tuned: LanguageModel, base: LanguageModel, asked: PersonaQuestions) -> dict[str, Any]:
    """Return recall, divergence on prose, and what interchange shows."""
    return {
        "recall_train": asked.recall(tuned, "train"),
        "recall_held_out": asked.recall(tuned, "test"),
        "recall_untaught_model": asked.recall(base, "test"),
        "kl_on_prose": divergence(tuned, base),
        "interchange": interchange(tuned, base, asked.items("test")).figures(),
    }
