"""Tests of the weighted ridge regression."""

import pytest
import torch

from vit_ratio_opt.pruning import least_squares
from vit_ratio_opt.pruning.least_squares import NormalEquations


def problem(samples: int, noise: float) -> tuple[NormalEquations, torch.Tensor]:
    """Return equations of 16 inputs and 4 outputs, and a start near the weights."""
    generator = torch.Generator().manual_seed(samples)
    weights, x = (torch.randn(*s, generator=generator) for s in ((16, 4), (2, samples, 1, 16)))
    equations = NormalEquations(bias=False)
    for half in x @ torch.randn(16, 16, generator=generator):
        error = noise * torch.randn(samples, 1, 4, generator=generator)
        equations.add(half, half @ weights + error, torch.ones(1))
    return equations, (weights + 0.1 * torch.randn(16, 4, generator=generator)).double()


@pytest.mark.parametrize("samples", [4, 12, 40, 400])
@pytest.mark.parametrize("noise", [0.0, 0.1, 1.0, 10.0])
def test_the_ridge_is_the_best_of_all(samples: int, noise: float) -> None:
    equations, start = problem(samples, noise)
    first, second = equations.sums()
    errors = [
        least_squares._error(second, equations._fit(first, start, ridge))
        + least_squares._error(first, equations._fit(second, start, ridge))
        for ridge in least_squares._RIDGES
    ]
    best = int(torch.stack(errors).nan_to_num(torch.inf).argmin())
    assert equations._choose_ridge([first, second], start) == best


def test_ridges_of_both_ends_and_between_are_chosen() -> None:
    chosen = set()
    for samples, noise in ((400, 0.0), (40, 0.1), (40, 10.0)):
        equations, start = problem(samples, noise)
        chosen.add(equations._choose_ridge(equations.sums(), start))
    assert {0, len(least_squares._RIDGES) - 1} < chosen


def test_equations_in_bfloat16_have_nearly_the_solution_of_those_in_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(2, 200, 3, size, generator=generator) for size in (24, 8))
    y += x @ torch.randn(24, 8, generator=generator)
    solutions = []
    for precision in ("float32", "bfloat16"):
        equations = NormalEquations(bias=True, precision=precision)
        for half in zip(x, y, strict=True):
            equations.add(*half, torch.tensor([0.7, 0.3, 0.0]))
        solution, before, after = equations.solve(torch.zeros(25, 8, dtype=torch.float64))
        assert 0 < after < before
        solutions.append(solution)
    torch.testing.assert_close(*solutions, atol=5e-3, rtol=5e-3)
