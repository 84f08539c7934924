import itertools

import pytest
import torch

from vit_ratio_opt.pruning.eliminate import elimination_order


def test_elimination_order_is_that_of_refitting_after_every_removal() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 6, generator=generator).double() @ torch.randn(6, 6).double()
    x -= x.mean(dim=0)
    weight = torch.randn(3, 6, generator=generator).double()
    covariance = x.T @ x / len(x)
    order, losses = elimination_order(covariance, weight, samples=1e12)

    def refitted(gone: list[int]) -> float:
        left = [i for i in range(6) if i not in gone]
        fit = torch.linalg.lstsq(x[:, left], x @ weight.T).solution if left else None
        error = x @ weight.T - (0 if fit is None else x[:, left] @ fit)
        return float(error.square().sum() / len(x))

    gone: list[int] = []
    for index, loss in zip(order.tolist(), losses.tolist(), strict=True):
        others = [i for i in range(6) if i not in gone]
        assert index == min(others, key=lambda i: refitted([*gone, i]))
        assert loss == pytest.approx(refitted([*gone, index]) - refitted(gone), rel=1e-2)
        gone.append(index)


def test_a_large_layer_loses_several_neurons_a_step_and_each_once() -> None:
    x = torch.randn(2000, 300, generator=torch.Generator().manual_seed(0)).double()
    order, losses = elimination_order(x.T @ x / 2000, torch.ones(2, 300), samples=2000)
    assert sorted(order.tolist()) == list(range(300))
    assert all(a > 0 for a in losses.tolist())
    assert list(itertools.accumulate(losses.tolist()))[-1] > 0
