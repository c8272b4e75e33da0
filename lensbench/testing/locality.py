"""Checks that a score depends on nothing but its own item and layer: no other item, layer, call or model."""

import copy
from contextlib import ExitStack
from dataclasses import replace

import torch

from lensbench.harness.bench import Bench, CrossFit
from lensbench.harness.isolation import SealedError, sealed
from lensbench.inspectors.access import Change
from lensbench.inspectors.evidence import Scores
from lensbench.models.activations import Residuals
from lensbench.models.language_model import LanguageModel
from lensbench.testing.comparing import Make, chosen, require_same, scores_of


def check_order_of_items(make: Make, bench: Bench) -> None:
    """Items in another order get the same scores."""
    order = torch.randperm(len(bench.items), generator=torch.Generator().manual_seed(1)).tolist()
    turned = replace(bench, items=tuple(bench.items[i] for i in order))
    complaint = "the order of items changes scores"
    require_same(scores_of(make, turned), chosen(scores_of(make, bench), order), make, complaint)


def check_one_alone(make: Make, bench: Bench) -> None:
    """One item by itself scores as in a batch, and so do a third of the items."""
    scores = scores_of(make, bench)
    last = len(bench.items) - 1
    for places in ([last], list(range(0, last, 3))):
        alone = scores_of(make, replace(bench, items=tuple(bench.items[i] for i in places)))
        who = "an item alone scores" if len(places) == 1 else f"{len(places)} items alone score"
        complaint = f"{who} otherwise than in a batch of {len(bench.items)}"
        require_same(alone, chosen(scores, places), make, complaint)


def check_same_twice(make: Make, bench: Bench) -> None:
    """The same items get the same scores again: from the same fit, after other evidence, and from another fit."""
    method = CrossFit(make, bench)
    scores = method.scores()
    if "activation" in make().reads:
        method.scores(change=lambda residuals: Residuals(residuals.layers, residuals.values.flip(1)))
    require_same(method.scores(), scores, make, "the second call gives other scores: its rivals share its fit")
    require_same(scores_of(make, bench), scores, make, "a second fit gives other scores")


def check_layers_are_local(make: Make, bench: Bench) -> None:
    """A layer's scores stay when all other layers are replaced by noise, and when it alone is asked."""
    scores = scores_of(make, bench)
    for place, layer in enumerate(bench.lab.layers):

        def others(residuals: Residuals, layer: int = layer) -> Residuals:
            generator = torch.Generator().manual_seed(2)
            noise = torch.randn(residuals.values.shape, generator=generator) * residuals.values.float().std().cpu()
            values = noise.to(residuals.values)
            kept = residuals.layers.index(layer)
            values[kept] = residuals.values[kept]
            return Residuals(residuals.layers, values)

        here = Scores(scores.attempts, scores.log_scores[place : place + 1])
        changed = CrossFit(make, _with_train(bench, others)).scores(change=others)
        there = Scores(changed.attempts, changed.log_scores[place : place + 1])
        require_same(there, here, make, f"scores of layer {layer} move when other layers are replaced by noise")
        alone = CrossFit(make, bench).scores(layers=(layer,))
        require_same(alone, here, make, f"layer {layer} asked alone scores otherwise than among others")


def check_target_is_not_run(make: Make, bench: Bench) -> None:
    """A method that does not declare `target` answers while no pass through the target's blocks is possible.

    Where target and verbalizer are one model this cannot be told, so the verbalizer is a copy here. Methods that read
    `components` have them read from the target as they go, and are not checked.
    """
    name = make().name
    lab = bench.lab
    # Copies have no memory of passes that were made before.
    target = _copy(lab.model)
    apart = replace(bench, lab=replace(lab, model=target, verbalizer=_copy(lab.model)))
    apart.__dict__["residuals"] = bench.residuals
    apart.__dict__["train_residuals"] = bench.train_residuals
    method = CrossFit(make, apart)
    with ExitStack() as seals:
        if method.inspector.learns_from == "corpus":
            method.fit(None, lab.layers)  # the corpus runs the target
        for model in (target, lab.model):
            seals.enter_context(sealed(model, name))
        try:
            method.scores()
        except SealedError as error:
            raise AssertionError(str(error)) from None


def _copy(model: LanguageModel) -> LanguageModel:
    return LanguageModel(copy.deepcopy(model.module), model.tokens, model.name)


def _with_train(bench: Bench, change: Change) -> Bench:
    """Return a bench whose training activations are changed too: a method may learn across layers."""
    changed = replace(bench)
    # Fill the cache of the property: what is captured of the training items.
    changed.__dict__["residuals"] = bench.residuals
    source = bench.train_residuals
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(source.values.shape, generator=generator).to(source.values)
    test_changed = change(bench.residuals)
    kept = (test_changed.values == bench.residuals.values).flatten(1).all(1)
    values = torch.where(kept[:, None, None], source.values, noise)
    changed.__dict__["train_residuals"] = Residuals(source.layers, values)
    return changed
