import itertools
from collections import Counter

import numpy as np
import pandas as pd
import pytest

from lensbench.errors import LensbenchError, UsageError
from lensbench.results.arrays import cells_of
from lensbench.results.golds import credit, golds_of, unresolved
from lensbench.results.metrics import metrics
from lensbench.results.permutation import ANY, false_alarms
from lensbench.results.samples import SummarySettings, methods_of, samples_under
from lensbench.results.summary import summarise
from lensbench.results.verdicts import FACED, VERDICTS, claims, gaps_of

QUESTIONS = {
    "shuffled": "uses_activation", "question_only": "uses_activation", "input_only": "beats_text",
    "unplanted": "target_specific", "control_task": "diagnostic",
}  # fmt: skip
ANSWERS = np.array(["Cairo", "Delhi", "Lisbon", "Oslo"])
FOLDS = 5


def world(subjects, seed=0, items=2):
    """Gold of each item, balanced within folds, and each item's subject."""
    gold = np.empty(subjects, int)
    rng = np.random.default_rng(seed)
    for fold in range(FOLDS):
        mine = np.arange(subjects) % FOLDS == fold
        gold[mine] = rng.permutation(np.arange(mine.sum()) % len(ANSWERS))
    return np.repeat(gold, items), np.repeat(np.arange(subjects), items)


def said(
    picks, gold, subject, *, baseline="none", attempt="only", layers=None, relation="city", corrected=None, ties=1
):
    """Records of what was picked: picks [item, layer]; a tie is always with all answers, or with none."""
    picks = np.atleast_2d(picks)
    corrected = picks if corrected is None else corrected
    layers = list(range(picks.shape[1])) if layers is None else layers
    item, place = (index.ravel() for index in np.indices(picks.shape))
    right = (picks == gold[:, None]).ravel() if ties == 1 else np.full(picks.size, 1 / ties)
    better = (corrected == gold[:, None]).ravel() if ties == 1 else right
    return pd.DataFrame({
        "model": "m", "verbalizer": "v", "task": "personas", "relation": relation, "inspector": "reader",
        "baseline": baseline, "attempt": attempt, "site": "subject", "chance": 1 / len(ANSWERS), "seed": 0,
        "template": "test0", "known": None, "layer": pd.array([layers[i] for i in place], dtype="Int16"),
        "item": [f"{relation}{i:03}" for i in item], "subject": [f"s{subject[i]:03}" for i in item],
        "fold": subject[item] % FOLDS, "gold": ANSWERS[gold[item]], "predicted": ANSWERS[picks.ravel()],
        "predicted_corrected": ANSWERS[corrected.ravel()], "correct": right.astype(float),
        "correct_corrected": better.astype(float),
    })  # fmt: skip


def sticky(rng, n, layers):
    """Picks that mostly stay the same from layer to layer."""
    picks = rng.integers(0, len(ANSWERS), (n, layers))
    for layer in range(1, layers):
        same = rng.random(n) < 0.9
        picks[same, layer] = picks[same, layer - 1]
    return picks


def study(seed, subjects=40, layers=6, reader=None):
    rng = np.random.default_rng(seed)
    gold, subject = world(subjects, seed)
    picks = sticky(rng, len(gold), layers) if reader is None else reader(rng, gold)
    return pd.concat([
        said(picks, gold, subject, corrected=np.where(rng.random(picks.shape) < 0.9, picks, 0)),
        said(np.zeros((len(gold), 1), int), gold, subject, baseline="question_only", layers=[None], ties=4),
        said(sticky(rng, len(gold), layers), gold, subject, baseline="shuffled"),
        said(sticky(rng, len(gold), 1), gold, subject, baseline="input_only", layers=[None]),
        said(sticky(rng, len(gold), layers), gold, subject, baseline="unplanted"),
    ], ignore_index=True)  # fmt: skip


def knowing(rng, gold):
    picks = np.repeat(gold[:, None], 6, axis=1)
    return np.where(rng.random(picks.shape) < 0.1, 0, picks)


def test_a_method_that_knows_gets_its_verdict_but_not_with_permuted_golds():
    records = study(0, reader=knowing)
    verdicts = set(summarise(records, SummarySettings(QUESTIONS, draws=300))["verdict"])
    assert {VERDICTS[question] for question in FACED} <= verdicts
    found = false_alarms(records, SummarySettings(QUESTIONS, draws=300), permutations=60)
    anywhere = found[found["relation"] == ANY].set_index("question")
    assert set(anywhere.index) == set(FACED)
    assert (anywhere["rate"] <= 0.05).all()
    assert (anywhere["ci_low"] <= anywhere["rate"]).all()
    assert (anywhere["rate"] <= anywhere["ci_high"]).all()
    assert anywhere["ci_high"].max() < 0.15
    assert (found["unresolved_ties"] == 0).all()


def test_bands_are_left_out_only_where_they_decide_nothing():
    """Rivals far below chance, so that some permutations hold and some do not; each against `summarise` in full."""
    rng = np.random.default_rng(1)
    gold, subject = world(40, 1)
    picks = sticky(rng, len(gold), 5)
    wrong = (gold + 1) % 4
    rival = np.where(rng.random(len(gold)) < 0.45, wrong, rng.integers(0, 4, len(gold)))
    records = pd.concat([
        said(picks, gold, subject),
        said(rival[:, None], gold, subject, baseline="shuffled", layers=[None]),
        said(np.roll(rival, 7)[:, None], gold, subject, baseline="input_only", layers=[None]),
    ])  # fmt: skip
    settings = SummarySettings(QUESTIONS, draws=200, level=0.6)
    outcomes = Counter()
    for seed in range(25):
        again = records.copy()
        noise = np.random.default_rng(seed).integers(0, 2, len(again))
        again["correct"] = again["correct_corrected"] = np.maximum(
            again["correct"], noise * (again["baseline"] == "none")
        )
        (method,) = methods_of(*cells_of(again))
        for sample, scores in samples_under(method, "fixed", settings):
            full = {
                name: bool((gap.verdict == VERDICTS[name]).any())
                for name, gap in gaps_of(method, scores, sample, "fixed")
            }
            assert claims(method, scores, sample, "fixed") == full
            outcomes.update(full.values())
        (method,) = methods_of(
            *cells_of(records.assign(correct=again["correct"].sample(frac=1, random_state=seed).values))
        )
        for sample, scores in samples_under(method, "fixed", settings):
            full = {
                name: bool((gap.verdict == VERDICTS[name]).any())
                for name, gap in gaps_of(method, scores, sample, "fixed")
            }
            assert claims(method, scores, sample, "fixed") == full
            outcomes.update(full.values())
    assert min(outcomes[True], outcomes[False]) > 5, "both kinds must occur, or nothing was compared"


def naive_permuted(records, choice_sets, rng):
    """Deal golds over subjects within fold and set, and score again: ties here are with all answers, or none."""
    units = records.drop_duplicates(["relation", "subject"])
    dealt = {}
    for _, group in units.groupby([units["item"].map(choice_sets), "fold"]):
        keys = list(zip(group["relation"], group["subject"], strict=True))
        dealt.update(zip(keys, rng.permutation(group["gold"].to_numpy()), strict=True))
    gold = np.array([dealt[key] for key in zip(records["relation"], records["subject"], strict=True)])
    changed = records.assign(gold=gold)
    for score, answer in (("correct", "predicted"), ("correct_corrected", "predicted_corrected")):
        tied = (records[score] > 0) & (records[score] < 1)
        changed[score] = np.where(tied, records[score], (records[answer].to_numpy() == gold).astype(float))
    return changed


def test_the_rate_is_that_of_permuting_and_summarising_in_full():
    """Golds that are nearly constant, and a rival that is always wrong: many permutations hold."""
    rng = np.random.default_rng(3)
    gold, subject = world(30, 3)
    rival = np.full((len(gold), 1), 0)
    picks = np.where(rng.random((len(gold), 4)) < 0.75, 1, sticky(rng, len(gold), 4))
    gold = np.where(rng.random(30).repeat(2) < 0.8, 1, gold)
    records = pd.concat([said(picks, gold, subject), said(rival, gold, subject, baseline="shuffled", layers=[None])])
    records["chance"] = 0.25
    settings = SummarySettings(QUESTIONS, draws=200)
    found = false_alarms(records, settings, permutations=100).set_index("relation")
    sets = dict.fromkeys(records["item"].unique(), "one")
    verdicts = []
    for _ in range(30):
        summary = summarise(naive_permuted(records, sets, rng), SummarySettings(QUESTIONS, draws=200))
        verdicts.append((summary[summary["relation"] == "city"]["verdict"] == "uses the activation").any())
    assert abs(found.loc["city", "rate"] - np.mean(verdicts)) < 0.2
    assert found.loc["city", "rate"] > 0.5
    assert found.loc[ANY, "alarms"] >= found.loc["city", "alarms"]


def test_permuted_golds_keep_every_balance():
    records = pd.concat([study(4), study(5).assign(relation="drink", item=lambda frame: "drink" + frame["item"])])
    golds, _ = golds_of(records)
    first = records.drop_duplicates("item").sort_values("item", ignore_index=True)
    new = golds.permuted(np.random.default_rng(0))
    labels = golds.labels(new)
    assert (new != golds.gold).mean() > 0.5
    first["new"] = np.array(golds.answers)[new]
    for column in ("gold", "new"):
        first[f"{column} counts"] = first.groupby(["relation", "fold", column])["item"].transform("size")
    by = ["relation", "fold"]
    counts = [first.groupby([*by, column]).size().reset_index(drop=True) for column in ("gold", "new")]
    pd.testing.assert_series_equal(*counts)
    assert (first.groupby(["relation", "subject"])["new"].nunique() == 1).all()
    assert all(labels["personas", row.relation, row.subject] == row.new for row in first.itertuples())


def test_choice_sets_are_read_off_what_was_said_or_given():
    """Two sets of two answers in one relation: golds never leave their set."""
    gold, subject = world(40, 6)
    rng = np.random.default_rng(6)
    other = np.where(gold < 2, rng.integers(0, 2, len(gold)), rng.integers(2, 4, len(gold)))
    records = said(other[:, None], gold, subject).assign(chance=0.5)
    golds, _ = golds_of(records)
    assert len(np.unique(golds.choice_set)) == 2
    for seed in range(5):
        assert ((golds.permuted(np.random.default_rng(seed)) < 2) == (golds.gold < 2)).all()
    given, _ = golds_of(records, {item: item[-1] for item in records["item"].unique()})
    assert len(np.unique(given.choice_set)) == 10
    with pytest.raises(UsageError, match="choice_sets lacks 79 items"):
        golds_of(records, {"city000": "a"})


class Nearest:
    """A nearest-centroid probe on features that say nothing, cross-fitted over folds."""

    def __init__(self, seed, subjects=40, layers=4, leak=False):
        rng = np.random.default_rng(seed)
        self.gold, self.subject = world(subjects, seed)
        self.features = rng.standard_normal((layers, len(self.gold), 5)) + rng.standard_normal((len(self.gold), 5))
        self.rival, self.leak, self.calls = sticky(rng, len(self.gold), 1), leak, 0

    def picks(self, gold):
        out = np.empty((len(gold), len(self.features)), int)
        for fold, (layer, values) in itertools.product(range(FOLDS), enumerate(self.features)):
            test = self.subject % FOLDS == fold
            train = np.ones(len(gold), bool) if self.leak else ~test
            means = np.stack([values[train & (gold == answer)].mean(axis=0) for answer in range(4)])
            out[test, layer] = ((values[test][:, None] - means) ** 2).sum(axis=2).argmin(axis=1)
        return gold[:, None].repeat(len(self.features), 1) if self.leak else out

    def records(self, gold):
        return pd.concat([
            said(self.picks(gold), gold, self.subject),
            said(self.rival, gold, self.subject, baseline="shuffled", layers=[None]),
        ])  # fmt: skip

    def refit(self, labels):
        self.calls += 1
        code = {answer: index for index, answer in enumerate(ANSWERS)}
        gold = np.array([code[labels["personas", "city", f"s{subject:03}"]] for subject in self.subject])
        return self.records(gold), None


def test_a_method_that_learns_labels_is_fitted_again():
    probe = Nearest(0)
    found = false_alarms(
        probe.records(probe.gold), SummarySettings(QUESTIONS, draws=200), permutations=30, refit=probe.refit
    )
    assert probe.calls == 30
    assert (found["rate"] <= 0.1).all()
    leaky = Nearest(0, leak=True)  # it sees the labels that it is tested on, the permuted ones too
    settings = SummarySettings(QUESTIONS, draws=200)
    found = false_alarms(leaky.records(leaky.gold), settings, permutations=10, refit=leaky.refit)
    assert (found["rate"] == 1).all()
    stored = false_alarms(leaky.records(leaky.gold), settings, permutations=10)
    assert (stored["rate"] == 0).all(), "stored predictions cannot show what was learned from labels"


@pytest.mark.parametrize("tied", [(2,), (0, 2), (1, 2, 3), (0, 1, 2, 3)])
@pytest.mark.parametrize("gold", range(4))
def test_credit_of_other_golds(tied, gold):
    first, old, choices = np.full(4, tied[0]), np.full(4, gold), np.full(4, 4)
    earned = np.full(4, 1 / len(tied) if gold in tied else 0.0)
    given = credit(np.arange(4), first, old, earned, choices)
    assert given.sum() == pytest.approx(1)
    known = len(tied) in (1, 4) or (len(tied) == 2 and gold == tied[1])
    if known:
        np.testing.assert_allclose(given, [1 / len(tied) * (answer in tied) for answer in range(4)])
    elif gold in tied:
        np.testing.assert_allclose(given[[gold, tied[0]]], 1 / len(tied))
    assert unresolved(first, old, earned, choices)[0] == (gold in tied and not known)


def brute_force(picks, gold):
    """The mean over all permutations of the share of items that one of the attempts [attempt, item] answers."""
    return np.mean([(picks == np.array(dealt)).any(axis=0).mean() for dealt in itertools.permutations(gold)])


@pytest.mark.parametrize("seed", range(4))
def test_the_oracles_expectation_is_that_of_all_permutations(seed):
    rng = np.random.default_rng(seed)
    gold, subject = rng.integers(0, 4, 6), np.arange(6)
    picks = rng.integers(0, 4, (3, 6, 2))
    frames = [said(part, gold, subject, attempt=f"t{i}") for i, part in enumerate(picks)]
    found = metrics(pd.concat(frames), draws=50)
    found = found[found["metric"] == "oracle_expected"]
    assert found["rule"].tolist() == ["oracle"] * 2
    assert found["n"].tolist() == [6, 6]
    np.testing.assert_allclose(found["value"], [brute_force(picks[:, :, layer], gold) for layer in (0, 1)])


def test_the_oracles_expectation_of_ties_and_of_one_attempt():
    gold, subject = world(20, 0, items=1)
    tie = np.zeros((20, 2), int)
    frames = [said(tie, gold, subject, attempt=name, ties=4) for name in "ab"]
    found = metrics(pd.concat(frames), draws=50)
    np.testing.assert_allclose(found[found["metric"] == "oracle_expected"]["value"], 0.25)
    assert set(metrics(frames[0], draws=50)["metric"]) == {"any_layer", "any_layer_expected"}


@pytest.mark.parametrize("seed", range(4))
def test_a_pass_at_any_layer_is_a_maximum_and_told_with_what_it_would_be_by_chance(seed):
    rng = np.random.default_rng(seed)
    gold, subject = rng.integers(0, 4, 6), np.arange(6)
    picks = rng.integers(0, 4, (2, 6, 3))  # of two attempts, of which the first stands for the method
    found = metrics(pd.concat([said(part, gold, subject, attempt=f"t{i}") for i, part in enumerate(picks)]), draws=50)
    found = found.set_index("metric")
    assert found.loc["any_layer", "value"] == pytest.approx((picks[0] == gold[:, None]).any(1).mean())
    assert found.loc["any_layer_expected", "value"] == pytest.approx(brute_force(picks[0].T, gold))
    assert found.loc[["any_layer", "any_layer_expected"], "layer"].isna().all()


def test_choosing_the_best_of_all_answers_is_expected_to_be_right():
    gold, subject = world(20, 0)
    frames = [said(np.full((40, 1), answer), gold, subject, attempt=f"t{answer}") for answer in range(4)]
    found = metrics(pd.concat(frames), draws=50)
    np.testing.assert_allclose(found[found["metric"] == "oracle_expected"]["value"], 1)


def test_errors_say_what_is_wrong():
    records = study(0)
    settings = SummarySettings(QUESTIONS, draws=100)
    with pytest.raises(UsageError, match="permutations must be 1 or more"):
        false_alarms(records, settings, permutations=0)
    with pytest.raises(UsageError, match=r"unknown baseline 'unplanted'"):
        false_alarms(
            records,
            SummarySettings(
                {"shuffled": "uses_activation", "question_only": "uses_activation", "input_only": "beats_text"}
            ),
        )
    with pytest.raises(UsageError, match="nothing to permute"):
        false_alarms(records[records["gold"] == "Oslo"], settings)
    with pytest.raises(UsageError, match=r"personas/city would be dealt its own gold back in 0.50 of the permutations"):
        false_alarms(study(0, subjects=10), settings)
    assert len(false_alarms(study(0, subjects=10), settings, permutations=1, over_folds=True))
    first = records["item"] == "city001"
    changed = "Cairo" if records[first]["gold"].iloc[0] == "Oslo" else "Oslo"
    other = records.assign(gold=records["gold"].where(~first, changed))
    with pytest.raises(LensbenchError, match="more than one gold"):
        false_alarms(other, settings, permutations=1)


def test_control_tasks_are_left_out():
    records = study(0)
    relabelled = records[records["baseline"] == "none"].assign(baseline="control_task", gold="Oslo", correct=1.0)
    settings = SummarySettings(QUESTIONS, draws=100)
    both = false_alarms(pd.concat([records, relabelled]), settings, permutations=3)
    pd.testing.assert_frame_equal(both, false_alarms(records, settings, permutations=3))
