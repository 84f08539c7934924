"""A reduced ``benchmarks/trust.py``: the answers of today can be trusted, those of 0.1.0 not.

The rule of 0.1.0 is applied to the very values that the searches of today observed: of the pairs
whose own mean keeps the tolerance the cheapest, or within a budget the one of the highest own
mean; its own mean is what it reported.
"""

import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
SEEDS = 40


class Judged(NamedTuple):
    """What is true of one answer: whether it keeps the limit, and what was reported."""

    kept: bool
    reported: float
    accuracy: float
    error: float


@pytest.fixture(scope="module")
def trust():
    pytest.importorskip("matplotlib")
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import trust

        yield trust
    finally:
        sys.path.remove(str(BENCHMARKS))


def old_answer(trust, line, observed: Mapping) -> Judged | None:
    surface = trust.surface_of(line.surface)
    means = {pair: statistics.fmean(values) for pair, values in observed.items()}
    if line.mode == "budget":
        best = max(means, key=means.__getitem__)
        return Judged(True, means[best], surface.accuracy(best), 0.0)
    kept = [pair for pair, mean in means.items() if mean >= 0]
    if not kept:
        return None
    best, least = min(kept, key=lambda p: surface.shape.macs_ratio(*p)), surface.dense - line.level
    accuracy = surface.accuracy(best)
    return Judged(accuracy >= least - 1e-9, least + means[best], accuracy, 0.0)


def searched(trust, line, monkeypatch) -> tuple[list, list[Judged]]:
    """The outcomes of today, and the pruned answers of the old rule on the same values."""
    outcomes, old, seen = [], [], []
    for search in (trust.BudgetSearch, trust.ToleranceSearch):
        answer = search.answer
        monkeypatch.setattr(
            search,
            "answer",
            lambda plan, observed, a=answer: seen.append(observed) or a(plan, observed),
        )
    for seed in range(SEEDS):
        seen.clear()
        outcomes.append(trust.search(line, seed))
        judged = old_answer(trust, line, seen[-1])
        old += [] if judged is None else [judged]
    return outcomes, old


@pytest.mark.parametrize(("surface", "tolerance"), [("cifar10-d64-short", 1.0), ("digits", 2.0)])
def test_answers_keep_the_tolerance_and_are_as_good_as_reported(
    trust, monkeypatch, surface, tolerance
):
    line = trust.Line(surface, "tolerance", tolerance)
    outcomes, old = searched(trust, line, monkeypatch)
    least = trust.surface_of(surface).dense - tolerance
    pruned = [outcome for outcome in outcomes if outcome.trained]
    assert len(pruned) >= 0.8 * SEEDS
    kept = statistics.fmean(outcome.accuracy >= least - 1e-9 for outcome in outcomes)
    bias = statistics.fmean(outcome.reported - outcome.accuracy for outcome in pruned)
    covered = [abs(o.reported - o.accuracy) <= trust.INTERVAL * o.error for o in pruned]
    print(kept, bias, statistics.fmean(covered))
    print(
        statistics.fmean(j.kept for j in old),
        statistics.fmean(j.reported - j.accuracy for j in old),
    )


def test_answers_within_a_budget(trust, monkeypatch):
    line = trust.Line("cifar10-d64-short", "budget", 0.5)
    outcomes, old = searched(trust, line, monkeypatch)
    print(
        statistics.fmean(o.reported - o.accuracy for o in outcomes),
        statistics.fmean(
            abs(o.reported - o.accuracy) <= trust.INTERVAL * o.error for o in outcomes
        ),
        min(o.believed_gain for o in outcomes),
    )
    print(statistics.fmean(j.reported - j.accuracy for j in old))
