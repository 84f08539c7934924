from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from PIL import Image

from vit_ratio_opt.cli import main as cli
from vit_ratio_opt.model_files.save import save_dense
from vit_ratio_opt.models.create import create_model

NAME = "vit_tiny_patch16_224"
ARGUMENTS = {
    "img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4,
    "mlp_ratio": 2.0, "num_classes": 4,
}  # fmt: skip


class Ended(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def command(monkeypatch, capsys) -> Callable[..., Ended]:
    """Runs ``vit-ratio-opt`` with some arguments in this process."""

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["vit-ratio-opt", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return Ended(int(stop.value.code or 0), *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def files(tmp_path_factory) -> Path:
    """A folder with ``photos`` of four classes and an untrained ``dense.safetensors`` for them."""
    folder = tmp_path_factory.mktemp("files")
    for split in ("train", "test"):
        for number in range(4):
            place = folder / "photos" / split / str(number)
            place.mkdir(parents=True)
            for shade in range(8):
                Image.new("RGB", (32, 32), (60 * number, shade, 0)).save(place / f"{shade}.png")
    torch.manual_seed(0)
    save_dense(
        create_model(NAME, **ARGUMENTS), folder / "dense.safetensors", name=NAME,
        arguments=ARGUMENTS,
    )  # fmt: skip
    return folder


@pytest.fixture(scope="session")
def searched(files, tmp_path_factory) -> Path:
    """A folder with the ``study.db``, ``rows.json`` and ``rows.toml`` of a finished search."""
    folder = tmp_path_factory.mktemp("searched")
    arguments = [
        "search", "--data", files / "photos", "--checkpoint", files / "dense.safetensors",
        "--n-trials", 2, "--study-name", "photos", "--folder", folder,
        "--output", folder / "rows.json",
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("OPTUNA_STORAGE", raising=False)
        patch.setattr(sys, "argv", ["vit-ratio-opt", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
    assert stop.value.code == 0
    return folder
