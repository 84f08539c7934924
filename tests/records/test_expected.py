"""What is expected along a frontier: at its pairs, between them, and at its knee."""

import itertools

import pytest
from frontiers import frontier_study

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.records.answer import answer_of
from vit_ratio_opt.records.candidates import Expected
from vit_ratio_opt.records.frontier import expected_at
from vit_ratio_opt.space.metric import Metric

POINTS = [Expected(0.2, 70.0, 2.0), Expected(0.6, 78.0, 1.0)]


@pytest.fixture(scope="module", params=["maximise", "minimise"])
def answer(request):
    metric = Metric("error", "mm", False) if request.param == "minimise" else Metric("score", "%")
    return answer_of(frontier_study(metric=metric, trials=8))


def test_between_two_points_the_metric_is_interpolated():
    cost, accuracy, error = expected_at(POINTS, 0.3)
    assert (cost, accuracy, error) == (0.3, pytest.approx(72.0), pytest.approx(1.75))


def test_below_all_points_nothing_is_expected_and_above_all_the_last_one():
    assert expected_at(POINTS, 0.19) is None
    assert expected_at(POINTS, 0.2) == POINTS[0]
    assert expected_at(POINTS, 0.9) == Expected(0.9, 78.0, 1.0)


def test_at_a_trained_pair_its_own_estimate_is_expected(answer):
    assert len(answer.front) > 3
    for pair in answer.front:
        expected = answer.expect(pair.cost_ratio)
        assert expected == (pair.cost_ratio, pair.accuracy, pair.error)


def test_between_two_pairs_the_error_is_that_of_a_pair_that_was_not_tried(answer):
    sign = answer.metric.sign
    for first, last in itertools.pairwise(answer.front):
        middle = answer.expect((first.cost_ratio + last.cost_ratio) / 2)
        # The cheaper pair may be taken as well.
        assert sign * middle.accuracy >= sign * first.accuracy - 1e-9
        assert middle.error > 0.5 * min(first.error, last.error)
    gaps = [b.cost_ratio - a.cost_ratio for a, b in itertools.pairwise(answer.front)]
    widest = answer.front[gaps.index(max(gaps))]
    between = answer.expect(widest.cost_ratio + max(gaps) / 2)
    assert between.error != pytest.approx(widest.error)


def test_the_knee_is_the_answer_and_found_again_after_a_choice(answer):
    cheapest = answer.at(budget=answer.front[0].cost_ratio)
    assert cheapest.found == answer.front[0] != answer.found
    assert cheapest.knee().found == answer.found
    assert answer.found not in (answer.front[0], answer.front[-1])


def test_a_study_of_a_budget_has_no_knee(make_study):
    answer = answer_of(make_study(name="b", planned=True, trials=2))
    for ask in (answer.knee, lambda: answer.expect(0.5)):
        with pytest.raises(InputError, match="searches no frontier"):
            ask()
