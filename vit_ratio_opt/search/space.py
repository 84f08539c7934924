"""The two parameters that a trial suggests."""

from __future__ import annotations

from optuna.distributions import FloatDistribution

from vit_ratio_opt.space.pairs import PairSpace, RatioPair

__all__ = ["ratio_distributions"]


def ratio_distributions(space: PairSpace) -> dict[str, FloatDistribution]:
    """Return the distributions of the two ratios; the largest leave every block its minimum."""
    least, largest = space.min_pair, space.max_pair
    return {
        name: FloatDistribution(low, high)
        for name, low, high in zip(RatioPair._fields, least, largest, strict=True)
    }
