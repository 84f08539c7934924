"""Search pruning ratios and a learning rate together, with a training loop of your own.

Everything is as in any other Optuna study; `pruner.suggest` suggests the two ratios and returns
the pruned model. Run the script again to add trials.

    python studies/own_loop.py
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import torch
import torch.nn.functional as F

import vit_ratio_opt as vro

DENSE = Path(__file__).parent / "results" / "quickstart_dense.safetensors"
DATA, LIMIT = vro.load_digits(), vro.Budget(0.3)


def batches(split: Any) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield normalised images and labels: replace this by the loader that you have."""
    for pixels, labels in split.batches(64):
        yield DATA.normalise(pixels), labels


def main(folder: Path = Path("runs/own_loop"), n_trials: int = 8, epochs: int = 3) -> None:
    """Search and print the best trial."""
    folder.mkdir(parents=True, exist_ok=True)
    pruner = vro.Pruner(vro.load_dense(DENSE), batches(DATA.train))

    def objective(trial: optuna.Trial) -> float:
        model = pruner.suggest(trial, LIMIT)
        lr = trial.suggest_float("lr", 1e-4, 1e-2, log=True)
        optimizer = torch.optim.AdamW(model.parameters(), lr)
        for _ in range(epochs):
            for images, labels in batches(DATA.train):
                optimizer.zero_grad()
                F.cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        return vro.evaluate(model, DATA, DATA.val)

    study = optuna.create_study(
        study_name="own_loop",
        storage=f"sqlite:///{folder / 'study.db'}",
        sampler=vro.BinarySearchSampler(pruner.space, LIMIT),
        direction="maximize",
        load_if_exists=True,
    )
    study.optimize(objective, n_trials)
    print(study.best_trial.params, f"{study.best_value:.2f} %")


if __name__ == "__main__":
    main()
