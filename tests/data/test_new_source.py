"""A new source of images is one file; this one is not of the package."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from vit_ratio_opt.data.datasets import load_datasets
from vit_ratio_opt.data.image_data import ImageData
from vit_ratio_opt.data.load import SOURCES, load_again
from vit_ratio_opt.data.options import LoadOptions
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.training.context import TrialContext
from vit_ratio_opt.training.recipe import Recipe
from vit_ratio_opt.training.trainer import ImageTrainer

# The new source


def load_npz(root: str | Path, *, seed: int = 0) -> ImageData:
    """Load arrays ``train_images``, ``train_labels``, ``test_images``, ``test_labels``."""
    path = Path(root)
    with np.load(path) as arrays:
        splits = {
            split: list(zip(arrays[f"{split}_images"], arrays[f"{split}_labels"], strict=True))
            for split in ("train", "test")
        }
    options = LoadOptions(mean=(0.5,), std=(0.25,), flip=False)
    data = load_datasets(
        splits, name=path.stem, classes=["dark", "light"], seed=seed, options=options
    )
    return replace(data, source={"loader": "npz", "root": str(path.resolve()), "seed": seed})


# Its tests


@pytest.fixture
def path(tmp_path):
    random = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 60), ("test", 20)):
        labels = np.arange(count) % 2
        pixels = random.integers(0, 128, (count, 8, 8, 1)) + 120 * labels[:, None, None, None]
        arrays |= {f"{split}_images": pixels.astype(np.uint8), f"{split}_labels": labels}
    np.savez(tmp_path / "shades.npz", **arrays)
    return tmp_path / "shades.npz"


def test_a_new_source_trains(path):
    data = load_npz(path)
    assert [len(split) for split in (data.train, data.val, data.test)] == [54, 6, 20]
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=8, patch_size=4, in_chans=1, embed_dim=16, depth=1,
        num_heads=2, num_classes=2,
    )  # fmt: skip
    trainer = ImageTrainer(data, Recipe(epochs=6, batch_size=18, lr=3e-3), device="cpu")
    assert trainer.train(model, TrialContext(progress=False)) > 80
    assert trainer.identity()["dataset"] == "shades"


def test_a_new_source_has_a_fingerprint_and_is_loaded_again_once_it_is_known(path, monkeypatch):
    data = load_npz(path, seed=3)
    assert data.fingerprint != load_npz(path, seed=4).fingerprint
    stored = json.loads(json.dumps(data.source))
    with pytest.raises(InputError, match="not from 'npz'"):
        load_again(stored)
    monkeypatch.setitem(SOURCES, "npz", load_npz)
    assert load_again(stored).fingerprint == data.fingerprint
    moved = path.rename(path.with_name("moved.npz"))
    assert load_again(stored, root=moved).fingerprint == data.fingerprint
