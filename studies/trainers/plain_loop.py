"""A plain PyTorch loop as the trainer of a search.

Each epoch is a function of the seed and its number, so a training that was killed ends with the
same weights as one that was not.

    python studies/trainers/plain_loop.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from digits import DATA, TRAIN, search
from torch import nn
from torch.utils.data import DataLoader

import vit_ratio_opt as vro


class LoopTrainer:
    """Train with AdamW and distillation; the metric is top-1 accuracy."""

    metric = vro.Metric("accuracy", "%")

    def __init__(self, epochs: int = 4, lr: float = 1e-3) -> None:
        self.epochs, self.lr = epochs, lr

    def identity(self) -> dict[str, Any]:
        return {"loop": "AdamW", "epochs": self.epochs, "lr": self.lr}

    def evaluate(self, model: nn.Module) -> float:
        return vro.evaluate(model, DATA, DATA.val)

    def train(self, model: nn.Module, context: vro.TrialContext) -> float:
        device, done = next(model.parameters()).device, 0
        optimizer = torch.optim.AdamW(model.parameters(), self.lr)
        if context.state is not None and context.state.exists():
            saved = torch.load(context.state, map_location=device, weights_only=True)
            model.load_state_dict(saved["model"])
            optimizer.load_state_dict(saved["optimizer"])
            done = saved["epoch"]
            context.on_resume()
        with vro.distill(model, context.teacher):
            for epoch in range(done + 1, self.epochs + 1):
                torch.manual_seed(1000 * context.seed + epoch)
                model.train()
                for images, labels in DataLoader(TRAIN, 64, shuffle=True):
                    if context.should_stop():
                        raise vro.TrainingStopped(f"stopped in epoch {epoch}")
                    optimizer.zero_grad()
                    F.cross_entropy(model(images.to(device)), labels.to(device)).backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
                if context.state is not None:
                    parts = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                    torch.save({**parts, "epoch": epoch}, context.state)
                context.report(epoch, self.evaluate(model))
        return self.evaluate(model)


def main(folder: Path = Path("runs/plain_loop"), n_trials: int = 4, epochs: int = 4) -> None:
    search(LoopTrainer(epochs), "plain_loop", folder, n_trials)


if __name__ == "__main__":
    main()
