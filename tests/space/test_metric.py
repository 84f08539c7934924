import pytest

from vit_ratio_opt.space.metric import ACCURACY, Metric


def test_a_metric_with_known_noise_is_the_same_metric():
    assert Metric("accuracy", "%", noise=0.3) == ACCURACY
    assert Metric("accuracy") != ACCURACY
    assert Metric("accuracy", "%", larger_is_better=False) != ACCURACY


@pytest.mark.parametrize(
    ("metric", "limit"),
    [
        (ACCURACY, "at most 0.3 points of accuracy lost"),
        (Metric("R2"), "R2 at most 0.3 lower than the dense model's"),
        (Metric("PSNR", "dB"), "PSNR at most 0.3 dB lower than the dense model's"),
        (
            Metric("mean absolute error", "mm", larger_is_better=False),
            "mean absolute error at most 0.3 mm higher than the dense model's",
        ),
        (
            Metric("error rate", "%", larger_is_better=False),
            "error rate at most 0.3 points higher than the dense model's",
        ),
    ],
)
def test_a_limit_says_in_which_direction_a_metric_may_change(metric: Metric, limit: str):
    assert metric.lost(0.3, "at most ") == limit
    assert metric.lost(0.3) == limit.replace("at most ", "")


def test_one_point_is_singular():
    assert ACCURACY.lost(1) == "1 point of accuracy lost"
