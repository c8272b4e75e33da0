"""Checks of what a method declares: its constructor, its sources, its attempts, and that it is blind to all else."""

from dataclasses import replace

import torch

from lensbench.errors import LensbenchError
from lensbench.harness.bench import Bench, CrossFit
from lensbench.harness.scoring import prediction_columns
from lensbench.inspectors.lenses.tuned_lens import TunedLens
from lensbench.models.activations import Residuals
from lensbench.testing.comparing import Make, require_same, scores_of


def check_contract(make: Make, bench: Bench) -> None:
    """The constructor only stores its arguments; `fit` returns the inspector; scores have their shape and no NaN.

    A method that reaches for what it did not declare finds None, and fails here.
    """
    inspector = make()
    learned = [name for name in vars(inspector) if name.endswith("_")]
    assert not learned, f"{inspector.name}: constructor sets {learned}; what is learned belongs into fit"
    parameters = inspector.parameters()
    again = type(inspector)(**parameters)
    assert again.parameters() == parameters, f"{inspector.name}: constructor changes its arguments"
    method = CrossFit(make, bench)
    fitted = method.fit(None if inspector.learns_from != "labels" else 0, bench.lab.layers)
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
    layers = bench.lab.layers[-1:] if "activation" in inspector.reads else ()
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
    scores = CrossFit(make, bench).scores(change=same if "activation" in make().reads else None)
    if make().learns_from == "labels":
        return  # each fold's fit may prefer another answer
    layers = bench.lab.layers if "activation" in make().reads else (None,)
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

    found = CrossFit(make, bench).scores(change=noise)
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
    evidence = bench.evidence(frozenset(inspector.reads), range(2), bench.lab.layers)
    training = bench.training(type(inspector), 0, bench.lab.layers, None)
    shown = {
        "activation": (evidence.residuals, training.read),
        "question": (evidence.question, evidence.forms or None, training.question),
        "text": (evidence.texts, training.texts),
        "components": (evidence.components,),
        "target": (evidence.runs, training.runs),
    }
    for source, held in shown.items():
        if source not in inspector.reads:
            assert all(one is None for one in held), f"{inspector.name} gets {source!r}, which it did not declare"
    if inspector.learns_from != "labels":
        assert training.labels is None, f"{inspector.name} gets labels, and says it learns from none"
    if "text" in inspector.reads:
        return
    hidden = {name for item in bench.items for name in (item.subject, item.source)}
    told = " ".join([evidence.question or "", *evidence.forms, *evidence.answers])
    assert not any(name in told for name in hidden), f"{inspector.name} gets the input through its question"


def check_untrained_tuned_lens(make: Make, bench: Bench) -> None:
    """A tuned lens that has seen no tokens is the logit lens."""
    from lensbench.inspectors.lenses.logit_lens import LogitLens

    untrained = scores_of(lambda: TunedLens(tokens=0), bench)
    require_same(untrained, scores_of(LogitLens, bench), make, "untrained, it is no logit lens")
