from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vit_ratio_opt.search.belief import Alternatives, Belief, fit

POINTS = np.array([[0.1, 0.2], [0.5, 0.5], [0.9, 0.3], [0.4, 0.8]])
VALUES = np.array([0.5, 0.0, -0.7, -0.3])
GRID = np.stack(np.meshgrid(np.linspace(0, 1, 7), np.linspace(0, 1, 7)), -1).reshape(-1, 2)


def noisy(
    count: int, *variances: float, own: float = 0.0, weights: list | None = None
) -> Alternatives:
    each = np.array(variances or (0.01,))
    return Alternatives(
        np.repeat(each[:, None], count, axis=1),
        np.full((len(each), count), own),
        np.zeros(len(each)) if weights is None else np.array(weights),
        each,
        np.full(len(each), own),
    )


def test_without_noise_the_belief_goes_through_the_values() -> None:
    belief = fit(POINTS, VALUES, noisy(4, 0.0))
    mean, covariance = belief.joint(np.empty((0, 2)))
    assert mean == pytest.approx(VALUES, abs=1e-4)
    assert np.sqrt(np.abs(np.diag(covariance))) == pytest.approx(0, abs=1e-3)


def test_with_noise_the_means_are_shrunk_together() -> None:
    points = np.repeat([[0.5, 0.5]], 3, axis=0) + [[0.0, 0], [1e-3, 0], [2e-3, 0]]
    values = np.array([1.0, -1.0, 0.3])
    mean, covariance = fit(points, values, noisy(3, 1.0)).joint(np.empty((0, 2)))
    assert np.ptp(mean) < 0.1
    assert np.sqrt(covariance[0, 0]) == pytest.approx(1 / np.sqrt(3), rel=0.3)
    # What deviates by itself is shrunk less.
    own, _ = fit(points, values, noisy(3, 1.0, own=1.0)).joint(np.empty((0, 2)))
    assert np.ptp(own) > 0.5


@pytest.mark.parametrize("count", [1, 2, 4])
def test_mean_and_covariance_are_those_of_all_components(count: int) -> None:
    belief = Belief(POINTS[:count], VALUES[:count], noisy(count, 0.01, 0.1, 1.0, own=0.02))
    assert belief.weights.sum() == pytest.approx(1)
    means, variances = belief.components()
    mean, covariance = belief.joint(GRID[:5])
    assert mean[:count] == pytest.approx(belief.weights @ means)
    second = belief.weights @ (variances + means**2)
    assert np.diag(covariance)[:count] == pytest.approx(second - mean[:count] ** 2, abs=1e-7)
    assert np.linalg.eigvalsh(covariance).min() > -1e-8


def test_a_prediction_is_close_to_the_average_of_all_components() -> None:
    belief = Belief(POINTS, VALUES, noisy(4, 0.01, 0.04, own=0.01))
    mean, covariance = belief.joint(GRID)
    fast_mean, fast_variance = belief.predict(GRID)
    assert fast_mean == pytest.approx(mean[4:], abs=0.15)
    assert np.sqrt(fast_variance) == pytest.approx(np.sqrt(np.diag(covariance)[4:]), rel=0.2)


def test_alternatives_that_explain_the_values_have_the_weight() -> None:
    rng = np.random.default_rng(0)
    points = rng.random((30, 2))
    values = points @ [-1.0, -0.5] + 0.3 * rng.standard_normal(30)
    belief = fit(points, values, noisy(30, 1e-4, 0.09, 9.0))
    assert belief.next_noise == pytest.approx(0.09, rel=0.2)
    certain = fit(points, values, noisy(30, 1e-4, 0.09, 9.0, weights=[0.0, -1e6, -1e6]))
    assert certain.next_noise == pytest.approx(1e-4)


def test_whitened_values_are_those_of_the_covariance() -> None:
    # The likelihood that the border of the matrix gives is the textbook's.
    belief = Belief(POINTS, VALUES, noisy(4, 0.01))
    for scale, factor, white in zip(belief._scales, belief._factors, belief._whites, strict=True):
        covariance = belief._prior(POINTS, POINTS, scale[None])[0] + np.eye(4) * (0.01 + 1e-9)
        assert factor @ factor.T == pytest.approx(covariance)
        assert white @ white == pytest.approx(VALUES @ np.linalg.solve(covariance, VALUES))


@settings(deadline=None)
@given(
    values=st.lists(st.sampled_from([-3.0, -0.1, 0.0, 0.1, 3.0]), min_size=1, max_size=12),
    variance=st.sampled_from([0.0, 1e-4, 0.1, 100.0]),
)
def test_any_values_give_finite_numbers(values: list[float], variance: float) -> None:
    points = np.random.default_rng(len(values)).random((len(values), 2))
    belief = fit(points, np.array(values), noisy(len(values), variance, own=variance))
    for array in (*belief.components(), *belief.joint(GRID), *belief.predict(GRID)):
        assert np.isfinite(array).all()
    assert (belief.components()[1] > 0).all()
    assert (belief.weights >= 0).all()


def test_points_that_coincide_do_not_break_the_belief() -> None:
    points = np.repeat([[0.5, 0.5]], 6, axis=0)
    mean, _ = fit(points, np.array([1.0, -1.0] * 3), noisy(6, 0.0)).joint(np.empty((0, 2)))
    assert np.isfinite(mean).all()


def test_the_same_values_are_believed_once() -> None:
    assert fit(POINTS, VALUES, noisy(4)) is fit(POINTS.copy(), VALUES.copy(), noisy(4))
    assert fit(POINTS, VALUES, noisy(4)) is not fit(POINTS, VALUES, noisy(4, 0.02))


def test_threads_believe_the_same() -> None:
    expected = [Belief(POINTS, VALUES + k, noisy(4)).joint(GRID)[0] for k in range(8)]

    def believe(k: int) -> bool:
        return np.array_equal(
            fit(POINTS, VALUES + k % 8, noisy(4)).joint(GRID)[0], expected[k % 8]
        )

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(believe, range(64)))


def test_outcomes_average_to_the_belief() -> None:
    belief = Belief(POINTS, VALUES, noisy(4))
    draws = np.random.default_rng(0).standard_normal((2000, 2))
    unknown = np.array([[0.7, 0.7], [0.2, 0.6]])
    values, means, left = belief.outcomes(GRID, unknown, draws)
    assert values.shape == (2000, 2)
    assert means.shape == (2000, len(GRID))
    (now,), _ = belief._project(GRID, slice(1))
    assert means.mean(axis=0) == pytest.approx(now, abs=0.1)
    assert (left > 0).all()


def test_a_belief_far_from_all_values_is_its_prior_mean_times_what_the_values_say() -> None:
    def at(points: np.ndarray) -> np.ndarray:
        return np.column_stack([points, np.sin(9 * points[:, 0]) - points[:, 1]])

    known = at(POINTS)
    exact = Belief(known, known[:, 2], noisy(4, 1e-4))
    mean, variance = exact.predict(at(GRID))
    assert mean == pytest.approx(at(GRID)[:, 2], abs=0.1)
    without, spread = Belief(POINTS, known[:, 2], noisy(4, 1e-4)).predict(GRID)
    assert np.abs(without - at(GRID)[:, 2]).max() > 1.0
    assert variance.max() < 0.5 * spread.max()
    higher = Belief(known, 1.3 * known[:, 2], noisy(4, 1e-4))
    mean, _ = higher.predict(at(GRID))
    assert np.polyfit(at(GRID)[:, 2], mean, 1)[0] == pytest.approx(1.3, abs=0.1)


def test_with_a_prior_mean_all_questions_have_the_same_answer() -> None:
    known = np.column_stack([POINTS, [0.2, -0.1, -0.8, -0.5]])
    other = np.column_stack([GRID[:3], [1.0, 0.5, -1.0]])
    belief = Belief(known, VALUES, noisy(4, 0.01, own=0.01))
    mean, covariance = belief.joint(other)
    means, _ = belief.components()
    assert belief.weights @ means == pytest.approx(mean[:4])
    fast, variance = belief.predict(other)
    assert fast == pytest.approx(mean[4:], abs=0.1)
    assert variance == pytest.approx(np.diag(covariance)[4:], rel=0.3)
    values, outcomes, _ = belief.outcomes(other, known[:1], np.zeros((1, 1)))
    assert outcomes[0] == pytest.approx(mean[4:], abs=0.3)
    assert values[0, 0] == pytest.approx(mean[0], abs=0.2)
