import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.search.noise import Levels, Noise, Repeats, _chi_squared, accuracy_noise

QUANTILES = (0.1, 0.3, 0.5, 0.7, 0.9)


def repeats(losses: list[float], squares: list[float], counts: list[float]) -> Repeats:
    return Repeats(*(np.array(each, dtype=float) for each in (losses, squares, counts)))


NOTHING = repeats([], [], [])


def mean_variance(levels: Levels, loss: float = 0.0) -> float:
    weights = np.exp(levels.log_weights - levels.log_weights.max())
    return float(weights @ levels.variances(np.array([loss]))[:, 0] / weights.sum())


@pytest.mark.parametrize("degrees", [5.0, 6.0, 8.0, 25.0, 200.0])
@pytest.mark.parametrize("quantile", QUANTILES)
def test_chi_squared_quantiles_are_within_a_hundredth_of_scipy_s(
    quantile: float, degrees: float
) -> None:
    # The smaller a quantile of the variance, the larger one of chi-squared.
    exact = chi2.ppf(1 - quantile, degrees)
    assert _chi_squared(quantile, degrees) == pytest.approx(exact, rel=0.01)


def test_a_known_noise_stays_whatever_the_repeats_show() -> None:
    levels = Noise(0.3).levels(repeats([0.0, 9.0], [50.0, 50.0], [5, 5]), least_loss=1.0)
    assert levels.sigmas.tolist() == [0.3]
    assert levels.variances(np.array([0.0, 50.0])).tolist() == [[0.09, 0.09]]
    none = Noise(0.0, is_known=False).levels(repeats([1.0], [50.0], [5]), least_loss=1.0)
    assert none.sigmas.tolist() == [0.0]


def test_without_repeats_the_levels_are_the_prior_s_quantiles() -> None:
    levels = Noise(0.3, is_known=False).levels(NOTHING, least_loss=1.0, grows=False)
    expected = [0.3 * math.sqrt(5 / chi2.ppf(1 - quantile, 5)) for quantile in QUANTILES]
    assert levels.sigmas == pytest.approx(expected, rel=0.01)
    assert levels.sigmas[0] < 0.3 < levels.sigmas[-1]
    assert (levels.log_weights == levels.log_weights[0]).all()
    # A pair that was trained once says nothing about the noise.
    once = Noise(0.3, is_known=False).levels(
        repeats([7.0], [0.0], [1]), least_loss=1.0, grows=False
    )
    assert all(map(np.array_equal, once, levels))


def test_repeats_move_the_noise_by_the_conjugate_formula() -> None:
    # By hand: 5 prior degrees at 0.3, and three pairs with 1 + 2 + 0 degrees. At a loss of 7 the
    # variance is twice that at none.
    found = repeats([-1.0, 7.0, 3.0], [0.5, 1.2, 0.0], [2, 3, 1])
    levels = Noise(0.3, is_known=False).levels(found, least_loss=0.0, grows=False)
    total, degrees = 5 * 0.3**2 + 0.5 + 1.2 / 2, 5 + 1 + 2
    expected = [math.sqrt(total / chi2.ppf(1 - quantile, degrees)) for quantile in QUANTILES]
    assert levels.sigmas == pytest.approx(expected, rel=0.01)
    assert levels.growths.tolist() == [7.0] * 5
    assert levels.variances(np.array([7.0]))[:, 0] == pytest.approx(2 * levels.sigmas**2)


def test_repeats_weigh_how_fast_the_noise_grows() -> None:
    noise = Noise(0.2, is_known=False)

    def share_of_fast(squares: list[float]) -> float:
        found = repeats([0.0, 0.0, 6.0, 6.0], squares, [4, 4, 4, 4])
        levels = noise.levels(found, least_loss=0.0)
        weights = np.exp(levels.log_weights - levels.log_weights.max())
        return float(weights[levels.growths == 1.0].sum() / weights.sum())

    prior = noise.levels(NOTHING, least_loss=0.0)
    before = np.exp(prior.log_weights)
    assert (before[prior.growths == 1.0].sum() / before.sum()) == pytest.approx(1 / (1 + math.e))
    even, fast = 3 * 0.04, 3 * 0.04 * 37
    assert share_of_fast([even, even, fast, fast]) > 0.9
    assert share_of_fast([even, even, 1.7 * even, 1.7 * even]) < 0.02


def test_the_weights_are_the_marginal_likelihoods_of_the_repeats() -> None:
    # The integral over the variance, numerically, up to a factor that both growths share.
    squares, losses, counts, guess = [0.3, 2.5], [0.5, 4.0], [3, 2], 0.25
    levels = Noise(guess, is_known=False).levels(repeats(losses, squares, counts), least_loss=0.0)
    log_variance = np.linspace(-12, 8, 20001)
    variance = np.exp(log_variance)
    integrals = []
    for growth, log_prior in ((7.0, 0.0), (1.0, -1.0)):
        density = -2.5 * log_variance - 5 * guess**2 / (2 * variance)  # in the logarithm
        for loss, square, count in zip(losses, squares, counts, strict=True):
            scale = 1 + (loss / growth) ** 2
            density += -(count - 1) / 2 * np.log(variance * scale)
            density -= square / (2 * variance * scale)
        integrals.append(log_prior + math.log(np.exp(density).sum()))
    difference = levels.log_weights[-1] - levels.log_weights[0]
    assert difference == pytest.approx(integrals[1] - integrals[0], abs=1e-6)


def test_a_pair_that_seems_to_lose_little_is_as_noisy_as_one_that_loses_the_least() -> None:
    noise = Noise(0.3, is_known=False)
    lucky = noise.levels(repeats([-5.0], [0.8], [2]), least_loss=2.0)
    least = noise.levels(repeats([2.0], [0.8], [2]), least_loss=2.0)
    assert all(map(np.array_equal, lucky, least))


@given(
    guess=st.floats(0.01, 10),
    rows=st.lists(st.tuples(st.floats(-5, 90), st.floats(0, 100), st.integers(1, 9)), max_size=9),
    turned=st.randoms(use_true_random=False),
)
def test_levels_are_positive_and_do_not_depend_on_the_order(
    guess: float, rows: list, turned: object
) -> None:
    def levels(rows: list) -> Levels:
        found = repeats(*map(list, zip(*rows, strict=True))) if rows else NOTHING
        return Noise(guess, is_known=False).levels(found, least_loss=1.0)

    expected = levels(rows)
    assert (expected.sigmas > 0).all()
    assert np.isfinite(expected.log_weights).all()
    turned.shuffle(rows)
    assert all(map(np.array_equal, levels(rows), expected))


def test_more_spread_is_more_noise() -> None:
    found = [
        mean_variance(Noise(0.3, is_known=False).levels(repeats([0.0], [s], [4]), least_loss=0.0))
        for s in (0.0, 0.1, 1.0, 10.0)
    ]
    assert found == sorted(found)
    assert found[0] < 0.09 < found[-1]


def test_noise_of_an_accuracy_is_half_the_standard_error_of_its_images() -> None:
    assert accuracy_noise(50, 2500) == pytest.approx(0.5)
    assert accuracy_noise(100, 10) == 0


@pytest.mark.parametrize("guess", [-1, math.inf, math.nan])
def test_a_guess_that_is_no_spread_is_refused(guess: float) -> None:
    with pytest.raises(InputError, match="`noise` must be at least 0, but got"):
        Noise(guess)
