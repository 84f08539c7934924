from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support import make_search, new_study
from typer.testing import CliRunner

from vit_ratio_opt.cli import main as cli
from vit_ratio_opt.data.digits import load_digits
from vit_ratio_opt.data.image_folder import load_image_folder
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.model_files.card import card_path, model_card
from vit_ratio_opt.model_files.load import load_dense, load_pruned
from vit_ratio_opt.model_files.save import save_dense
from vit_ratio_opt.models.create import create_model
from vit_ratio_opt.models.shape import shape_of
from vit_ratio_opt.records.answer import answer_trial
from vit_ratio_opt.runs.final import finish
from vit_ratio_opt.space.pairs import RatioPair
from vit_ratio_opt.training.evaluate import evaluate
from vit_ratio_opt.training.recipe import Recipe

MODEL = "vit_tiny_patch16_224"
ARGUMENTS = {
    "img_size": 8, "patch_size": 4, "in_chans": 1, "embed_dim": 32, "depth": 2, "num_heads": 4,
    "mlp_ratio": 2.0, "num_classes": 10,
}  # fmt: skip


@pytest.fixture(scope="module")
def dense_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("dense") / "dense.safetensors"
    torch.manual_seed(0)
    save_dense(create_model(MODEL, **ARGUMENTS), path, name=MODEL, arguments=ARGUMENTS)
    return path


@pytest.fixture(scope="module")
def searched(dense_file, tmp_path_factory):
    """The URL of a study of two trials, and its search."""
    folder = tmp_path_factory.mktemp("study")
    search = make_search(
        load_dense(dense_file),
        load_digits(),
        budget=0.6,
        recipe=Recipe(epochs=1, batch_size=64),
        calibration_images=64,
        checkpoints=folder / "models",
        progress=False,
    )
    url = f"sqlite:///{folder / 'study.db'}"
    search.journal.attach = None
    study = new_study(search, "digits", storage=url, screen=False)
    search.run(study, n_trials=2, say=lambda _: None, explain=False)
    return url, study, search


def command(*arguments: object) -> tuple[int, str]:
    """Exit code and all output of the command line, in this process."""
    result = CliRunner().invoke(cli.app, list(map(str, arguments)))
    if isinstance(result.exception, InputError):  # what `main` makes a sentence of
        return 2, result.output + str(result.exception)
    return result.exit_code, result.output + str(result.exception or "")


def test_final_trains_the_best_trial_tests_it_once_and_writes_a_card(searched, tmp_path):
    url, study, search = searched
    path = tmp_path / "final.safetensors"
    arguments = ("final", "--study-name", "digits", "--storage", url, "--epochs", 2)
    code, output = command(*arguments, "--output", path)
    assert code == 0, output
    model, manifest = load_pruned(path)  # nothing but the file
    best = answer_trial(study)
    assert manifest["lineage"]["trial"] == best.number
    assert manifest["mhsa_ratio"] == best.params["mhsa_ratio"]
    assert shape_of(model).macs == manifest["macs"] == best.user_attrs["macs"]
    assert manifest["recipe"]["epochs"] == 2
    assert manifest["test_accuracy"] == evaluate(model, search.data, search.data.test)
    assert manifest["val_accuracy"] == evaluate(model, search.data, search.data.val)
    assert set(manifest["versions"]) == {"vit_ratio_opt", "torch", "timm"}
    card = card_path(path).read_text()
    for figure in ("macs", "params"):
        assert f"{manifest[figure]:,}" in card
    assert f"{manifest['test_accuracy']:.2f}" in card
    assert f"{manifest['test_accuracy']:.2f} %" in output
    assert sorted(file.name for file in tmp_path.iterdir()) == ["final.md", "final.safetensors"]


def test_a_card_of_no_study_says_that_the_ratios_were_given(searched, tmp_path):
    _, _, search = searched
    pair = RatioPair(0.5, 0.5)
    made = finish(
        search.objective,
        pair,
        search.pruner.prune(pair),
        tmp_path / "m.safetensors",
        trainer=search.trainer_for(Recipe(epochs=0)),
    )
    card = model_card(made, "m.safetensors")
    assert "given by hand" in card
    assert "not trained after pruning" in card
    assert 'load_pruned("m.safetensors")' in card
    assert "for the 10 classes of digits" in card
    assert "pipeline_tag: image-classification" in card
    lineage = {"study": "s", "trial": 3, "parent_trial": 1}
    card = model_card({**made, "lineage": lineage}, "m.safetensors")
    assert "those of trial 3 of study 's'" in card
    assert "The trial began with the model of trial 1." in card
    card = model_card({**made, "lineage": {**lineage, "total_epochs": 3}}, "m.safetensors")
    assert "model of trial 1; its weights were trained for 3 epochs in all." in card
    card = model_card({**made, "lineage": {**lineage, "parent_trial": "dense"}}, "m.safetensors")
    assert "The trial began" not in card
    regression = {**made, "calibration_task": "regression", "classes": ["mm"]}
    card = model_card(regression, "m.safetensors")
    assert "for the 1 target of digits" in card
    assert "outputs = model(images)" in card
    assert "pipeline_tag" not in card


@pytest.fixture(scope="module")
def whole(searched, tmp_path_factory) -> tuple[list[object], Path]:
    """A command without the path of its output, and a model that it gave without a break."""
    url, *_ = searched
    path = tmp_path_factory.mktemp("whole") / "whole.safetensors"
    arguments = ["final", "--study-name", "digits", "--storage", url, "--epochs", 8]
    arguments += ["--state-every", 0, "--output"]
    assert command(*arguments, path)[0] == 0
    return arguments, path


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_final_goes_on_where_it_was_killed_or_stopped(whole, start_command, tmp_path, number):
    arguments, whole_path = whole
    killed = tmp_path / "killed.safetensors"
    process = start_command(*arguments, killed)
    state = tmp_path / "killed.safetensors.training"
    deadline = time.monotonic() + 60
    while not state.exists() and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, number)
    process.join()
    output = (tmp_path / "log").read_text()
    assert process.exitcode == (130 if number == signal.SIGINT else -number), output
    assert ("progress saved" in output) == (number == signal.SIGINT)
    assert "Traceback" not in output
    assert state.exists()
    assert not killed.exists()
    code, output = command(*arguments, killed)
    assert code == 0, output
    one, other = (load_pruned(path)[0].state_dict() for path in (whole_path, killed))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not state.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--trial", "9"], "Trial 9 of study 'digits' was not trained to its end; 0, 1 were."),
        (["--output", "model.pt"], ".safetensors"),
        (["--output", "no/folder/m.safetensors"], "no/folder is missing"),
        (["--study-name", "digit"], "digits"),
        (["--lr", "0"], "`lr` must be above 0"),
    ],
)
def test_what_final_cannot_do_is_one_sentence(searched, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    url, *_ = searched
    given = ["final", "--storage", url, "--study-name", "digits", *arguments]
    code, output = command(*given)
    assert code == 2
    assert message in output
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """A folder of the digits as grey images of 8 pixels."""
    root, data = tmp_path_factory.mktemp("images"), load_digits()
    for split, count in (("train", 200), ("test", 100)):
        for index in range(count):
            pixels, label = data.train.dataset[index]
            folder = root / split / str(int(label))
            folder.mkdir(parents=True, exist_ok=True)
            array = np.asarray(pixels).squeeze()
            Image.fromarray((255 * array / array.max()).astype(np.uint8)).save(
                folder / f"{index}.png"
            )
    return root


@pytest.fixture(scope="module")
def colour_file(tmp_path_factory, images) -> Path:
    path = tmp_path_factory.mktemp("colour") / "dense.safetensors"
    classes = len(load_image_folder(images).classes)
    arguments = ARGUMENTS | {"in_chans": 3, "num_classes": classes}
    save_dense(create_model(MODEL, **arguments), path, name=MODEL, arguments=arguments)
    return path


@pytest.mark.parametrize("strategy", ["structural", "cascade", "both"])
def test_prune_writes_the_model_of_one_pair(colour_file, images, tmp_path, strategy):
    path = tmp_path / "pruned.safetensors"
    code, output = command(
        *("prune", "--checkpoint", colour_file, "--data", images, "--output", path),
        *("--mhsa-ratio", 0.25, "--ffn-ratio", 0.25, "--strategy", strategy, "--epochs", 1),
    )
    assert code == 0, output
    model, manifest = load_pruned(path)
    assert shape_of(model).macs == manifest["macs"]
    assert f"{manifest['macs_ratio']:.4f} of the FLOPs" in output
    assert manifest["ffn_ratio"] == 0.25
    assert "given by hand" in card_path(path).read_text()
    data = load_image_folder(images, validation="test")
    assert manifest["test_accuracy"] == evaluate(model, data, data.test)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mhsa-ratio", "1.5"], "`mhsa_ratio` must be in [0, "),
        (["--ffn-ratio", "-0.1"], "`ffn_ratio` must be in [0, "),
        (["--output", "m.onnx"], ".safetensors"),
        (["--checkpoint", "none.safetensors"], "no checkpoint none.safetensors"),
        (["--data", "nowhere"], "nowhere"),
        (["--strategy", "cascade", "--round-to", "8"], "`round_to` is for structural"),
    ],
)
def test_what_prune_cannot_do_is_one_sentence(colour_file, images, tmp_path, arguments, message):
    base = {"--checkpoint": colour_file, "--data": images, "--mhsa-ratio": 0.5, "--ffn-ratio": 0.5}
    base["--output"] = tmp_path / "m.safetensors"
    base |= dict(zip(arguments[::2], arguments[1::2], strict=True))
    code, output = command("prune", *(part for item in base.items() for part in item))
    assert code == 2
    assert message in output
    assert not list(tmp_path.iterdir())
