"""Choose what an iterative trial starts from: the model of an earlier trial, or the dense one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import optuna
from optuna.trial import BaseTrial, FrozenTrial, Trial

from vit_ratio_opt.models.blocks import ViT
from vit_ratio_opt.records.trials import finished_trials
from vit_ratio_opt.runs.contracts import PrunerProtocol
from vit_ratio_opt.runs.lineage import nearest_parents
from vit_ratio_opt.runs.resume import pair_of
from vit_ratio_opt.runs.trial_models import read_artifact
from vit_ratio_opt.space.metric import Metric
from vit_ratio_opt.space.pairs import RatioPair
from vit_ratio_opt.utils.failures import is_storage_error, reason

if TYPE_CHECKING:
    from vit_ratio_opt._compat import ArtifactStore

__all__ = ["best_start"]

_logger = optuna.logging.get_logger(f"optuna.{__name__}")


def best_start(
    trial: BaseTrial,
    pair: RatioPair,
    pruner: PrunerProtocol,
    store: ArtifactStore | None,
    *,
    evaluate: Callable[[ViT], float],
    metric: Metric,
) -> tuple[ViT, float, FrozenTrial | None]:
    """Return the better of two untrained models of a pair, pruned from a parent or the dense one.

    The parent's weights were trained with less of the model left than the dense model's, which
    helps the more, the more the pair prunes; what is better before the training decides. Of two
    equally good ones it is the parent's.

    Args:
        trial: Trial that starts from the model.
        pair: Pair of that trial.
        pruner: Pruner with the search space and the dense model.
        store: The artifact store with the models; None starts from the dense model.
        evaluate: Function that returns the metric of a model.
        metric: The metric.

    Returns:
        The model, its metric, and the parent; None for the dense model.
    """
    dense = pruner.prune(pair)
    value = evaluate(dense)
    parent, model = _find_parent(trial, pair, pruner, store)
    if model is None:
        return dense, value, None
    pruned = pruner.prune(pair, model)
    from_parent = evaluate(pruned)
    if metric.loss(value, from_parent) <= 0:
        return pruned, from_parent, parent
    return dense, value, None


def _find_parent(
    trial: BaseTrial, pair: RatioPair, pruner: PrunerProtocol, store: ArtifactStore | None
) -> tuple[FrozenTrial | None, ViT | None]:
    """Return the nearest finished trial that pruned neither module more, and its model.

    A trial whose model cannot be read is passed over, with a warning.

    Args:
        trial: Trial that starts from the model.
        pair: Pair of that trial.
        pruner: Pruner with the search space and the dense model.
        store: The artifact store with the models.

    Returns:
        The trial and its model; None and None if the trial starts from the dense model.
    """
    if store is None or not isinstance(trial, Trial):
        return None, None
    by_number = {other.number: other for other in finished_trials(trial.study)}
    pairs = {number: pair_of(other) for number, other in by_number.items()}
    for number in nearest_parents(pruner.space, pair, pairs):
        parent = by_number[number]
        if parent.user_attrs.get("checkpoint") is None:
            continue  # a pruner ended it early: it kept no model
        try:
            name, storage = trial.study.study_name, trial.storage
            model = read_artifact(parent, name, storage, pruner.dense, store)
            return parent, model.to(pruner.device)
        except Exception as error:  # a store raises whatever its client does
            if is_storage_error(error):
                raise
            _logger.warning(
                f"Trial {trial.number} cannot start from trial {number}, whose model cannot be "
                f"read: {type(error).__name__}: {reason(error)}"
            )
    return None, None
