"""Search the two pruning ratios of a ViT on CIFAR-10, within a FLOPs budget.

The command line does the same: vit-ratio-opt search --data DIR --checkpoint FILE --budget 0.7

    python studies/cifar10.py DIR FILE
"""

from __future__ import annotations

import sys
from pathlib import Path

import vit_ratio_opt as vro


def main(
    data: Path, checkpoint: Path, folder: Path = Path("runs/cifar10"), n_trials: int = 8
) -> None:
    """Search, print the answer, and test it once."""
    folder.mkdir(parents=True, exist_ok=True)
    dense = vro.load_dense(checkpoint)
    # The dense model was trained on all training images. Half of the test images therefore
    # compare pairs, and the other half tests the answer.
    images = vro.load_images(data, validation="test", preprocess=vro.preprocess_of(dense))
    search = vro.Search(
        dense,
        images,
        vro.Budget(0.7),
        training=vro.Recipe(epochs=1, lr=1e-3),
        run=vro.RunOptions(checkpoints=folder / "checkpoints"),
    )
    study = search.create_study("cifar10", storage=f"sqlite:///{folder / 'study.db'}")
    search.run(study, n_trials)
    print(search.answer(study))
    print(f"{search.test(study):.2f} % on the other half of the test images")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
