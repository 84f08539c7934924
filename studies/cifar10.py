"""Search the two pruning ratios of a ViT on CIFAR-10, within a FLOPs budget.

The command line does the same: vit-ratio-opt search --data DIR --checkpoint FILE --budget 0.7

    python studies/cifar10.py DIR FILE
"""

from __future__ import annotations

import sys
from pathlib import Path

import vit_ratio_opt as vro


def main(data: Path, checkpoint: Path, folder: Path = Path("runs/cifar10")) -> None:
    """Search, test the answer once and print it."""
    folder.mkdir(parents=True, exist_ok=True)
    dense = vro.load_dense(checkpoint)
    objective = vro.PruningObjective(
        dense,
        # The dense model was trained on all training images, so half of the test images compare
        # pairs, and the other half tests the answer.
        vro.load_images(data, validation="test", preprocess=vro.preprocess_of(dense)),
        budget=0.7,
        recipe=vro.Recipe(epochs=1),
        checkpoints=folder / "checkpoints",
    )
    storage = f"sqlite:///{folder / 'study.db'}"
    study = vro.create_study(objective, study_name="cifar10", storage=storage)
    vro.run_study(study, objective, n_trials=8)
    print(vro.answer_of(study), objective.test(study))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
