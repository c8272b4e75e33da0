"""The checks that every inspector must pass, ours or a stranger's.

`check_inspector(MyLens)` runs them all on a small random model; each is also a function of its own. A
failed check raises AssertionError and says what was found.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache

import torch

from lensbench.bench import Bench, Lab, Method
from lensbench.corpus import PROSE, Corpus
from lensbench.evidence import NotApplicableError, Scores
from lensbench.inspectors.base import Inspector
from lensbench.inspectors.tuned_lens import TunedLens
from lensbench.model.language_model import LanguageModel
from lensbench.model.small import small_model
from lensbench.residuals import Residuals
from lensbench.scoring import prediction_columns
from lensbench.tasks import Item, Relation

Make = Callable[[], Inspector]
TOLERANCE = 5e-4


@dataclass(frozen=True)
class Subjects:
    """Made-up subjects and answers, in a relation of two classes."""

    names: tuple[str, ...]
    answers: tuple[str, ...]


def make_bench(model: LanguageModel, corpus: Corpus, subjects: Subjects, layers: tuple[int, ...]) -> Bench:
    """Return a bench of made-up items, five folds, answers dealt in turn."""
    relation = Relation(
        name="made_up",
        kind="class",
        summary="subject → answer",
        inspection=("They say that {subject} likes",),
        questions=("Question: what does {subject} like? Answer:",),
        sources={"subject": {"train0": "Once I saw {subject}", "test0": "We talk about {subject}"}},
        choice_sets=(tuple(sorted(subjects.answers)),),
    )
    items = [
        _item(relation, subjects, i, template) for template in ("test0", "train0") for i in range(len(subjects.names))
    ]
    half = len(items) // 2
    return Bench(Lab(model, model, corpus, layers, seed=0), relation, tuple(items[:half]), tuple(items[half:]))


def _item(relation: Relation, subjects: Subjects, i: int, template: str) -> Item:
    text = relation.sources["subject"][template]
    start = text.index("{subject}")
    name = subjects.names[i]
    return Item(
        id=f"made_up/{name}/subject/{template}",
        source=text.replace("{subject}", name),
        site="subject",
        subject=name,
        subject_span=(start, start + len(name)),
        question=relation.inspection[0],
        choices=relation.choice_sets[0],
        answer=subjects.answers[i % len(subjects.answers)],
        aliases=(),
        relation="made_up",
        # Blocks of one item an answer, so that the answers are balanced in every fold.
        fold=(i // len(subjects.answers)) % 5,
        template=template,
    )


@cache
def small_bench() -> Bench:
    """Return a bench of twenty made-up subjects on a small random model, made once."""
    model = small_model((PROSE / "heldout.txt").read_text(encoding="utf-8"))
    firsts, lasts = ("Bo", "Cy", "Di", "Ed", "Fay"), ("Ash", "Birch", "Cole", "Dow")
    names = tuple(f"{first} {last}" for first in firsts for last in lasts)
    return make_bench(model, Corpus(model), Subjects(names, ("tea", "wine")), (0, 2, 3, 4))


def check_inspector(make: Make, bench: Bench | None = None) -> list[str]:
    """Run every check that makes sense for an inspector, and return their names.

    Args:
        make: makes the inspector, unfitted: its class will do.
        bench: from `make_bench`; by default `small_bench()`.

    Raises:
        AssertionError: a check failed.
    """
    bench = bench or small_bench()
    done = []
    for check in _checks(make()):
        check(make, bench)
        done.append(check.__name__)
    return done


def _checks(inspector: Inspector) -> Iterator[Callable[[Make, Bench], None]]:
    yield check_contract
    yield check_order_of_items
    yield check_one_alone
    yield check_constant_activation
    if inspector.learns_from != "labels":
        yield check_labels_do_not_matter
    if "activation" in inspector.reads:
        yield check_layers_are_local
    else:
        yield check_blind_to_activations
    if "text" not in inspector.reads:
        yield check_text_is_withheld
    if isinstance(inspector, TunedLens):
        yield check_untrained_tuned_lens


def check_contract(make: Make, bench: Bench) -> None:
    """The constructor only stores its arguments; `fit` returns the inspector; scores have their shape and no NaN."""
    inspector = make()
    learned = [name for name in vars(inspector) if name.endswith("_")]
    assert not learned, f"{inspector.name}: constructor sets {learned}; what is learned belongs into fit"
    parameters = inspector.parameters()
    again = type(inspector)(**parameters)
    assert again.parameters() == parameters, f"{inspector.name}: constructor changes its arguments"
    method = Method(make, bench)
    fitted = method.fit(None if inspector.learns_from != "labels" else 0, bench.lab.layers)
    assert fitted.parameters() == parameters, f"{inspector.name}: fit changes constructor arguments"
    _scores(make, bench)


def check_order_of_items(make: Make, bench: Bench) -> None:
    """Items in another order get the same scores."""
    order = torch.randperm(len(bench.items), generator=torch.Generator().manual_seed(1)).tolist()
    turned = replace(bench, items=tuple(bench.items[i] for i in order))
    _same(_scores(make, turned), _chosen(_scores(make, bench), order), make, "the order of items changes scores")


def check_one_alone(make: Make, bench: Bench) -> None:
    """One item by itself scores as in a batch."""
    scores = _scores(make, bench)
    for i in (0, len(bench.items) - 1):
        alone = _scores(make, replace(bench, items=(bench.items[i],)))
        _same(alone, _chosen(scores, [i]), make, "an item alone scores otherwise than in a batch")


def check_layers_are_local(make: Make, bench: Bench) -> None:
    """Noise in all other layers leaves the scores of a layer as they were."""
    scores = _scores(make, bench)
    for place, layer in enumerate(bench.lab.layers):

        def others(residuals: Residuals, layer: int = layer) -> Residuals:
            generator = torch.Generator().manual_seed(2)
            noise = torch.randn(residuals.values.shape, generator=generator) * residuals.values.float().std().cpu()
            values = noise.to(residuals.values)
            kept = residuals.layers.index(layer)
            values[kept] = residuals.values[kept]
            return Residuals(residuals.layers, values)

        changed = Method(make, _with_train(bench, others)).scores(change=others)
        here = Scores(scores.attempts, scores.log_scores[place : place + 1])
        there = Scores(changed.attempts, changed.log_scores[place : place + 1])
        _same(there, here, make, f"scores of layer {layer} move when other layers are replaced by noise")


def check_constant_activation(make: Make, bench: Bench) -> None:
    """The same activation for all items, in balanced choices, gets exactly chance: nothing else tells them apart."""
    if {"text", "target"} & make().reads:
        return  # it has more than the activation to tell items apart

    def same(residuals: Residuals) -> Residuals:
        return Residuals(residuals.layers, residuals.values[:, :1].expand_as(residuals.values).clone())

    # Training items keep their activations: a method may have learned, and must still be blind here.
    scores = Method(make, bench).scores(change=same if "activation" in make().reads else None)
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

    _same(
        Method(make, bench).scores(change=noise), _scores(make, bench), make, "moves with activations it does not read"
    )


def check_labels_do_not_matter(make: Make, bench: Bench) -> None:
    """Other gold answers leave the scores of a method that learns none as they were."""
    turned = [replace(item, answer=bench.answers[-1]) for item in (*bench.items, *bench.train_items)]
    other = replace(bench, items=tuple(turned[: len(bench.items)]), train_items=tuple(turned[len(bench.items) :]))
    _same(_scores(make, other), _scores(make, bench), make, "labels reach a method that says it learns from none")


def check_text_is_withheld(make: Make, bench: Bench) -> None:
    """Evidence and training of a method that does not read text hold none."""
    inspector = make()
    evidence = bench.evidence(frozenset(inspector.reads), range(2), bench.lab.layers)
    training = bench.training(type(inspector), 0, bench.lab.layers, None)
    assert evidence.texts is None, f"{inspector.name} gets source texts that it did not declare"
    assert training.texts is None, f"{inspector.name} learns from source texts that it did not declare"
    if evidence.question is not None:
        assert "{subject}" in evidence.question, f"{inspector.name} gets a question with its slot filled"
    hidden = {name for item in bench.items for name in (item.subject, item.source)}
    assert not hidden & {evidence.question, *evidence.answers}, f"{inspector.name} gets the input through its question"


def check_untrained_tuned_lens(make: Make, bench: Bench) -> None:
    """A tuned lens that has seen no tokens is the logit lens."""
    from lensbench.inspectors.logit_lens import LogitLens

    _same(
        _scores(lambda: TunedLens(tokens=0), bench), _scores(LogitLens, bench), make, "untrained, it is no logit lens"
    )


def _with_train(bench: Bench, change: Callable[[Residuals], Residuals]) -> Bench:
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


def _scores(make: Make, bench: Bench) -> Scores:
    try:
        return Method(make, bench).scores()
    except NotApplicableError as error:
        raise AssertionError(f"{make().name} cannot answer the checks' questions: {error}") from None


def _chosen(scores: Scores, items: list[int]) -> Scores:
    return Scores(scores.attempts, scores.log_scores[:, :, items])


def _same(found: Scores, expected: Scores, make: Make, complaint: str) -> None:
    assert found.attempts == expected.attempts, (
        f"{make().name}: attempts {found.attempts}, expected {expected.attempts}"
    )
    torch.testing.assert_close(
        found.log_scores.float().cpu(),
        expected.log_scores.float().cpu(),
        rtol=TOLERANCE,
        atol=TOLERANCE,
        msg=lambda text: f"{make().name}: {complaint}\n{text}",
    )
