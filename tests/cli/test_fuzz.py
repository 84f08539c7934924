"""Whatever is typed, whatever a database says: an answer or a sentence, and no traceback."""

from __future__ import annotations

import copy
import functools
import io
import json
import logging
import random
import re
import sys

import optuna
import pytest
import typer
from rich.console import Console
from spaces import whole_head_space

from vit_ratio_opt.cli import main as cli
from vit_ratio_opt.cli.report import print_report
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.records.answer import answer_of, trained_trial
from vit_ratio_opt.records.loading import load_studies
from vit_ratio_opt.report.figures.training_curve import training_curve
from vit_ratio_opt.report.html import html_page
from vit_ratio_opt.report.markdown import markdown_page
from vit_ratio_opt.report.notes import study_note, trial_note
from vit_ratio_opt.report.rows import build_report, group_studies
from vit_ratio_opt.report.terminal import trials_table
from vit_ratio_opt.report.trial_rows import trial_rows
from vit_ratio_opt.restore import load_search
from vit_ratio_opt.runs.storage import open_storage
from vit_ratio_opt.search.binary_search import BinarySearchSampler
from vit_ratio_opt.search.limits import Frontier
from vit_ratio_opt.search.space import ratio_distributions
from vit_ratio_opt.utils.text import csv_text

HOSTILE = (
    "ablation[/v2]", "[link=file:///etc/passwd]x[/link]", "</script><script>alert(1)</script>",
    "=cmd|' /C calc'!A0", "\x1b]8;;http://x\x07", "x" * 300, "é" * 300, "😀", "\u202egnp.exe",
    "a\nb", "a\0b", "", " ", "\udcff", "..", "/", "-", "--", "%s%n{}", "$(id)", "\x9b31m", "'\"`",
)  # fmt: skip
NUMBERS = ("0", "-1", "1e23", "1e40", "nan", "inf", "-inf", "", "x", "1" * 400, "0x10", "1,5", "½")
ADDRESSES = (
    "sqlite://", "nonsense", "postgresql://u:geheim@", "grpc://", "grpc://x:99999999",
    "sqlite:///" + "x" * 300, "nodb://h/x", "mysql://h:port/x", "s3://a:geheim@b", "://",
)  # fmt: skip
COMMANDS = {
    "report": ({}, ("storage", "study-name", "html", "markdown", "csv", "json", "toml")),
    "frontier": ({"study-name": "along"}, (
        "study-name", "storage", "at", "at-tolerance", "confidence", "output", "data",
        "checkpoint", "checkpoints", "artifacts", "device")),
    "cache": ({}, ("list", "clear")),
    "dashboard": ({}, ("storage", "host", "port", "study-name")),
    "worker": ({"study-name": "good"}, (
        "storage", "study-name", "n-trials", "checkpoint", "start", "data", "artifacts",
        "checkpoints", "device", "json-log", "tensorboard", "grace")),
    "ray": ({"study-name": "good"}, (
        "storage", "study-name", "address", "workers", "gpus-per-worker", "cpus-per-worker")),
    "serve": ({}, ("storage", "host", "port", "threads", "grace")),
    "reap": ({}, ("storage", "study-name", "every", "grace")),
    "export": ({}, ("to", "output", "data", "image-size")),
    "final": ({"study-name": "good"}, (
        "study-name", "storage", "trial", "epochs", "lr", "seed", "output", "data", "device")),
    "prune": ({"data": "missing", "mhsa-ratio": "0.5", "ffn-ratio": "0.5"}, (
        "data", "mhsa-ratio", "ffn-ratio", "checkpoint", "start", "output", "epochs", "lr",
        "image-size", "round-to", "calibration-memory", "seed", "strategy")),
    "search": ({"data": "missing"}, (
        "data", "image-size", "checkpoint", "start", "budget", "tolerance", "confidence", "cost",
        "latency-batch", "n-trials", "epochs", "seed", "round-to", "calibration-memory", "folder",
        "storage", "study-name", "json-log", "output", "config")),
    "train": ({}, ("data", "epochs", "lr", "batch-size", "image-size", "seed", "output")),
}  # fmt: skip
FLAGS = ("list", "clear")
SPACE = whole_head_space(hidden_dim=32, blocks=2)


def values_of(option: str) -> tuple[str, ...]:
    """Nasty values for an option of its kind."""
    if option in ("storage", "address", "artifacts"):
        return ADDRESSES + HOSTILE
    if option in ("study-name", "host", "device", "to", "cost", "strategy"):
        return HOSTILE
    if option in (
        *("html", "markdown", "csv", "json", "json-log", "tensorboard", "output", "folder"),
        *("checkpoint", "start", "data", "checkpoints", "config", "toml"),
    ):
        return (*HOSTILE, "missing/x", "/proc/nothing/x", "good.db/x", ".", "file")
    return NUMBERS


def two_values(trial: optuna.Trial) -> tuple[float, float]:
    first, second = (
        trial.suggest_float(name, one.low, one.high)
        for name, one in ratio_distributions(SPACE).items()
    )
    return 80 - first - second, SPACE.cost_ratio(first, second)


@pytest.fixture
def scratch(tmp_path, monkeypatch, make_study):
    """A folder with a database, in which nothing is served, trained or waited for."""

    def stop(*arguments, **options):
        raise InputError("Stopped by the test.")

    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    # Built for each run, from the options of all commands: most of what a refusal takes.
    monkeypatch.setattr("typer.main.get_command", functools.cache(typer.main.get_command))
    monkeypatch.setattr("optuna_dashboard.run_server", lambda *a, **o: None)
    monkeypatch.setattr("vit_ratio_opt.runs.ray_cluster.run_on_ray", stop)
    monkeypatch.setattr("vit_ratio_opt.cli.serve.serve_proxy", stop)
    monkeypatch.setattr("vit_ratio_opt.cli.reap.time.sleep", interrupt)
    monkeypatch.setattr("vit_ratio_opt.training.finetune.finetune", stop)
    memory = make_study(None, "good")
    optuna.copy_study(
        from_study_name="good", from_storage=memory._storage, to_storage="sqlite:///good.db"
    )
    along = optuna.create_study(
        study_name="along", storage="sqlite:///good.db", directions=["maximize", "minimize"],
        sampler=BinarySearchSampler(SPACE, Frontier(levels=4), dense=80.0),
    )  # fmt: skip
    along.optimize(two_values, n_trials=3)
    return tmp_path


def ended(arguments, monkeypatch, capsys) -> tuple[int, str]:
    """Exit code of a command in this process, and what it has printed."""
    monkeypatch.setattr(sys, "argv", ["command", *arguments])
    try:
        cli.main()
    except SystemExit as stop:
        out, err = capsys.readouterr()
        return int(stop.code or 0), out + err


def test_300_fuzzed_commands_end_without_a_traceback(scratch, monkeypatch, capsys):
    dice = random.Random(19)
    found = []
    for _ in range(300):
        name = dice.choice(sorted(COMMANDS))
        given, options = COMMANDS[name]
        given = {"storage": "sqlite:///good.db", **given} if "storage" in options else given
        arguments = [name]
        arguments += [dice.choice(HOSTILE[3:])] if name in ("export", "train") else []
        chosen = dice.sample(options, min(dice.choice((1, 1, 2, 3)), len(options)))
        given = given | {option: dice.choice(values_of(option)) for option in chosen}
        for option, value in given.items():
            arguments += [f"--{option}"] if option in FLAGS else [f"--{option}", value]
        try:
            code, said = ended(arguments, monkeypatch, capsys)
        except BaseException as error:
            found.append((arguments, repr(error)[:300]))
            continue
        if code not in (0, 1, 2, 130) or "Traceback" in said or "geheim" in said:
            found.append((arguments, code, said[-300:]))
    assert found == []


@pytest.mark.parametrize("flag", ["--list", "--clear"])
def test_a_hostile_cache_is_shown_as_text_or_refused(scratch, monkeypatch, capsys, flag):
    tables = [json.dumps({"table": {"device": text}}) for text in HOSTILE if text != "\udcff"]
    homes = [*(name for name in HOSTILE if "\0" not in name), "good.db", "real"]
    monkeypatch.setenv("HOME", str(scratch))
    (scratch / "real" / "vit_ratio_opt").mkdir(parents=True)
    (scratch / "vit_ratio_opt").write_text("no folder")
    for number, text in enumerate([*tables, "{", "[" * 100_000]):
        path = scratch / "real" / "vit_ratio_opt" / f"{number:032x}.json"
        path.write_text(text, encoding="utf-8")
    for home in homes:
        monkeypatch.setenv("XDG_CACHE_HOME", home)
        code, said = ended(["cache", flag], monkeypatch, capsys)
        assert code in (0, 2), (home, said)
        assert not {"\x1b", "\x9b", "\u202e"} & set(said), home
    assert f"{len(tables) + 2} file(s)" in said


WRONG = (None, "x", 5, -1, 0.5, True, [], {}, [["a"]], [[1, 2, 3]], {"a": {}}, float("nan"),
         float("inf"), 10**400, "[/red]", "\x1b[2J", [None], {"x": [1]})  # fmt: skip


def paths_of(attributes, depth=2):
    """Keys of attributes, and of the dictionaries in them."""
    for key, value in attributes.items():
        yield (key,)
        if isinstance(value, dict) and depth > 1:
            yield from ((key, *path) for path in paths_of(value, depth - 1))


def changed(attributes, path, value=..., **options):
    """A copy of attributes without one of them, or with another value of it."""
    copied = copy.deepcopy(attributes)
    *parents, last = path
    place = copied
    for key in parents:
        place = place[key]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return copied


def look(study, with_page: bool) -> dict[str, str]:
    """Everything that shows a study."""
    (study,) = load_studies(study._storage, [study.study_name])
    console = Console(file=io.StringIO(), width=100)
    for group in group_studies([study]):
        console.print(trials_table(study))
        print_report(group, None, console)
    shown = {
        "csv": csv_text(trial_rows(study)),
        "markdown": markdown_page([study]),
        "json": json.dumps(build_report([study])),
        "terminal": console.file.getvalue(),
        "note": "\n".join([study_note(study), *(trial_note(study, t) for t in study.trials)]),
    }
    if with_page:
        shown["page"] = html_page([study])
        training_curve(study.trials[0], 80.0, drops=False)
    answer_of(study)
    trained_trial(study)
    return shown


def damaged_studies(make_study, dice, count, values):
    """Studies that lack one attribute, or have another value of one, and what that is."""
    kinds = [
        {"planned": True},
        {"planned": True, "budget": None},
        {"planned": True, "fixed": True, "trials": 1},
        {},
    ]
    for number in range(count):
        study = make_study(None, "s", **dice.choice(kinds))
        value = dice.choice(values)
        if number % 2:
            path = dice.choice([*paths_of(study.user_attrs)])
            new = changed(study.user_attrs, path, value)
            storage = study._storage
            storage._studies[study._study_id].user_attrs = new
            yield study, (path, value)
        else:
            trial = dice.choice(study.get_trials(deepcopy=False))
            path = dice.choice([*paths_of(trial.user_attrs), ("", "mhsa_ratio")])
            if path[0] == "":
                trial._params = changed(trial.params, path[1:], value)
            else:
                trial._user_attrs = changed(trial.user_attrs, path, value)
            yield study, (trial.number, path, value)


@pytest.mark.parametrize(("count", "values"), [(200, (...,)), (50, WRONG)])
def test_damaged_studies_are_shown_or_refused_in_a_sentence(make_study, caplog, count, values):
    dice, found = random.Random(count), []
    caplog.set_level(logging.WARNING)
    for number, (study, what) in enumerate(damaged_studies(make_study, dice, count, values)):
        for use in (
            lambda: look(study, number % 20 == 0),  # noqa: B023
            lambda: load_search("s", study._storage),  # noqa: B023
        ):
            try:
                use()
            except InputError as error:
                found += [(what, str(error))] if "\n" in str(error) else []
            except Exception as error:
                found.append((what, repr(error)[:300]))
    assert found == []
    assert "Traceback" not in caplog.text


def test_a_hostile_name_is_shown_as_text_everywhere(make_study, tmp_path, monkeypatch, capsys):
    url = f"sqlite:///{tmp_path / 's.db'}"
    names = [name for name in HOSTILE if name.strip() and "\0" not in name and name != "\udcff"]
    for name in names:
        study = make_study(None, name, model=name, dataset=name, trials=2)
        study._storage._studies[study._study_id].user_attrs["device"] = name
        study.get_trials(deepcopy=False)[0]._user_attrs["failure"] = name
        shown = look(study, with_page=name in names[:3])
        for place in ("csv", "markdown", "note", "page"):
            assert not {"\x1b", "\x9b", "\u202e"} & set(shown.get(place, "")), (name, place)
        assert "<script>alert" not in shown.get("page", "")
        assert "<script>alert" not in re.sub("`[^`]*`", "", shown["markdown"] + shown["note"])
        assert not re.search("(^|,)[=@]", shown["csv"])
        optuna.copy_study(from_study_name=name, from_storage=study._storage, to_storage=url)
    code, said = ended(["report", "--storage", url], monkeypatch, capsys)
    assert code == 0
    assert "ablation[/v2]" in said
    assert not {"\x1b", "\x9b", "\u202e"} & set(said)
    assert open_storage(url)
