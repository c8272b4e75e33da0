import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm, t

from lensbench.errors import LensbenchError
from lensbench.results.bands import DIFFERENCE, SCORE, Band, centred_weights, joint_bands, simultaneous_band
from lensbench.results.verdicts import Compared, gap_verdict


def differences(rng, subjects, layers, shift=0.0, each=1):
    """Right minus right of two readers whose layers are strongly correlated; the true difference is `shift`."""
    scores = []
    for probability in (0.5 + shift, 0.5):
        steps = rng.standard_normal((subjects * each, layers))
        latent = steps.copy()
        for layer in range(1, layers):
            latent[:, layer] = 0.95 * latent[:, layer - 1] + math.sqrt(1 - 0.95**2) * steps[:, layer]
        scores.append(latent < norm.ppf(probability))
    return scores[0].astype(float) - scores[1], np.repeat(np.arange(subjects), each)


def naive_limits(values, added, critical):
    """One item a subject: put the pseudo-subjects into the sample, and compute mean and variance as usual."""
    weights = np.array([1.0] * len(values) + [added / 2, added / 2])
    sample = np.array([*values, 1.0, -1.0])
    centre = np.average(sample, weights=weights)
    variance = np.average((sample - centre) ** 2, weights=weights) / weights.sum()
    return centre - critical * math.sqrt(variance), centre + critical * math.sqrt(variance)


def naive_critical(values, draws, level=0.95):
    """Resample one by one, and divide by the standard error of each sample with one pseudo-subject at half range 1."""
    n, largest = len(values), []
    weights = centred_weights(n, draws, 0) + 1
    for draw in weights.astype(int):
        again = np.repeat(values, draw, axis=0)
        error = np.sqrt((again.var(axis=0) / n + 1 / n**2)[values.std(axis=0) > 0])
        largest.append(
            (np.abs(again.mean(axis=0) - values.mean(axis=0))[values.std(axis=0) > 0] / error).max(initial=0)
        )
    return max(float(np.quantile(largest, level)), float(t.ppf((1 + level) / 2, n - 1)))


@pytest.mark.parametrize("values", [[0, 0, 0, 0, 0], [1, 0, 0, -1, 0, 1, 1], [1, 0], [-1, 0, 0, -1, 0, 0, 0, 0, 1]])
def test_one_layer_against_a_naive_reference(values):
    values = np.array(values, float)
    band = simultaneous_band(values[:, None], np.arange(len(values)), draws=300)
    low, high = naive_limits(values, 1, naive_critical(values[:, None], 300))
    assert band.estimate[0] == pytest.approx(np.mean(values))
    assert (band.low[0], band.high[0]) == pytest.approx((max(low, -1), min(high, 1)), rel=1e-5)


def test_many_layers_against_a_naive_reference():
    values, _ = differences(np.random.default_rng(9), 25, 6)
    values[:, 2] = 0.0
    band = simultaneous_band(values, np.arange(25), draws=300)
    critical = naive_critical(values, 300)
    for layer in range(6):
        low, high = naive_limits(values[:, layer], 1, critical)
        assert (band.low[layer], band.high[layer]) == pytest.approx((low, high), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("value", [0.0, 1.0, -1.0])
def test_five_items_that_agree_are_no_proof(value):
    band = simultaneous_band(np.full((5, 31), value), np.arange(5))
    assert (band.high - band.low > 0.3).all()
    assert (band.low <= value).all()
    assert (value <= band.high).all()


def test_one_subject_says_next_to_nothing_however_many_items():
    band = simultaneous_band(np.ones((50, 3)), np.zeros(50))
    assert (band.low < 0).all()


def test_the_estimate_is_the_mean_of_the_relations_means():
    rng = np.random.default_rng(0)
    values, strata = rng.integers(-1, 2, (40, 4)).astype(float), rng.integers(0, 3, 40)
    band = simultaneous_band(values, np.arange(40) % 13, strata)
    expected = np.mean([values[strata == stratum].mean(axis=0) for stratum in range(3)], axis=0)
    np.testing.assert_allclose(band.estimate, expected)


def test_the_variance_is_that_of_resampling_whole_subjects():
    rng = np.random.default_rng(1)
    subjects, strata = np.repeat(np.arange(300), 2), np.tile([0, 1], 300)
    values = np.repeat(rng.integers(-1, 2, 300), 2)[:, None].astype(float)  # both relations agree: one item's worth
    band = simultaneous_band(values, subjects, strata)
    means = [values[::2][rng.integers(0, 300, 300)].mean() for _ in range(2000)]
    assert (band.high - band.low)[0] == pytest.approx(2 * 1.96 * np.std(means), rel=0.05)


def test_a_band_for_many_layers_is_wider_than_for_one_and_narrower_than_bonferroni():
    values, subjects = differences(np.random.default_rng(2), 150, 31)
    many = simultaneous_band(values, subjects)
    one = simultaneous_band(values[:, :1], subjects)
    bonferroni = naive_limits(values[:, 0], 1, norm.ppf(1 - 0.025 / 31))
    width = many.high[0] - many.low[0]
    assert one.high[0] - one.low[0] < width < bonferroni[1] - bonferroni[0]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 12), st.sampled_from([DIFFERENCE, SCORE]))
def test_a_band_does_not_depend_on_the_order_of_items_and_stays_in_range(seed, items, scale):
    rng = np.random.default_rng(seed)
    values = rng.choice([scale.low, 0.0, 0.5, 1.0], (items, 3))
    subjects, strata = rng.integers(0, 5, items), rng.integers(0, 2, items)
    order = rng.permutation(items)
    first = simultaneous_band(values, subjects, strata, scale=scale, draws=200)
    second = simultaneous_band(values[order], subjects[order], strata[order], scale=scale, draws=200)
    for name in ("estimate", "low", "high"):
        np.testing.assert_allclose(getattr(first, name), getattr(second, name), atol=1e-5)
    assert (scale.low <= first.low).all()
    assert (first.low <= first.estimate + 1e-12).all()
    assert (first.estimate <= first.high + 1e-12).all()
    assert (first.high <= scale.high).all()
    assert (first.low < first.high).all()


@pytest.mark.parametrize(("subjects", "each", "shift"), [(40, 2, 0.0), (100, 1, 0.0), (100, 1, 0.1), (60, 2, 0.1)])
def test_the_band_covers_all_layers_and_false_claims_are_rare(subjects, each, shift):
    rng = np.random.default_rng([subjects, each])
    covered = claimed = 0
    repetitions = 200
    for _ in range(repetitions):
        values, clusters = differences(rng, subjects, 31, shift, each)
        band = simultaneous_band(values, clusters, draws=400)
        covered += bool(((band.low <= shift) & (shift <= band.high)).all())
        claimed += bool((band.low > 0).any())
    assert covered / repetitions > 0.915  # .95 less 2.3 standard errors of 200 repetitions
    if shift == 0:
        assert claimed / repetitions <= 0.05


def test_an_item_without_a_score_is_an_error():
    with pytest.raises(LensbenchError, match="finite"):
        simultaneous_band([[math.nan]], [0])
    with pytest.raises(LensbenchError, match="at least one item"):
        simultaneous_band(np.empty((0, 3)), [])


def band(*limits):
    low, high = (np.array(side, float) for side in zip(*limits, strict=True))
    return Band((low + high) / 2, low, high)


def named(one, joint=None):
    return Compared(one, one if joint is None else joint)


def verdict_of(question="beats_text", **kwargs):
    margin = kwargs.pop("margin", 0.1)
    return gap_verdict(question, kwargs, margin=margin).verdict.tolist()


SURE, UNSURE = band((0.2, 0.4)), band((-0.1, 0.4))


def test_a_claim_needs_every_baseline():
    assert verdict_of("uses_activation", a=named(SURE), b=named(SURE)) == ["uses the activation"]
    assert verdict_of("uses_activation", a=named(SURE), b=named(UNSURE)) == ["inconclusive"]
    assert verdict_of("beats_text", a=named(SURE)) == ["beats this text reader"]
    assert verdict_of("target_specific", a=named(SURE)) == ["privileged"]


def test_a_baseline_that_is_not_named_must_be_beaten_all_the_same():
    assert verdict_of(a=named(SURE), noise=Compared(SURE)) == ["beats this text reader"]
    assert verdict_of(a=named(SURE), noise=Compared(band((-0.9, -0.8)))) == ["inconclusive"]


def test_a_p_value_decides_in_place_of_the_band():
    for p_value, verdict in ((0.025, "uses the activation"), (0.026, "inconclusive")):
        found = gap_verdict("uses_activation", {"shuffled": Compared(UNSURE, UNSURE, np.array([p_value]))})
        assert found.verdict.tolist() == [verdict]
        assert found.p_value.tolist() == [p_value]


def test_beaten_and_within_name_the_strongest_such_baseline():
    beaten, more, near, wide = band((-0.3, -0.02)), band((-0.6, -0.1)), band((-0.09, 0.09)), band((-0.3, 0.04))
    assert verdict_of(far=named(SURE), a=named(beaten), b=named(more)) == ["beaten by b"]
    assert verdict_of(far=named(SURE), a=named(near)) == ["within .10 of a"]
    assert verdict_of(a=named(near), b=named(beaten)) == ["beaten by b"], "what is sure to be better comes first"
    assert verdict_of(a=named(wide)) == ["inconclusive"], "a baseline that may be much better is no tie"
    assert verdict_of(a=named(near), margin=0.05) == ["inconclusive"]


def test_beaten_and_within_need_the_joint_band():
    for one in (band((-0.3, -0.02)), band((-0.09, 0.09))):
        assert verdict_of(a=named(one, UNSURE)) == ["inconclusive"]


def test_a_small_gap_that_surely_exists_holds():
    assert verdict_of(a=named(band((0.01, 0.04)))) == ["beats this text reader"]


def test_the_strongest_baseline_is_found_at_each_layer():
    first, second = band((0.1, 0.3), (0.5, 0.7)), band((0.2, 0.4), (0.1, 0.2))
    found = gap_verdict("beats_text", {"first": named(first), "second": named(second)})
    assert found.strongest.tolist() == ["first", "second"]
    np.testing.assert_allclose(found.gap.estimate, [0.2, 0.15])
    np.testing.assert_allclose(found.gap.low, [0.1, 0.1])
    np.testing.assert_allclose(found.gap.high, [0.3, 0.2])


def test_no_rival_and_no_such_question():
    assert gap_verdict("beats_text", {}).verdict == ["no baseline"]
    with pytest.raises(LensbenchError, match="beats_text"):
        gap_verdict("beats_texts", {})


def test_one_joint_band_is_the_simultaneous_band():
    values, clusters = differences(np.random.default_rng(0), 30, 5, 0.1, 2)
    (joint,) = joint_bands([(values, clusters, None)], draws=300)
    alone = simultaneous_band(values, clusters, draws=300)
    np.testing.assert_array_equal(joint.low, alone.low)
    np.testing.assert_array_equal(joint.high, alone.high)


def test_joint_bands_are_the_band_of_all_columns_together():
    rng = np.random.default_rng(1)
    (first, clusters), (second, _) = (differences(rng, 30, 4, 0.1, 2) for _ in range(2))
    whole = simultaneous_band(np.concatenate([first, second], axis=1), clusters, draws=300)
    bands = joint_bands([(first, clusters, None), (second, clusters, None)], draws=300)
    np.testing.assert_allclose(np.concatenate([band.low for band in bands]), whole.low)
    assert (bands[0].low < simultaneous_band(first, clusters, draws=300).low).all(), "more to cover, wider"


def test_joint_bands_take_samples_of_other_subjects():
    rng = np.random.default_rng(2)
    first, clusters = differences(rng, 30, 4, 0.1, 2)
    bands = joint_bands([(first, clusters, None), (first[:20], clusters[:20] + 7, None)], draws=300)
    np.testing.assert_allclose(bands[1].estimate, first[:20].mean(axis=0))
    assert (bands[1].high - bands[1].low > bands[0].high - bands[0].low).all(), "fewer subjects, wider"
