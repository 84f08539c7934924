"""Probes of an encoder's features before and after pruning, on the test images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from optuna.study import Study
from optuna.trial import FrozenTrial

from vit_ratio_opt.records.study import record_of

__all__ = ["probe_sentence"]

_NAMES = {"knn": "k-NN accuracy", "linear": "the accuracy of a linear probe"}


def probe_sentence(study: Study, trial: FrozenTrial | None) -> str | None:
    """Return what probes of the features measured, in a sentence; None before the test.

    Args:
        study: The study.
        trial: Trial of the answer; nothing is returned if another trial's model was probed.
    """
    stored = record_of(study).probes
    if not stored or trial is None or stored["trial"] != trial.number:
        return None
    changes = [f"{name} {_change(stored, key)}" for key, name in _NAMES.items()]
    return (
        f"Labels were used for this sentence alone: on {stored['images']:,} test images, by the "
        f"labels of {stored['bank']:,} training images, {' and '.join(changes)}."
    )


def _change(stored: Mapping[str, Any], key: str) -> str:
    dense, pruned = (stored[name][key] for name in ("dense", "pruned"))
    error = stored["errors"][key]
    return f"goes from {dense:.2f} to {pruned:.2f} % ({pruned - dense:+.2f} ± {error:.2f} points)"
