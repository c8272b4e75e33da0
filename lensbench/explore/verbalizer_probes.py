"""Does a verbalizer read what it is given? Known subjects are asked about, rightly and with everything wrong."""

import math
from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from lensbench.explore.doctor import Check
from lensbench.inspectors.base import Inspector
from lensbench.inspectors.evidence import Evidence
from lensbench.inspectors.verbalizers.nla import NLA
from lensbench.inspectors.verbalizers.oracle import Oracle
from lensbench.inspectors.verbalizers.recipe import published_layers
from lensbench.inspectors.verbalizers.selfie_adapter import SelfIEAdapter
from lensbench.models.activations import Residuals, capture, find_site
from lensbench.models.language_model import LanguageModel
from lensbench.tasks import Item, Relation, load_task

Verbalizer = Oracle | SelfIEAdapter | NLA
# Probes: so many subjects of each of these relations, whose answers small models know best.
TASK, RELATIONS, SUBJECTS = "attribute_extraction", ("country_language", "city_country"), 10
# A difference is taken for real beyond so many standard errors of its mean over probes.
ERRORS = 2.0

Vectors = Float[Tensor, "item d_model"]


class Probes:
    """Subjects whose attributes a verbalizer is asked about, and their activations.

    A SelfIE adapter is not asked any question: it is to tell the subject's own name from those of the others.

    Args:
        model: the target.
        method: whose layers are read; where it names none, a quarter, half and three quarters of the depth.
    """

    def __init__(self, model: LanguageModel, method: Verbalizer) -> None:
        every = model.n_layers
        trained = (method.meta_.layer,) if isinstance(method, NLA) else method.recipe().trained_at
        self.layers = trained or published_layers(every)
        self._named = isinstance(method, SelfIEAdapter)
        self._model, task = model, load_task(TASK)
        reads = {layer for each in self.layers for layer in method.layers_read(each)}
        near = sorted({max(0, min(every, layer + off)) for layer in reads for off in (-1, 0, 1)})
        self.groups: list[tuple[Relation, list[Item], Residuals]] = []
        for name in RELATIONS:
            own = [item for item in task.items("subject", "test") if item.relation == name]
            items = list({item.subject: item for item in own}.values())[:SUBJECTS]
            read = capture(model, [find_site(model, item) for item in items], near)
            self.groups.append((task.relations[name], items, read))

    def norm(self, layer: int) -> float:
        """Return the mean length of the activations of a layer."""
        values = torch.cat([read.at_layers((layer,)).values[0] for *_, read in self.groups])
        return float(values.float().norm(dim=-1).mean())

    def scores(
        self, method: Inspector, change: Callable[[Vectors], Vectors] = lambda vectors: vectors, shift: int = 0
    ) -> Float[Tensor, " probe"]:
        """Return the log-probability of each right answer among its choices, one a layer and subject.

        Args:
            method: the fitted method.
            change: what is done to the activations of a relation's subjects at a layer.
            shift: read this many layers further on than the prompt says.
        """
        found = []
        for relation, items, read in self.groups:
            golds = [item.mention if self._named else item.answer for item in items]
            sets = [golds if self._named else item.choices for item in items]
            answers = sorted({choice for choices in sets for choice in choices})
            forms = (*relation.inspection, *relation.questions)
            for layer in self.layers:
                shown = method.layers_read(layer)
                taken = [max(0, min(self._model.n_layers, each + shift)) for each in shown]
                values = torch.stack([change(own) for own in read.at_layers(taken).values])
                evidence = Evidence(
                    tuple(answers), layers=(layer,), residuals=Residuals(shown, values), question=forms[0], forms=forms,
                    n_items=len(items),
                )  # fmt: skip
                scored = method.inspect(evidence).log_scores[0, 0].float().cpu()
                for gold, choices, row in zip(golds, sets, scored, strict=True):
                    places = [answers.index(choice) for choice in choices]
                    found.append(row[answers.index(gold)] - row[places].logsumexp(0))
        return torch.stack(found)


# Other vectors, by name, and what it means where a trained reader is no worse with them.
MEANINGS = {
    "another subject's vector": "it does not read these activations: the recipe is wrong, or it was not trained to",
    "a random vector of equal length": "it answers from the question alone",
    "read one layer earlier": "neighbouring layers say the same; or the layer's number is off by one",
    "read one layer later": "neighbouring layers say the same; or the layer's number is off by one",
    "written one layer earlier": "where it is written matters little; or the layer is off by one",
    "written one layer later": "where it is written matters little; or the layer is off by one",
    "length x 0.1": "this way of writing takes the length from what is there, so that lengths do not matter",
    "length x 10": "this way of writing takes the length from what is there, so that lengths do not matter",
}
# To read better than with these is what makes a reader. To read better with one of the others says that the recipe is
# wrong, unless it is recorded: neighbouring layers may happen to be more legible.
DECISIVE = ("another subject's vector", "a random vector of equal length")


def behaviour(method: Verbalizer, probes: Probes, *, known: bool) -> tuple[list[Check], list[str]]:
    """Ask about known subjects as the recipe says, and with everything wrong in turn.

    Args:
        method: the fitted method.
        probes: what it is asked about.
        known: whether the verbalizer records its recipe.
    """
    asked = _unbound(method)
    real = probes.scores(asked)
    checks = [Check("log p of the right answer among its choices", f"{real.mean():.2f}", "-", passed=True)]
    notes = []
    for name, other in _variants(asked, probes):
        lower, error = compared(real, other)
        better = lower < -ERRORS * error
        passed = lower > ERRORS * error if name in DECISIVE else known or not better
        checks.append(Check(name, f"{other.mean():.2f}", "lower", passed))
        if lower <= ERRORS * error:
            notes.append(f"{name}: {'it reads better so' if better else 'no lower'}: {MEANINGS[name]}")
    return checks, notes


def _unbound(method: Verbalizer) -> Verbalizer:
    """Return a method that may be asked what it was taught, at any layer: nothing is compared with others here."""
    free = copy(method)
    free.any_layer = True
    if not isinstance(free, NLA):
        free.answers_ = frozenset()
    return free


def _variants(method: Verbalizer, probes: Probes) -> Iterator[tuple[str, Tensor]]:
    def noise(vectors: Tensor) -> Tensor:
        drawn = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(0)).to(vectors)
        lengths: Tensor = vectors.norm(dim=1, keepdim=True) / drawn.norm(dim=1, keepdim=True)
        return drawn * lengths

    yield "another subject's vector", probes.scores(method, lambda vectors: vectors.roll(1, 0))
    yield "a random vector of equal length", probes.scores(method, noise)
    yield "read one layer earlier", probes.scores(method, shift=-1)
    yield "read one layer later", probes.scores(method, shift=1)
    if isinstance(method, Oracle):
        for name, off in (("written one layer earlier", -1), ("written one layer later", 1)):
            other, most = copy(method), method.verbalizer_.n_layers
            other.recipe_ = replace(method.recipe_, layer=max(0, min(most, method.recipe_.layer + off)))
            yield name, probes.scores(other)
    yield "length x 0.1", probes.scores(method, lambda vectors: vectors * 0.1)
    yield "length x 10", probes.scores(method, lambda vectors: vectors * 10)


def compared(real: Float[Tensor, " probe"], other: Float[Tensor, " probe"]) -> tuple[float, float]:
    """Return by how much scores are lower than others on average, and the standard error of that."""
    lower = (real - other).double()
    return float(lower.mean()), float(lower.std()) / math.sqrt(len(lower))
