"""The two parameters that a trial suggests."""

from __future__ import annotations

from optuna.distributions import FloatDistribution

from vit_ratio_opt.space.pairs import PairSpace

__all__ = ["ratio_distributions"]


def ratio_distributions(space: PairSpace) -> dict[str, FloatDistribution]:
    """Return the distributions of the two ratios; the largest leave every block its minimum."""
    return {
        name: FloatDistribution(0.0, largest) for name, largest in space.max_pair._asdict().items()
    }
