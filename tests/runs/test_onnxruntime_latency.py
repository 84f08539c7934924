"""A search of a latency in ONNX Runtime, on the CPU."""

from __future__ import annotations

from functools import partial

import onnxruntime
import pytest
import torch
from support import load_again, make_search, new_study

from vit_ratio_opt.latency import curves, sessions, table, timing
from vit_ratio_opt.latency.timing import TimingEffort, time_models
from vit_ratio_opt.model_files.load import load_dense
from vit_ratio_opt.model_files.save import save_dense
from vit_ratio_opt.models.create import create_model
from vit_ratio_opt.report.sentences import summary
from vit_ratio_opt.runs import testing
from vit_ratio_opt.training.recipe import Recipe

MODEL = "vit_tiny_patch16_224"
# Most of its time is in neurons, also on a busy machine.
ARGUMENTS = {
    "img_size": 8, "patch_size": 4, "in_chans": 1, "embed_dim": 32, "depth": 1, "num_heads": 2,
    "mlp_ratio": 8.0, "num_classes": 10,
}  # fmt: skip
PROVIDER = "CPUExecutionProvider"


@pytest.fixture
def quick(monkeypatch):
    """Few sizes, timed once, of files by PyTorch's older exporter, which takes a twentieth."""
    for name in ("_HEADS", "_RANKS", "_NEURONS", "_CHECKED"):
        monkeypatch.setattr(table, name, 1)
    once = partial(time_models, effort=TimingEffort(turns=1, turn_seconds=0.0))
    for module in (table, curves, testing):
        monkeypatch.setattr(module, "time_models", once)
    monkeypatch.setattr(
        sessions,
        "write_onnx",
        lambda model, example, path: torch.onnx.export(
            model, (example,), path, input_names=["images"], dynamo=False,
            dynamic_axes={"images": {0: "batch"}},
        ),
    )  # fmt: skip


def test_a_search_runs_in_onnxruntime_says_so_and_is_resumed_without_timing(
    digits, tmp_path, url, quick, monkeypatch
):
    path = tmp_path / "dense.safetensors"
    save_dense(create_model(MODEL, **ARGUMENTS), path, name=MODEL, arguments=ARGUMENTS)
    made = make_search(
        load_dense(path), digits, tolerance=50.0, cost="latency", latency_engine="onnxruntime",
        latency_batch=256, recipe=Recipe(epochs=0), calibration_images=64, round_to=1,
        checkpoints=tmp_path / "models",
    )  # fmt: skip
    study = new_study(made, "s", storage=url, screen=False)
    known, settings = study.user_attrs["latency"], study.user_attrs["settings"]
    assert settings["latency_engine"] == "onnxruntime"
    assert known["run_as"] == ["onnxruntime"]
    assert (known["provider"], known["onnxruntime"]) == (PROVIDER, onnxruntime.__version__)
    made.run(study, n_trials=1, say=lambda line: None, explain=False)
    made.test(study)
    tested = study.user_attrs["tested"]
    assert tested["device"] == f"cpu in ONNX Runtime by {PROVIDER}"
    assert tested["dense_ms"] > tested["pruned_ms"] > 0
    assert f"on cpu with 1 thread(s), in ONNX Runtime by {PROVIDER}" in " ".join(summary(study))
    monkeypatch.setattr(timing, "open_session", None)
    again = load_again("s", url)
    assert again.space.cost == made.space.cost
    assert again.settings == made.settings
    again.create_study("s", storage=url)
