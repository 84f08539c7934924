"""The cheapest pair that loses at most half a point."""

from __future__ import annotations

from pathlib import Path

import optuna
import optunahub
from optuna.distributions import FloatDistribution

here = Path(__file__).resolve()
module = optunahub.load_local_module("samplers/binary_search", registry_root=str(here.parents[2]))

TOLERANCE = 0.5
STEPS = [i / 64 for i in range(60)]
space = {"x": FloatDistribution(0, 1), "y": FloatDistribution(0, 1)}


def cost(x: float, y: float) -> float:
    """What a pair costs, known without a trial."""
    return 1 - 0.4 * x - 0.5 * y


def objective(trial: optuna.Trial) -> float:
    """What a pair loses, known only after it."""
    x, y = (trial.suggest_float(name, 0, 1) for name in space)
    loss = 3 * x**3 + y**2
    trial.set_constraint("accuracy_drop", loss - TOLERANCE)
    if loss > TOLERANCE:
        raise optuna.TrialPruned  # so that the best complete trial keeps the tolerance
    return cost(x, y)


plan = module.ToleranceSearch([(x, STEPS) for x in STEPS], cost, TOLERANCE)
study = optuna.create_study(sampler=module.BinarySearchSampler(space, plan))
study.optimize(objective, n_trials=50)
print(f"{study.best_params} costs {study.best_value:.4f} after {len(study.trials)} trials")
