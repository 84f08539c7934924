"""Hugging Face's `Trainer` as the trainer of a search: it evaluates, saves and resumes by itself.

pip install 'vit_ratio_opt[hf]'
python studies/trainers/huggingface_trainer.py
"""

from __future__ import annotations

from pathlib import Path
from tempfile import gettempdir
from typing import Any

import torch
import torch.nn.functional as F
from digits import DATA, TRAIN, VAL, search
from torch import nn
from torch.utils.data import default_collate
from transformers import Trainer, TrainingArguments

import vit_ratio_opt as vro


class WithLoss(nn.Module):
    """Return loss and logits by name, as Hugging Face's `Trainer` expects."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.model(images)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


def collate(items: Any) -> dict[str, torch.Tensor]:
    """Return images and labels of a batch by the names of `forward`."""
    images, labels = default_collate(items)
    return {"images": images, "labels": labels}


def accuracy(results: Any) -> dict[str, float]:
    """Return the metric in the unit of the search."""
    return {"accuracy": 100 * float((results.predictions.argmax(1) == results.label_ids).mean())}


class HuggingFaceTrainer:
    """Train with Hugging Face's `Trainer`; the metric is top-1 accuracy."""

    metric = vro.Metric("accuracy", "%")

    def __init__(self, epochs: int = 4, lr: float = 1e-3) -> None:
        self.epochs, self.lr = epochs, lr

    def identity(self) -> dict[str, Any]:
        return {"loop": "Hugging Face", "epochs": self.epochs, "lr": self.lr}

    def evaluate(self, model: nn.Module) -> float:
        return vro.evaluate(model, DATA, DATA.val)

    def train(self, model: nn.Module, context: vro.TrialContext) -> float:
        is_saved = context.state is not None and context.state.exists()
        arguments = TrainingArguments(
            output_dir=str(context.state or gettempdir()),
            save_strategy="no" if context.state is None else "epoch",
            save_total_limit=1,
            eval_strategy="epoch",
            logging_strategy="epoch",
            num_train_epochs=self.epochs,
            per_device_train_batch_size=64,
            learning_rate=self.lr,
            seed=context.seed,
            report_to="none",
            disable_tqdm=True,
        )
        trainer = Trainer(
            WithLoss(model),
            arguments,
            data_collator=collate,
            train_dataset=TRAIN,
            eval_dataset=VAL,
            compute_metrics=accuracy,
            callbacks=[vro.hf_callback(context, "eval_accuracy")],
        )
        with vro.distill(model, context.teacher):
            trainer.train(resume_from_checkpoint=is_saved)
        return self.evaluate(model)


def main(folder: Path = Path("runs/huggingface"), n_trials: int = 4, epochs: int = 4) -> None:
    search(HuggingFaceTrainer(epochs), "huggingface", folder, n_trials)


if __name__ == "__main__":
    main()
