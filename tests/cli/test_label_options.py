"""Tables of several labels and of numbers, by the options of the command line."""

from __future__ import annotations

import optuna
import pytest
from PIL import Image

from vit_ratio_opt.cli.files import load_option_images
from vit_ratio_opt.cli.search_options import SearchCommandOptions
from vit_ratio_opt.model_files.load import load_dense
from vit_ratio_opt.restore import load_search
from vit_ratio_opt.runs import search_task


@pytest.fixture
def photos(tmp_path):
    """A folder with a table of four columns of 0 and 1, one of tags, and four of numbers."""
    (tmp_path / "photos" / "images").mkdir(parents=True)
    columns = [*"abcd", "tags", *"wxyz"]
    rows = [f"file,{','.join(columns)}"]
    for n in range(40):
        Image.new("RGB", (32, 32), (6 * n, 60 * (n % 4), 0)).save(
            tmp_path / "photos" / "images" / f"{n}.png"
        )
        flags = [int(n % 4 == c or n % 3 == 0) for c in range(4)]
        tags = " ".join(letter for letter, flag in zip("abcd", flags, strict=True) if flag)
        rows.append(
            ",".join(map(str, [f"{n}.png", *flags, tags, *(n / (c + 1) for c in range(4))]))
        )
    (tmp_path / "photos" / "train.csv").write_text("\n".join(rows))
    return tmp_path / "photos"


@pytest.mark.parametrize(
    ("task", "options", "classes"),
    [
        ("multi-label", ["--label-columns", "a,b, c,d"], "abcd"),
        ("regression", ["--label-columns", "w,x,y,z"], "wxyz"),
    ],
)
def test_a_search_of_other_tasks_is_repeated_and_loaded_again(
    photos, files, tmp_path, command, monkeypatch, task, options, classes
):
    monkeypatch.delenv("OPTUNA_STORAGE", raising=False)
    monkeypatch.setattr(search_task, "screen", lambda *arguments, **options: {})
    monkeypatch.setattr(search_task, "likely_path", lambda *arguments, **options: ())
    ended = command(
        "search", "--data", photos, "--checkpoint", files / "dense.safetensors", "--budget", 0.8,
        "--task", task, "--image-column", "file", *options, "--n-trials", 1, "--fixed-ratio",
        "--study-name", "several", "--folder", tmp_path, "--output", tmp_path / "rows.json",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    again = command("search", "--config", tmp_path / "rows.toml")
    assert again.code == 0, again.err
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    data = load_search("several", storage).data
    assert (data.task, data.classes) == (task, tuple(classes))
    assert len(optuna.load_study(study_name="several", storage=storage).trials) == 1


def test_a_character_separates_the_classes_of_one_column(photos, files):
    options = SearchCommandOptions(
        data=photos, image_size=32, task="multi-label", image_column="file", label_columns="tags",
        label_separator=" ",
    )  # fmt: skip
    data = load_option_images(options, load_dense(files / "dense.safetensors"), 0)
    assert (data.task, data.classes) == ("multi-label", tuple("abcd"))


def test_features_take_any_folder_of_images(photos, files):
    dense = load_dense(files / "dense.safetensors")
    options = {"image_size": 32, "task": "features"}
    data = load_option_images(SearchCommandOptions(data=photos / "images", **options), dense, 0)
    assert (data.task, data.classes, data.validation) == ("features", (), "test")
    assert [len(part) for part in (data.train, data.val, data.test)] == [32, 4, 4]
    data = load_option_images(
        SearchCommandOptions(data=photos, image_column="file", **options), dense, 0
    )
    assert (data.task, data.classes, data.source["loader"]) == ("features", (), "csv_images")


def test_options_of_labels_that_do_not_fit_are_one_sentence(photos, files, tmp_path, command):
    common = ["search", "--data", photos, "--checkpoint", files / "dense.safetensors"]
    for options, sentence in (
        (["--image-column", "file", "--label-columns", "a,b"], "has the 2 keys"),
        (["--image-column", "file", "--task", "multi-label", "--label-columns", "w"], "0 or 1"),
        (["--task", "multi-label", "--label-columns", "a,b"], "has no column 'filename'"),
        (["--label-separator", ";"], "is for `task='multi-label'`"),
    ):
        ended = command(*common, *options, "--folder", tmp_path / "run")
        assert ended.code == 2
        assert sentence in ended.err
    ended = command(
        "search", "--data", files / "photos", "--checkpoint", files / "dense.safetensors",
        "--task", "regression", "--folder", tmp_path / "run",
    )  # fmt: skip
    assert (ended.code, "one folder for each class gives each image one" in ended.err) == (2, True)


def test_a_search_without_labels_ends_in_a_model_and_its_card(
    photos, files, tmp_path, command, monkeypatch
):
    monkeypatch.delenv("OPTUNA_STORAGE", raising=False)
    monkeypatch.setattr(search_task, "screen", lambda *arguments, **options: {})
    ended = command(
        "search", "--data", photos / "images", "--task", "features", "--checkpoint",
        files / "dense.safetensors", "--budget", 0.8, "--n-trials", 1, "--fixed-ratio",
        "--study-name", "unlabelled", "--folder", tmp_path,
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert "agreement 100.00 -> " in ended.out
    storage, output = f"sqlite:///{tmp_path / 'study.db'}", tmp_path / "final.safetensors"
    ended = command(
        "final", "--study-name", "unlabelled", "--storage", storage, "--epochs", 1,
        "--output", output,
    )  # fmt: skip
    assert ended.code == 0, ended.err
    card = output.with_suffix(".md").read_text()
    assert "to give the logits of the dense model" in card
    assert "| validation agreement % |" in card
    ended = command("export", output, "--data", photos / "images", "--to", "torch-export")
    assert ended.code == 0, ended.err
    assert "no metric is measured: the metric compares with the dense model" in ended.out
