"""Search with a given trainer: what the examples in this folder have in common."""

from __future__ import annotations

from pathlib import Path

import optuna
from torch.utils.data import TensorDataset

import vit_ratio_opt as vro

DENSE = Path(__file__).parents[1] / "results" / "quickstart_dense.safetensors"
DATA = vro.load_digits()
_PIXELS, _LABELS = next(DATA.train.batches(len(DATA.train)))
TRAIN = TensorDataset(DATA.normalise(_PIXELS), _LABELS)
_PIXELS, _LABELS = next(DATA.val.batches(len(DATA.val)))
VAL = TensorDataset(DATA.normalise(_PIXELS), _LABELS)


def search(trainer: vro.Trainer, name: str, folder: Path, n_trials: int) -> None:
    """Search, or resume the search in the same folder, and print the answer."""
    folder.mkdir(parents=True, exist_ok=True)
    task = vro.Search(
        vro.load_dense(DENSE),
        DATA,
        vro.Budget(0.3),
        training=trainer,
        run=vro.RunOptions(checkpoints=folder / "models"),
    )
    study = task.create_study(
        name,
        storage=f"sqlite:///{folder / 'study.db'}",
        pruner=optuna.pruners.MedianPruner(),  # ends a training after a bad epoch
    )
    task.run(study, n_trials)
    print(task.answer(study))
