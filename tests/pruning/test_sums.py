"""Tests for sums that stay on a device."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from vit_ratio_opt.pruning import sums
from vit_ratio_opt.pruning.sums import RunningSum, gram, product


@pytest.mark.parametrize("has_float64", [True, False], ids=["float64", "two float32"])
def test_a_sum_keeps_what_float32_would_round_off(
    has_float64: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sums, "has_float64", lambda device: has_float64)
    total, values = RunningSum(), torch.rand(2000, 3, generator=torch.Generator().manual_seed(0))
    total.add(torch.full((3,), 1e8))
    for value in values:
        total.add(value)
    exact = 1e8 + values.double().sum(dim=0)
    torch.testing.assert_close(total.total(), exact, rtol=1e-11, atol=0)
    plain = sum(values, torch.full((3,), 1e8))
    assert (plain.double() - exact).abs().min() > 1  # so that the test can fail


def test_a_sum_leaves_what_is_added_as_it_is() -> None:
    total, value = RunningSum(), torch.ones(2, dtype=torch.float64)
    total.add(value)
    total.add(value)
    assert value.tolist() == [1, 1]
    assert total.total().tolist() == [2, 2]
    with pytest.raises(ValueError, match="nothing was added"):
        RunningSum().total()


@pytest.mark.parametrize("columns", [5, 767, 1001])
def test_products_from_one_triangle_are_those_of_all_columns(columns: int) -> None:
    rows = torch.randn(30, columns, generator=torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(gram(rows), rows.T @ rows)


@pytest.mark.parametrize("is_main", [True, False], ids=["main thread", "another thread"])
def test_products_of_bfloat16_lose_no_more_than_those_of_float32(is_main: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(500, n, generator=generator).bfloat16() for n in (40, 9))
    exact = first.double().T @ second.double(), first.double().T @ first.double()
    rounded = (first.T @ second).double()
    assert (rounded - exact[0]).abs().max() > 0.05  # so that the test can fail
    with ThreadPoolExecutor(1) as pool:
        run = (lambda f, *args: f(*args)) if is_main else lambda *call: pool.submit(*call).result()
        found = run(product, first, second), run(gram, first)
    assert [values.dtype for values in found] == [torch.float32] * 2
    for values, aim in zip(found, exact, strict=True):
        torch.testing.assert_close(values.double(), aim, rtol=1e-6, atol=1e-3)


def test_products_of_bfloat16_leave_those_of_float32_as_they_are() -> None:
    rows = torch.randn(500, 40, generator=torch.Generator().manual_seed(0))
    before = rows.T @ rows
    gram(rows.bfloat16())
    assert torch.equal(rows.T @ rows, before)
