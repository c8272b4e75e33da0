"""Whether the model uses what a method reads: interchange interventions along the method's own directions.

The design is docs/decisions/0015-used.md.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lensbench.baselines.common import require_question
from lensbench.errors import NotApplicableError
from lensbench.harness.bench import Bench
from lensbench.harness.crossfit import CrossFit, Outcome
from lensbench.inspectors.access import SITE, SUBJECT, Runs, TargetRuns
from lensbench.inspectors.base import Inspector
from lensbench.inspectors.scores import Scores
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
    bench = method.bench
    swaps = choose_donors(bench.items, bench.context.seed)
    if not swaps:
        raise NotApplicableError("no item has another answer of its choice set in its own fold")
    runs, place = _asking(bench)
    layers = bench.context.layers
    residuals = runs.read(place, layers).values.float()
    own, donors = ([getattr(swap, name) for swap in swaps] for name in ("item", "donor"))
    difference = residuals[:, donors] - residuals[:, own]
    along = _interchanged(_directions(method, swaps, layers).to(difference), difference)
    changes = {ALONG: along, RANDOM: _random(along, bench)}
    means = _mean_differences(residuals, bench.items, swaps)
    if means is not None:
        changes[MEAN_DIFFERENCE] = _interchanged(means, difference)
    changes[INTERCHANGE] = difference
    written = torch.stack([residuals[:, own] + change for change in changes.values()], dim=1)
    scores = _said(runs, place, own, written, layers, bench.answers)
    items = tuple(replace(bench.items[swap.item], answer=bench.items[swap.donor].answer) for swap in swaps)
    against = torch.tensor([bench.answers.index(bench.items[i].answer) for i in own])
    odds = scores - scores.gather(3, against[None, None, :, None].expand(*scores.shape[:3], 1))
    return [Outcome(Scores((CLEAN, *changes), odds), layers, items, zero_shot=False)]


@dataclass(frozen=True)
class Swap:
    """Two items of a bench, by their places: one is given what is read at the other, its donor."""

    item: int
    donor: int


def choose_donors(items: Sequence[Item], seed: int) -> list[Swap]:
    """Return a donor for each item that has one: another answer of its choices, in its fold, in the same text if any.

    Donors are of the same fold so that no fit that is asked about the item has learned from them.
    """
    swaps = []
    for i, item in enumerate(items):
        there = [
            j
            for j, other in enumerate(items)
            if other.fold == item.fold and other.answer != item.answer and other.answer in item.choices
        ]
        alike = [j for j in there if items[j].template == item.template] or there
        if alike:
            swaps.append(Swap(i, random.Random(f"{seed}/{item.id}/donor").choice(alike)))
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
    own, wanted = (
        [answers.index(items[getattr(swap, name)].answer) for swap in swaps] for name in ("item", "donor")
    )
    found = torch.zeros(len(layers), len(swaps), method.bench.context.model.d_model)
    folds = [items[swap.item].fold if method.learns_labels else None for swap in swaps]
    for fold in dict.fromkeys(folds):
        inspector = method.fit(fold, layers)
        here = [i for i, one in enumerate(folds) if one == fold]
        for number, layer in enumerate(layers):
            vectors = inspector.directions(layer, answers)
            if vectors is None:
                raise NotApplicableError(NO_DIRECTIONS)
            found[number, here] = (vectors[[wanted[i] for i in here]] - vectors[[own[i] for i in here]]).float().cpu()
    return found


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


def _mean_differences(
    residuals: Float[Tensor, "layer item d_model"], items: Sequence[Item], swaps: Sequence[Swap]
) -> Float[Tensor, "layer swap d_model"] | None:
    """The mean of items with the donor's answer less that of those with the item's own, both of other folds."""

    def mean(answer: str, fold: int) -> Tensor | None:
        there = [i for i, item in enumerate(items) if item.answer == answer and item.fold != fold]
        return residuals[:, there].mean(1) if there else None

    found = []
    for swap in swaps:
        fold = items[swap.item].fold
        other, own = mean(items[swap.donor].answer, fold), mean(items[swap.item].answer, fold)
        if other is None or own is None:
            return None
        found.append(other - own)
    return torch.stack(found, dim=1)


def _said(
    runs: Runs,
    place: str,
    own: Sequence[int],
    written: Float[Tensor, "layer attempt swap d_model"],
    layers: tuple[int, ...],
    answers: Sequence[str],
) -> Float[Tensor, "layer attempt swap answer"]:
    """Log-probabilities of the answers after each item's text, as it is and with each vector at the place."""
    depth, attempts = written.shape[:2]
    at: Int[Tensor, " row"] = torch.tensor(layers).repeat_interleave(attempts)
    clean = runs.predict(answers).log_probs.cpu()[own]
    changed = [
        runs.patched(item, place, written[:, :, i].flatten(0, 1), at, answers).log_probs.cpu()
        for i, item in enumerate(own)
    ]
    after = torch.stack([one.reshape(depth, attempts, -1) for one in changed], dim=2)
    return torch.cat([clean.expand(depth, 1, *clean.shape), after], dim=1)
