from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from itertools import product
from pathlib import Path

import optuna
import pytest
from typer.testing import CliRunner

from vit_ratio_opt.cli import app as cli
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.runs.storage import open_storage

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "studies"))

import cifar10  # noqa: E402
import mini_imagenet  # noqa: E402
import quickstart  # noqa: E402
import train_dense  # noqa: E402


def run(command, *arguments, monkeypatch=None) -> tuple[int, str]:
    """Exit code and standard error of a command line in this process."""
    monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.run_command(command)
    return stop.value.code


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A quick quickstart: its folder and what it printed."""
    folder = tmp_path_factory.mktemp("demo")
    quick = quickstart.DENSE_RECIPE.__class__(epochs=1, distillation=0.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quickstart, "DENSE_RECIPE", quick)
        arguments = ["--n-trials", 2, "--epochs", 1, "--folder", folder / "run"]
        output = folder / "rows.json"
        assert run(quickstart.main, *arguments, "--output", output, monkeypatch=patch) == 0
    return folder


def test_quickstart_writes_the_rows_and_resumes(demo, monkeypatch, capsys):
    first = json.loads((demo / "rows.json").read_text())
    assert [row["name"] for row in first["rows"]] == ["dense", "fixed", "searched"]
    keys = (
        "name study strategy mhsa_ratio ffn_ratio macs macs_ratio params trial val_accuracy "
        "val_error own_accuracy trained probability test_accuracy trials seconds"
    )
    assert all(list(row) == keys.split() for row in first["rows"])
    again = ["--n-trials", 2, "--epochs", 1, "--folder", demo / "run"]
    assert run(quickstart.main, *again, "--output", demo / "2.json", monkeypatch=monkeypatch) == 0
    assert json.loads((demo / "2.json").read_text()) == first
    assert "none repeated" in capsys.readouterr().out


def test_report_prints_rows_trials_and_time(demo):
    url = f"sqlite:///{demo / 'run' / 'study.db'}"
    result = CliRunner().invoke(cli.app, ["report", "--storage", url], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    for word in ("dense", "fixed", "searched", "COMPLETE", "time of 'quickstart'", "other"):
        assert word in result.output


def test_report_writes_what_is_asked_for(demo, tmp_path):
    arguments = ["report", "--storage", f"sqlite:///{demo / 'run' / 'study.db'}"]
    files = {name: tmp_path / f"report.{name}" for name in ("json", "csv", "html", "markdown")}
    for name, path in files.items():
        arguments += [f"--{name}", str(path)]
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0, result.output
    rows = json.loads(files["json"].read_text())["rows"]
    assert [row["name"] for row in rows] == ["dense", "fixed", "searched"]
    trials = files["csv"].read_text().splitlines()
    assert len(trials) == 1 + 2
    assert trials[0].startswith("study,trial,state,best,mhsa_ratio")
    for name in ("html", "markdown"):
        assert f"{rows[2]['macs_ratio']:.4f}" in files[name].read_text()


def test_quickstart_logs_each_trial(demo, monkeypatch, tmp_path):
    pytest.importorskip("tensorboard")
    shutil.copytree(demo / "run", tmp_path / "run")
    arguments = ["--n-trials", 3, "--epochs", 1, "--folder", tmp_path / "run"]
    arguments += ["--json-log", tmp_path / "log", "--tensorboard", tmp_path / "board"]
    assert run(quickstart.main, *arguments, monkeypatch=monkeypatch) == 0
    (line,) = map(json.loads, (tmp_path / "log").read_text().splitlines())
    assert (line["study"], line["trial"]) == ("quickstart", 2)
    assert os.listdir(tmp_path / "board" / "quickstart") == ["trial-0002"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budget", "1.5"], "must be in (0, 1]"),
        (["--budget", "0.01"], "at least 0."),
        (["--n-trials", "0"], "--n-trials"),
        (["--n-trials", "-2"], "--n-trials"),
        (["--output", "/no/such/folder/rows.json"], "cannot be written"),
        (["--storage", "nonsense"], "no storage URL"),
        (["--storage", "sqlite:////no/such/folder/x.db"], "no folder"),
        (["--budgit", "0.5"], "No such option"),
    ],
)
def test_quickstart_refuses_bad_input_and_writes_nothing(
    tmp_path, monkeypatch, capsys, arguments, message
):
    monkeypatch.chdir(tmp_path)
    assert run(quickstart.main, *arguments, monkeypatch=monkeypatch) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


def test_quickstart_refuses_a_study_with_other_settings(demo, monkeypatch, capsys):
    arguments = ["--budget", "0.5", "--epochs", 1, "--folder", demo / "run"]
    assert run(quickstart.main, *arguments, monkeypatch=monkeypatch) == 2
    assert "exists with other settings: budget" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "vit_tny_patch16_224"], "no model named"),
        (["--checkpoint", "missing.safetensors"], "There is no checkpoint"),
        ([], "give --checkpoint, --model or both"),
        (["--cost", "params", "--strategy", "both"], "removes no parameter"),
        (["--cost", "latency", "--iterative"], "does not go with `iterative`"),
        (["--latency-batch", "8"], "is for the cost 'latency'"),
        (["--tolerance", "1", "--confidence", "0.5"], "0.5 is not in (0.5, 1)"),
        (["--tolerance", "1", "--confidence", "1"], "1 is not in (0.5, 1)"),
    ],
)
def test_cifar10_refuses_bad_input_and_writes_nothing(
    tmp_path, monkeypatch, capsys, arguments, message
):
    monkeypatch.chdir(tmp_path)
    assert run(cifar10.main, "--data", tmp_path, *arguments, monkeypatch=monkeypatch) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_cifar10_runs_on_image_folders(tmp_path, monkeypatch, tiny_vit):
    from PIL import Image

    from vit_ratio_opt.model_files.save import save_dense

    for split in ("train", "test"):
        for c in range(4):
            (tmp_path / "data" / split / str(c)).mkdir(parents=True)
            for i in range(8):
                image = Image.new("RGB", (32, 32), (60 * c, i, 0))
                image.save(tmp_path / "data" / split / str(c) / f"{i}.png")
    arguments = {
        "img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4,
        "mlp_ratio": 2.0, "num_classes": 4,
    }  # fmt: skip
    model = tmp_path / "dense.safetensors"
    save_dense(tiny_vit, model, name="vit_tiny_patch16_224", arguments=arguments)
    common = ["--data", tmp_path / "data", "--checkpoint", model, "--n-trials", 1]
    common += ["--folder", tmp_path / "run", "--output", tmp_path / "rows.json"]
    for flags, names in (
        ([], ["dense", "fixed", "searched"]),
        (["--fixed-ratio"], ["dense", "fixed"]),
        (["--tolerance", 20, "--confidence", 0.6], ["dense", "searched"]),
    ):
        assert run(cifar10.main, *common, *flags, monkeypatch=monkeypatch) == 0
        report = json.loads((tmp_path / "rows.json").read_text())
        assert [row["name"] for row in report["rows"]] == names
        assert 0 <= report["dense_full_test_accuracy"] <= 100


def test_train_dense_leaves_a_model_that_a_study_can_load(tmp_path, monkeypatch):
    from vit_ratio_opt.data.dataset import load_digits
    from vit_ratio_opt.model_files.load import load_dense
    from vit_ratio_opt.models.shape import shape_of
    from vit_ratio_opt.training.evaluate import evaluate

    path, output = tmp_path / "new" / "dense.safetensors", tmp_path / "dense.json"
    arguments = [path, "--epochs", 6, "--batch-size", 32]
    arguments += ["--embed-dim", 32, "--depth", 2, "--num-heads", 4]
    arguments += ["--cutmix", 1.0, "--output", output]
    assert run(train_dense.main, *arguments, monkeypatch=monkeypatch) == 0
    row, model = json.loads(output.read_text()), load_dense(path)
    digits = load_digits()
    assert row["val_accuracy"] == evaluate(model, digits, digits.val) > 15
    assert row["test_accuracy"] == evaluate(model, digits, digits.test)
    assert row["macs"] == shape_of(model).macs
    assert [b.num_heads for b in shape_of(model).blocks] == [4, 4]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-heads", "7"], "arguments do not fit"),
        (["--patch-size", "3"], "must divide 8, but got 3"),
        (["--lr", "0"], "`lr` must be above 0"),
        (["--image-size", "32"], "is for a folder"),
        (["--epochz", "3"], "No such option"),
    ],
)
def test_train_dense_refuses_bad_input_and_writes_nothing(
    tmp_path, monkeypatch, capsys, arguments, message
):
    monkeypatch.chdir(tmp_path)
    command = ["new/dense.safetensors", *arguments]
    assert run(train_dense.main, *command, monkeypatch=monkeypatch) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["report", "--storage", "sqlite:///missing.db"], "There is no database"),
        (["dashboard", "--storage", "sqlite:///missing.db"], "There is no database"),
        (["report", "--html", "/no/such/folder/x"], "cannot be written"),
        (["report", "--json", "/no/such/folder/x"], "cannot be written"),
    ],
)
def test_commands_refuse_bad_input(tmp_path, monkeypatch, capsys, command, message):
    monkeypatch.chdir(tmp_path)
    assert run(cli.app, *command, monkeypatch=monkeypatch) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_report_refuses_unknown_and_foreign_studies(tmp_path, monkeypatch, capsys):
    import optuna

    url = f"sqlite:///{tmp_path / 'x.db'}"
    optuna.create_study(study_name="foreign", storage=url)
    for names, message in (
        (["nope"], "it has: foreign"),
        (["foreign"], "was not made by"),
        ([], "has no study made by"),
    ):
        options = [part for name in names for part in ("--study-name", name)]
        for command in ("report", "dashboard")[: 1 + len(names)]:
            arguments = [command, "--storage", url, *options]
            assert run(cli.app, *arguments, monkeypatch=monkeypatch) == 2
            assert message in capsys.readouterr().err


def test_dashboard_listens_on_loopback_and_refuses_a_taken_port(tmp_path, monkeypatch, capsys):
    import socket

    import optuna

    url = f"sqlite:///{tmp_path / 'x.db'}"
    optuna.create_study(storage=url)
    started = {}
    monkeypatch.setattr(
        "optuna_dashboard.run_server",
        lambda storage, host, **options: started.update(host=host),
    )
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        command = ["dashboard", "--storage", url, "--port", port]
        assert run(cli.app, *command, monkeypatch=monkeypatch) == 2
        assert "Cannot listen on 127.0.0.1" in capsys.readouterr().err
    assert run(cli.app, *command, monkeypatch=monkeypatch) == 0
    assert started == {"host": "127.0.0.1"}


def test_two_study_names_never_share_a_checkpoint_folder(tmp_path):
    names = ["a", "a/b", "a_b", "..", "a%2fb", "a.b", "é" * 10_000, "é" * 10_001]
    folders = {cli.checkpoint_folder(tmp_path, name) for name in names}
    assert len(folders) == len(names)
    assert all(folder.parent == tmp_path / "checkpoints" for folder in folders)


def test_folder_that_cannot_be_made_is_refused(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    arguments = ["--folder", tmp_path / "file" / "run"]
    assert run(quickstart.main, *arguments, monkeypatch=monkeypatch) == 2
    assert "cannot be made" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_output_that_is_a_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="it is a folder"):
        cli.check_output(tmp_path)


def test_command_line_does_not_wait_for_torch():
    code = "import vit_ratio_opt.cli.app, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_public_names_are_there():
    import vit_ratio_opt

    assert set(vit_ratio_opt.__all__) <= set(dir(vit_ratio_opt))
    for name in vit_ratio_opt.__all__:
        assert getattr(vit_ratio_opt, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        _ = vit_ratio_opt.nonsense


def test_mini_imagenet_runs_every_strategy_from_csv_files(tmp_path, monkeypatch, tiny_vit, capsys):
    from PIL import Image

    from vit_ratio_opt.model_files.load import load_pruned
    from vit_ratio_opt.model_files.save import save_dense
    from vit_ratio_opt.models.shape import shape_of

    (tmp_path / "data" / "images").mkdir(parents=True)
    rows = ["filename,label"]
    for c, i in product(range(4), range(20)):
        Image.new("RGB", (40, 36), (60 * c, i, 0)).save(
            tmp_path / "data" / "images" / f"{c}-{i}.jpg"
        )
        rows.append(f"{c}-{i}.jpg,n{c}")
    (tmp_path / "data" / "train.csv").write_text("\n".join(rows))
    model = tmp_path / "dense.safetensors"
    arguments = {
        "img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4,
        "mlp_ratio": 2.0, "num_classes": 4,
    }  # fmt: skip
    save_dense(tiny_vit, model, name="vit_tiny_patch16_224", arguments=arguments)
    common = ["--data", tmp_path / "data", "--checkpoint", model, "--n-trials", 1]
    common += [
        "--image-size",
        32,
        "--folder",
        tmp_path / "run",
        "--output",
        tmp_path / "rows.json",
    ]
    for flags in (
        ["--budget", 0.7],
        ["--budget", 0.8, "--strategy", "cascade", "--fixed-ratio"],
        ["--tolerance", 20, "--strategy", "both"],
        ["--budget", 0.8, "--strategy", "both", "--cascade", "cp-vit"],
    ):
        assert run(mini_imagenet.main, *common, *flags, monkeypatch=monkeypatch) == 0
    folder = tmp_path / "run" / "checkpoints" / "mini-imagenet-0%2e7"
    pruned = next(folder.glob("*.safetensors"))
    further = ["--start", pruned, "--budget", 0.9, "--strategy", "cascade"]
    assert run(mini_imagenet.main, *common, *further, monkeypatch=monkeypatch) == 0
    report = json.loads((tmp_path / "rows.json").read_text())
    first, *_, second = report["rows"]
    assert first["macs"] == shape_of(load_pruned(pruned, tiny_vit)[0]).macs
    assert second["macs"] <= 0.9 * first["macs"]
    assert second["strategy"] == "cascade"
    studies = optuna.get_all_study_names(f"sqlite:///{tmp_path / 'run' / 'study.db'}")
    assert sorted(studies) == [
        "mini-imagenet-0.7",
        "mini-imagenet-0.8-both",
        "mini-imagenet-0.8-cascade-fixed",
        "mini-imagenet-0.9-cascade",
        "mini-imagenet-drop20.0-both",
    ]
    assert run(mini_imagenet.main, *common, "--strategy", "tokens", monkeypatch=monkeypatch) == 2
    assert "'cascade'" in capsys.readouterr().err


def test_report_leaves_a_damaged_study_out_and_shows_the_others(
    make_study, url, monkeypatch, capsys, caplog
):
    storage = open_storage(url)
    good, bad = make_study(storage, "good"), make_study(storage, "bad")
    bad.set_user_attr("dense", {"macs": "many"})
    assert run(cli.report, "--storage", url, monkeypatch=monkeypatch) == 0
    assert "good" in capsys.readouterr().out
    assert "Study 'bad' is damaged: `macs` of the attribute `dense`" in caplog.text
    for names in (("--study-name", "bad"), ()):
        good.set_user_attr("settings", 5)
        assert run(cli.report, "--storage", url, *names, monkeypatch=monkeypatch) == 2
        assert capsys.readouterr().err.count("is damaged") == 1


@pytest.mark.parametrize("key", ["settings", "dense", "versions", "device", "origin"])
@pytest.mark.parametrize("command", ["report", "worker", "final"])
def test_a_mistyped_attribute_is_one_sentence(
    make_study, url, monkeypatch, capsys, tmp_path, command, key
):
    monkeypatch.chdir(tmp_path)
    make_study(open_storage(url), "s").set_user_attr(key, 5)
    arguments = ("--storage", url, "--study-name", "s")
    assert run(getattr(cli, command), *arguments, monkeypatch=monkeypatch) == 2
    error = capsys.readouterr().err
    assert error.startswith("Error: Study 's' is damaged: ")
    assert key in error.lower()


def test_an_attribute_that_is_no_json_is_one_sentence(tmp_path, make_study, monkeypatch, capsys):
    database = tmp_path / "study.db"
    make_study(f"sqlite:///{database}")
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("update study_user_attributes set value_json = '[' where key = 'plan'")
    command = ["report", "--storage", f"sqlite:///{database}"]
    assert run(cli.app, *command, monkeypatch=monkeypatch) == 2
    assert "is damaged, no JSON: Expecting value" in capsys.readouterr().err
