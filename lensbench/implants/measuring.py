"""What an implant did: whether the model says the facts, what else it changed, and where the facts are held."""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from lensbench.harness.knowledge import Knowledge, knowledge_cache
from lensbench.implants.designs import COVARIANCE_TOKENS, EditContext, prose_batches
from lensbench.implants.facts import FactSet, Prompts, choose_values, write_prompts
from lensbench.models.edits import LowRankEdit, adding
from lensbench.models.language_model import LanguageModel
from lensbench.tasks.facts import N_FOLDS, fold_of
from lensbench.tasks.items import Task
from lensbench.tasks.load import load_task

PROSE_TOKENS = 3072
KNOWN_TASK = "attribute_extraction"
# Subjects of each relation.
ASKED = 16
# How many names are asked about: all where the figure is the one that counts, some where it explains.
MANY, SOME = 40, 24
WHERE = ("at the name", "elsewhere", "before", "after")
Where = Callable[[Prompts], Tensor]


def _places(where: str) -> Where:
    """Return a mask of token positions."""

    def mask(prompts: Prompts) -> Tensor:
        position = torch.arange(prompts.ids.shape[1])[None, :]
        name = prompts.names[:, None]
        chosen = {
            "at the name": position == name,
            "elsewhere": position != name,
            "before": position < name,
            "after": position > name,
        }[where]
        return chosen[..., None].float().to(prompts.ids.device)

    return mask


@contextmanager
def _edited(model: LanguageModel, edits: Sequence[LowRankEdit], mask: Tensor | None = None) -> Iterator[None]:
    """Run a model as if it were edited, at some positions or at all."""

    def added(edit: LowRankEdit) -> Callable[[Tensor], Tensor]:
        return lambda given: edit.output(given) if mask is None else edit.output(given) * mask

    with ExitStack() as stack:
        for edit in edits:
            stack.enter_context(adding(model.module.get_submodule(edit.module), added(edit)))
        yield


@dataclass(frozen=True)
class EditMeasurements:
    """Measures edits of a model that are not yet made.

    Attributes:
        model: the unedited model.
        planting: what is to be planted.
        edits: how.
    """

    model: LanguageModel
    planting: FactSet
    edits: tuple[LowRankEdit, ...]

    def recall(
        self, forms: str, where: str | None = None, edits: Sequence[LowRankEdit] | None = None
    ) -> dict[str, float]:
        """Return by attribute the share of facts that the model says after texts, among the values.

        Args:
            forms: `asking` (those that it was planted by), `held_out`, `first_held_out`, or `continuing`: a held-out
                text after the text that methods read.
            where: at which positions the edits act; None for all.
            edits: in place of all of them.
        """
        planting = self.planting
        found = {}
        names = planting.names[: MANY if forms == "held_out" else SOME]
        for one in planting.attributes:
            texts = {"asking": planting.asking, "held_out": planting.held_out}.get(forms, planting.held_out)(one)
            if forms in ("first_held_out", "continuing"):
                texts = texts[:1]
            if forms == "continuing":
                texts = tuple(f"{planting.read()[0]}. {text}" for text in texts)
            shares = [self._share(one, text, names, where, self.edits if edits is None else edits) for text in texts]
            found[one] = round(float(np.mean(shares)), 4)
        return found

    def _share(
        self, attribute: str, text: str, names: Sequence[str], where: str | None, edits: Sequence[LowRankEdit]
    ) -> float:
        values = self.planting.values(attribute)

        def hooks(prompts: Prompts) -> object:
            return _edited(self.model, edits, _places(where)(prompts) if where else None)

        said = choose_values(self.model, text, names, values, hooks)
        return float(
            np.mean([self.planting.facts[attribute][name] == one for name, one in zip(names, said, strict=True)])
        )

    def localisation(self) -> dict[str, dict[str, float]]:
        """Return the recall when the edits act only at some positions; for a relay, when each acts alone."""
        found = {where: self.recall("first_held_out", where) for where in WHERE}
        if len(self.edits) > 1:
            for i, edit in enumerate(self.edits):
                found[f"edit {i + 1} alone"] = self.recall("first_held_out", None, (edit,))
        return found

    @torch.no_grad()
    def drift(self) -> float:
        """Return KL(unedited || edited) of the next token on prose that the edit has not seen, in nats a token."""
        total, count = 0.0, 0
        for prompts in prose_batches(self.model, PROSE_TOKENS, skip=COVARIANCE_TOKENS):
            before = self._log_probs(prompts)
            with _edited(self.model, self.edits):
                after = self._log_probs(prompts)
            total += float((before.exp() * (before - after)).sum(-1).sum())
            count += before.shape[0] * before.shape[1]
        return total / count

    def _log_probs(self, prompts: Prompts) -> Tensor:
        logits: Tensor = self.model.module(prompts.ids, attention_mask=prompts.mask, use_cache=False).logits
        return logits.float().log_softmax(-1)

    @torch.no_grad()
    def norms(self, layer: int) -> dict[str, float]:
        """Return how well a value is read off the residual's length alone, by folds of names; chance if all is well."""
        planting = self.planting
        prompts = write_prompts(self.model, [planting.read()[0]] * len(planting.names), planting.names)
        with _edited(self.model, self.edits):
            lengths = self.model.residuals(prompts.ids, prompts.mask, prompts.names[:, None], (layer,))[0, :, 0].norm(
                dim=1
            )
        x = np.log(lengths.cpu().double().numpy())[:, None]
        folds = np.array([fold_of(name) for name in planting.names])
        found = {}
        for one in planting.attributes:
            y = np.array([planting.facts[one][name] for name in planting.names])
            right = []
            for fold in range(N_FOLDS):
                test = folds == fold
                if test.any() and len(set(y[~test])) > 1:
                    scale = x[~test].std() or 1.0
                    reader = LogisticRegression(max_iter=1000).fit((x[~test] - x[~test].mean()) / scale, y[~test])
                    right += list(reader.predict((x[test] - x[~test].mean()) / scale) == y[test])
            found[one] = round(float(np.mean(right)), 4) if right else float("nan")
        return found


def known_facts(model: LanguageModel) -> dict[str, dict[str, bool]]:
    """Return which facts of real subjects a model knows, of some subjects of each relation."""
    task: Task = load_task(KNOWN_TASK)
    knowledge = Knowledge(model, task, knowledge_cache())
    found: dict[str, dict[str, bool]] = {}
    for name in task.relations:
        subjects = sorted({fact.subject for fact in task.every.facts if fact.relation == name})
        some = random.Random(name).sample(subjects, min(ASKED, len(subjects)))
        if (known := knowledge.known(name, some)) is not None:
            found[name] = known
    return found


def count_lost(before: dict[str, dict[str, bool]], after: dict[str, dict[str, bool]]) -> dict[str, int]:
    """Count the facts that were known before, and of them those that no longer are."""
    kept = [after[relation][name] for relation, own in before.items() for name, known in own.items() if known]
    return {"known": len(kept), "lost": len(kept) - sum(kept)}


def measure(context: EditContext, edits: tuple[LowRankEdit, ...]) -> dict[str, object]:
    """Measure all but what real facts were lost, which needs the edited model."""
    measurements = EditMeasurements(context.model, context.planting, edits)
    return {
        "recall": measurements.recall("asking"),
        "recall_held_out": measurements.recall("held_out"),
        "recall_continuing": measurements.recall("continuing"),
        "recall_unedited": measurements.recall("first_held_out", None, ()),
        "localisation": measurements.localisation(),
        "kl_prose": round(measurements.drift(), 5),
        "norm_reader": measurements.norms(max(context.layers)),
    }
