"""Which reading of CP-ViT serves it best?

Question: the published description leaves choices open. How accurate is the cascade, without any
training, under each of them, at the same share of the dense model's MACs and with one fixed ratio?

Method: ``paper`` is what this package calls CP-ViT; every other line changes one choice, and
``late queries`` is the cascade of the strategy that combines it with structural pruning. Accuracy
is on one half of the test images.

    python benchmarks/cascade.py cifar10-d64 --data DIR --checkpoint FILE
    python benchmarks/cascade.py --show

Output: ``results/cascade-NAME.json`` and a table. Runtime on one thread: 4 minutes for
``cifar10-d64``, 15 for ``cifar10-d128``.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, Optional

import torch
import typer
from command_line import run_command
from recording import (
    DataOption,
    DenseOption,
    NameArgument,
    Results,
    ShowOption,
    ThreadsOption,
    header,
    load_images,
)

from vit_ratio_opt.composer import Search
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.model_files.load import load_dense
from vit_ratio_opt.pruning.options import Tokens
from vit_ratio_opt.runs.options import SearchOptions
from vit_ratio_opt.search.limits import Budget
from vit_ratio_opt.space.curve import smallest_cost_ratio
from vit_ratio_opt.space.tokens import CP_VIT, LATE
from vit_ratio_opt.training.evaluate import evaluate
from vit_ratio_opt.training.recipe import Recipe

RESULTS = Path(__file__).parent / "results"
RULES = {
    "paper": CP_VIT,
    "not by range": replace(CP_VIT, by_range=False),
    "heads too": replace(CP_VIT, heads=True),
    "mean attention": replace(CP_VIT, scores="mean"),
    "class token's attention": replace(CP_VIT, scores="class"),
    "queries only": replace(CP_VIT, left_out="queries"),
    "late": replace(CP_VIT, schedule="late"),
    "late queries": LATE,
}


def main(
    name: NameArgument = None,
    checkpoint: DenseOption = None,
    data: DataOption = None,
    budget: Annotated[
        Optional[list[float]],  # noqa: UP045
        typer.Option(help="Share of the MACs; may be repeated.", show_default="0.9 0.8 0.7"),
    ] = None,
    threads: ThreadsOption = 1,
    show: ShowOption = False,
) -> None:
    """Measure, or go on with it, and print the table."""
    if show:
        for path in sorted(RESULTS.glob("cascade-*.json")):
            _show(json.loads(path.read_text()))
        return
    if name is None or checkpoint is None:
        raise InputError("Name the results and give --checkpoint, or use --show.")
    torch.set_num_threads(threads)
    dense, images = load_dense(checkpoint), load_images(data, None)
    budgets = budget or [0.9, 0.8, 0.7]

    def search(rule_name: str, macs_ratio: float) -> Search:
        return Search(
            dense,
            images,
            Budget(macs_ratio),
            pruning=Tokens(rule=RULES[rule_name]),
            training=Recipe(epochs=0),
            options=SearchOptions(fixed_ratio=True),
        )

    head = header(search("paper", 1.0), benchmark="cascade", name=name, threads=threads)
    path = RESULTS / f"cascade-{name}.json"
    results = Results(path, ("rule", "budget"), header=head)
    for rule_name in RULES:
        smallest = smallest_cost_ratio(search(rule_name, 1.0).space)
        for macs_ratio in budgets:
            if results.has(rule=rule_name, budget=macs_ratio) or macs_ratio < smallest:
                continue
            started = time.perf_counter()
            chosen = search(rule_name, macs_ratio)
            (pair,) = chosen.curve
            row = {
                "rule": rule_name,
                **asdict(RULES[rule_name]),
                "budget": macs_ratio,
                "ratio": pair.mhsa_ratio,
                "macs_ratio": chosen.space.macs_ratio(*pair),
                "accuracy": evaluate(chosen.pruner.prune(pair), images, images.val),
            }
            results.add(row, seconds=time.perf_counter() - started)
    _show({**head, "rows": results.rows})


def _show(results: dict[str, Any]) -> None:
    """Accuracies in per cent, a line for each rule."""
    budgets = sorted({row["budget"] for row in results["rows"]}, reverse=True)
    found = {(row["rule"], row["budget"]): row["accuracy"] for row in results["rows"]}
    print(
        f"\n{results['name']}: dense {results['dense_accuracy']:.2f} %, on "
        f"{results['eval_images']} images\n\n| choice | {' | '.join(map(str, budgets))} |\n"
        f"|{' --- |' * (1 + len(budgets))}"
    )
    for rule in RULES:
        values = [found.get((rule, budget)) for budget in budgets]
        shown = " | ".join("-" if value is None else f"{value:.2f}" for value in values)
        print(f"| {rule} | {shown} |")


if __name__ == "__main__":
    run_command(main)
