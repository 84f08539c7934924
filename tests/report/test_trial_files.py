from __future__ import annotations

import csv
import io

from optuna.artifacts import FileSystemArtifactStore, get_all_artifact_meta
from optuna_dashboard import get_note
from PIL import Image
from support import make_search

from vit_ratio_opt.training.recipe import Recipe


def test_a_trained_trial_has_curve_table_and_checkpoint(dense, digits, tmp_path):
    search = make_search(
        dense, digits, budget=0.6, recipe=Recipe(epochs=2, batch_size=256),
        checkpoints=tmp_path / "models", calibration_images=64,
    )  # fmt: skip
    study = search.create_study("s", storage=f"sqlite:///{tmp_path / 's.db'}")
    search.run(study, n_trials=1, say=lambda line: None)
    (trial,) = study.trials
    store = FileSystemArtifactStore(search.journal.artifacts)
    files = {}
    for meta in get_all_artifact_meta(trial, storage=study._storage):
        with store.open_reader(meta.artifact_id) as content:
            files[meta.filename] = meta.mimetype, content.read()
    assert set(files) == {"trial-0000.safetensors", "training-curve.png", "blocks.csv"}
    assert files["training-curve.png"][0] == "image/png"
    with Image.open(io.BytesIO(files["training-curve.png"][1])) as image:
        assert image.width == 500
    rows = list(csv.DictReader(io.StringIO(files["blocks.csv"][1].decode())))
    blocks = [[int(row[name]) for name in ("heads", "head_dim", "neurons")] for row in rows]
    assert blocks == trial.user_attrs["blocks"]
    assert "1 of 1 trials are trained" in get_note(study)
    search.test(study)
    assert f"{study.user_attrs['tested']['accuracy']:.2f}" in get_note(study)
