"""Baselines of *uses the activation*: they have no activation of this subject."""

import random

import torch
from jaxtyping import Float
from torch import Tensor

from lensbench.baselines.common import in_place_of, without_part
from lensbench.baselines.readers import ChoicesOnly, Majority, TextReader
from lensbench.errors import NotApplicableError
from lensbench.harness.crossfit import CrossFit, Outcome
from lensbench.models.activations import Residuals

# So many activations are mixed into each draw of noise: several to a dimension of most models.
MOST_MIXED = 4096


def question_only(method: CrossFit) -> list[Outcome]:
    """The verbalizer, as the method has it, with the method's own prompts, the placeholder left as it is."""
    prompts = method.inspector.own_prompts(method.bench.forms)
    if not prompts:
        raise NotApplicableError("the method has no prompt of its own")
    unpatched = tuple(dict.fromkeys(own.text.replace("{subject}", own.placeholder) for own in prompts))
    reader = method.inspector.reader(method.bench.context.verbalizer)
    asked = method.with_bench(method.bench.with_verbalizer(reader))
    return [in_place_of(asked, lambda: TextReader(unpatched)).outcome()]


def learned_constant(method: CrossFit) -> list[Outcome]:
    """The constant that the method has learned beforehand, such as a soft token, in place of any activation."""
    return [without_part(method, "activation", "the method has learned no constant beforehand").outcome()]


def mean_activation(method: CrossFit) -> list[Outcome]:
    """The method on the mean activation of all items, at each layer.

    One mean for all: a mean that leaves an item's fold out would, after the prior is corrected, point away from its
    answer, and the baseline would be weaker than chance.
    """

    def mean(captured: Residuals) -> Residuals:
        return captured.change(lambda values: values.mean(1, keepdim=True).expand_as(values))

    return [method.with_activations(mean).outcome()]


def shuffled(method: CrossFit) -> list[Outcome]:
    """The method on another subject's activation, same layer, same site: a derangement that is blind to the answers."""
    order = derangement([item.subject for item in method.bench.items], method.bench.context.seed)
    if order is None:
        raise NotApplicableError(
            "one subject has half of the items or more, so no other subject's activation can stand in for each"
        )
    return [method.with_activations(lambda captured: captured.at_items(order)).outcome()]


def derangement(subjects: list[str], seed: int) -> list[int] | None:
    """Return for each item another one with another subject, each used once; None where there is none."""
    shuffled_names = sorted(set(subjects))
    random.Random(seed).shuffle(shuffled_names)
    rank = {name: i for i, name in enumerate(shuffled_names)}
    order = sorted(range(len(subjects)), key=lambda i: (rank[subjects[i]], i))
    step = max(subjects.count(name) for name in shuffled_names)
    if 2 * step > len(subjects):
        return None
    partner = {order[i]: order[(i + step) % len(order)] for i in range(len(order))}
    return [partner[i] for i in range(len(subjects))]


def gaussian(method: CrossFit) -> list[Outcome]:
    """The method on noise with mean and covariance of the real activations, each item's at its own activation's length.

    What reads lengths is matched by it. One draw serves all layers and components: they are then those of one made-up
    text, as far as they are linear in it.
    """
    bench = method.bench
    if len(bench.items) < 2:
        raise NotApplicableError("a single item has no covariance")
    draw = random.Random(f"{bench.context.seed}/{bench.relation.name}/gaussian").getrandbits(63)

    def noise(captured: Residuals) -> Residuals:
        return captured.change(lambda values: gaussian_like(values, draw_weights(values.shape[1], draw)))

    return [method.with_activations(noise).outcome()]


def draw_weights(rows: int, seed: int) -> Float[Tensor, "draw row"]:
    """Return the random numbers of one draw: the same ones for all activations with so many rows."""
    return torch.randn(rows, min(rows, MOST_MIXED), generator=torch.Generator().manual_seed(seed))


def gaussian_like(
    values: Float[Tensor, "layer item width"], weights: Float[Tensor, "item item"]
) -> Float[Tensor, "layer item width"]:
    """Return noise with the mean and the covariance of the items at each layer, each row as long as its item's is."""
    real = values.float()
    noise = draw_like(real, weights)
    own, drawn = (one.norm(dim=-1, keepdim=True) for one in (real, noise))
    found: Tensor = noise * (own / drawn.clamp(min=torch.finfo(torch.float32).tiny))
    return found.to(values.dtype)


def draw_like(
    real: Float[Tensor, "layer item width"], weights: Float[Tensor, "draw item"]
) -> Float[Tensor, "layer draw width"]:
    """Return vectors of the same mean and covariance.

    Args:
        real: the items; where there are more of them than the weights mix, evenly spaced ones stand for all.
        weights: standard normal numbers: with X the centred items, w X / sqrt(n - 1) has the covariance of X, whether
            there are more items than coordinates or fewer.
    """
    mean = real.mean(1, keepdim=True)
    rows, mixing = real.shape[1], weights.shape[1]
    mixed = real[:, torch.arange(mixing) * rows // mixing] - mean
    found: Tensor = mean + weights.to(real) @ mixed / (mixing - 1) ** 0.5
    return found


def choices_only(method: CrossFit) -> list[Outcome]:
    """Pick from the choice set by prior, centre, or order."""
    return [in_place_of(method, ChoicesOnly).outcome()]


def majority(method: CrossFit) -> list[Outcome]:
    """Say the best constant of the training folds."""
    return [in_place_of(method, Majority).outcome()]
