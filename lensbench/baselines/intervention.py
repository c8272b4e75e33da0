"""Whether the model uses what a method reads: interchange interventions along the method's own directions.

The design is docs/decisions/0015-used.md.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lensbench.baselines.common import require_question
from lensbench.errors import LensbenchError, NotApplicableError
from lensbench.harness.bench import Bench
from lensbench.harness.crossfit import CrossFit, Outcome
from lensbench.inspectors.access import SITE, SUBJECT, Runs, TargetRuns
from lensbench.inspectors.base import Inspector
from lensbench.inspectors.scores import Scores
from lensbench.models.components import ComponentError
from lensbench.results.used import ALONG, CLEAN, INTERCHANGE, MEAN_DIFFERENCE, RANDOM
from lensbench.tasks.items import Item

NO_DIRECTIONS = "the method names no direction for an answer"


def intervention(method: CrossFit) -> list[Outcome]:
    """Interchange what the method reads between items, and see what the target says (Geiger et al. 2021).

    Each item is asked about its donor's answer. Log-scores are log-odds against the item's own answer, by attempt:
    nothing changed, the interchange along the method's direction, along a random one, along the mean difference (where
    there is one for all items), and that of the whole residual.

    Raises:
        NotApplicableError: the method names no directions, no other answer can be put in, or nothing is asked after
            the read site.
    """
    require_question(method)
    if method.isolated is not None:
        raise NotApplicableError("a method that is fitted in a process of its own shows no directions")
    if type(method.inspector).directions is Inspector.directions:
        raise NotApplicableError(NO_DIRECTIONS)
    bench, layers = method.bench, method.bench.context.layers
    swaps = choose_donors(bench.items, bench.context.seed, within_folds=method.learns_labels)
    if not swaps:
        raise NotApplicableError("no item's choice set holds the answer of another item that can be its donor")
    asked = _Asked.of(bench, swaps)
    along = _interchanged(_directions(method, swaps, layers).to(asked.difference), asked.difference)
    own = asked.said({ALONG: along, RANDOM: _random(along, bench)})
    # What has nothing to do with the method is the same for all.
    key = layers, tuple(swaps), tuple(item.answer for item in bench.items)
    shared = bench.captured.interchanges.setdefault(key, {})
    if not shared:
        shared.update(asked.said(asked.changes_of_all(bench.items)))
        shared[CLEAN] = asked.clean()
    found = {CLEAN: shared[CLEAN]} | own | shared
    scores = torch.stack(list(found.values()), dim=1)
    against = torch.tensor([bench.answers.index(bench.items[swap.item].answer) for swap in swaps])
    odds = scores - scores.gather(3, against[None, None, :, None].expand(*scores.shape[:3], 1))
    items = tuple(replace(bench.items[swap.item], answer=bench.items[swap.donor].answer) for swap in swaps)
    return [Outcome(Scores(tuple(found), odds), layers, items, zero_shot=False)]


@dataclass(frozen=True)
class Swap:
    """Two items of a bench, by their places: one is given what is read at the other, its donor."""

    item: int
    donor: int


def choose_donors(items: Sequence[Item], seed: int, *, within_folds: bool) -> list[Swap]:
    """Return a donor for each item that has one: another answer of its choices, in its own fold and text if there is.

    Args:
        items: of one relation.
        seed: of the choice among those that are as good.
        within_folds: whether an item without a donor in its fold has none: a fit has learned from all others.
    """
    swaps = []
    for i, item in enumerate(items):
        ranked: dict[tuple[bool, bool], list[int]] = {}
        for j, other in enumerate(items):
            apart = other.fold != item.fold
            if other.answer != item.answer and other.answer in item.choices and not (apart and within_folds):
                ranked.setdefault((apart, other.template != item.template), []).append(j)
        if ranked:
            swaps.append(Swap(i, random.Random(f"{seed}/{item.id}/donor").choice(ranked[min(ranked)])))
    return swaps


def _asking(bench: Bench) -> tuple[Runs, str]:
    """The target on texts that ask, and the place in them that stands for the read site."""
    runs, place = TargetRuns(bench.context.model, bench.items), bench.items[0].place
    if place in ("answer", "t2"):
        return runs.own(), SITE
    if place == "t1":
        raise NotApplicableError("nothing is asked after the end of a first hop")
    if bench.relation.given:
        return runs.asked_after(bench.question), SITE
    return runs.asked(bench.question), SUBJECT


def _directions(
    method: CrossFit, swaps: Sequence[Swap], layers: tuple[int, ...]
) -> Float[Tensor, "layer swap d_model"]:
    """The vector of the donor's answer less that of the item's own, by the fit that has not learned from them."""
    items, answers = method.bench.items, method.bench.answers
    own, wanted = ([answers.index(items[getattr(swap, name)].answer) for swap in swaps] for name in ("item", "donor"))
    found = torch.zeros(len(layers), len(swaps), method.bench.context.model.d_model)
    folds = [items[swap.item].fold if method.learns_labels else None for swap in swaps]
    for fold in dict.fromkeys(folds):
        inspector = method.fit(fold, layers)
        here = [i for i, one in enumerate(folds) if one == fold]
        for number, layer in enumerate(layers):
            vectors = _checked(inspector, layer, answers, found.shape[2])
            found[number, here] = (vectors[[wanted[i] for i in here]] - vectors[[own[i] for i in here]]).float().cpu()
    return found


def _checked(inspector: Inspector, layer: int, answers: tuple[str, ...], width: int) -> Float[Tensor, "answer d_model"]:
    """The method's directions at a layer.

    Raises:
        NotApplicableError: it names none for these answers, or the model's final norm is of an unknown form.
        LensbenchError: they are of another shape, or not finite.
    """
    try:
        vectors = inspector.directions(layer, answers)
    except ComponentError as error:
        raise NotApplicableError(str(error)) from None
    if vectors is None:
        raise NotApplicableError(NO_DIRECTIONS)
    given = tuple(getattr(vectors, "shape", ()))
    if given != (len(answers), width) or not bool(torch.isfinite(vectors).all()):
        raise LensbenchError(
            f"{inspector.name}.directions({layer}, ...) returned shape {given}, or values that are not finite; "
            f"expected finite vectors of shape (answer, d_model) = {(len(answers), width)}"
        )
    return vectors


def _interchanged(
    direction: Float[Tensor, "layer swap d_model"], difference: Float[Tensor, "layer swap d_model"]
) -> Float[Tensor, "layer swap d_model"]:
    """The part of a difference that lies along a direction; none where there is no direction."""
    unit = torch.nn.functional.normalize(direction, dim=-1)
    part: Tensor = (unit * difference).sum(-1, keepdim=True) * unit
    return part


def _random(change: Float[Tensor, "layer swap d_model"], bench: Bench) -> Float[Tensor, "layer swap d_model"]:
    """A change of the same length in a random direction."""
    seed = random.Random(f"{bench.context.seed}/{bench.relation.name}/intervention").getrandbits(63)
    drawn = torch.randn(change.shape, generator=torch.Generator().manual_seed(seed)).to(change)
    other: Tensor = torch.nn.functional.normalize(drawn, dim=-1) * change.norm(dim=-1, keepdim=True)
    return other


@dataclass(frozen=True)
class _Asked:
    """Texts about items that ask, with the residuals that are changed in them.

    Attributes:
        runs: the target on the text of each item of the bench.
        place: which token of a text is changed.
        layers: at which layers.
        answers: what is scored as the next word.
        swaps: whose text is run, and what is put into it.
        residuals: of all items at the place, [layer, item, d_model], in float32.
    """

    runs: Runs
    place: str
    layers: tuple[int, ...]
    answers: tuple[str, ...]
    swaps: Sequence[Swap]
    residuals: Float[Tensor, "layer item d_model"]

    @classmethod
    def of(cls, bench: Bench, swaps: Sequence[Swap]) -> "_Asked":
        """Read the residuals of a bench's items in texts that ask about them."""
        runs, place = _asking(bench)
        layers = bench.context.layers
        return cls(runs, place, layers, bench.answers, swaps, runs.read(place, layers).values.float())

    @cached_property
    def difference(self) -> Float[Tensor, "layer swap d_model"]:
        """The donors' residuals less the items' own."""
        own, donors = ([getattr(swap, name) for swap in self.swaps] for name in ("item", "donor"))
        return self.residuals[:, donors] - self.residuals[:, own]

    def changes_of_all(self, items: Sequence[Item]) -> dict[str, Float[Tensor, "layer swap d_model"]]:
        """The interchange of the whole residual, and that along the mean difference where all items have one."""
        means = _mean_differences(self.residuals, items, self.swaps)
        along = {} if means is None else {MEAN_DIFFERENCE: _interchanged(means, self.difference)}
        return along | {INTERCHANGE: self.difference}

    def clean(self) -> Float[Tensor, "layer swap answer"]:
        """Log-probabilities of the answers where nothing is changed: the same at all layers."""
        said = self.runs.predict(self.answers).log_probs.cpu()[[swap.item for swap in self.swaps]]
        return said.expand(len(self.layers), *said.shape)

    def said(
        self, changes: Mapping[str, Float[Tensor, "layer swap d_model"]]
    ) -> dict[str, Float[Tensor, "layer swap answer"]]:
        """Log-probabilities of the answers after each change of the residual at the place, by the change's name."""
        at: Int[Tensor, " row"] = torch.tensor(self.layers).repeat(len(changes))
        parts = []
        for number, swap in enumerate(self.swaps):
            written = [self.residuals[:, swap.item] + change[:, number] for change in changes.values()]
            found = self.runs.patched(swap.item, self.place, torch.cat(written), at, self.answers)
            parts.append(found.log_probs.cpu().reshape(len(changes), len(self.layers), -1))
        return dict(zip(changes, torch.stack(parts, dim=2), strict=True))


def _mean_differences(
    residuals: Float[Tensor, "layer item d_model"], items: Sequence[Item], swaps: Sequence[Swap]
) -> Float[Tensor, "layer swap d_model"] | None:
    """The mean of items with the donor's answer less that of those with the item's own, both of other folds."""

    def mean(answer: str, without: set[int]) -> Tensor | None:
        there = [i for i, item in enumerate(items) if item.answer == answer and item.fold not in without]
        return residuals[:, there].mean(1) if there else None

    found = []
    for swap in swaps:
        folds = {items[swap.item].fold, items[swap.donor].fold}
        other, own = mean(items[swap.donor].answer, folds), mean(items[swap.item].answer, folds)
        if other is None or own is None:
            return None
        found.append(other - own)
    return torch.stack(found, dim=1)
