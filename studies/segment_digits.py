"""Prune the encoder of a segmentation model: to which digit does each pixel of a canvas belong?

Loop and metric (mIoU) are of one's own. Run again to add trials: python studies/segment_digits.py
"""

from pathlib import Path

import optuna
import timm
import torch
import torch.nn.functional as F
from torch import nn

import vit_ratio_opt as vro

Batches = list[tuple[torch.Tensor, torch.Tensor]]
CLASSES, LIMIT = 11, vro.Budget(0.4)  # background and ten digits; share of the encoder's MACs
SIZES = {"img_size": 24, "patch_size": 4, "in_chans": 1, "embed_dim": 64, "depth": 4}


class Segmenter(nn.Module):
    """Features of two blocks, and one layer that classifies the 16 pixels of each patch."""

    def __init__(self) -> None:
        super().__init__()
        options = {"features_only": True, "out_indices": (1, 3), "num_heads": 4, **SIZES}
        self.encoder = timm.create_model("vit_tiny_patch16_224", **options)
        self.decoder = nn.Sequential(nn.Conv2d(128, 16 * CLASSES, 1), nn.PixelShuffle(4))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits ``(batch, classes, height, width)``."""
        logits: torch.Tensor = self.decoder(torch.cat(self.encoder(images), dim=1))
        return logits


def draw_canvases(digits: torch.Tensor, labels: torch.Tensor, count: int) -> Batches:
    images, classes = torch.zeros(count, 1, 24, 24), torch.zeros(count, 24, 24).long()
    for index in range(count):  # a digit in each quarter
        for y, x in torch.randint(5, (4, 2)) + torch.tensor([[0, 0], [0, 12], [12, 0], [12, 12]]):
            digit = torch.randint(len(digits), ())
            images[index, 0, y : y + 8, x : x + 8] = digits[digit, 0] / 100
            classes[index, y : y + 8, x : x + 8] = (digits[digit, 0] > 64) * (1 + labels[digit])
    return list(zip(torch.split(images, 64), torch.split(classes, 64), strict=True))


def train(model: nn.Module, batches: Batches, epochs: int, lr: float) -> None:
    optimizer = torch.optim.AdamW(model.train().parameters(), lr)
    for images, classes in epochs * batches:
        optimizer.zero_grad()
        F.cross_entropy(model(images), classes).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


@torch.no_grad()
def mean_iou(model: nn.Module, batches: Batches) -> float:
    pairs = [(CLASSES * y + model.eval()(x).argmax(1)).flatten() for x, y in batches]
    counts = torch.bincount(torch.cat(pairs), minlength=CLASSES**2).view(CLASSES, CLASSES)
    union = counts.sum(0) + counts.sum(1) - counts.diag()
    return float(100 * (counts.diag() / union.clamp_min(1)).mean())


def main(folder: Path = Path("runs/segment"), n_trials: int = 8, count: int = 2000) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    data, segmenter = vro.load_digits(), Segmenter()
    splits = [next(iter(split.batches(len(split)))) for split in (data.train, data.val)]
    training, validation = (draw_canvases(*split, count) for split in splits)
    train(segmenter, training, epochs=20, lr=2e-3)
    print(f"dense: {mean_iou(segmenter, validation):.2f} % mIoU")
    pruner = vro.Pruner(segmenter.encoder.model, [images for images, _ in training])

    def objective(trial: optuna.Trial) -> float:
        model = vro.replace_encoder(segmenter, pruner.suggest(trial, LIMIT))
        train(model, training, 2, trial.suggest_float("lr", 1e-4, 1e-3, log=True))
        return mean_iou(model, validation)

    study = optuna.create_study(
        study_name="segment",
        storage=f"sqlite:///{folder / 'study.db'}",
        sampler=vro.BinarySearchSampler(pruner.space, LIMIT),
        direction="maximize",
        load_if_exists=True,
    )
    study.optimize(objective, n_trials)
    print(vro.answer_of(study))


if __name__ == "__main__":
    main()
