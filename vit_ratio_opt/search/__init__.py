"""The Optuna half. It never imports torch."""

from vit_ratio_opt.search.plan import next_position
from vit_ratio_opt.search.sampler import BinarySearchSampler

__all__ = ["BinarySearchSampler", "next_position"]
