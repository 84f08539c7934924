"""Search the two pruning ratios of a small ViT on scikit-learn's digits, in a few minutes.

The dense model is one of this repository. The first trial is the baseline, one fixed ratio for
both modules. Run the script again to resume the search.

    python studies/quickstart.py
"""

from __future__ import annotations

from pathlib import Path

import vit_ratio_opt as vro

DENSE = Path(__file__).parent / "results" / "quickstart_dense.safetensors"


def main(folder: Path = Path("runs/quickstart"), n_trials: int = 8, epochs: int = 10) -> None:
    """Search, print the answer, and test it once."""
    folder.mkdir(parents=True, exist_ok=True)
    search = vro.Search(
        vro.load_dense(DENSE),
        vro.load_digits(),
        vro.Budget(0.2),
        training=vro.Recipe(epochs=epochs, batch_size=64, lr=1e-3),
        run=vro.RunOptions(checkpoints=folder / "checkpoints"),
    )
    study = search.create_study("quickstart", storage=f"sqlite:///{folder / 'study.db'}")
    search.run(study, n_trials)
    print(search.answer(study))
    print(f"{search.test(study):.2f} % on the test images")


if __name__ == "__main__":
    main()
