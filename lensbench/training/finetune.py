"""Teaching a model facts by LoRA, measuring what it then knows, and writing it: `lensbench finetune`."""

import hashlib
import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lensbench.models.adapters import FreshAdapter, read_adapter
from lensbench.models.corpus import PROSE, Corpus, Spent
from lensbench.models.edits import trials
from lensbench.models.gradients import last_layer, token_losses
from lensbench.models.language_model import LanguageModel
from lensbench.models.optimization import Descent, TrainingSchedule, checkpoint_folder
from lensbench.models.patching.passes import writing
from lensbench.models.prompting import score_next_tokens
from lensbench.models.sources import FACTS, FINETUNED, write_table
from lensbench.tasks import Item, Task, load_task
from lensbench.tasks.items import Split
from lensbench.tasks.personas import personas
from lensbench.training.facts import FORMS, PERSONAS, Finetuning, Texts, TrainingText, choose_names
from lensbench.training.interchange import interchange
from lensbench.utils.cache import atomic_folder

# Passages of prose that nobody learns from, and how many tokens of each; the first is an attention sink.
HELD_OUT_PASSAGES, PASSAGE_TOKENS = 32, 64
LOG = logging.getLogger("lensbench")


@dataclass(frozen=True)
class PersonaQuestions:
    """Questions about personas: the task's texts at the `answer` site.

    Attributes:
        by_split: items whose texts methods learn from, and held-out ones.
    """

    by_split: dict[Split, tuple[Item, ...]]

    @classmethod
    def about(cls, task: Task, names: Sequence[str], settings: Finetuning) -> "PersonaQuestions":
        """Ask for what is taught, in the words of the task."""
        wanted, suffix = set(names), "" if settings.world == "main" else f"_{settings.world}"
        relations = {f"{one}{suffix}": task.relations[f"{one}{suffix}"] for one in settings.attributes}
        facts = tuple(fact for fact in task.facts if fact.relation in relations and fact.subject in wanted)
        part = replace(task, relations=relations, facts=facts)
        splits: tuple[Split, ...] = ("train", "test")
        return cls({split: part.items("answer", split) for split in splits})

    def items(self, split: Split) -> tuple[Item, ...]:
        """Return the items of a split."""
        return self.by_split[split]

    def recall(self, model: LanguageModel, split: Split) -> dict[str, float]:
        """Return by relation, and for all items, the share whose likeliest choice is the fact."""
        right = {
            relation: _right(model, list(items))
            for relation, items in groupby(self.items(split), key=lambda item: item.relation)
        }
        every = [one for own in right.values() for one in own]
        return {name: round(sum(own) / len(own), 4) for name, own in [*right.items(), ("all", every)]}


def _right(model: LanguageModel, items: Sequence[Item]) -> list[bool]:
    choices = items[0].choices
    tokens = [model.tokens.answer_token(choice) for choice in choices]
    best = score_next_tokens(model, [item.source for item in items], tokens).log_probs.argmax(1).tolist()
    return [choices[place] == item.answer for place, item in zip(best, items, strict=True)]


def divergence(tuned: LanguageModel, base: LanguageModel) -> float:
    """Return the mean KL(base || tuned) of the next token on held-out prose, in nats."""
    ids = Corpus(base, PROSE / "heldout.txt").windows[:HELD_OUT_PASSAGES, :PASSAGE_TOKENS]
    parts = list(_divergences(tuned, base, ids))
    return round(float(torch.cat(parts).mean()), 4)


def _divergences(tuned: LanguageModel, base: LanguageModel, ids: Tensor) -> Iterator[Float[Tensor, " position"]]:
    for row in ids:
        # Without the first token, an attention sink.
        logs = [model.unembed(model.text_residuals(row[None])[0, 1:]).log_softmax(-1) for model in (base, tuned)]
        yield torch.nn.functional.kl_div(logs[1], logs[0], log_target=True, reduction="none").sum(-1)


def _settings_digest(model: LanguageModel, settings: Finetuning) -> str:
    """Return a digest of everything that training depends on."""
    forms = FORMS.read_text(encoding="utf-8")
    named = json.dumps([model.fingerprint, settings.model_dump(), forms], sort_keys=True)
    return hashlib.sha256(named.encode()).hexdigest()[:12]


def _write_notes(
    folder: Path, model: LanguageModel, settings: Finetuning, figures: Mapping[str, Any], *, steps: int
) -> None:
    """Write settings, figures, and the base model: some matrices by which it is known again in another precision."""
    paths = list(read_adapter(folder).shapes)
    matrices = {path: trials(model.module, path) for path in dict.fromkeys((paths[0], paths[-1]))}
    notes = {
        "base": {"name": model.name, "fingerprint": model.fingerprint, "matrices": matrices},
        "settings": {**settings.model_dump(), "steps": steps},
        "figures": figures,
        "versions": {name: version(name) for name in ("lensbench", "peft", "torch", "transformers")},
    }
    write_table(folder / FINETUNED, notes)


def finetune(model: LanguageModel, corpus: Corpus, settings: Finetuning, out: Path) -> Spent:
    """Teach a model facts about personas, measure what it knows and where, and write the adapter into a new folder.

    An interrupted training is resumed where model, settings and folder are the same.

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
        taught = texts.at(step)
        batch = taught + _passages(corpus, settings, step, max(len(text.ids) for text in taught))
        tokens += sum(len(text.ids) for text in batch)
        return text_losses(adapter.model, batch, settings.fetched)

    with checkpoint_folder(out, _settings_digest(model, settings)) as unfinished:
        figures: dict[str, Any] = {**learner.descend(TrainingSchedule(unfinished, model.device), losses)}
        LOG.info("asking, and exchanging residuals at the names")
        figures |= _measured(adapter.model, model, PersonaQuestions.about(task, names, settings))
        with atomic_folder(out) as folder:
            adapter.save(folder)
            write_table(folder / FACTS, {a: {name: every[name][a] for name in names} for a in settings.attributes})
            _write_notes(folder, model, settings, figures, steps=texts.steps)
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
