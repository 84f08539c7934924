from __future__ import annotations

import json
import os
import shutil
from itertools import product

import optuna
import pytest
import torch
from PIL import Image

from vit_ratio_opt.cli.pruning_options import PruningOptions, _parse_round_to, chosen_pruning
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.model_files.load import load_dense, load_pruned
from vit_ratio_opt.models.shape import shape_of
from vit_ratio_opt.pruning.options import Structural
from vit_ratio_opt.restore import load_search
from vit_ratio_opt.runs import search_task


@pytest.fixture
def arguments(files):
    """Arguments of a search of one trial, but for its limit and folder."""
    return [
        "search", "--data", files / "photos", "--checkpoint", files / "dense.safetensors",
        "--n-trials", 1,
    ]  # fmt: skip


@pytest.fixture
def without_a_look(monkeypatch):
    """Searches begin without evaluating pairs; the search of ``searched`` begins as users' do."""
    monkeypatch.setattr(search_task, "screen", lambda *arguments, **options: {})
    monkeypatch.setattr(search_task, "likely_path", lambda *arguments: ())


@pytest.fixture
def copied(searched, tmp_path):
    """A copy of the finished search, to go on with."""
    shutil.copytree(searched, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.mark.parametrize(
    ("name", "options"),
    [("search", ["--budget", 0.8]), ("prune", ["--mhsa-ratio", 0.5, "--ffn-ratio", 0.5])],
)
def test_the_memory_of_the_calibration_is_limited(
    arguments, command, monkeypatch, tmp_path, name, options
):
    asked = []

    def refuse(*arguments, memory, **others):
        asked.append(memory)
        raise InputError("Stopped by the test.")

    monkeypatch.setattr("vit_ratio_opt.pruning.pruner.cached_calibration", refuse)
    given = [name, *arguments[1:5], *options, "--calibration-memory", 0.25]
    place = ["--folder" if name == "search" else "--output", tmp_path / "x.safetensors"]
    ended = command(*given, *place)
    assert (ended.code, asked) == (2, [0.25]), ended.err


def test_search_writes_the_rows_and_resumes(searched, arguments, command, tmp_path):
    first = json.loads((searched / "rows.json").read_text())
    assert [row["name"] for row in first["rows"]] == ["dense", "fixed", "searched"]
    keys = (
        "name study strategy mhsa_ratio ffn_ratio macs macs_ratio params trial val_accuracy "
        "val_error own_accuracy trained probability test_accuracy trials seconds"
    )
    assert all(list(row) == keys.split() for row in first["rows"])
    place = ["--folder", searched, "--study-name", "photos"]
    again = command(*arguments, *place, "--n-trials", 2, "--output", tmp_path / "2.json")
    assert again.code == 0, again.err
    assert json.loads((tmp_path / "2.json").read_text()) == first
    assert "none repeated" in again.out


def test_another_precision_than_the_studys_is_refused(copied, arguments, command):
    place = ["--folder", copied, "--study-name", "photos"]
    other = command(*arguments, *place, "--precision", "bfloat16")
    assert other.code == 2
    assert "precision is 'float32', not 'bfloat16'" in other.err


def test_the_written_options_repeat_the_search(searched, command, tmp_path, monkeypatch):
    monkeypatch.delenv("OPTUNA_STORAGE", raising=False)
    kept = (searched / "rows.toml").read_text()
    config = ["search", "--config", searched / "rows.toml"]
    again = command(*config, "--output", tmp_path / "rows.json")
    assert again.code == 0, again.err
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert rows == json.loads((searched / "rows.json").read_text())
    assert "2 of 2 trials are done, none repeated" in again.out
    written = (tmp_path / "rows.toml").read_text()
    assert written == kept.replace(str(searched / "rows.json"), str(tmp_path / "rows.json"))
    resumed = command(*config)  # writes the rows again, beside the very file that it reads
    assert resumed.code == 0, resumed.err
    assert (searched / "rows.toml").read_text() == kept


def test_a_password_is_in_no_written_option(copied, arguments, command, tmp_path, monkeypatch):
    url = f"sqlite:///{copied / 'study.db'}"
    monkeypatch.setattr("vit_ratio_opt.cli.search.redact", lambda text: text.replace("db", "***"))
    place = ["--folder", copied, "--study-name", "photos", "--storage", url]
    assert command(*arguments, *place, "--output", tmp_path / "rows.json").code == 0
    assert "storage" not in (tmp_path / "rows.toml").read_text()


def test_search_logs_each_trial(copied, arguments, command, tmp_path):
    pytest.importorskip("tensorboard")
    log = ["--json-log", tmp_path / "log", "--tensorboard", tmp_path / "board"]
    place = ["--folder", copied, "--study-name", "photos"]
    assert command(*arguments, *place, "--n-trials", 3, *log).code == 0
    (line,) = map(json.loads, (tmp_path / "log").read_text().splitlines())
    assert (line["study"], line["trial"]) == ("photos", 2)
    assert os.listdir(tmp_path / "board" / "photos") == ["trial-0002"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--budget", "1.5"], "must be in (0, 1]"),
        (["--budget", "0.01"], "at least 0."),
        (["--budget", "0.5", "--tolerance", "1"], "--tolerance or --frontier, only one"),
        (["--tolerance", "1", "--frontier", "4"], "--tolerance or --frontier, only one"),
        (["--frontier", "1"], "'1' is neither a number"),
        (["--frontier", "9" * 30], "9' is neither"),
        (["--frontier", "0.5,1.5"], "'0.5,1.5' is neither"),
        (["--frontier", "0.5,half"], "'0.5,half' is neither"),
        (["--frontier", "0.5,nan"], "'0.5,nan' is neither"),
        (["--frontier", "0.8,0.01"], "The budget must be at least 0."),
        (["--frontier", "0.01", "--fixed-ratio"], "at least 0."),
        (["--frontier", "4", "--confidence", "0.9"], "--confidence 0.9 is for a --tolerance"),
        (["--n-trials", "0"], "--n-trials"),
        (["--n-trials", "-2"], "--n-trials"),
        (["--output", "/no/such/folder/rows.json"], "cannot be written"),
        (["--storage", "nonsense"], "no storage URL"),
        (["--storage", "sqlite:////no/such/folder/x.db"], "no folder"),
        (["--budgit", "0.5"], "No such option"),
        (["--cost", "params", "--strategy", "both"], "removes no parameter"),
        (["--skip", "blocks.0, blocks.1.atn"], "did you mean 'blocks.1.attn'"),
        (["--skip", "blocks.0,blocks.1"], "leave nothing to prune"),
        (["--skip", "blocks.0", "--strategy", "cascade"], "`skip` is for structural pruning"),
        (["--bounds", "blocks.1.atn=0:0.5"], "did you mean 'blocks.1.attn'"),
        (["--bounds", "blocks.1=0.5:0"], "must be two shares that rise, such as (0.0, 0.5)"),
        (["--bounds", "blocks.1=0:nan"], "must be two shares that rise"),
        (["--bounds", "blocks.1=0.5"], "--bounds takes NAME=LOW:HIGH with commas between"),
        (["--bounds", "blocks.1:0:0.5"], "blocks.3.mlp=0:0.5, but got 'blocks.1:0:0.5'"),
        (["--bounds", "blocks.1=0:1,blocks.1=0:0.5"], "--bounds names 'blocks.1' twice"),
        (["--bounds", "blocks.0=0:0.5", "--strategy", "both"], "`bounds` is for the strategy"),
        (["--cost", "latency", "--iterative"], "does not go with `iterative`"),
        (["--latency-batch", "8"], "is for the cost 'latency'"),
        (["--confidence", "0.9", "--budget", "0.5"], "--confidence 0.9 is for a --tolerance"),
        (["--image-size", "48"], "but --image-size is 48: leave it out"),
        (["--mean", "half"], "is no list of numbers with commas"),
        (["--mean", "0.5"], "`mean` and `std` must have 3 values"),
        (["--budget", "0.9", "--round-to", "999"], "all ranks and all neurons in every block"),
        (["--budget", "0.9", "--round-to", "999"], "a lower `round_to` (--round-to) allows less"),
        (["--calibration-memory", "-1"], "--calibration-memory"),
        (["--calibration-memory", "nan"], "--calibration-memory"),
        (["--tolerance", "1", "--confidence", "0.5"], "0.5 is not in (0.5, 1)"),
        (["--tolerance", "1", "--confidence", "1"], "1 is not in (0.5, 1)"),
        (["--strategy", "tokens"], "'cascade'"),
        (["--checkpoint", "missing.safetensors"], "There is no checkpoint"),
        (["--data", "missing"], "There is no folder missing"),
    ],
)
def test_search_refuses_bad_input_and_writes_nothing(
    tmp_path, monkeypatch, command, arguments, changes, message
):
    monkeypatch.chdir(tmp_path)
    ended = command(*arguments, *changes)
    assert ended.code == 2
    assert message in ended.err
    assert "Traceback" not in ended.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--model", "vit_tny_patch16_224"], "no model named"),
        ([], "give --checkpoint, --model or both"),
        (["--weights", "ema"], "give one"),
    ],
)
def test_search_without_a_checkpoint_needs_a_known_model(
    tmp_path, monkeypatch, command, files, changes, message
):
    monkeypatch.chdir(tmp_path)
    ended = command("search", "--data", files / "photos", *changes)
    assert ended.code == 2
    assert message in ended.err
    assert list(tmp_path.iterdir()) == []


def test_search_refuses_a_study_with_other_settings(searched, command, arguments):
    place = ["--folder", searched, "--study-name", "photos"]
    ended = command(*arguments, *place, "--budget", "0.5")
    assert ended.code == 2
    assert "exists with other settings: budget" in ended.err


def test_output_must_not_overwrite_what_is_read(files, command, arguments, tmp_path):
    config = tmp_path / "run.toml"
    config.write_text("budget = 0.5\n")
    for output in (files / "dense.safetensors", config):
        before = output.read_bytes()
        ended = command(*arguments, "--config", config, "--output", output)
        assert ended.code == 2
        assert "is read by this command" in ended.err
        assert output.read_bytes() == before


def test_search_runs_on_image_folders(arguments, command, tmp_path):
    common = [*arguments, "--folder", tmp_path / "run", "--output", tmp_path / "rows.json"]
    for flags, names in (  # without flags: the search of the fixture `searched`
        (["--fixed-ratio"], ["dense", "fixed"]),
        (["--tolerance", 20, "--confidence", 0.6], ["dense", "searched"]),
    ):
        assert command(*common, *flags).code == 0
        report = json.loads((tmp_path / "rows.json").read_text())
        assert [row["name"] for row in report["rows"]] == names
        assert 0 <= report["dense_full_test_accuracy"] <= 100
    assert sorted(optuna.get_all_study_names(f"sqlite:///{tmp_path / 'run' / 'study.db'}")) == [
        "photos-0.6-fixed", "photos-drop20.0",
    ]  # fmt: skip


@pytest.mark.usefixtures("without_a_look")
def test_search_runs_every_strategy_from_csv_files(tmp_path, files, command):
    images = tmp_path / "few" / "images"
    images.mkdir(parents=True)
    rows = ["filename,label"]
    for c, i in product(range(4), range(20)):
        Image.new("RGB", (40, 36), (60 * c, i, 0)).save(images / f"{c}-{i}.jpg")
        rows.append(f"{c}-{i}.jpg,n{c}")
    (tmp_path / "few" / "train.csv").write_text("\n".join(rows))
    common = [
        "search", "--data", tmp_path / "few", "--checkpoint", files / "dense.safetensors",
        "--n-trials", 1, "--image-size", 32, "--validation", "train", "--folder",
        tmp_path / "run", "--output", tmp_path / "rows.json",
    ]  # fmt: skip
    for flags in (
        ["--budget", 0.7],
        ["--budget", 0.8, "--strategy", "cascade", "--fixed-ratio"],
        ["--tolerance", 20, "--strategy", "both"],
        ["--budget", 0.8, "--strategy", "both", "--cascade", "cp-vit"],
    ):
        assert command(*common, *flags).code == 0
    pruned = next((tmp_path / "run" / "checkpoints" / "few-0.7").glob("*.safetensors"))
    further = ["--start", pruned, "--budget", 0.9, "--strategy", "cascade"]
    assert command(*common, *further).code == 0
    report = json.loads((tmp_path / "rows.json").read_text())
    first, *_, second = report["rows"]
    dense = load_dense(files / "dense.safetensors")
    assert first["macs"] == shape_of(load_pruned(pruned, dense)[0]).macs
    assert second["macs"] <= 0.9 * first["macs"]
    assert second["strategy"] == "cascade"
    assert sorted(optuna.get_all_study_names(f"sqlite:///{tmp_path / 'run' / 'study.db'}")) == [
        "few-0.7", "few-0.8-both", "few-0.8-cascade-fixed", "few-0.9-cascade",
        "few-drop20.0-both",
    ]  # fmt: skip


def test_two_study_names_never_share_a_checkpoint_folder(tmp_path):
    from vit_ratio_opt.cli.search_options import StudyPlace

    names = ["a", "a/b", "a_b", "..", "a%2fb", "a.b", "é" * 10_000, "é" * 10_001]
    folders = {StudyPlace(tmp_path, "sqlite://", name).checkpoints for name in names}
    assert len(folders) == len(names)
    assert all(folder.parent == tmp_path / "checkpoints" for folder in folders)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path, command, arguments):
    (tmp_path / "file").write_text("")
    ended = command(*arguments, "--folder", tmp_path / "file" / "run")
    assert ended.code == 2
    assert "file" in ended.err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_bounds_of_parts_are_those_of_the_python_interface():
    options = PruningOptions(skip="blocks.0", bounds="blocks.3.mlp=0:0.5, blocks.4 = .1 : .6")
    bounds = {"blocks.3.mlp": (0.0, 0.5), "blocks.4": (0.1, 0.6)}
    assert chosen_pruning(options) == Structural(skip=("blocks.0",), bounds=bounds)


def test_a_search_normalises_images_as_it_is_told(files, tmp_path, command, monkeypatch):
    monkeypatch.delenv("OPTUNA_STORAGE", raising=False)
    ended = command(
        "search", "--data", files / "photos", "--checkpoint", files / "dense.safetensors",
        "--mean", "0.5,0.4, 0.3", "--std", "0.2,0.25,0.3", "--fixed-ratio", "--n-trials", 1,
        "--study-name", "told", "--folder", tmp_path,
    )  # fmt: skip
    assert ended.code == 0, ended.err
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    data = load_search("told", storage).data
    assert (data.mean, data.std) == ((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
    black = data.normalise(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    assert black[0, :, 0, 0].tolist() == pytest.approx([-2.5, -1.6, -1.0])
    settings = optuna.load_study(study_name="told", storage=storage).user_attrs["settings"]
    assert (settings["mean"], settings["std"]) == ([0.5, 0.4, 0.3], [0.2, 0.25, 0.3])


@pytest.mark.parametrize("value", ["0", "8.5", "-1", '"x"'])
def test_a_config_files_number_is_refused_as_the_command_lines(
    tmp_path, monkeypatch, command, arguments, value
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.toml").write_text(f"round-to = {value}\n")
    ended = command(*arguments, "--budget", "0.5", "--config", "run.toml")
    assert ended.code == 2
    assert "neither auto nor in 1 to" in " ".join(ended.err.split())


@pytest.mark.parametrize(("value", "wanted"), [(4, "4"), ("4", "4"), ("auto", "auto")])
def test_a_config_file_may_give_a_number_or_auto(value, wanted):
    assert _parse_round_to(value) == wanted
