"""stats: against scipy's own functions, against hand calculations, and where data are exact."""

from __future__ import annotations

import math
import random

import pytest

from cnnstudy import stats
from cnnstudy.stats import Interval

A = {0: 0.81, 1: 0.84, 2: 0.80, 3: 0.86}
B = {0: 0.77, 1: 0.79, 2: 0.78, 3: 0.80}


def test_mean_is_the_t_interval_of_scipy() -> None:
    import scipy.stats

    values = list(A.values())
    got = stats.mean(values)
    low, high = scipy.stats.t.interval(0.95, 3, loc=got.estimate, scale=scipy.stats.sem(values))
    assert (got.low, got.high) == pytest.approx((low, high))
    assert got.n == 4


@pytest.mark.parametrize("values", [[2.0], [2.0, 2.0, 2.0]])
def test_exact_data_have_a_point_for_an_interval(values: list[float]) -> None:
    assert stats.mean(values, exact=True) == Interval(2.0, 2.0, 2.0, len(values))


def test_one_value_of_a_sample_has_no_interval() -> None:
    assert stats.mean([2.0]) == Interval(2.0, -math.inf, math.inf, 1)
    assert stats.welch_difference([2.0], [1.0]).low == -math.inf
    assert stats.ratio_of_means({0: 2.0}, {0: 1.0}).high == math.inf


def test_the_mean_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="no values"):
        stats.mean([])


def test_rounding_of_a_subtraction_is_not_noise() -> None:
    got = stats.paired_difference({0: 0.9, 1: 0.91, 2: 0.92}, {0: 0.7, 1: 0.71, 2: 0.72})
    assert got.low == got.high


def test_paired_difference_is_the_mean_of_differences_over_common_seeds() -> None:
    got = stats.paired_difference(A | {9: 5.0}, B)
    assert got == stats.mean([A[s] - B[s] for s in A])
    assert got.n == 4


def test_swapping_flips_every_difference() -> None:
    for method in (
        lambda a, b: stats.paired_difference(a, b),
        lambda a, b: stats.welch_difference(list(a.values()), list(b.values())),
        lambda a, b: stats.equivalence(a, b),
    ):
        one, other = method(A, B), method(B, A)
        assert (one.estimate, one.low, one.high) == pytest.approx((-other.estimate, -other.high, -other.low))


def test_welch_is_that_of_scipy() -> None:
    import scipy.stats

    a, b = [1.0, 2.5, 3.1, 4.0, 2.2], [0.5, 0.7, 0.4]
    want = scipy.stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    got = stats.welch_difference(a, b)
    assert (got.low, got.high) == pytest.approx((want.low, want.high))


def test_fieller_ends_where_the_ratio_is_just_not_significant() -> None:
    got = stats.ratio_of_means(A, B)
    assert got.estimate == pytest.approx(sum(A.values()) / sum(B.values()))
    assert got.low < got.estimate < got.high
    for end in (got.low, got.high):
        gap = stats.mean([A[s] - end * B[s] for s in A])
        assert min(abs(gap.low), abs(gap.high)) == pytest.approx(0, abs=1e-9)


def test_fieller_is_unbounded_when_the_denominator_may_be_zero() -> None:
    got = stats.ratio_of_means(A, {0: 0.1, 1: -0.2, 2: 0.15, 3: -0.01})
    assert (got.low, got.high) == (-math.inf, math.inf)
    assert math.isnan(stats.ratio_of_means(A, dict.fromkeys(A, 0.0)).estimate)


def test_fieller_of_exact_numbers_is_a_point() -> None:
    assert stats.ratio_of_means({0: 3.0}, {0: 2.0}, exact=True) == Interval(1.5, 1.5, 1.5, 1)


def test_equivalence_is_a_90_percent_interval_and_narrower_than_95() -> None:
    tost, full = stats.equivalence(A, B), stats.paired_difference(A, B)
    assert full.low < tost.low < tost.high < full.high
    assert stats.equivalence(A, {7: 0.8, 8: 0.7}) == stats.welch_difference(list(A.values()), [0.8, 0.7], 0.90)


def test_slope_is_the_mean_slope_over_seeds() -> None:
    got = stats.slope([0, 1, 2], {0: [0.0, 1.0, 2.0], 1: [1.0, 2.2, 3.4]})
    assert got.estimate == pytest.approx(1.1)
    assert got.n == 2
    with pytest.raises(ValueError, match="two different"):
        stats.slope([1, 1], {0: [0.0, 1.0]})


def test_spearman_is_that_of_scipy_and_deterministic() -> None:
    import scipy.stats

    rng = random.Random(1)
    x = [rng.random() for _ in range(30)]
    y = [v + 0.3 * rng.random() for v in x]
    got = stats.spearman(x, y)
    assert got.estimate == pytest.approx(scipy.stats.spearmanr(x, y).statistic)
    assert got.low < got.estimate < got.high
    assert got == stats.spearman(x, y)
    assert stats.spearman(x, [-v for v in y]).estimate == pytest.approx(-got.estimate)
    assert math.isnan(stats.spearman(x, [1.0] * 30).estimate)


def test_permutation_finds_what_is_there_and_not_what_is_not() -> None:
    apart, alike = [[1.0, 1.1, 1.2], [5.0, 5.1, 5.2], [9.0, 9.1, 9.2]], [[1.0, 5.0, 9.0], [1.1, 5.1, 9.1], [0.9, 4.9, 8.9]]
    assert stats.permutation(apart) < 0.01
    assert stats.permutation(alike) > 0.5
    assert stats.permutation(apart) == stats.permutation(apart)
    assert stats.permutation([[1.0, 1.0], [1.0, 1.0]]) == 1.0
    with pytest.raises(ValueError, match="two groups"):
        stats.permutation([[1.0]])


def test_permutation_agrees_with_all_arrangements() -> None:
    import scipy.stats

    groups = [[1.0, 3.0, 2.0], [4.0, 2.5, 6.0]]
    exact = scipy.stats.permutation_test(groups, lambda a, b: abs(sum(a) / 3 - sum(b) / 3), alternative="greater").pvalue
    assert stats.permutation(groups) == pytest.approx(exact, abs=0.02)


def test_proportion_is_wilsons() -> None:
    import scipy.stats

    for k, n in ((0, 10), (7, 10), (50, 50)):
        want = scipy.stats.binomtest(k, n).proportion_ci(0.95, "wilson")
        got = stats.proportion(k, n)
        assert (got.low, got.high) == pytest.approx((want.low, want.high), abs=1e-12)
    assert stats.proportion(7, 10, exact=True) == Interval(0.7, 0.7, 0.7, 10)
    with pytest.raises(ValueError, match="share"):
        stats.proportion(3, 2)


def test_t_intervals_cover_as_often_as_they_say() -> None:
    rng = random.Random(0)
    hits = sum((i := stats.mean([rng.gauss(3, 1) for _ in range(4)])).low <= 3 <= i.high for _ in range(2000))
    assert 0.93 < hits / 2000 < 0.97
