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
SEEDS = 50


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
    best, least = min(kept, key=lambda p: surface.space.macs_ratio(*p)), surface.dense - line.level
    accuracy = surface.accuracy(best)
    return Judged(accuracy >= least - 1e-9, least + means[best], accuracy, 0.0)


def searched(trust, line, monkeypatch) -> tuple[list, list[Judged]]:
    """The outcomes of today, and the pruned answers of the old rule on the same values."""
    outcomes, old, seen = [], [], []

    def note(answer):
        def noted(plan, observed):
            seen.append(observed)
            return answer(plan, observed)

        return noted

    for search in (trust.BudgetSearch, trust.ToleranceSearch):
        monkeypatch.setattr(search, "answer", note(search.answer))
    for seed in range(SEEDS):
        seen.clear()
        outcomes.append(trust.search(line, seed))
        judged = old_answer(trust, line, seen[-1])
        old += [] if judged is None else [judged]
    return outcomes, old


@pytest.mark.parametrize(
    ("surface", "tolerance", "most_bias"),
    [("cifar10-d64-short", 1.0, 0.12), ("digits", 2.0, 0.6)],
)
def test_answers_keep_the_tolerance_and_are_as_good_as_reported(
    trust, monkeypatch, surface, tolerance, most_bias
):
    line = trust.Line(surface, "tolerance", tolerance)
    outcomes, old = searched(trust, line, monkeypatch)
    least = trust.surface_of(surface).dense - tolerance
    pruned = [outcome for outcome in outcomes if outcome.trained]
    assert len(pruned) >= 0.8 * SEEDS  # the dense model is no way out
    kept = statistics.fmean(outcome.accuracy >= least - 1e-9 for outcome in outcomes)
    assert kept >= 0.7
    assert abs(bias_of(pruned)) <= most_bias
    assert covered(trust, pruned) >= 0.8
    assert statistics.fmean(judged.kept for judged in old) < min(kept, 0.7)
    assert bias_of(old) > most_bias


def test_answers_within_a_budget_are_as_good_as_reported(trust, monkeypatch):
    line = trust.Line("cifar10-d64-short", "budget", 0.5)
    outcomes, old = searched(trust, line, monkeypatch)
    assert abs(bias_of(outcomes)) <= 0.2
    assert covered(trust, outcomes) >= 0.8
    assert min(outcome.believed_gain for outcome in outcomes) >= 0  # never below the fixed ratio
    assert bias_of(old) > 0.2


def bias_of(judged) -> float:
    return statistics.fmean(one.reported - one.accuracy for one in judged)


def covered(trust, outcomes) -> float:
    return statistics.fmean(
        abs(one.reported - one.accuracy) <= trust.INTERVAL * one.error for one in outcomes
    )
