"""Intervals against values worked out by hand, and against scipy's τ on every resample."""

from math import isnan, sqrt

import numpy as np
import pytest
from scipy.stats import kendalltau

from quotientnet.intervals import kendall_tau, student_interval


def test_student_by_hand():
    """t(0.975; 1 degree) = tan(0.475 π) = 12.7062; of 2 degrees (2a − 1)√(2/(4a(1 − a)))."""
    centre, half = student_interval([1.0, 3.0])
    assert centre == 2 and half == pytest.approx(np.tan(0.475 * np.pi), rel=1e-9)
    centre, half = student_interval([0.0, 0.0, 3.0], confidence=0.9)
    quantile = 0.9 * sqrt(2 / (4 * 0.95 * 0.05))
    assert centre == 1 and half == pytest.approx(quantile * sqrt(3) / sqrt(3), rel=1e-9)
    centre, half = student_interval([5.0])
    assert centre == 5 and isnan(half)


@pytest.mark.parametrize(
    "x, y, tau, pairs",
    [
        ([1, 2, 3], [10, 20, 30], 1, 3),
        ([1, 2, 3], [3, 2, 1], -1, 3),
        ([1, 2, 3, 4], [1, 3, 2, 4], 4 / 6, 6),  # five in order, one not
        ([1, 1, 2, 3], [1, 2, 3, 4], 5 / sqrt(5 * 6), 6),  # one tie in x
        ([1, 1, 2, 2], [1, 2, 2, 1], 0, 6),
        ([1, 2, float("inf")], [1, 2, 3], 1, 3),
    ],
)
def test_tau_by_hand(x, y, tau, pairs):
    found = kendall_tau(x, y, resamples=10)
    assert found.tau == pytest.approx(tau, abs=1e-15) and found.pairs == pairs


def test_within_levels_by_hand():
    """Both grow with the level, and fall against each other within: Simpson's paradox."""
    x, y, levels = [1, 2, 11, 12], [2, 1, 12, 11], list("aabb")
    assert kendall_tau(x, y, levels, resamples=5).tau == pytest.approx(2 / 6)
    found = kendall_tau(x, y, levels, within=True, resamples=5)
    assert found.tau == -1 and found.pairs == 2
    # Three pairs of one level, of which two are in order, and one pair of another, in order.
    x, y, levels = [1, 2, 3, 7, 8], [1, 3, 2, 0, 9], [0, 0, 0, 1, 1]
    assert kendall_tau(x, y, levels, within=True, resamples=5).tau == (3 - 1) / 4


def test_pairs_of_a_cluster_are_not_compared_by_hand():
    """Of six pairs two are of one cluster, and these alone are out of order."""
    x, y, clusters = [1, 2, 3, 4], [2, 1, 4, 3], [5, 5, 7, 7]
    found = kendall_tau(x, y, clusters=clusters, resamples=20)
    assert found.tau == 1 and found.pairs == 4
    assert set(found.resampled[~np.isnan(found.resampled)]) == {1.0}
    assert np.isnan(found.resampled).any()  # one cluster, drawn twice
    assert kendall_tau(x, y, resamples=1).tau == pytest.approx(2 / 6)


def test_undefined_without_order():
    found = kendall_tau([1, 1, 1], [1, 2, 3], resamples=5)
    assert isnan(found.tau) and isnan(found.low) and isnan(found.high)


@pytest.mark.parametrize("tied", [False, True])
def test_resamples_are_scipys_tau_of_what_was_drawn(tied):
    generator = np.random.default_rng(1)
    x, y = generator.normal(size=(2, 12))
    if tied:
        x, y = x.round(), y.round()
    levels = np.repeat([0, 1, 2], 4)
    found = kendall_tau(x, y, levels, resamples=50, seed=7)
    again, expected = np.random.default_rng(7), []
    counts = np.concatenate(
        [again.multinomial(4, [0.25] * 4, size=50) for _ in range(3)], axis=1
    )
    assert (counts.reshape(50, 3, 4).sum(2) == 4).all()
    for own in counts:
        rows = np.repeat(np.arange(12), own)
        expected.append(kendalltau(x[rows], y[rows]).statistic)
    np.testing.assert_allclose(found.resampled, expected, atol=1e-12)
    assert found.low == pytest.approx(np.nanquantile(expected, 0.025), abs=1e-12)
    assert found.high == pytest.approx(np.nanquantile(expected, 0.975), abs=1e-12)


def test_clusters_are_drawn_whole():
    """Two copies of each network in a cluster: the interval is that of the networks alone."""
    generator = np.random.default_rng(2)
    x, y = generator.normal(size=(2, 9))
    alone = kendall_tau(x, y, resamples=400, seed=5)
    twice = [np.repeat(v, 2) for v in (x, y)]
    whole = kendall_tau(*twice, clusters=np.repeat(range(9), 2), resamples=400, seed=5)
    np.testing.assert_allclose(whole.resampled, alone.resampled, atol=1e-12)
    apart = kendall_tau(*twice, resamples=400, seed=5)
    assert apart.high - apart.low < 0.9 * (whole.high - whole.low)


def test_interval_has_the_truth_about_as_often_as_it_says():
    """Normal pairs of correlation ρ have τ = (2/π) asin ρ."""
    generator, inside = np.random.default_rng(0), 0
    for _ in range(100):
        x, noise = generator.normal(size=(2, 40))
        found = kendall_tau(x, 0.6 * x + 0.8 * noise, resamples=200)
        inside += found.low <= 2 / np.pi * np.arcsin(0.6) <= found.high
    assert 88 <= inside <= 99  # 95 expected, with a standard deviation of 2


def test_paired_difference():
    generator = np.random.default_rng(0)
    gap = generator.normal(size=40)
    good, poor = (gap + s * generator.normal(size=40) for s in (0.1, 2.0))
    one, other = (kendall_tau(v, gap, resamples=500) for v in (good, poor))
    difference, low, high = one.less(other)
    assert difference == one.tau - other.tau and 0 < low < difference < high
    assert one.less(one) == (0, 0, 0)
    with pytest.raises(ValueError, match="number of pairs or resamples"):
        one.less(kendall_tau(good, gap, resamples=400))


@pytest.mark.parametrize(
    "arguments, options, words",
    [
        (([1, 2], [1, 2, 3]), {}, "one number for each"),
        (([1], [1]), {}, "two or more networks"),
        (([1, float("nan")], [1, 2]), {}, "NaN has no rank"),
        (([1, 2], [1, 2], [0]), {}, "1 levels for 2 networks"),
        (([1, 2], [1, 2]), {"clusters": [0]}, "1 clusters for 2 networks"),
        (([1, 2], [1, 2]), {"within": True}, "needs the networks' levels"),
        (([1, 2], [1, 2]), {"confidence": 1.0}, "confidence must be above 0 and below"),
        (([1, 2], [1, 2]), {"resamples": 0}, "resamples must be an integer"),
    ],
)
def test_refusals(arguments, options, words):
    with pytest.raises(ValueError, match=words):
        kendall_tau(*arguments, **options)


def test_student_refuses():
    with pytest.raises(ValueError, match="at least one value"):
        student_interval([])
    with pytest.raises(ValueError, match="confidence"):
        student_interval([1.0], confidence=95)
