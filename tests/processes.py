"""What tests run in processes of their own.

Not in ``conftest.py``: a process finds a function by the name of its module, and several files
have that name.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.storages._cached_storage import _CachedStorage
from optuna.trial import TrialState
from safetensors.torch import load_file

import vit_ratio_opt
from vit_ratio_opt.model_files.load import load_pruned

__all__ = [
    "hold_lock",
    "import_without_dashboard",
    "load_all",
    "run_alone",
    "run_command_line",
    "run_killed_after",
    "run_trainer_script",
]


def run_alone(
    environment: dict[str, str],
    log: str,
    function: Callable[..., None],
    arguments: tuple[Any, ...],
) -> None:
    os.environ.clear()  # the server's is that of the first test that had it started
    os.environ.update(environment)
    with open(log, "a", buffering=1) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        torch.set_num_threads(1)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        function(*arguments)


def run_command_line(*arguments: object) -> None:
    from vit_ratio_opt.cli.main import main

    sys.argv = ["vit-ratio-opt", *map(str, arguments)]
    main()


def run_killed_after(written: str, *arguments: object) -> None:
    """Run the command line until it has written a trial's attribute, and be killed there.

    ``ask`` stands for the beginning of a trial, ``tell`` for its values, and ``artifacts`` for the
    name of any artifact.
    """

    failing = (TrialState.FAIL, (TrialState.FAIL,))  # a dead worker's trial, by another worker

    def kill_in(method: str, what: str | None = None) -> None:
        write = getattr(_CachedStorage, method)

        def write_and_die(storage: _CachedStorage, *given: Any, **named: Any) -> Any:
            result = write(storage, *given, **named)
            name = what or named.get("key") or named.get("param_name") or given[1]
            name = "artifacts" if name.startswith("artifacts:") else name
            if name == written and named.get("state", given[1:2]) not in failing:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        setattr(_CachedStorage, method, write_and_die)

    kill_in("create_new_trial", "ask")
    kill_in("set_trial_state_values", "tell")
    for method in ("set_trial_param", "set_trial_user_attr", "set_trial_system_attr"):
        kill_in(method)
    run_command_line(*arguments)


def import_without_dashboard() -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "vit_ratio_opt"]:
        del sys.modules[name]
    sys.modules["optuna_dashboard"] = None  # type: ignore[assignment]
    for name in ("cli.main", "report.explainer", "composer"):
        importlib.import_module(f"vit_ratio_opt.{name}")
    print("imported")


def load_all(folder: Path) -> None:
    for path in sorted(folder.glob("*.safetensors")):
        model, manifest = load_pruned(path)
        expected = load_file(path.with_suffix(".expected"))
        with torch.no_grad():
            assert torch.equal(model(expected["images"]), expected["logits"]), path
        assert not model.training
        print(manifest["name"])


def run_trainer_script(script: str, folder: Path, epochs: int) -> None:
    """Search with one of ``studies/trainers`` until one trial is trained, and keep each state."""
    public: Any = vit_ratio_opt
    public.RunOptions = partial(public.RunOptions, state_every=0)
    sys.path.insert(0, str(Path(__file__).parents[1] / "studies" / "trainers"))
    import_module(script).main(folder, n_trials=1, epochs=epochs)


def hold_lock(path: Path, forked: Path) -> None:
    """Lock a file, fork a child as a data loader does, and hang."""
    from vit_ratio_opt.utils.locks import try_lock

    assert try_lock(path) is not None
    child = os.fork()
    if child:
        forked.write_text(str(child))
    time.sleep(300)
