import numpy as np
import pytest

from benchmarks.verdicts import SHAPES, differences
from lensbench.errors import UsageError
from lensbench.results.bands import DIFFERENCE, sampled, simultaneous_cut, single_cut
from lensbench.results.change_point import Emergence, emergence

SUBJECTS = np.repeat(np.arange(60), 2)


def found(values, layers=range(31), subjects=SUBJECTS):
    return emergence(np.asarray(values, float), subjects, layers, draws=300)


def test_records_that_are_identical_before_and_all_different_after():
    values = np.zeros((120, 31))
    values[:, 12:] = 1.0  # no item varies at any layer: the standard error is 0 before and after
    assert found(values) == Emergence(12, 12, 12)
    assert found(np.ones((120, 31))) == Emergence(0, 0, 0)


def test_nothing_emerges_where_nothing_differs_or_the_difference_is_below_zero():
    assert found(np.zeros((120, 31))) == Emergence(None, None, None)
    values = np.zeros((120, 31))
    values[:, 12:] = -1.0
    assert found(values) == Emergence(None, None, None)
    assert not found(values).contains(12)


def test_between_asked_layers_nothing_is_known():
    values = np.zeros((120, 4))
    values[:, 2:] = 1.0
    assert found(values, layers=(0, 5, 11, 20)) == Emergence(11, 6, 11)
    values[:, 1] = 1.0
    assert found(values, layers=(3, 5, 11, 20)) == Emergence(5, 4, 5)
    assert found(np.ones((120, 2)), layers=(3, 5)) == Emergence(3, 0, 3)
    assert found(values, layers=(3, 5, 11, 20)).contains(4)
    assert not found(values, layers=(3, 5, 11, 20)).contains(3)


@pytest.mark.parametrize("seed", range(5))
def test_the_fit_is_that_of_least_cost(seed):
    values = differences(np.random.default_rng(seed), 60, "by .05 a layer", 10, identical=False)
    mean = sampled(values, SUBJECTS)
    cut = simultaneous_cut(mean, DIFFERENCE, 0.95, 300, 0)
    penalty = single_cut(mean, DIFFERENCE, 0.95).critical ** 2
    statistic = mean.statistic(DIFFERENCE, cut)
    last = next(layer for layer in range(31) if statistic[layer] > cut.critical)
    cost = [
        sum(max(statistic[layer], 0) ** 2 if layer < tau else penalty for layer in range(last))
        for tau in range(last + 1)
    ]
    got = found(values)
    assert got.layer == int(np.argmin(cost))
    assert got.high == last
    assert got.low <= got.layer <= got.high


def test_a_fact_that_falls_again_is_found_where_it_began():
    values = np.zeros((120, 31))
    values[:, 8:11] = np.random.default_rng(0).random((120, 1)) < 0.5
    assert found(values).contains(8)
    assert found(values).layer == 8


@pytest.mark.parametrize("shape", [name for name in SHAPES if name not in ("never", "by .02 a layer")])
@pytest.mark.parametrize("identical", [True, False])
def test_the_interval_holds_the_planted_layer(shape, identical):
    rng = np.random.default_rng([len(shape), identical])
    studies = [found(differences(rng, 60, shape, 10, identical=identical)) for _ in range(40)]
    there = [one for one in studies if one.layer is not None]
    assert len(there) >= 38
    assert np.mean([one.contains(10) for one in there]) >= 0.9
    if identical:
        assert min(one.low for one in there) >= 10, "nothing can emerge where records are identical"
    # Precision, so that an interval over everything would fail.
    assert np.median([abs(one.layer - 10) for one in there]) <= 2


def test_false_emergence_is_rare():
    rng = np.random.default_rng(3)
    studies = [found(differences(rng, 60, "never", 0, identical=False)) for _ in range(150)]
    assert sum(one.layer is not None for one in studies) / 150 <= 0.05


def test_wrong_input():
    with pytest.raises(UsageError, match="ascending"):
        found(np.zeros((120, 3)), layers=(0, 2))
    with pytest.raises(UsageError, match="ascending"):
        found(np.zeros((120, 2)), layers=(2, 0))
    with pytest.raises(UsageError, match="give credits"):
        found(np.full((120, 2), 3.0), layers=(0, 1))
