"""Credit under other activations against a naive reference, and answers that cannot be learned."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from lensbench.harness.crossfit import CrossFit
from lensbench.harness.scoring import crossed_credit, prediction_columns, prior_corrected
from lensbench.inspectors.lenses.logit_lens import LogitLens
from lensbench.inspectors.probes.mass_mean import MassMeanProbe
from lensbench.inspectors.scores import Scores
from lensbench.tasks.items import Item
from lensbench.testing.benches import Subjects, make_bench, small_bench

ANSWERS = ("a", "b", "c", "d", "e", "f")
SETS = (("a", "b", "c"), ("d", "e", "f"))


def made_items(count: int) -> tuple[Item, ...]:
    items = []
    for i in range(count):
        answer = ANSWERS[(i * 5) % 6]
        choices = next(one for one in SETS if answer in one)
        items.append(
            Item(f"i{i}", "x", "subject", f"s{i}", (0, 1), "q", choices, answer, (), "relation", i % 5, "test0")
        )
    return tuple(items)


@pytest.mark.parametrize("correct_prior", [True, False])
def test_credit_under_other_activations_is_what_each_pair_would_earn(correct_prior: bool) -> None:
    items, rng = made_items(17), np.random.default_rng(0)
    raw = rng.integers(0, 4, (2, 3, 17, 6)).astype(float)  # whole numbers: many ties
    scores = Scores(("one", "two", "three"), torch.from_numpy(raw))
    credit, golds = crossed_credit(items, ANSWERS, scores, correct_prior=correct_prior)
    own = np.array([[answer in item.choices for answer in ANSWERS] for item in items])
    decisive = prior_corrected(raw, own, [item.fold for item in items]) if correct_prior else raw
    assert golds == sorted({item.answer for item in items})
    for i, item in enumerate(items):
        places = [ANSWERS.index(choice) for choice in item.choices]
        for place in np.ndindex(2, 3, 17):
            values = decisive[place][places]
            best = np.flatnonzero(values >= values.max() - 1e-6)
            earned = 1 / len(best) if item.choices.index(item.answer) in best else 0.0
            assert credit[(*place, golds.index(item.answer))] == pytest.approx(earned), (i, place)


def test_under_its_own_activation_an_item_earns_what_the_records_say() -> None:
    items = made_items(12)
    scores = Scores(("one",), torch.randn(2, 1, 12, 6, generator=torch.Generator().manual_seed(0)))
    credit, golds = crossed_credit(items, ANSWERS, scores, correct_prior=True)
    columns = prediction_columns(items, ANSWERS, scores, (0, 1), correct_prior=True)
    own = [credit[:, :, i, golds.index(item.answer)] for i, item in enumerate(items)]
    np.testing.assert_allclose(np.stack(own, axis=-1).ravel(), columns["correct_corrected"])


def test_exchangeable_is_what_reads_activation_and_question_alone() -> None:
    bench = small_bench()
    assert CrossFit(LogitLens, bench).exchangeable

    class SeesChoices(LogitLens):
        reads = frozenset({"activation", "choices"})

    assert not CrossFit(SeesChoices, bench).exchangeable
    assert not CrossFit(SeesChoices, bench).exchangeable_outcome().exchangeable


def test_an_answer_with_too_few_subjects_leaves_with_its_items() -> None:
    small = small_bench()
    names = tuple(
        f"{first} {last}"
        for first in ("Bo", "Cy", "Di", "Ed", "Fay", "Gus")
        for last in ("Ash", "Birch", "Cole", "Dow", "Elm")
    )
    context = small.context
    bench = make_bench(
        context.model, context.corpus, Subjects(names, ("tea", "wine", "milk")), context.layers, "subject"
    )
    rare = bench.answers[0]
    subjects = sorted({item.subject for item in bench.train_items if item.answer == rare})
    gone = set(subjects[2:])

    def fewer(items):
        return tuple(item for item in items if item.subject not in gone)

    made = replace(bench, items=fewer(bench.items), train_items=fewer(bench.train_items))
    kept = made.with_learnable_classes(MassMeanProbe.class_subjects)
    assert set(kept.answers) == set(bench.answers) - {rare}
    assert all(rare not in item.choices and item.answer != rare for item in (*kept.items, *kept.train_items))
    places = [i for i, item in enumerate(made.items) if item.answer != rare]
    torch.testing.assert_close(kept.residuals.values, made.residuals.values[:, places])
    scores = CrossFit(MassMeanProbe, kept).scores()
    assert scores.log_scores.shape[2:] == (len(places), len(kept.answers))


def test_all_answers_stay_where_none_can_be_learned() -> None:
    bench = small_bench()
    assert bench.with_learnable_classes(10_000) is bench
    assert bench.with_learnable_classes(1) is bench
