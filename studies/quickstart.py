"""Search the two pruning ratios of a small ViT on scikit-learn's digits, in a few minutes.

The dense model is one of this repository. The search trains the one fixed ratio that meets the
same budget first, so that the table shows dense model, fixed ratio and answer side by side. Run
the script again to resume the search.

    python studies/quickstart.py
"""

from __future__ import annotations

from pathlib import Path

import vit_ratio_opt as vro

DENSE = Path(__file__).parent / "results" / "quickstart_dense.safetensors"


def main(folder: Path = Path("runs/quickstart"), n_trials: int = 8, epochs: int = 10) -> None:
    """Search, test the answer once and print it."""
    folder.mkdir(parents=True, exist_ok=True)
    objective = vro.PruningObjective(
        vro.load_dense(DENSE),
        vro.load_digits(),
        budget=0.2,
        recipe=vro.Recipe(epochs=epochs, batch_size=64),
        checkpoints=folder / "checkpoints",
    )
    storage = f"sqlite:///{folder / 'study.db'}"
    study = vro.create_study(objective, study_name="quickstart", storage=storage)
    vro.run_study(study, objective, n_trials=n_trials)
    print(vro.answer_of(study), objective.test(study))


if __name__ == "__main__":
    main()
