"""The sampler of a search over the two ratios of a ViT, in Optuna's own style."""

from __future__ import annotations

from vit_ratio_opt.search.sampler import PlanSampler

__all__ = ["BinarySearchSampler"]


class BinarySearchSampler(PlanSampler):
    """Proposes pairs of ratios."""
