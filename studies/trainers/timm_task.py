"""The pieces of timm's training script as the trainer of a search, with its own distillation.

python studies/trainers/timm_task.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from digits import DATA, TRAIN, search
from timm.models import resume_checkpoint
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.task import ClassificationTask, LogitDistillationTask
from timm.utils import CheckpointSaver
from torch import nn
from torch.utils.data import DataLoader

import vit_ratio_opt as vro


class TaskTrainer:
    """Train with a task of timm's; the metric is top-1 accuracy."""

    metric = vro.Metric("accuracy", "%")

    def __init__(self, epochs: int = 4, lr: float = 1e-3) -> None:
        self.epochs, self.lr = epochs, lr

    def identity(self) -> dict[str, Any]:
        return {"loop": "timm", "epochs": self.epochs, "lr": self.lr}

    def evaluate(self, model: nn.Module) -> float:
        return vro.evaluate(model, DATA, DATA.val)

    def train(self, model: nn.Module, context: vro.TrialContext) -> float:
        device, done = next(model.parameters()).device, 0
        options = {"device": device, "verbose": False}
        task: Any = ClassificationTask(model, nn.CrossEntropyLoss(), **options)
        if context.teacher is not None:
            task = LogitDistillationTask(
                model, context.teacher, task_loss_weight=0.5, temperature=2.0, **options
            )
        optimizer = create_optimizer_v2(model, "adamw", lr=self.lr, weight_decay=0.01)
        scheduler, _ = create_scheduler_v2(optimizer, num_epochs=self.epochs)
        saver = None
        if context.state is not None:
            last = context.state / "last.pth.tar"
            if last.exists():
                done = resume_checkpoint(model, str(last), optimizer, log_info=False)
                context.on_resume()
            context.state.mkdir(exist_ok=True)
            saver = CheckpointSaver(
                model, optimizer, checkpoint_dir=str(context.state), max_history=1
            )
        for epoch in range(done, self.epochs):
            torch.manual_seed(1000 * context.seed + epoch)
            scheduler.step(epoch)
            task.train()
            for images, labels in DataLoader(TRAIN, 64, shuffle=True):
                if context.should_stop():
                    raise vro.TrainingStopped(f"stopped in epoch {epoch}")
                optimizer.zero_grad()
                task(images.to(device), labels.to(device))["loss"].backward()
                optimizer.step()
            value = self.evaluate(model)
            if saver is not None:
                saver.save_checkpoint(epoch, value)
            context.report(epoch + 1, value)
        return self.evaluate(model)


def main(folder: Path = Path("runs/timm_task"), n_trials: int = 4, epochs: int = 4) -> None:
    search(TaskTrainer(epochs), "timm_task", folder, n_trials)


if __name__ == "__main__":
    main()
