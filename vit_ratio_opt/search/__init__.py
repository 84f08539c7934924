"""The Optuna half. It never imports torch."""

from vit_ratio_opt.search.plan import BudgetSearch, Pair, Plan, Proposal, ToleranceSearch
from vit_ratio_opt.search.sampler import BinarySearchSampler, hand_back, refuse_surplus
from vit_ratio_opt.search.space import ratio_space

__all__ = [
    "BinarySearchSampler",
    "BudgetSearch",
    "Pair",
    "Plan",
    "Proposal",
    "ToleranceSearch",
    "hand_back",
    "ratio_space",
    "refuse_surplus",
]
