"""Bisection in one or two monotone parameters of known cost."""

from ._budget import BudgetSearch
from ._claims import refuse_surplus
from ._frontier import FrontierSearch
from ._noise import Noise
from ._plan import Estimate, Plan, Proposal
from ._sampler import PlanSampler as BinarySearchSampler
from ._tolerance import ToleranceSearch

__all__ = [
    "BinarySearchSampler",
    "BudgetSearch",
    "Estimate",
    "FrontierSearch",
    "Noise",
    "Plan",
    "Proposal",
    "ToleranceSearch",
    "refuse_surplus",
]
