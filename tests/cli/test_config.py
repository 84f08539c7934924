from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest

from vit_ratio_opt.cli.config import config_text, read_config
from vit_ratio_opt.cli.search_options import SearchCommandOptions
from vit_ratio_opt.errors import InputError

OPTIONS = SearchCommandOptions(
    data=Path('a "b" \\ \x7f \n é 😀'), budget=1e-5, cost="latency", repair=False, n_trials=3,
    study_name="s", epochs=0,
)  # fmt: skip


def test_written_options_are_read_again(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(config_text(OPTIONS), encoding="utf-8")
    values = read_config(path, SearchCommandOptions)
    again = SearchCommandOptions(**{**values, "data": Path(values["data"])})
    assert again == OPTIONS


def test_every_option_is_a_key_but_the_file_itself(tmp_path):
    path = tmp_path / "run.toml"
    every = replace(OPTIONS, **{
        field.name: "x" for field in fields(OPTIONS) if getattr(OPTIONS, field.name) is None
    })  # fmt: skip
    keys = {line.split(" = ")[0] for line in config_text(every).splitlines()}
    assert keys == {f.name.replace("_", "-") for f in fields(OPTIONS)} - {"config"}
    path.write_text("config = 'x'")
    with pytest.raises(InputError, match="unknown key 'config'"):
        read_config(path, SearchCommandOptions)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("budgit = 0.5", "has the unknown key 'budgit': did you mean 'budget'?"),
        ("n_trials = 5", "has the unknown key 'n_trials': did you mean 'n-trials'?"),
        ("[search]\nbudget = 0.5", "has the unknown key 'search': did you mean '"),
        ("budget = '0.5'", '`budget` in run.toml must be a number, but is "0.5".'),
        ("budget = true", "`budget` in run.toml must be a number, but is true."),
        ("n-trials = 8.5", "`n-trials` in run.toml must be an integer, but is 8.5."),
        ("repair = 1", "`repair` in run.toml must be true or false, but is 1."),
        ("data = ['x']", '`data` in run.toml must be a text, but is ["x"].'),
        ("seed = 2024-01-01", '`seed` in run.toml must be an integer, but is "2024-01-01".'),
        ("budget = 0.5\ntolerance = 1", "has `budget` and `tolerance`: keep one of them."),
        ("frontier = 8\nbudget = 1", "has `budget` and `frontier`: keep one of them."),
        ("frontier = [0.5]", '`frontier` in run.toml must be a number, or a text such as "0.8,'),
        ("frontier = 8.5", "'8.5' is neither a number of levels from 2 to 100"),
        ("budget 0.5", "--config run.toml cannot be read: it is no TOML"),
        (b"\xff\xfe", "--config run.toml cannot be read: it is no TOML"),
        ("budget = 1.5", "must be in (0, 1]"),
        ("n-trials = 0", "--n-trials"),
        ("strategy = 'tokens'", "'cascade'"),
        ('folder = "a\\u0000b"', "null"),
        (None, "--config run.toml cannot be read: No such file or directory."),
    ],
)
def test_a_bad_file_is_one_sentence_and_nothing_is_written(
    tmp_path, monkeypatch, command, files, text, sentence
):
    monkeypatch.chdir(tmp_path)
    if text is not None:
        Path("run.toml").write_bytes(text if isinstance(text, bytes) else text.encode())
    common = ["--data", files / "photos", "--checkpoint", files / "dense.safetensors"]
    ended = command("search", *common, "--config", "run.toml")
    assert ended.code == 2
    assert sentence in " ".join(ended.err.replace("│", " ").split())
    assert "Traceback" not in ended.err
    assert [path.name for path in tmp_path.iterdir()] == ([] if text is None else ["run.toml"])


def test_the_command_line_overrides_the_file(tmp_path, monkeypatch, command):
    seen = []
    monkeypatch.setattr("vit_ratio_opt.cli.search.check_folder", lambda path: seen.append(path))
    monkeypatch.setattr("vit_ratio_opt.cli.search.fill_in", seen.append)
    path = tmp_path / "run.toml"
    path.write_text("data = 'x'\nbudget = 0.5\nrepair = false\nn-trials = 3\nstrategy = 'both'\n")
    for flags in ([], ["--n-trials", 5, "--repair", "--data", "y"], ["--tolerance", 1]):
        with pytest.raises(TypeError):  # the stub returns nothing
            command("search", "--config", path, *flags)
    file, line, other = seen[1::2]
    assert (file.data, file.budget, file.repair, file.n_trials) == (Path("x"), 0.5, False, 3)
    assert (line.data, line.budget, line.repair, line.n_trials) == (Path("y"), 0.5, True, 5)
    assert (other.budget, other.tolerance, other.strategy) == (None, 1.0, "both")


def test_a_budget_on_the_command_line_replaces_a_tolerance_with_its_confidence(
    tmp_path, monkeypatch, command
):
    seen = []
    monkeypatch.setattr("vit_ratio_opt.cli.search.check_folder", lambda path: None)
    monkeypatch.setattr("vit_ratio_opt.cli.search.fill_in", seen.append)
    path = tmp_path / "run.toml"
    path.write_text("data = 'x'\ntolerance = 1\nconfidence = 0.9\n")
    for flags in ([], ["--budget", 0.5], ["--frontier", 6]):
        with pytest.raises(TypeError):  # the stub returns nothing
            command("search", "--config", path, *flags)
    assert [(one.budget, one.tolerance, one.frontier, one.confidence) for one in seen] == [
        (None, 1.0, None, 0.9), (0.5, None, None, 0.8), (None, None, "6", 0.8),
    ]  # fmt: skip


@pytest.mark.parametrize("given", ["6", '"0.8,0.5"', "0.5"])
def test_a_frontier_in_a_file_is_a_number_or_a_text(tmp_path, monkeypatch, command, given):
    seen = []
    monkeypatch.setattr("vit_ratio_opt.cli.search.check_folder", lambda path: None)
    monkeypatch.setattr("vit_ratio_opt.cli.search.fill_in", seen.append)
    path = tmp_path / "run.toml"
    path.write_text(f"data = 'x'\nfrontier = {given}\n")
    for flags in ([], ["--budget", 0.7]):
        with pytest.raises(TypeError):  # the stub returns nothing
            command("search", "--config", path, *flags)
    assert [(one.budget, one.frontier) for one in seen] == [(None, given.strip('"')), (0.7, None)]
    path.write_text(config_text(seen[0]))
    assert read_config(path, SearchCommandOptions)["frontier"] == given.strip('"')
