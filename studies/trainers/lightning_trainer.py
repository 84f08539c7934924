"""Lightning's `Trainer` as the trainer of a search.

The order of the images is a function of the seed and the epoch, so a training that was killed ends
with the same weights as one that was not.

    pip install 'vit_ratio_opt[lightning]'
    python studies/trainers/lightning_trainer.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import torch
import torch.nn.functional as F
from digits import DATA, TRAIN, VAL, search
from torch import nn
from torch.utils.data import DataLoader, Subset

import vit_ratio_opt as vro


class Classifier(lightning.LightningModule):
    """Cross-entropy, AdamW and accuracy, as in any other Lightning module."""

    def __init__(self, model: nn.Module, lr: float, seed: int) -> None:
        super().__init__()
        self.model, self.lr, self.seed = model, lr, seed

    def training_step(self, batch: Any, _: int) -> torch.Tensor:
        return F.cross_entropy(self.model(batch[0]), batch[1])

    def validation_step(self, batch: Any, _: int) -> None:
        right = self.model(batch[0]).argmax(1) == batch[1]
        self.log("accuracy", 100 * right.float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.model.parameters(), self.lr)

    def train_dataloader(self) -> Any:
        generator = torch.Generator().manual_seed(1000 * self.seed + self.current_epoch)
        order = torch.randperm(len(TRAIN), generator=generator)
        return DataLoader(Subset(TRAIN, order.tolist()), 64)

    def val_dataloader(self) -> Any:
        return DataLoader(VAL, 512)


class LightningTrainer:
    """Train with Lightning's `Trainer`; the metric is top-1 accuracy."""

    metric = vro.Metric("accuracy", "%")

    def __init__(self, epochs: int = 4, lr: float = 1e-3) -> None:
        self.epochs, self.lr = epochs, lr

    def identity(self) -> dict[str, Any]:
        return {"loop": "Lightning", "epochs": self.epochs, "lr": self.lr}

    def evaluate(self, model: nn.Module) -> float:
        return vro.evaluate(model, DATA, DATA.val)

    def train(self, model: nn.Module, context: vro.TrialContext) -> float:
        trainer = lightning.Trainer(
            max_epochs=self.epochs,
            callbacks=[vro.lightning_callback(context, "accuracy")],
            reload_dataloaders_every_n_epochs=1,
            num_sanity_val_steps=0,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            logger=False,
        )
        is_saved = context.state is not None and context.state.exists()
        with vro.distill(model, context.teacher):
            module = Classifier(model, self.lr, context.seed)
            trainer.fit(module, ckpt_path=context.state if is_saved else None)
        return self.evaluate(model)


def main(folder: Path = Path("runs/lightning"), n_trials: int = 4, epochs: int = 4) -> None:
    search(LightningTrainer(epochs), "lightning", folder, n_trials)


if __name__ == "__main__":
    main()
