import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lensbench.errors import LensbenchError
from lensbench.results.metrics import metrics
from lensbench.results.samples import RequiredBaseline, SummarySettings
from lensbench.results.summary import SUMMARY_COLUMNS, best_layers, summarise
from lensbench.results.verdicts import NO_VERDICT

QUESTIONS = {
    "question_only": "uses_activation", "shuffled": "uses_activation", "input_only": "beats_text",
    "unplanted": "target_specific", "control_task": "diagnostic", "wrong_position": "diagnostic",
}  # fmt: skip


def rows(correct, *, corrected=None, inspector="probe", baseline="none", attempt="only", layers=None, **where):
    """Records from scores [item, layer]; item i is about subject i, in fold i % 5."""
    correct = np.atleast_2d(np.asarray(correct, float))
    corrected = correct if corrected is None else np.atleast_2d(np.asarray(corrected, float))
    layers = range(correct.shape[1]) if layers is None else layers
    names = where.pop("items", range(len(correct)))
    relation = where.get("relation", "capital")
    base = {
        "model": "m", "verbalizer": "m", "task": "facts", "relation": relation, "inspector": inspector,
        "baseline": baseline, "attempt": attempt, "site": "answer", "chance": 0.25, "seed": 0, "template": "test0",
        "known": None, **where,
    }  # fmt: skip
    return pd.DataFrame(
        [
            {**base, "layer": layer, "item": f"{relation}{name}", "subject": f"s{name:03}", "fold": name % 5,
             "correct": correct[i, j], "correct_corrected": corrected[i, j], "gold": "Cairo",
             **dict.fromkeys(("predicted", "predicted_corrected"), "Cairo")}
            for (i, name), (j, layer) in itertools.product(enumerate(names), enumerate(layers))
        ]
    ).astype({"layer": "Int16"})  # fmt: skip


def together(*frames, **changes):
    return summarise(pd.concat(frames, ignore_index=True), SummarySettings(QUESTIONS, draws=300, **changes))


def pick(summary, **keys):
    keep = np.ones(len(summary), bool)
    for column, value in keys.items():
        keep &= (summary[column] == value).to_numpy()
    return summary[keep]


def bits(seed, *shape, probability=0.5):
    return (np.random.default_rng(seed).random(shape) < probability).astype(float)


def test_scores_gaps_and_repeated_rows():
    own, corrected, rival = bits(0, 30, 3), bits(1, 30, 3), bits(2, 30, 1)
    summary = together(
        rows(own, corrected=corrected), rows(rival, baseline="question_only", layers=[None]),
        rows(bits(3, 30, 3), baseline="wrong_position"),
    )  # fmt: skip
    assert tuple(summary.columns) == SUMMARY_COLUMNS
    method = pick(summary, baseline="none", relation="capital")
    assert method["question"].tolist() == ["uses_activation"] * 3
    assert method["layer"].tolist() == [0, 1, 2]
    np.testing.assert_allclose(method["accuracy"], own.mean(axis=0))
    np.testing.assert_allclose(method["accuracy_corrected"], corrected.mean(axis=0))
    np.testing.assert_allclose(method["gap"], (corrected - rival).mean(axis=0))
    assert set(method["strongest_baseline"]) == {"question_only"}
    assert (method["n"] == 30).all()
    assert (method["subjects"] == 30).all()
    repeated = pick(summary, baseline="question_only", relation="capital")
    np.testing.assert_allclose(repeated["accuracy"], [rival.mean()] * 3)
    assert repeated["gap"].isna().all()
    assert set(repeated["verdict"]) == {""}
    assert set(pick(summary, baseline="wrong_position")["question"]) == {"diagnostic"}


def test_a_method_without_rivals_has_rows_without_a_question():
    summary = together(rows(bits(0, 6, 2)))
    assert summary["question"].isna().all()
    assert set(summary["rule"]) == {"fixed"}
    assert summary["gap"].isna().all()


def test_totals_are_relation_means_of_rescaled_scores_over_the_methods_own_relations():
    first, second, lens = bits(0, 20, 2), bits(1, 8, 2), bits(2, 12, 2)
    summary = together(
        rows(first), rows(second, relation="currency"), rows(lens, inspector="logit_lens", items=range(3, 15))
    )
    total = pick(summary, inspector="probe", relation="all")
    expected = np.mean([((part - 0.25) / 0.75).mean(axis=0) for part in (first, second)], axis=0)
    np.testing.assert_allclose(total["accuracy_corrected"], expected)
    assert (total["n"] == 28).all()
    assert (total["subjects"] == 20).all()
    assert (total["relations"] == 2).all()
    assert (total["chance"] == 0).all()
    other = pick(summary, inspector="logit_lens", relation="all")
    np.testing.assert_allclose(other["accuracy_corrected"], ((lens - 0.25) / 0.75).mean(axis=0))
    assert (other["relations"] == 1).all(), "what one method could not answer is not taken from another"


def test_a_pair_uses_the_items_that_both_scored():
    own, rival = bits(0, 20, 2), bits(1, 12, 2)
    summary = together(rows(own), rows(rival, baseline="shuffled", items=range(5, 17)))
    method = pick(summary, baseline="none", relation="capital")
    np.testing.assert_allclose(method["gap"], (own[5:17] - rival).mean(axis=0))
    assert (method["n"] == 20).all()


def naive_selected(scores, folds):
    """scores [attempt, item, layer]"""
    result = np.empty(scores.shape[1:])
    for item, layer in np.ndindex(*result.shape):
        others = [other for other in range(scores.shape[1]) if folds[other] != folds[item]]
        means = [np.mean([scores[attempt, other, layer] for other in others]) for attempt in range(len(scores))]
        result[item, layer] = scores[int(np.argmax(np.round(means, 9))), item, layer]
    return result


@pytest.mark.parametrize("seed", range(5))
def test_rules_against_a_naive_reference(seed):
    scores, rival = bits(seed, 4, 23, 3), bits(seed + 50, 3, 23, 1)
    frames = [rows(part, attempt=f"t{9 - index}") for index, part in enumerate(scores)]
    forms = [
        rows(part, attempt=f"form{index}", baseline="input_only", layers=[None]) for index, part in enumerate(rival)
    ]
    summary = pick(together(*frames, *forms), relation="capital")
    folds = np.arange(23) % 5
    selected, chosen = naive_selected(scores, folds), naive_selected(rival, folds)
    for rule, expected in (("fixed", scores[0]), ("selected", selected), ("oracle", scores.max(axis=0))):
        method = pick(summary, baseline="none", rule=rule)
        np.testing.assert_allclose(method["accuracy_corrected"], expected.mean(axis=0))
        other = rival.max(axis=0) if rule == "oracle" else chosen  # forms are never fixed
        np.testing.assert_allclose(method["gap"], (expected - other).mean(axis=0), atol=1e-12)
    assert set(pick(summary, rule="oracle")["verdict"]) == {""}


def test_the_default_attempt_can_be_given():
    scores = bits(0, 2, 10, 2)
    frames = [rows(part, attempt=name) for part, name in zip(scores, "ab", strict=True)]
    fixed = pick(together(*frames, defaults={"probe": "b"}), rule="fixed", relation="capital")
    np.testing.assert_allclose(fixed["accuracy"], scores[1].mean(axis=0))


def test_a_rival_with_the_methods_attempts_is_scored_under_the_same_rule():
    scores, rival = bits(0, 2, 20, 2), bits(1, 2, 20, 2)
    frames = [rows(part, attempt=name) for part, name in zip(scores, "ab", strict=True)]
    frames += [rows(part, attempt=name, baseline="shuffled") for part, name in zip(rival, "ab", strict=True)]
    summary = pick(together(*frames), relation="capital", baseline="shuffled")
    np.testing.assert_allclose(pick(summary, rule="fixed")["accuracy"], rival[0].mean(axis=0))
    np.testing.assert_allclose(pick(summary, rule="oracle")["accuracy"], rival.max(axis=0).mean(axis=0))


def test_verdicts_of_a_clear_case():
    good, bad = np.ones((80, 3)), bits(0, 80, 3, probability=0.2)
    summary = together(rows(good), rows(bad, baseline="shuffled"), rows(good, baseline="input_only"))
    assert set(pick(summary, baseline="none", question="uses_activation")["verdict"]) == {"uses the activation"}
    assert set(pick(summary, baseline="none", question="beats_text")["verdict"]) == {"within .10 of input_only"}


def test_no_good_is_said_while_a_rival_is_missing():
    own, low = np.ones((60, 2)), bits(1, 60, 1, probability=0.1)
    frames = [rows(own), rows(low, baseline="question_only", layers=[None])]
    due = {
        "probe": {
            "question_only": RequiredBaseline("uses_activation", False),
            "shuffled": RequiredBaseline("uses_activation", True),
        }
    }

    def verdicts(*more, **changes):
        return set(pick(together(*frames, *more, **changes), baseline="none", question="uses_activation").verdict)

    assert verdicts() == {"uses the activation"}
    assert verdicts(due=due) == {"incomplete without shuffled"}
    assert verdicts(rows(low, baseline="shuffled", layers=[None]), due=due) == {"uses the activation"}
    excuse = frozenset(("facts", "answer", "probe", "shuffled", relation) for relation in ("capital", "all"))
    assert verdicts(due=due, excused=excuse) == {"incomplete without shuffled"}, "an essential rival is never excused"
    due = {"probe": {"shuffled": RequiredBaseline("uses_activation", False)}}
    assert verdicts(due=due, excused=excuse) == {"uses the activation"}
    worse = [rows(low.repeat(2, 1)), rows(np.ones((60, 1)), baseline="question_only", layers=[None])]
    lost = pick(together(*worse, due=due), baseline="none")
    assert set(lost.verdict) == {"beaten by question_only"}, "that a baseline does better needs no other baseline"


def test_control_task_attempts_are_rows_and_selectivity_is_paired():
    true, random = bits(0, 20, 2, probability=0.9), bits(1, 20, 2, probability=0.4)
    frames = [
        rows(true), rows(true, baseline="control_task", attempt="true_labels_seen"),
        rows(random, baseline="control_task", attempt="random_labels_seen"),
        rows(bits(2, 9, 2), baseline="control_task", attempt="random_labels_held_out", items=range(9)),
    ]  # fmt: skip
    control = pick(together(*frames), baseline="control_task", relation="capital")
    assert set(control["rule"]) == {"true_labels_seen", "random_labels_seen", "random_labels_held_out"}
    assert pick(control, rule="random_labels_held_out")["n"].tolist() == [9, 9]
    assert set(control["question"]) == {"diagnostic"}
    found = pick(metrics(pd.concat(frames, ignore_index=True), draws=200), metric="selectivity", relation="capital")
    np.testing.assert_allclose(found["value"], (true - random).mean(axis=0))
    assert set(metrics(rows(true))["metric"]) == {"any_layer", "any_layer_expected"}


def test_selectivity_over_other_items_is_paired_by_subject():
    true, random = bits(0, 20, 2), bits(1, 20, 2)
    other = rows(random, baseline="control_task", attempt="random_labels_seen")
    other["item"] += "-other context"
    frames = [rows(true, baseline="control_task", attempt="true_labels_seen"), other]
    found = pick(metrics(pd.concat(frames, ignore_index=True), draws=200), relation="capital")
    np.testing.assert_allclose(found["value"], (true - random).mean(axis=0))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000))
def test_the_order_of_rows_changes_nothing(seed):
    records = pd.concat(
        [
            rows(bits(seed, 12, 2)),
            rows(bits(seed + 1, 12, 2), baseline="shuffled"),
            rows(bits(seed + 2, 9, 2), relation="b"),
        ],
        ignore_index=True,
    )
    mixed = records.sample(frac=1.0, random_state=seed, ignore_index=True)
    for column in ("item", "subject", "relation"):
        mixed[column] = mixed[column].astype("category")
    first, second = (summarise(frame, SummarySettings(QUESTIONS, draws=100)) for frame in (records, mixed))
    pd.testing.assert_frame_equal(first, second, rtol=1e-5, atol=1e-6)


@settings(max_examples=10, deadline=None)
@given(st.integers(2, 12), st.integers(4, 20))
def test_a_constant_scorer_gets_exactly_chance(choices, items):
    records = rows(np.full((items, 2), 1 / choices), chance=1 / choices)
    summary = summarise(records, SummarySettings(QUESTIONS, draws=50))
    np.testing.assert_allclose(pick(summary, relation="capital")["accuracy"], 1 / choices)
    np.testing.assert_allclose(pick(summary, relation="all")["accuracy"], 0, atol=1e-12)


def test_best_layers_name_the_rival_and_the_verdict_there():
    own = np.stack([bits(0, 60, probability=0.3), np.ones(60), np.ones(60)], axis=1)
    summary = together(rows(own), rows(bits(1, 60, 3), baseline="shuffled"), rows(own, baseline="input_only"))
    best = pick(best_layers(summary), relation="capital")
    assert best["layer"].tolist() == [1]
    row = best.iloc[0]
    assert row["uses_activation_baseline"] == "shuffled"
    assert row["uses_activation_baseline_accuracy"] == pytest.approx(bits(1, 60, 3)[:, 1].mean())
    assert row["uses_activation_verdict"] == "uses the activation"
    assert row["beats_text_baseline"] == "input_only"
    assert row["beats_text_gap"] == 0
    assert pd.isna(row["target_specific_verdict"])


def test_errors_say_what_is_wrong():
    own = rows(bits(0, 6, 2))
    with pytest.raises(LensbenchError, match=r"unknown baseline 'shufled'.*'shuffled'"):
        together(own, rows(bits(0, 6, 2), baseline="shufled"))
    with pytest.raises(LensbenchError, match="occurs twice"):
        together(own, own)
    with pytest.raises(LensbenchError, match="incomplete records"):
        together(own.iloc[:-1])
    with pytest.raises(LensbenchError, match="other layers"):
        together(own, rows(bits(0, 6, 1), baseline="shuffled", layers=[1]))
    with pytest.raises(LensbenchError, match="no records"):
        together(own.iloc[:0])
    with pytest.raises(LensbenchError, match="more than one fold"):
        together(own, rows(bits(0, 6, 2), baseline="shuffled").assign(fold=3))


def test_known_and_unknown_facts_are_told_apart():
    own = bits(11, 20, 2)
    known = rows(own[:12], known=True)
    unknown = rows(own[12:], known=False, items=range(12, 20))
    found = metrics(pd.concat([known, unknown], ignore_index=True), draws=300)
    for metric, part in (("accuracy_known", own[:12]), ("accuracy_unknown", own[12:])):
        values = pick(found, metric=metric)
        np.testing.assert_allclose(values["value"], part.mean(axis=0))
        assert (values["n"] == len(part)).all()


def test_cut_names_are_told_by_what_is_missing():
    parts = [bits(i, 20, 2) for i in range(3)]
    frames = [
        rows(part, template=f"test0@{i}/3").assign(item=lambda frame, i=i: frame["item"] + f"@{i}/3")
        for i, part in enumerate(parts, 1)
    ]
    found = metrics(pd.concat(frames, ignore_index=True), draws=300)
    for missing, part in enumerate(reversed(parts)):
        np.testing.assert_allclose(pick(found, metric=f"accuracy_cut_{missing}")["value"], part.mean(axis=0))


def test_measures_are_means_with_bands():
    own = bits(5, 20, 2)
    records = rows(own)
    values = np.random.default_rng(0).random((20, 2)) * 5
    measures = records[["model", "verbalizer", "task", "relation", "inspector", "baseline", "site"]].assign(
        layer=records["layer"], attempt="default", item=records["item"], subject=records["subject"], metric="kl",
        value=values.ravel(),
    )  # fmt: skip
    whole = measures.iloc[:2].assign(item=None, subject=None, metric="marginal_bias", value=[3.0, 2.0])
    found = metrics(records, pd.concat([measures, whole], ignore_index=True), draws=300)
    kl = pick(found, metric="kl")
    np.testing.assert_allclose(kl["value"], values.mean(axis=0))
    assert ((kl["ci_low"] < kl["value"]) & (kl["value"] < kl["ci_high"])).all()
    bias = pick(found, metric="marginal_bias")
    assert bias["value"].tolist() == [3.0, 2.0]
    assert bias["ci_low"].isna().all()


def test_selected_items_get_no_verdict_and_no_part_in_totals():
    own, rival = np.ones((40, 2)), np.zeros((40, 1))
    frames = [
        part
        for relation in ("capital", "chosen")
        for part in (
            rows(own if relation == "capital" else 1 - own, relation=relation),
            rows(rival, relation=relation, baseline="question_only", layers=[None]),
        )
    ]
    summary = together(*frames, selected=frozenset({("facts", "chosen")}))
    assert set(pick(summary, relation="chosen", baseline="none")["verdict"]) == {NO_VERDICT}
    assert set(pick(summary, relation="capital", baseline="none")["verdict"]) == {"uses the activation"}
    np.testing.assert_allclose(pick(summary, relation="all", baseline="none")["accuracy_corrected"], 1)
    plain = together(*frames)
    assert NO_VERDICT not in set(pick(plain, relation="chosen", baseline="none")["verdict"])
    assert (pick(plain, relation="all", baseline="none")["accuracy_corrected"] < 0.5).all()


THIRD = {
    **QUESTIONS, "twin": "target_specific", "reference_reader": "target_specific",
}  # fmt: skip
DUE = {
    "probe": {
        "shuffled": RequiredBaseline("uses_activation", True), "input_only": RequiredBaseline("beats_text", True),
        "unplanted": RequiredBaseline("target_specific", True),
        "reference_reader": RequiredBaseline("target_specific", True),
    }
}  # fmt: skip


def third_verdict(rivals, *, verbalizer="base", own=None):
    """The verdict on the third question of a method that is always right, its rivals' scores given by name."""
    own = np.ones((80, 2)) if own is None else own
    frames = [rows(own, verbalizer=verbalizer)]
    frames += [rows(scores, baseline=name, verbalizer=verbalizer) for name, scores in rivals.items()]
    summary = summarise(pd.concat(frames, ignore_index=True), SummarySettings(THIRD, due=DUE, draws=300))
    found = pick(summary, baseline="none", question="target_specific", relation="capital")
    return set(found["verdict"])


def weak(*names):
    """Rivals that are right in one of eight items."""
    return {name: bits(i, 80, 2, probability=0.125) for i, name in enumerate(names)}


EVERY = ("shuffled", "input_only", "unplanted", "twin", "reference_reader")


def test_privileged_is_who_beats_the_rivals_of_all_three_questions():
    assert third_verdict(weak(*EVERY)) == {"privileged"}
    for name in EVERY:
        strong = {**weak(*EVERY), name: np.ones((80, 2))}
        assert third_verdict(strong) == {f"within .10 of {name}"}, "a baseline of whatever question is enough"


def test_privileged_waits_for_its_essential_rivals():
    for missing in ("unplanted", "reference_reader", "input_only", "shuffled"):
        assert third_verdict(weak(*(set(EVERY) - {missing}))) == {f"incomplete without {missing}"}
    assert third_verdict(weak(*(set(EVERY) - {"twin"}))) == {"privileged"}, "not every implant has a twin"
    assert third_verdict(weak("shuffled", "input_only")) == set(), "without a rival of its own it is not asked"


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_a_target_that_is_its_own_verbalizer_is_never_privileged(seed, rate, own):
    rivals = {name: bits(seed + i, 80, 2, probability=rate) for i, name in enumerate(EVERY)}
    scores = bits(seed + 9, 80, 2, probability=own)
    assert "privileged" not in third_verdict(rivals, verbalizer="m", own=scores)


def test_a_gap_that_holds_with_one_model_is_left_open():
    """It holds the facts that its verbalizer holds: what would be privileged elsewhere is not called so."""
    assert third_verdict(weak(*EVERY), verbalizer="m") == {"incomplete without another verbalizer"}
    assert third_verdict({**weak(*EVERY), "input_only": np.ones((80, 2))}, verbalizer="m") == {
        "within .10 of input_only"
    }


def test_a_baseline_at_fewer_layers_counts_between_them_as_the_better_one():
    own, noise = bits(3, 40, 7, probability=0.9), bits(4, 40, 3, probability=0.3)
    noise[:, 1] = bits(5, 40, 1, probability=0.7)[:, 0]
    thin = rows(noise, baseline="shuffled", layers=[0, 3, 6])
    found = together(rows(own), thin)
    first, middle, last = noise.mean(axis=0)
    early, late = max(first, middle), max(middle, last)
    expected = [first, early, early, middle, late, late, last]
    shown = pick(found, baseline="shuffled", relation="capital")
    assert list(shown["layer"]) == list(range(7))
    np.testing.assert_allclose(shown["accuracy_corrected"], expected)
    gaps = pick(found, baseline="none", relation="capital")
    np.testing.assert_allclose(gaps["gap"], own.mean(axis=0) - expected)
    with pytest.raises(LensbenchError, match="was scored at other layers"):
        together(rows(own), rows(noise, baseline="shuffled", layers=[0, 3, 5]))
