"""Studies of a frontier as a search leaves them, in milliseconds: nothing is trained."""

from __future__ import annotations

import math
from typing import Any

import optuna
from optuna.trial import TrialState

from vit_ratio_opt.search.limits import Frontier
from vit_ratio_opt.search.sampler import PlanSampler
from vit_ratio_opt.search.space import ratio_distributions
from vit_ratio_opt.space.curve import cost_saved
from vit_ratio_opt.space.metric import ACCURACY, Metric
from vit_ratio_opt.space.shape import BlockShape, ViTShape
from vit_ratio_opt.space.structural import StructuralSpace

__all__ = ["frontier_study"]

_BLOCKS = (BlockShape(4, 8, 64),) * 3
_SPACE = StructuralSpace(
    ViTShape(
        patches=16, prefix_tokens=1, patch_dim=48, embed_dim=32, num_classes=10, blocks=_BLOCKS,
        fixed_params=1_000,
    )
)  # fmt: skip
DENSE = 80.0


def frontier_study(
    storage: Any = None,
    name: str = "frontier",
    *,
    trials: int = 10,
    fixed: bool = False,
    metric: Metric = ACCURACY,
    noise: float = 0.3,
    **settings: Any,
) -> optuna.Study:
    """Return a study of a search along the frontier, in which the FFN can lose more than MHSA."""
    limit = Frontier(levels=6)
    plan = limit.plan(_SPACE, noise=noise, dense=DENSE, metric=metric, fixed_ratio=fixed)
    study = optuna.create_study(
        study_name=name,
        storage=storage,
        directions=["maximize" if metric.larger_is_better else "minimize", "minimize"],
    )
    study.set_metric_names([metric.name, "FLOPs of dense"])
    stored = {
        "schema_version": 2, "strategy": "fixed" if fixed else "searched", "budget": None,
        "tolerance": None, "frontier": 6, "model": "vit_tiny", "weights": "abc",
        "dataset": "digits", "validation": "def", "recipe": {"epochs": 2}, "seed": 0,
        "iterative": False, "mhsa_unit": "rank", "repair": True, "allocation": "global",
        "round_to": 1, "calibration_images": 64, "architecture": {}, "training": "ghi",
        "test": "jkl", "image_shape": [1, 8, 8], "preprocessing": {}, "classes": ["0", "1"],
        "mean": [0.5], "std": [0.5], "flip": False, "noise": noise, "confirmations": 1,
        "confidence": 0.8, "precision": "float32",
    }  # fmt: skip
    shape = _SPACE.shape
    for key, value in {
        "settings": {**stored, **settings},
        "versions": {"torch": "2"},
        "device": "cpu",
        "dense": {
            "macs": shape.macs, "params": shape.params, "val_accuracy": DENSE,
            "blocks": [[b.num_heads, b.head_dim, b.hidden_dim] for b in _BLOCKS],
            "tokens": shape.tokens,
        },
        "metric": metric.to_json(),
        "saved": cost_saved(_SPACE),
        "origin": {"artifacts": None},
        "plan": plan.to_json(),
        "complete": True,
    }.items():  # fmt: skip
        study.set_user_attr(key, value)
    study.sampler = PlanSampler(ratio_distributions(_SPACE), plan)
    observed: dict[Any, list[float]] = {}
    for number in range(trials):
        pair = plan.propose(observed).pair
        if pair is None:
            break
        value = DENSE - metric.sign * (
            25 * (pair[0] ** 2 + 0.3 * pair[1] ** 2) - 0.2 * math.sin(number)
        )
        observed.setdefault(pair, []).append(metric.sign * value)
        study.add_trial(_trained(pair, value, number))
    return study


def _trained(pair: Any, value: float, number: int) -> optuna.trial.FrozenTrial:
    macs_ratio = _SPACE.macs_ratio(*pair)
    return optuna.trial.create_trial(
        state=TrialState.COMPLETE,
        values=[value, macs_ratio],
        params={"mhsa_ratio": pair[0], "ffn_ratio": pair[1]},
        distributions=ratio_distributions(_SPACE),
        user_attrs={
            "macs_ratio": macs_ratio,
            "accuracy": value,
            "accuracy_drop": abs(DENSE - value),
            "accuracy_pruned": value,
            "reports": {"1": value, "2": value},
            "parent_trial": "dense",
            "epochs": 2,
            "seconds": 1.5,
            "seed": 0,
            "blocks": [[4, 4, 32], [4, 2, 16], [3, 4, 8]],
        },
    )
