"""Does the demo show the same thing whatever the seed?

Question: how often are the demo's two ratios better than its one ratio, and how often worse?

Method: ``vit-ratio-opt demo --train --seed S`` in a process of its own, for each seed on 1 and on
2 CPU threads. The seed is that of the split, of the dense model's training and of the calibration
images, so the 20 seeds are 20 dense models; each is trained once, for both numbers of threads.

- Tolerance: both answers keep 1 point on the validation images by the rule of the search. Two
  ratios are *better* if they need fewer FLOPs, by more than 0.01 of the dense model's, and *worse*
  if they need more, or lose significantly more than the point on test images (one-sided, 5 %).
- Budget: *better* and *worse* are differences on the same test images (McNemar's exact test, 5 %).

A row has the rows of the demo's table, each with the test images that its model gets ``wrong``.

    python benchmarks/demo_seeds.py [--seeds 20] [--folder runs/demo-seeds]
    python benchmarks/demo_seeds.py --show

Output: ``results/demo.json``, resumed run by run. Runtime: half a minute of CPU a run, and as much
to train each dense model.
"""

from __future__ import annotations

import json
import math
import os
import resource
import shutil
import subprocess
import sys
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

import vit_ratio_opt as vro
from vit_ratio_opt.training.evaluate import predict
from vit_ratio_opt.utils.files import write_json

RESULTS = Path(__file__).parent / "results" / "demo.json"
TEST_IMAGES, POINTS = 360, 1.0


def main(
    seeds: Annotated[int, typer.Option(min=1, help="Seeds 0, 1, ...")] = 20,
    folder: Annotated[Path, typer.Option(help="Folder of the dense models.")] = Path(
        "runs/demo-seeds"
    ),
    show: Annotated[bool, typer.Option("--show", help="Only print what is recorded.")] = False,
) -> None:
    """Run the demo for each seed and number of threads, and count."""
    recorded = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    done = {(row["threads"], row["seed"]) for row in recorded}
    folder.mkdir(parents=True, exist_ok=True)
    for threads in (1, 2):
        for seed in range(seeds):
            if not show and (threads, seed) not in done:
                recorded.append(_run(seed, threads, folder))
                write_json({"summary": _summary(recorded), "rows": recorded}, RESULTS)
                print(seed, threads, recorded[-1]["verdicts"], flush=True)
    print(json.dumps(_summary(recorded), indent=1))


def _run(seed: int, threads: int, dense_folder: Path) -> dict[str, Any]:
    """Run the demo once, and judge it."""
    name = f"dense-seed{seed}.safetensors"
    with TemporaryDirectory() as place:
        folder = Path(place)
        if (dense_folder / name).exists():
            shutil.copy(dense_folder / name, folder)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [sys.executable, "-m", "vit_ratio_opt", "demo", "--train", "--seed", str(seed),
             "--folder", place],
            check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        )  # fmt: skip
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        shutil.copy(folder / name, dense_folder)
        demo = json.loads((folder / "demo.json").read_text())
        dense, data = vro.load_dense(folder / name), vro.load_digits(seed=seed)
        for row in demo["rows"]:
            models = folder / "checkpoints" / row.pop("study").removeprefix("demo-")
            file = row.pop("checkpoint")
            model = vro.load_pruned(models / file)[0] if file else dense
            is_wrong = predict(model, data, data.test).argmax(dim=1).cpu() != data.test.labels
            row["wrong"] = is_wrong.nonzero().flatten().tolist()
    return {
        "seed": seed,
        "threads": threads,
        "verdicts": _verdicts(demo["rows"]),
        "seconds": demo["seconds"],
        "cpu_seconds": round(after.ru_utime - before.ru_utime, 1),
        "date": date.today().isoformat(),
        "commit": _commit(),
        "versions": {name: version(name) for name in ("torch", "timm", "optuna")},
        "rows": demo["rows"],
    }


def _verdicts(rows: list[dict[str, Any]]) -> dict[str, str]:
    """Return ``better``, ``tie`` or ``worse`` for each limit."""
    dense, one, two, weights_too, budget_one, budget_two = rows
    lost, gained = _changed(budget_one, budget_two)
    verdict = "tie" if _two_sided(lost, gained) >= 0.05 else "better" if gained > lost else "worse"
    return {
        "tolerance": _verdict(one, two, dense),
        "weights_too": _verdict(one, weights_too, dense),
        "budget": verdict,
    }


def _verdict(one: dict[str, Any], two: dict[str, Any], dense: dict[str, Any]) -> str:
    lost, gained = _changed(dense, two)
    excess = lost - gained - POINTS / 100 * TEST_IMAGES
    if excess > 1.645 * math.sqrt(lost + gained) or two["macs_ratio"] > one["macs_ratio"] + 0.01:
        return "worse"
    return "better" if two["macs_ratio"] < one["macs_ratio"] - 0.01 else "tie"


def _changed(first: dict[str, Any], second: dict[str, Any]) -> tuple[int, int]:
    """Return how many test images the second model loses, and gains."""
    before, after = set(first["wrong"]), set(second["wrong"])
    return len(after - before), len(before - after)


def _two_sided(lost: int, gained: int) -> float:
    """Return the p-value of McNemar's exact test."""
    total = lost + gained
    tail = sum(math.comb(total, fewer) for fewer in range(min(lost, gained) + 1))
    return min(1.0, 2.0 * tail / 2.0**total)


def _summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Count verdicts and average the table, for each number of threads."""
    found: dict[str, Any] = {}
    for threads in sorted({row["threads"] for row in rows}):
        runs = [row for row in rows if row["threads"] == threads]
        tables = [row["rows"] for row in runs]
        found[f"{threads} thread(s)"] = {
            "runs": len(runs),
            **{
                limit: {
                    verdict: sum(row["verdicts"][limit] == verdict for row in runs)
                    for verdict in ("better", "tie", "worse")
                }
                for limit in ("tolerance", "weights_too", "budget")
            },
            "share_of_one_ratio": [
                round(bound(t[2]["macs_ratio"] / t[1]["macs_ratio"] for t in tables), 3)
                for bound in (min, fmean, max)
            ],
            "mean_macs_ratio": [
                round(fmean(t[i]["macs_ratio"] for t in tables), 3) for i in range(6)
            ],
            "mean_test_accuracy": [
                round(fmean(t[i]["test_accuracy"] for t in tables), 2) for i in range(6)
            ],
            "cpu_seconds": round(fmean(row["cpu_seconds"] for row in runs), 1),
        }
    return found


def _commit() -> str:
    told = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parent,
    )  # fmt: skip
    return told.stdout.strip()


if __name__ == "__main__":
    typer.run(main)
