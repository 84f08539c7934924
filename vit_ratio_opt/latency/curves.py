"""Latency of all pairs of a study: curves over the units that are removed."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import Any, get_args

from vit_ratio_opt.latency.deployed import cast_weights
from vit_ratio_opt.latency.table import LatencyTable
from vit_ratio_opt.latency.timing import share_weights, time_models
from vit_ratio_opt.models.blocks import ViT
from vit_ratio_opt.pruning.calibration import Calibration
from vit_ratio_opt.pruning.importance import Importance
from vit_ratio_opt.pruning.options import Allocation
from vit_ratio_opt.pruning.sizes import predict_sizes
from vit_ratio_opt.space.cost_table import monotone_envelope
from vit_ratio_opt.space.costs import Engine
from vit_ratio_opt.space.pairs import RatioPair, pick_evenly
from vit_ratio_opt.space.shape import BlockShape
from vit_ratio_opt.space.units import StructuralUnits

__all__ = ["predict_latency"]

_KNOTS = 129  # points of each curve, at most
# Shares of the dense model's time at which pairs are timed where there is no budget.
_CHECKED_SHARES = (0.8, 0.7, 0.6, 0.5, 0.4)
_LEAST_KEPT = 0.5  # smallest share of a predicted saving that is counted


def predict_latency(
    table: LatencyTable,
    model: ViT,
    units: StructuralUnits,
    scores: Importance | Calibration,
    *,
    allocation: Allocation = "global",
    budget: float | None = None,
) -> dict[str, Any]:
    """Return the predicted latency of all pairs, as a study stores it.

    The sizes of blocks depend on the calibration, so the curves belong to the study and the table
    to the device. Models of a few pairs are timed, those at the budget if there is one. The
    predicted saving of every pair is multiplied by the smallest share that one of these models
    really saved, less the table's error.

    Args:
        table: Latency table of the dense model.
        model: The dense model, on the device.
        units: Units of the dense model.
        scores: Calibration or importance that chooses the units, see :func:`vit_ratio_opt.prune`.
        allocation: How ratios are allocated across blocks.
        budget: Share of the dense model's time that the study searches for.

    Returns:
        ``rest``, and ``mhsa`` and ``ffn``, each a list of removed units and remaining time, in
        nanoseconds a batch; ``kept``, the share of the predicted saving that is counted; the
        table's ``conditions`` and ``error``. This is what ``Latency`` of
        :mod:`vit_ratio_opt.space.costs` takes as ``curves``.
    """
    removed, heads, neurons, hidden = _sizes_at_knots(units, scores, allocation)
    mhsa = monotone_envelope(
        [round(sum(table.attention_of(*size) for size in sizes)) for sizes in heads]
    )
    ffn = monotone_envelope([round(sum(table.ffn_of(size) for size in sizes)) for sizes in hidden])
    dense = table.rest + mhsa[0] + ffn[0]
    wanted = _CHECKED_SHARES if budget is None else [budget] * len(_CHECKED_SHARES)
    checked = _pairs_at_costs([share * dense - table.rest for share in wanted], mhsa, ffn)
    blocks = [
        [BlockShape(*attention, size) for attention, size in zip(heads[i], hidden[j], strict=True)]
        for i, j in checked
    ]
    saved = [
        share * dense / (mhsa[0] - mhsa[i] + ffn[0] - ffn[j])
        for (i, j), share in zip(checked, _measure_savings(table, model, blocks), strict=True)
    ]
    kept = max(_LEAST_KEPT, min([1.0, *saved]) * (1 - min(1.0, table.error)))
    mhsa, ffn = ([round(costs[0] - kept * (costs[0] - c)) for c in costs] for costs in (mhsa, ffn))
    return {
        "rest": round(table.rest),
        "mhsa": [list(knot) for knot in zip(removed, mhsa, strict=True)],
        "ffn": [list(knot) for knot in zip(neurons, ffn, strict=True)],
        "kept": kept,
        "error": table.error,
        **table.conditions,
    }


def _sizes_at_knots(
    units: StructuralUnits, scores: Importance | Calibration, allocation: Allocation
) -> tuple[list[int], list[list[tuple[int, int]]], list[int], list[list[int]]]:
    """Return removed heads (or ranks), what they leave by block, and the same of neurons.

    Both curves begin at the dense model, also where floors leave out its ratios.
    """
    removed = [units.removed(RatioPair(r, 0.0))[0] for r in pick_evenly(units.mhsa_ratios, _KNOTS)]
    neurons = [units.removed(RatioPair(0.0, r))[1] for r in pick_evenly(units.ffn_ratios, _KNOTS)]
    heads, hidden = predict_sizes(units, removed, neurons, scores, allocation=allocation)
    if removed[0]:
        removed.insert(0, 0)
        heads.insert(0, [(block.num_heads, block.head_dim) for block in units.shape.blocks])
    if neurons[0]:
        neurons.insert(0, 0)
        hidden.insert(0, [block.hidden_dim for block in units.shape.blocks])
    return removed, heads, neurons, hidden


def _measure_savings(
    table: LatencyTable, model: ViT, sizes: Sequence[Sequence[BlockShape]]
) -> list[float]:
    """Time models with these blocks; return the shares of the dense model's time they save."""
    how, run_as = table.conditions, table.conditions.get("run_as", ())
    engine: Engine = next((name for name in get_args(Engine) if name in run_as), "eager")
    model = cast_weights(model, how["precision"])
    models = [model, *(share_weights(model, blocks) for blocks in sizes)]
    whole, *taken = time_models(
        models, batch=how["batch"], precision=how["precision"], engine=engine
    )
    return [1 - seconds / whole for seconds in taken]


def _pairs_at_costs(
    allowed: Sequence[float], mhsa: Sequence[int], ffn: Sequence[int]
) -> list[tuple[int, int]]:
    """Return a pair of knots for each allowed cost, with less and less of the attention kept."""
    pairs = []
    for index, cost in enumerate(allowed):
        fits = [
            (i, j)
            for i in range(len(mhsa))
            if (j := bisect.bisect_left(ffn, mhsa[i] - cost, key=lambda c: -c)) < len(ffn)
        ]
        if fits:
            pairs.append(fits[index * (len(fits) - 1) // max(1, len(allowed) - 1)])
    return [(i, j) for i, j in dict.fromkeys(pairs) if mhsa[i] + ffn[j] < mhsa[0] + ffn[0]]
