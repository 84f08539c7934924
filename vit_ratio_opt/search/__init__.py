"""The Optuna half. It never imports torch."""

from vit_ratio_opt.search.budget import BudgetSearch
from vit_ratio_opt.search.margins import tolerance_answer
from vit_ratio_opt.search.noise import Noise, accuracy_noise
from vit_ratio_opt.search.plan import Estimate, Pair, Plan, Proposal, follow
from vit_ratio_opt.search.sampler import BinarySearchSampler, hand_back, refuse_surplus
from vit_ratio_opt.search.space import ratio_space
from vit_ratio_opt.search.tolerance import ToleranceSearch

__all__ = [
    "BinarySearchSampler",
    "BudgetSearch",
    "Estimate",
    "Noise",
    "Pair",
    "Plan",
    "Proposal",
    "ToleranceSearch",
    "accuracy_noise",
    "follow",
    "hand_back",
    "ratio_space",
    "refuse_surplus",
    "tolerance_answer",
]
