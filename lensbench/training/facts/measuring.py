"""What a fine-tuned model knows when it is asked in text, and how far it has moved on prose."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import torch
from jaxtyping import Float
from torch import Tensor

from lensbench.models.corpus import PROSE, Corpus
from lensbench.models.language_model import LanguageModel
from lensbench.models.prompting import score_next_tokens
from lensbench.tasks import Item, Task
from lensbench.tasks.items import Split
from lensbench.training.facts.settings import Finetuning

# Passages of prose that nobody learns from, and how many tokens of each; the first is an attention sink.
PASSAGES, TOKENS = 32, 64


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
    ids = Corpus(base, PROSE / "heldout.txt").windows[:PASSAGES, :TOKENS]
    parts = list(_divergences(tuned, base, ids))
    return round(float(torch.cat(parts).mean()), 4)


def _divergences(tuned: LanguageModel, base: LanguageModel, ids: Tensor) -> Iterator[Float[Tensor, " position"]]:
    where = torch.arange(1, ids.shape[1])
    for row in ids:
        logs = []
        for model in (base, tuned):
            hidden = model.residuals(row[None], torch.ones_like(row[None]), where[None], (model.n_layers,))[0, 0]
            logs.append(model.unembed(hidden).float().log_softmax(-1))
        yield torch.nn.functional.kl_div(logs[1], logs[0], log_target=True, reduction="none").sum(-1)
