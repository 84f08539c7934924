"""Does the accuracy before fine-tuning tell which pair is best after it?

Question: how well does a look without training (accuracy right after pruning, seconds a pair)
order the pairs of a budget, and how good is the pair that it would begin the search with?

Method: on the surfaces that were recorded with fine-tuning (``surfaces/``; means over seeds,
bilinear between the grid's pairs), Spearman's rank correlation between the two accuracies over all
recorded pairs, over those that lose at most 5 points, and along each budget's curve; and on that
curve the regret, in points after fine-tuning, of the screen's best pair and of the pair where the
curve crosses the diagonal, which a search without a screen begins with after its baseline.

    python benchmarks/screen.py

Output: ``results/screen.json``. Runtime: seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from command_line import run_command
from samplers import BUDGETS, HERE, screened_best, surface_of
from scipy.stats import spearmanr

from vit_ratio_opt.search.budget import BudgetSearch
from vit_ratio_opt.search.plan import Pair
from vit_ratio_opt.space.curve import budget_curve
from vit_ratio_opt.utils.files import write_json

RESULTS = Path(__file__).parent / "results" / "screen.json"


def main() -> None:
    """Compare the two accuracies on every fine-tuned surface."""
    rows = []
    for path in sorted((HERE / "surfaces").glob("*.json")):
        surface, pruned = surface_of(path.stem), surface_of(path.stem, "accuracy_pruned")
        if not surface.epochs:
            continue

        def correlation(
            pairs: Sequence[Pair], after: Any = surface, before: Any = pruned
        ) -> float:
            ranks = spearmanr(
                [before.accuracy(p) for p in pairs], [after.accuracy(p) for p in pairs]
            )
            return round(float(ranks.statistic), 3)

        close = [p for p in surface.pairs if surface.accuracy(p) >= surface.dense - 5]
        row: dict[str, Any] = {
            "surface": path.stem,
            "pairs": len(surface.pairs),
            "all_pairs": correlation(surface.pairs),
            "within_5_points": correlation(close),
            "budgets": {},
        }
        for budget in BUDGETS:
            curve: tuple[Pair, ...] = budget_curve(surface.space, budget)
            best = max(surface.accuracy(pair) for pair in curve)
            first = BudgetSearch(curve).propose({}).pair
            assert first is not None
            row["budgets"][str(budget)] = {
                "correlation": correlation(curve),
                "screened_regret": round(
                    best - surface.accuracy(screened_best(path.stem, curve)), 3
                ),
                "fixed_place_regret": round(best - surface.accuracy(first), 3),
            }
        rows.append(row)
        print(row)
    RESULTS.parent.mkdir(exist_ok=True)
    write_json({"rows": rows}, RESULTS)


if __name__ == "__main__":
    run_command(main)
