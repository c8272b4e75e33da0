import numpy as np
import pandas as pd
import pytest

from benchmarks.verdicts import BEATEN, CLAIM, WITHIN, answers, found_at, simulate
from lensbench.errors import UsageError
from lensbench.results.bands import DIFFERENCE, sampled, simultaneous_band, simultaneous_cut, single_cut
from lensbench.results.power import Study, power_of, subjects_needed
from lensbench.results.samples import SummarySettings
from lensbench.results.summary import summary_and_power
from tests.results.test_summary import QUESTIONS, bits, pick, rows


def test_ties_are_rarely_broken_and_every_band_covers():
    for rates in ([0.5, 0.5, 0.5], [0.15, 0.15], [0.9, 0.9], [0.6, 0.3, 0.3]):
        found = simulate(60, rates, 60)
        # .95 less 3 standard errors of 60 studies; above .97 only as far as chance and rare differences go.
        assert found.coverage[0] >= 0.865
        if rates[0] == rates[1]:
            assert found.rate(CLAIM) <= 0.05
    assert simulate(60, [0.5, 0.3], 30).rate(CLAIM) >= 0.95


def test_what_is_surely_better_or_as_good_is_told_and_rarely_without_reason():
    for rates in ([0.5, 0.5], [0.5, 0.5, 0.5, 0.5]):
        assert simulate(60, rates, 60).rate(BEATEN) <= 0.08  # .05 and 1 standard error
    assert simulate(60, [0.3, 0.6], 30).rate(BEATEN) >= 0.95
    assert simulate(60, [0.5, 0.6], 60).rate(WITHIN) <= 0.05
    assert simulate(1500, [0.1, 0.1], 5).rate(WITHIN) == 1


def test_coverage_is_not_bought_with_width():
    """A band over everything would cover, too: of 150 studies some must miss."""
    found = simulate(120, [0.5, 0.5], 150)
    assert 0.89 <= found.coverage[0] < 1


@pytest.mark.parametrize("gap", [0.2, 0.3])
def test_subjects_needed_are_enough_and_not_too_many(gap):
    rng = np.random.default_rng(0)
    own, rival = answers(rng, 5000, np.array([0.3 + gap, 0.3]))[..., -1]
    alike = float(np.corrcoef((own - rival).reshape(-1, 2).T)[0, 1])
    study = Study(0.3, float(np.corrcoef(own, rival)[0, 1]), items=2, alike=alike, layers=31)
    assert 0.68 <= found_at(subjects_needed(gap, study), gap, study, 120) <= 0.92


def test_the_variance_is_that_of_correlated_pairs():
    rng = np.random.default_rng(1)
    own, rival = answers(rng, 40_000, np.array([0.6, 0.4]))[..., -1]
    pairs = (own - rival).reshape(-1, 2)
    study = Study(0.4, float(np.corrcoef(own, rival)[0, 1]), items=2, alike=float(np.corrcoef(pairs.T)[0, 1]))
    assert study.variance(0.2) == pytest.approx(pairs.mean(axis=1).var(), rel=0.03)


def test_subjects_needed_is_the_first_number_that_suffices():
    study = Study(0.4, 0.2, layers=31)
    for gap in (0.1, 0.25, 0.5):
        needed = subjects_needed(gap, study)
        assert power_of(gap, needed, study) >= 0.8 > power_of(gap, needed - 1, study)
    assert subjects_needed(0.2, study, power=0.9) > subjects_needed(0.2, study)
    assert subjects_needed(0.2, Study(0.4, 0.2)) < subjects_needed(0.2, study)


def test_what_is_not_possible_is_said():
    with pytest.raises(UsageError, match="not possible"):
        subjects_needed(0.7, Study(0.5))
    with pytest.raises(UsageError, match="cannot be correlated"):
        subjects_needed(0.4, Study(0.1, correlation=0.9))
    with pytest.raises(UsageError, match="power"):
        subjects_needed(0.2, Study(0.5), power=1.0)
    with pytest.raises(UsageError, match="more than"):
        subjects_needed(1e-5, Study(0.5))


@pytest.mark.parametrize("subjects", [20, 60])
def test_the_smallest_estimate_is_where_the_lower_limit_leaves_zero(subjects):
    values = np.random.default_rng(0).choice([-1.0, 0.0, 1.0], (subjects, 4), p=[0.2, 0.4, 0.4])
    mean = sampled(values, np.arange(subjects))
    cut = simultaneous_cut(mean, DIFFERENCE, 0.95, 300, 0)
    smallest = mean.smallest(DIFFERENCE, cut)
    for sign in (1, -1):
        moved = type(mean)(smallest + sign * 1e-9, mean.influence, mean.subjects, mean.repeats)
        assert ((moved.statistic(DIFFERENCE, cut) > cut.critical) == (sign > 0)).all()
    band = simultaneous_band(values, np.arange(subjects), draws=300)
    assert ((band.low > 0) == (mean.estimate > smallest)).all()
    assert (single_cut(mean, DIFFERENCE, 0.95).critical) <= cut.critical


def test_the_detectable_gap_is_found_in_four_of_five_studies():
    rng = np.random.default_rng(5)
    clusters = np.repeat(np.arange(80), 2)
    told = []
    for _ in range(20):
        own, rival = answers(rng, 80, np.array([0.5, 0.3]))
        told.append(simultaneous_band(own - rival, clusters, draws=1000).detectable[-1])
    gap = round(float(np.mean(told)), 3)
    assert 0.68 <= found_at(80, gap, Study(0.3, items=2), 120) <= 0.92


def test_one_subject_can_find_nothing():
    assert np.isnan(simultaneous_band(np.ones((5, 2)), np.zeros(5)).detectable).all()


def test_each_gap_of_a_summary_has_its_detectable_gap():
    own, weak, strong = np.ones((40, 2)), bits(0, 40, 1, probability=0.1), bits(1, 40, 2, probability=0.6)
    attempts = [rows(own, attempt="a"), rows(own, attempt="b")]
    frames = [*attempts, rows(weak, baseline="question_only", layers=[None]), rows(strong, baseline="input_only")]
    summary, power = summary_and_power(pd.concat(frames, ignore_index=True), SummarySettings(QUESTIONS, draws=300))
    assert set(power["rule"]) == {"fixed", "selected"}
    assert set(power["metric"]) == {"detectable_gap"}
    gaps = pick(summary, baseline="none", rule="fixed", relation="capital")
    told = pick(power, rule="fixed", relation="capital")
    assert told["question"].tolist() == gaps["question"].tolist()
    assert (told["n"] == 40).all()
    expected = simultaneous_band(own - strong, np.arange(40), draws=300).detectable
    np.testing.assert_allclose(pick(told, question="beats_text")["value"], expected)
