"""The command line in odd terminals, pipes and users: one sentence at the most, no traceback."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time

import optuna
import pytest


@pytest.fixture(scope="module")
def database(make_study, tmp_path_factory):
    folder = tmp_path_factory.mktemp("database")
    for name in ("größe ±", "[/x]"):
        study = make_study(None, name, trials=2)
        optuna.copy_study(
            from_study_name=name,
            from_storage=study._storage,
            to_storage=f"sqlite:///{folder}/s.db",
        )
    return folder / "s.db"


@pytest.fixture
def folder(database, tmp_path):
    shutil.copy(database, tmp_path)
    return tmp_path


def shell(command, folder, **environment):
    """Run a command in a shell, in which ``V`` is ours."""
    kept = {key: value for key, value in os.environ.items() if key not in ("LANG", "LC_ALL")}
    prefix = f'V() {{ {sys.executable} -m vit_ratio_opt "$@"; }}; '
    return subprocess.run(
        ["bash", "-c", prefix + command], cwd=folder, env=kept | environment, capture_output=True,
        timeout=120,
    )  # fmt: skip


REPORT = "V report --storage sqlite:///s.db"


@pytest.mark.parametrize(
    ("command", "environment", "code", "part"),
    [
        (f"{REPORT} | head -1; exit ${{PIPESTATUS[0]}}", {}, (0, 1), b"study"),
        (f"{REPORT} >&-", {}, (0,), b""),
        (f"{REPORT} > /dev/full", {}, (1, 2), b"No space left"),
        (f"{REPORT} --study-name $'\\xff\\xfe'", {}, (2,), b"no UTF-8 text"),
        (REPORT, {"PYTHONIOENCODING": "ascii", "COLUMNS": "1", "NO_COLOR": "1"}, (0,), b"9"),
        (REPORT, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, (0,), b"[/x]"),
        (f"env -u HOME -u XDG_CACHE_HOME {sys.executable} -m vit_ratio_opt "
         "report --storage sqlite:///s.db --csv /proc/x.csv", {}, (2,), b"cannot be written"),
    ],
)  # fmt: skip
def test_odd_surroundings_give_an_answer_or_a_sentence(folder, command, environment, code, part):
    if "/dev/full" in command and not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    ended = shell(command, folder, **environment)
    said = ended.stdout + ended.stderr
    assert ended.returncode in code, said
    assert part in said
    assert b"Traceback" not in said
    assert b"Exception ignored" not in said


@pytest.mark.parametrize("seconds", [0.4, 1.2])
def test_ctrl_c_while_modules_are_imported_gives_no_traceback(folder, seconds):
    process = subprocess.Popen(
        [sys.executable, "-m", "vit_ratio_opt", "report", "--storage", "sqlite:///s.db"],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert b"vit_ratio_opt" not in said, said
    assert process.returncode in (0, 1, 130, -signal.SIGINT)
