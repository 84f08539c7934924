from vit_ratio_opt.space.metric import ACCURACY, Metric


def test_a_metric_with_known_noise_is_the_same_metric():
    assert Metric("accuracy", "%", noise=0.3) == ACCURACY
    assert Metric("accuracy") != ACCURACY
    assert Metric("accuracy", "%", larger_is_better=False) != ACCURACY
