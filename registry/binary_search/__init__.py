"""Bisection in one or two monotone parameters of known cost."""

from ._plan import BudgetSearch, Plan, Proposal, ToleranceSearch
from ._sampler import BinarySearchSampler, refuse_surplus

__all__ = [
    "BinarySearchSampler",
    "BudgetSearch",
    "Plan",
    "Proposal",
    "ToleranceSearch",
    "refuse_surplus",
]
