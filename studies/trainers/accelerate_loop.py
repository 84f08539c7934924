"""A loop with Accelerate as the trainer of a search; its state is a folder.

pip install 'vit_ratio_opt[hf]'
python studies/trainers/accelerate_loop.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from digits import DATA, TRAIN, search
from torch import nn
from torch.utils.data import DataLoader

import vit_ratio_opt as vro


class AccelerateTrainer:
    """Train with AdamW and Accelerate; the metric is top-1 accuracy."""

    metric = vro.Metric("accuracy", "%")

    def __init__(self, epochs: int = 4, lr: float = 1e-3) -> None:
        self.epochs, self.lr = epochs, lr

    def identity(self) -> dict[str, Any]:
        return {"loop": "Accelerate", "epochs": self.epochs, "lr": self.lr}

    def evaluate(self, model: nn.Module) -> float:
        return vro.evaluate(model, DATA, DATA.val)

    def train(self, model: nn.Module, context: vro.TrialContext) -> float:
        accelerator, done = Accelerator(), 0
        prepared, optimizer, loader = accelerator.prepare(
            model,
            torch.optim.AdamW(model.parameters(), self.lr),
            DataLoader(TRAIN, 64, shuffle=True),
        )
        if context.state is not None and context.state.exists():
            accelerator.load_state(str(context.state))
            done = int((context.state / "epoch").read_text())
            context.on_resume()
        with vro.distill(model, context.teacher):
            for epoch in range(done + 1, self.epochs + 1):
                torch.manual_seed(1000 * context.seed + epoch)
                prepared.train()
                for images, labels in loader:
                    if context.should_stop():
                        raise vro.TrainingStopped(f"stopped in epoch {epoch}")
                    accelerator.backward(F.cross_entropy(prepared(images), labels))
                    optimizer.step()
                    optimizer.zero_grad()
                if context.state is not None:
                    accelerator.save_state(str(context.state))
                    (context.state / "epoch").write_text(str(epoch))
                context.report(epoch, self.evaluate(model))
        return self.evaluate(model)


def main(folder: Path = Path("runs/accelerate"), n_trials: int = 4, epochs: int = 4) -> None:
    search(AccelerateTrainer(epochs), "accelerate", folder, n_trials)


if __name__ == "__main__":
    main()
