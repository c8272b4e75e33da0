"""The checks: what a method declares is what it does, and a score depends on its own item and layer alone."""

import copy
from contextlib import ExitStack
from dataclasses import replace

import torch

from lensbench.errors import LensbenchError
from lensbench.harness.bench import Bench, layers_shown
from lensbench.harness.crossfit import CrossFit
from lensbench.harness.isolation import SealedError, sealed
from lensbench.harness.scoring import prediction_columns
from lensbench.inspectors.access import Change
from lensbench.inspectors.base import Inspector
from lensbench.inspectors.lenses.logit_lens import LogitLens
from lensbench.inspectors.lenses.tuned_lens import TunedLens
from lensbench.inspectors.scores import Scores
from lensbench.models.activations import Residuals
from lensbench.models.corpus import Corpus
from lensbench.models.language_model import LanguageModel
from lensbench.models.loading import with_random_weights
from lensbench.tasks.facts import N_FOLDS
from lensbench.testing.benches import Make, fresh_bench, require_same, scores_of, turned


def check_contract(make: Make, bench: Bench) -> None:
    """The constructor only stores its arguments; `fit` returns the inspector; scores have their shape and no NaN.

    A method that reaches for what it did not declare is refused, and fails here.
    """
    inspector = make()
    learned = [name for name in vars(inspector) if name.endswith("_")]
    assert not learned, f"{inspector.name}: constructor sets {learned}; what is learned belongs into fit"
    parameters = inspector.parameters()
    again = type(inspector)(**parameters)
    assert again.parameters() == parameters, f"{inspector.name}: constructor changes its arguments"
    method = CrossFit(make, bench)
    fitted = method.fit(None if inspector.learns_from != "labels" else 0, bench.context.layers)
    assert fitted.parameters() == parameters, f"{inspector.name}: fit changes constructor arguments"
    try:
        scores_of(make, bench)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, LensbenchError) as error:
        raise AssertionError(
            f"{inspector.name} fails on what it declares to read ({', '.join(sorted(inspector.reads)) or 'nothing'}): "
            f"{type(error).__name__}: {error}"
        ) from error


def check_attempts(make: Make, bench: Bench) -> None:
    """`tries` says how many attempts there are: `one`, or words that begin with their number where it is fixed."""
    inspector = make()
    layers = bench.context.layers[-1:] if "activation" in inspector.reads else ()
    made = len(CrossFit(make, replace(bench, items=bench.items[:1])).scores(layers=layers).attempts)
    first = inspector.tries.split(maxsplit=1)[0]
    declared = 1 if inspector.tries == "one" else int(first) if first.isdecimal() else made
    assert made == declared, (
        f"{inspector.name} makes {made} attempts at an item and layer, but declares tries = {inspector.tries!r}"
    )


def check_constant_activation(make: Make, bench: Bench) -> None:
    """The same activation for all items, in balanced choices, gets exactly chance: nothing else tells them apart."""
    if {"text", "target"} & make().reads:
        return  # it has more than the activation to tell items apart

    def same(residuals: Residuals) -> Residuals:
        return Residuals(residuals.layers, residuals.values[:, :1].expand_as(residuals.values).clone())

    # Training items keep their activations: a method may have learned, and must still be blind here.
    scores = CrossFit(make, bench.with_activations(same)).scores()
    if make().learns_from == "labels":
        return  # each fold's fit may prefer another answer
    layers = bench.context.layers if "activation" in make().reads else (None,)
    columns = prediction_columns(bench.items, bench.answers, scores, layers, correct_prior=False)
    accuracy = float(columns["correct"].mean())
    chance = 1 / len(bench.answers)
    assert abs(accuracy - chance) < 1e-9, (
        f"{make().name}: a constant activation gets {accuracy:.3f}, chance {chance:.3f}"
    )


def check_blind_to_activations(make: Make, bench: Bench) -> None:
    """A method that does not read activations does not move with them."""

    def noise(residuals: Residuals) -> Residuals:
        return Residuals(residuals.layers, torch.randn(residuals.values.shape).to(residuals.values))

    found = CrossFit(make, bench.with_activations(noise)).scores()
    require_same(found, scores_of(make, bench), make, "moves with activations it does not read")


def check_labels_do_not_matter(make: Make, bench: Bench) -> None:
    """Other gold answers leave the scores of a method that learns none as they were."""
    turned = [replace(item, answer=bench.answers[-1]) for item in (*bench.items, *bench.train_items)]
    other = replace(bench, items=tuple(turned[: len(bench.items)]), train_items=tuple(turned[len(bench.items) :]))
    complaint = "labels reach a method that says it learns from none"
    require_same(scores_of(make, other), scores_of(make, bench), make, complaint)


def check_sources_are_withheld(make: Make, bench: Bench) -> None:
    """Evidence and training hold nothing that the method does not declare, and the question does not name the item."""
    inspector = make()
    evidence = bench.evidence(frozenset(inspector.reads), range(2), bench.context.layers)
    training = bench.training(inspector, 0, bench.context.layers, None)
    shown = {
        "activation": evidence.shows("residuals") or training.shows("read"),
        "question": evidence.shows("question") or evidence.forms or training.shows("question"),
        "text": evidence.shows("texts") or training.shows("texts"),
        "components": evidence.shows("components"),
        "target": evidence.shows("runs") or training.shows("runs"),
    }
    for source, is_shown in shown.items():
        if source not in inspector.reads:
            assert not is_shown, f"{inspector.name} gets {source!r}, which it did not declare"
    if inspector.learns_from != "labels":
        assert not training.shows("labels"), f"{inspector.name} gets labels, and says it learns from none"
    if "text" in inspector.reads:
        return
    hidden = {name for item in bench.items for name in (item.subject, item.source)}
    visible = " ".join([*evidence.forms, *evidence.answers])
    assert not any(name in visible for name in hidden), f"{inspector.name} gets the input through its question"


def check_untrained_tuned_lens(make: Make, bench: Bench) -> None:
    """A tuned lens that has seen no tokens is the logit lens."""
    untrained = scores_of(lambda: TunedLens(tokens=0), bench)
    require_same(untrained, scores_of(LogitLens, bench), make, "untrained, it is not the logit lens")


def check_order_of_items(make: Make, bench: Bench) -> None:
    """Items in another order get the same scores."""
    order = torch.randperm(len(bench.items), generator=torch.Generator().manual_seed(1)).tolist()
    turned = replace(bench, items=tuple(bench.items[i] for i in order))
    complaint = "the order of items changes scores"
    require_same(scores_of(make, turned), scores_of(make, bench).select(items=order), make, complaint)


def check_one_alone(make: Make, bench: Bench) -> None:
    """One item alone gets the same scores as in a batch, and so does a third of the items."""
    scores = scores_of(make, bench)
    last = len(bench.items) - 1
    for places in ([last], list(range(0, last, 3))):
        alone = scores_of(make, replace(bench, items=tuple(bench.items[i] for i in places)))
        who = "an item alone scores" if len(places) == 1 else f"{len(places)} items alone score"
        complaint = f"{who} otherwise than in a batch of {len(bench.items)}"
        require_same(alone, scores.select(items=places), make, complaint)


def check_same_twice(make: Make, bench: Bench) -> None:
    """The same items get the same scores again: from the same fit, after other evidence, and from another fit."""
    method = CrossFit(make, bench)
    scores = method.scores()
    if "activation" in make().reads:
        method.with_activations(lambda captured: Residuals(captured.layers, captured.values.flip(1))).scores()
    require_same(method.scores(), scores, make, "the second call gives other scores, but its baselines share its fit")
    require_same(scores_of(make, bench), scores, make, "a second fit gives other scores")


def check_state_is_own(make: Make, bench: Bench) -> None:
    """Two fits do not see each other: one scores as before once others were made, and so does one made after them.

    The others are those of a run: of the other folds, and of another model's activations.
    """
    fresh = fresh_bench(bench)
    method = CrossFit(make, fresh)
    fold, places = (0, _in_fold(fresh, 0)) if method.learns_labels else (None, list(range(len(fresh.items))))
    first = method.fit(fold, _layers(method))
    before = _scored(method, first, places)
    if method.learns_labels:
        beside = method.scores().select(items=places)
        require_same(beside, before, make, "a fit scores otherwise once the fits of the other folds were made")
    model = with_random_weights(bench.context.model, 1)
    context = replace(bench.context, model=model, verbalizer=model, corpus=Corpus(model, bench.context.corpus.path))
    scores_of(make, fresh_bench(replace(bench, context=context)))
    again = _scored(method, first, places)
    require_same(again, before, make, "a fit scores otherwise once another was made on another model")
    later = CrossFit(make, fresh)
    after = _scored(later, later.fit(fold, _layers(later)), places)
    require_same(after, before, make, "a fit that is made after others scores otherwise than one made before them")


def check_folds_are_apart(make: Make, bench: Bench) -> None:
    """Other labels of one fold leave the scores of that fold as they were: no fit has learned them."""
    fresh, fold = fresh_bench(bench), N_FOLDS - 1
    places = _in_fold(fresh, fold)
    before, after = (scores_of(make, one).select(items=places) for one in (fresh, turned(fresh, fold)))
    require_same(after, before, make, f"the scores of fold {fold} move with its own labels, which no fit of it is told")


def _in_fold(bench: Bench, fold: int) -> list[int]:
    return [i for i, item in enumerate(bench.items) if item.fold == fold]


def _layers(method: CrossFit) -> tuple[int, ...]:
    return method.bench.context.layers if "activation" in method.inspector.reads else ()


def _scored(method: CrossFit, fitted: Inspector, places: list[int]) -> Scores:
    return method.bench.score(fitted, places, _layers(method))


def check_layers_are_local(make: Make, bench: Bench) -> None:
    """A layer's scores stay the same when all layers not declared are replaced by noise, and when it is asked alone."""
    scores, method = scores_of(make, bench), make()
    bench.residuals_at(layers_shown(method, bench.context.layers))
    for place, layer in enumerate(bench.context.layers):

        def others(residuals: Residuals, layer: int = layer) -> Residuals:
            generator = torch.Generator().manual_seed(2)
            noise = torch.randn(residuals.values.shape, generator=generator) * residuals.values.float().std().cpu()
            values = noise.to(residuals.values)
            for kept in map(residuals.layers.index, method.layers_read(layer)):
                values[kept] = residuals.values[kept]
            return Residuals(residuals.layers, values)

        here = scores.select(layers=[place])
        there = CrossFit(make, _with_noise(bench, others)).scores().select(layers=[place])
        require_same(there, here, make, f"scores of layer {layer} move when other layers are replaced by noise")
        alone = CrossFit(make, bench).scores(layers=(layer,))
        require_same(alone, here, make, f"layer {layer} has other scores alone than among others")


def check_target_is_not_run(make: Make, bench: Bench) -> None:
    """A method that does not declare `target` answers while no pass through the target's blocks is possible.

    Where target and verbalizer are one model this cannot be told, so the verbalizer is a copy here. Methods that read
    `components` have them read from the target as they go, and are not checked.
    """
    name, context = make().name, bench.context
    # Copies have no memory of passes that were made before.
    target, verbalizer = _copy(context.model), _copy(context.model)
    apart = replace(bench, context=replace(context, model=target, verbalizer=verbalizer))
    residuals = bench.residuals_at(layers_shown(make(), bench.context.layers))
    method = CrossFit(make, apart.with_captured(residuals, bench.train_residuals))
    with ExitStack() as seals:
        if method.inspector.learns_from == "corpus":
            method.fit(None, context.layers)  # the corpus runs the target
        for model in (target, context.model):
            seals.enter_context(sealed(model, name))
        try:
            method.scores()
        except SealedError as error:
            raise AssertionError(str(error)) from None


def _copy(model: LanguageModel) -> LanguageModel:
    return LanguageModel(copy.deepcopy(model.module), model.tokens, model.name)


def _with_noise(bench: Bench, change: Change) -> Bench:
    """Return a bench with changed activations, those of the training items included: a method may learn across layers.

    The layers that `change` leaves as they are keep their training activations; the others get noise.
    """
    source, changed = bench.train_residuals, change(bench.residuals)
    noise = torch.randn(source.values.shape, generator=torch.Generator().manual_seed(3)).to(source.values)
    before, after = (one.at_layers(source.layers).values for one in (bench.residuals, changed))
    kept = (before == after).flatten(1).all(1)
    values = torch.where(kept[:, None, None], source.values, noise)
    return bench.with_captured(changed, Residuals(source.layers, values))
