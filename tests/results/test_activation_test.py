"""The permutation test of whose activation is read, against naive references."""

from itertools import permutations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lensbench.errors import LensbenchError
from lensbench.results.activation_test import activation_orders, step_down
from lensbench.results.compare import between_methods
from lensbench.results.crossed_files import crossed_table, read_crossed
from lensbench.results.records import frame_of, write_table
from lensbench.results.samples import SummarySettings
from lensbench.results.summary import summarise

ANSWERS = ("Cairo", "Delhi", "Lisbon", "Oslo")
QUESTIONS = {"shuffled": "uses_activation", "gaussian": "uses_activation", "input_only": "beats_text"}


def naive_step_down(reference, found):
    """Layer by layer: the largest first, each against the largest of those that are left."""
    centre, spread = reference.mean(0), reference.std(0) + 1e-12
    draws, own = (reference - centre) / spread, (found - centre) / spread
    left, adjusted, floor = list(range(len(found))), np.empty(len(found)), 0.0
    while left:
        layer = max(left, key=lambda one: own[one])
        floor = max(floor, np.mean([max(draw[one] for one in left) >= own[layer] - 1e-9 for draw in draws]))
        adjusted[layer] = floor
        left.remove(layer)
    return adjusted


@pytest.mark.parametrize("seed", range(5))
def test_step_down_against_a_naive_reference(seed):
    rng = np.random.default_rng(seed)
    reference = rng.normal(size=(60, 7)) * rng.uniform(0.5, 2, 7)
    reference[0] += rng.uniform(0, 2, 7)
    np.testing.assert_allclose(step_down(reference, reference[0]), naive_step_down(reference, reference[0]))


def test_a_layer_that_no_permutation_changes_shows_nothing():
    reference = np.random.default_rng(0).normal(size=(40, 3))
    reference[:, 1] = 0.5
    reference[0, 0] = 100
    np.testing.assert_allclose(step_down(reference, reference[0])[[0, 1]], [1 / 40, 1.0])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 9), st.integers(1, 3), st.integers(1, 3))
def test_orders_move_subjects_whole_and_within_groups(seed, subjects, items, groups):
    rng = np.random.default_rng(seed)
    subject = rng.permutation(np.repeat(np.arange(subjects) * 3, items))
    group = (subject // 3) % groups
    keys = rng.random((20, subjects * 3))
    keys[0] = np.arange(subjects * 3)
    orders = activation_orders(subject, group, keys)
    assert (orders[0] == np.arange(len(subject))).all(), "the first is the identity"
    for order in orders:
        assert sorted(order) == list(range(len(subject)))
        assert (group[order] == group).all()
        assert len({(a, b) for a, b in zip(subject, subject[order], strict=True)}) == subjects


def test_relations_about_the_same_subjects_get_the_same_permutation():
    keys = np.random.default_rng(0).random((10, 8))
    once, twice = np.arange(8), np.repeat(np.arange(8), 2)
    single = activation_orders(once, np.zeros(8, int), keys)
    double = activation_orders(twice, np.zeros(16, int), keys)
    assert (twice[double][:, ::2] == single).all()


def test_a_subject_with_fewer_items_is_read_again():
    subject = np.array([0, 0, 0, 1])
    orders = activation_orders(subject, np.zeros(4, int), np.array([[0.0, 1.0], [1.0, 0.0]]))
    assert orders.tolist() == [[0, 1, 2, 3], [3, 3, 3, 0]]


def study(picks, gold, *, subject=None, relation="city", inspector="lens", layers=None, baseline="none"):
    """Records and credit of a method that says picks [item, layer], one activation an item."""
    picks = np.asarray(picks)
    layers = range(picks.shape[1]) if layers is None else layers
    subject = np.arange(len(gold)) if subject is None else subject
    names = [f"{relation}{i:03}" for i in range(len(gold))]
    where = {
        "model": "m", "verbalizer": "m", "task": "facts", "relation": relation, "inspector": inspector,
        "baseline": baseline, "site": "answer",
    }  # fmt: skip
    rows = [
        {**where, "attempt": "only", "layer": layer, "item": names[i], "subject": f"s{subject[i]:03}",
         "fold": subject[i] % 5, "gold": ANSWERS[gold[i]], "predicted": ANSWERS[picks[i, j]],
         "predicted_corrected": ANSWERS[picks[i, j]], "correct": float(picks[i, j] == gold[i]),
         "correct_corrected": float(picks[i, j] == gold[i]), "chance": 0.25, "seed": 0, "known": None}
        for i in range(len(gold)) for j, layer in enumerate(layers)
    ]  # fmt: skip
    credit = (picks.T[:, None, :, None] == np.arange(4)).astype(float)
    table = crossed_table(credit, list(layers), ["only"], names, ANSWERS, **where)
    return pd.DataFrame(rows).astype({"layer": "Int16"}), table


def summary_of(*studies, **changes):
    records = pd.concat([one for one, _ in studies], ignore_index=True)
    crossed = frame_of([table for _, table in studies])
    return summarise(records, SummarySettings(QUESTIONS, draws=200, **changes), crossed)


def own(summary, relation="city", question="uses_activation"):
    keep = (summary["baseline"] == "none") & (summary["relation"] == relation) & (summary["question"] == question)
    return summary[keep]


def reader(rng, items, layers=3, knows=0.6):
    gold = np.arange(items) % 4
    picks = np.where(rng.random((items, layers)) < knows, gold[:, None], rng.integers(0, 4, (items, layers)))
    return picks, gold


def test_p_values_are_those_of_all_permutations():
    """Five subjects have 120 permutations: with many draws the p-value is the exact one."""
    picks, gold = np.array([[0, 1], [1, 1], [2, 0], [3, 2], [0, 3]]), np.array([0, 1, 2, 3, 1])
    scores = np.array([[np.mean(picks[list(p), j] == gold) for j in range(2)] for p in permutations(range(5))])
    exact = naive_step_down(scores, np.array([np.mean(picks[:, j] == gold) for j in range(2)]))
    found = own(summary_of(study(picks, gold)))["p_value"].to_numpy()
    assert np.abs(found - exact).max() < 4 * np.sqrt(0.25 / 1000)


def test_a_reader_is_found_and_a_constant_answer_is_not():
    picks, gold = reader(np.random.default_rng(0), 40)
    picks[:, 1] = 2
    found = own(summary_of(study(picks, gold)))
    assert found["verdict"].tolist()[::2] == ["uses the activation"] * 2
    assert found["verdict"].tolist()[1] != "uses the activation"
    assert found["p_value"].tolist()[1] == 1.0


def test_the_row_of_shuffled_is_the_mean_over_all_permutations():
    picks, gold = reader(np.random.default_rng(1), 20)
    summary = summary_of(study(picks, gold))
    naive = [
        np.mean([np.mean([picks[j, layer] == gold[i] for j in range(20)]) for i in range(20)]) for layer in range(3)
    ]
    shuffled = summary[(summary["baseline"] == "shuffled") & (summary["relation"] == "city")]
    np.testing.assert_allclose(shuffled["accuracy_corrected"], naive)
    np.testing.assert_allclose(own(summary)["gap"], (picks == gold[:, None]).mean(0) - naive)


def test_what_learns_labels_is_exchanged_within_folds():
    picks, gold = reader(np.random.default_rng(2), 20)
    summary = summary_of(study(picks, gold), learns_labels=frozenset({"lens"}))
    naive = [
        np.mean([np.mean([picks[j, layer] == gold[i] for j in range(i % 5, 20, 5)]) for i in range(20)])
        for layer in range(3)
    ]
    shuffled = summary[(summary["baseline"] == "shuffled") & (summary["relation"] == "city")]
    np.testing.assert_allclose(shuffled["accuracy_corrected"], naive)


def test_totals_average_the_relations_of_the_method():
    rng = np.random.default_rng(4)
    first, second = reader(rng, 12, knows=0.35), reader(rng, 12, knows=0.35)
    summary = summary_of(study(*first), study(*second, relation="river"))
    total = own(summary, "all")
    assert total["relations"].tolist() == [2, 2, 2]
    assert own(summary)["relations"].tolist() == [1, 1, 1]
    assert (total["p_value"].min() <= own(summary)["p_value"].min()) or (total["p_value"].min() < 0.05)


def test_false_alarms_of_the_test_are_those_of_its_level():
    """Golds that have nothing to do with what is said, of a reader with a taste for two answers."""
    rng = np.random.default_rng(5)
    alarms = 0
    for _ in range(200):
        picks = rng.choice(4, size=(16, 4), p=[0.4, 0.4, 0.1, 0.1])
        alarms += bool((own(summary_of(study(picks, rng.permutation(np.arange(16) % 4))))["p_value"] <= 0.025).any())
    assert alarms <= 12, "200 studies at .025: 5 are expected, 12 or fewer come in .998 of the cases"


def test_raw_decides_where_the_run_says_so():
    picks, gold = reader(np.random.default_rng(6), 40)
    records, table = study(picks, gold)
    records["correct_corrected"] = 0.0
    summary = summarise(records, SummarySettings(QUESTIONS, draws=200, score="raw"), frame_of([table]))
    found = own(summary)
    assert set(found["verdict"]) == {"uses the activation"}
    assert (found["accuracy_corrected"] == 0).all()
    np.testing.assert_allclose(found["accuracy"], (picks == gold[:, None]).mean(0))


def test_methods_are_compared_over_what_both_answered():
    rng = np.random.default_rng(9)
    strong, weak = reader(rng, 40, knows=0.9), reader(rng, 40, knows=0.1)
    river = reader(rng, 40)
    studies = [study(*strong), study(*river, relation="river"), study(weak[0], strong[1], inspector="other")]
    found = between_methods(pd.concat([one for one, _ in studies]), SummarySettings(QUESTIONS, draws=200))
    (row,) = found.to_dict("records")
    assert (row["inspector"], row["other_inspector"], row["relation"], row["n"]) == ("lens", "other", "city", 40)
    best = [(picks == strong[1][:, None]).mean(0).max() for picks in (strong[0], weak[0])]
    assert row["difference"] == pytest.approx(best[1] - best[0])
    assert row["verdict"] == "first higher"


def test_tables_are_read_as_they_were_written(tmp_path):
    _, table = study(*reader(np.random.default_rng(7), 6))
    write_table(tmp_path / "crossed" / "a.parquet", table)
    found = read_crossed(tmp_path, ["a.parquet"])
    pd.testing.assert_frame_equal(found, frame_of([table]), check_categorical=False)
    (tmp_path / "crossed" / "a.parquet").write_bytes(b"no table")
    with pytest.raises(LensbenchError, match=r"a\.parquet is damaged"):
        read_crossed(tmp_path, ["a.parquet"])
    with pytest.raises(LensbenchError, match=r"gone\.parquet is missing: run `lensbench evaluate` again"):
        read_crossed(tmp_path, ["gone.parquet"])


def test_tables_of_other_items_are_refused():
    picks, gold = reader(np.random.default_rng(8), 6)
    records, _ = study(picks, gold)
    _, table = study(np.vstack([picks, picks]), np.concatenate([gold, gold]))
    with pytest.raises(LensbenchError, match="other values of item"):
        summarise(records, SummarySettings(QUESTIONS, draws=50), frame_of([table]))
