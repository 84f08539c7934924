"""What a trial suggests."""

from __future__ import annotations

from optuna.distributions import FloatDistribution

from vit_ratio_opt.space.pairs import PairSpace

__all__ = ["ratio_space"]


def ratio_space(space: PairSpace) -> dict[str, FloatDistribution]:
    """The two ratios; the upper ends leave every block its minimum."""
    return {
        name: FloatDistribution(0.0, largest) for name, largest in space.max_pair._asdict().items()
    }
