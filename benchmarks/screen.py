"""What is known before any training: does it tell which pair is best after one?

Question: how well do the loss that the calibration predicts (for all pairs at once, without
pruning one), the divergence of the pruned model from the dense one, and its accuracy (seconds a
pair) order the pairs, and how good is the pair that each would begin a search with?

Method: on the surfaces that were recorded with a training (``surfaces/ranks/``; means over seeds,
bilinear between the grid's pairs): Spearman's rank correlation with the trained accuracy over all
recorded pairs and over those that lose at most 5 points; the standard deviation that a straight
line leaves of ``log(1 + loss / offset)``, in which a search believes; and the regret on the curve
of each budget, in points after the training, of the best pair by that knowledge, and of the pair
where the curve crosses the diagonal.

    python benchmarks/screen.py

Output: ``results/screen.json``. Runtime: seconds.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from command_line import run_command
from recording import Results
from samplers import BUDGETS, Surface
from scipy.stats import spearmanr

from vit_ratio_opt.search.budget import BudgetSearch
from vit_ratio_opt.search.plan import Pair
from vit_ratio_opt.space.curve import budget_curve, smallest_cost_ratio

HERE = Path(__file__).parent
RESULTS = Results(HERE / "results" / "screen.json", ("surface", "known"), ("numpy", "scipy"))
KNOWN = ("expected_loss", "divergence", "accuracy_pruned")
OFFSET = 0.02  # of the dense accuracy, as in a search of the frontier


def main() -> None:
    """Judge everything that is known on every trained surface."""
    for path in sorted((HERE / "surfaces" / "ranks").glob("*.json")):
        head = json.loads(path.read_text(encoding="utf-8"))
        if head["budgets"] or not head["recipe"]["epochs"]:
            continue
        trained = Surface(path)
        for known in KNOWN:
            loss = partial(known_loss, Surface(path, known), rises=known == "accuracy_pruned")
            started = time.perf_counter()
            row = {"surface": path.stem, "known": known, **judge(trained, loss)}
            RESULTS.add(row, seconds=time.perf_counter() - started)
            print(row)


def known_loss(before: Surface, pair: Pair, *, rises: bool) -> float:
    """Return a loss that is known of a pair before its training."""
    value = before.accuracy(pair)
    return before.dense - value if rises else value


def judge(trained: Surface, loss: Callable[[Pair], float]) -> dict[str, Any]:
    """Return how well a loss that is known before tells the accuracy after a training."""
    pairs = trained.pairs
    after = {pair: trained.accuracy(pair) for pair in pairs}
    close = [pair for pair in pairs if after[pair] >= trained.dense - 5]

    def correlation(some: Sequence[Pair]) -> float:
        ranks = spearmanr([-loss(p) for p in some], [after[p] for p in some])
        return round(float(ranks.statistic), 3)

    found = np.array([max(trained.dense - after[pair], 0.0) for pair in pairs])
    depth = np.log1p(found / (OFFSET * trained.dense))
    known = np.array([loss(pair) for pair in pairs])
    scaled = float((known @ found) / max(known @ known, 1e-12)) * known  # in points
    before = np.log1p(np.maximum(scaled, 0.0) / (OFFSET * trained.dense))
    line = np.polyval(np.polyfit(before, depth, 1), before)
    budgets = {}
    for budget in (b for b in BUDGETS if b >= smallest_cost_ratio(trained.space)):
        curve: tuple[Pair, ...] = budget_curve(trained.space, budget)
        best = max(trained.accuracy(pair) for pair in curve)
        middle = BudgetSearch(curve).propose({}).pair
        assert middle is not None
        budgets[str(budget)] = {
            "regret": round(best - trained.accuracy(min(curve, key=loss)), 3),
            "regret_on_diagonal": round(best - trained.accuracy(middle), 3),
        }
    return {
        "pairs": len(pairs),
        "all_pairs": correlation(pairs),
        "within_5_points": correlation(close),
        "deviation": round(float(depth.std()), 3),
        "left": round(float((depth - line).std()), 3),
        "budgets": budgets,
    }


if __name__ == "__main__":
    run_command(main)
