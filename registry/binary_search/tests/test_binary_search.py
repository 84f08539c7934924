"""Run by ``pytest`` inside the registry, whose root is three folders up."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import optunahub
import pytest
from optuna.distributions import FloatDistribution
from optuna.samplers import BaseSampler
from optuna.testing.pytest_samplers import (
    BasicSamplerTestCase,
    RelativeSamplerTestCase,
    SingleOnlySamplerTestCase,
)

ROOT = Path(__file__).resolve().parents[3]
module = optunahub.load_local_module("samplers/binary_search", registry_root=str(ROOT))
# Not the names that the kit gives to its own parameters.
SPACE = {name: FloatDistribution(0, 1) for name in ("first", "second")}
CURVE = [(i / 16, 1 - i / 16) for i in range(17)]


class TestBinarySearch(BasicSamplerTestCase, RelativeSamplerTestCase, SingleOnlySamplerTestCase):
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return lambda: module.BinarySearchSampler(SPACE, module.BudgetSearch(CURVE))
