from __future__ import annotations

import json

import pytest

from vit_ratio_opt.data.digits import load_digits
from vit_ratio_opt.model_files.load import load_dense
from vit_ratio_opt.models.shape import shape_of
from vit_ratio_opt.training.evaluate import evaluate


def test_train_leaves_a_model_that_a_search_can_load(tmp_path, command):
    path, output = tmp_path / "new" / "dense.safetensors", tmp_path / "dense.json"
    size = ["--embed-dim", 32, "--depth", 2, "--num-heads", 4]
    recipe = ["--epochs", 6, "--batch-size", 32, "--cutmix", 1.0]
    ended = command("train", path, *size, *recipe, "--output", output)
    assert ended.code == 0, ended.err
    row, model = json.loads(output.read_text()), load_dense(path)
    assert row["precision"] == "float32"  # a small model on a CPU
    digits = load_digits()
    assert row["val_accuracy"] == evaluate(model, digits, digits.val) > 15
    assert row["test_accuracy"] == evaluate(model, digits, digits.test)
    assert row["macs"] == shape_of(model).macs
    assert [b.num_heads for b in shape_of(model).blocks] == [4, 4]
    assert not path.with_name(f"{path.name}.training").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-heads", "7"], "arguments do not fit"),
        (["--patch-size", "3"], "must divide 8, but got 3"),
        (["--lr", "0"], "`lr` must be above 0"),
        (["--image-size", "32"], "is for a folder"),
        (["--exif-rotation"], "is for a folder"),
        (["--epochz", "3"], "No such option"),
        (["--data", "missing"], "There is no folder missing"),
    ],
)
def test_train_refuses_bad_input_and_writes_nothing(
    tmp_path, monkeypatch, command, arguments, message
):
    monkeypatch.chdir(tmp_path)
    ended = command("train", "new/dense.safetensors", *arguments)
    assert ended.code == 2
    assert message in ended.err
    assert "Traceback" not in ended.err
    assert list(tmp_path.iterdir()) == []
