"""Create, resume and run a study: storage URL, stored settings, dead workers."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
import sqlalchemy
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage, RDBStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.engine import URL

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.search import BinarySearchSampler, BudgetSearch, Pair

if TYPE_CHECKING:
    from vit_ratio_opt.objective import PruningObjective

__all__ = [
    "DEFAULT_STORAGE",
    "check_storage_url",
    "check_study",
    "create_study",
    "fail_dead_trials",
    "finished_trials",
    "keep_optimizing",
    "open_storage",
    "run_study",
]

DEFAULT_STORAGE = "sqlite:///vit_ratio_opt.db"

# A suspended laptop must not lose its trial at once, a dead node must not block its pair for ever.
_HEARTBEAT_SECONDS, _GRACE_SECONDS = 60, 600
# Writers of a SQLite file wait for each other; by default only 5 seconds.
_SQLITE_SECONDS = 60
_PACKAGES = ("vit_ratio_opt", "torch", "timm", "optuna")


def check_storage_url(url: str, *, must_exist: bool = False) -> URL:
    """Refuse a storage URL that cannot work, without connecting or writing.

    Args:
        url: A SQLAlchemy URL, such as ``sqlite:///study.db``.
        must_exist: Refuse a SQLite file that does not exist yet.

    Raises:
        InputError: The URL is malformed, names an unknown database, or a SQLite file that is not
            there or cannot be written. Passwords are not repeated.
    """
    try:
        parsed = sqlalchemy.engine.make_url(url)
        parsed.get_dialect()
    except sqlalchemy.exc.NoSuchModuleError:
        raise InputError(f"The storage URL {_redact(url)!r} names an unknown database.") from None
    except (sqlalchemy.exc.ArgumentError, ValueError):
        raise InputError(
            f"{_redact(url)!r} is no storage URL; expected one such as {DEFAULT_STORAGE} or "
            "postgresql+psycopg://user@host/database."
        ) from None
    if parsed.get_backend_name() == "sqlite" and parsed.database not in (None, "", ":memory:"):
        file = Path(str(parsed.database))
        if must_exist and not file.exists():
            raise InputError(f"There is no database {file}.")
        if not file.parent.is_dir():
            raise InputError(f"{url} cannot be made: there is no folder {file.parent}.")
        if not must_exist and not os.access(file if file.exists() else file.parent, os.W_OK):
            raise InputError(f"{url} cannot be written: no permission.")
    return parsed


def open_storage(url: str | BaseStorage, *, must_exist: bool = False) -> BaseStorage:
    """An Optuna storage with heartbeats.

    Args:
        url: A SQLAlchemy URL; a storage is given back as it is.
        must_exist: Refuse a SQLite file that does not exist instead of making it.

    Raises:
        InputError: See :func:`check_storage_url`; or the driver is not installed, or the database
            cannot be reached or used.
    """
    if not isinstance(url, str):
        return url
    parsed = check_storage_url(url, must_exist=must_exist)
    shown = parsed.render_as_string(hide_password=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return RDBStorage(
                url,
                engine_kwargs=_engine_settings(parsed),
                heartbeat_interval=_HEARTBEAT_SECONDS,
                grace_period=_GRACE_SECONDS,
            )
    except ImportError:
        raise InputError(f"The driver for {shown} is not installed.") from None
    except (sqlalchemy.exc.SQLAlchemyError, OSError, RuntimeError) as error:
        reason = str(getattr(error, "orig", None) or error).splitlines()[0]
        if parsed.password:
            reason = reason.replace(str(parsed.password), "***")
        raise InputError(f"The storage {shown} cannot be used: {reason}") from None


def _engine_settings(url: URL) -> dict[str, Any]:
    if url.get_backend_name() == "sqlite":
        return {"connect_args": {"timeout": _SQLITE_SECONDS}}
    return {}


def check_study(objective: PruningObjective, study_name: str, storage: BaseStorage) -> None:
    """Refuse a name that the storage has with other settings. Nothing is written.

    Raises:
        InputError: With the settings that differ.
    """
    if not study_name:
        raise InputError("The study name must not be empty.")
    for summary in optuna.get_all_study_summaries(storage):
        if summary.study_name == study_name:
            _refuse_other_settings(
                study_name, summary.user_attrs.get("settings"), objective.settings
            )


def create_study(
    objective: PruningObjective,
    *,
    study_name: str,
    storage: str | BaseStorage = DEFAULT_STORAGE,
    pruner: optuna.pruners.BasePruner | None = None,
    screen: bool = True,
) -> Study:
    """Create the study, or resume it when the storage has one of this name and these settings.

    The study remembers the objective's settings (budget, dense weights, validation split, recipe,
    seed ...) and the dense model's figures, and always comes with the sampler that fits them.

    Args:
        objective: What the study optimises.
        study_name: Its name in the storage.
        storage: A SQLAlchemy URL or an Optuna storage.
        pruner: An Optuna pruner for the reports after each epoch; none by default.
        screen: Whether a new study begins with the best pair of
            :meth:`~vit_ratio_opt.PruningObjective.screen`, or with a tolerance on
            :attr:`~vit_ratio_opt.PruningObjective.path`, which the study remembers too.

    Raises:
        InputError: The storage cannot be used, or the study exists with other settings.
    """
    backend = open_storage(storage)
    check_study(objective, study_name, backend)
    study = optuna.create_study(
        study_name=study_name,
        storage=backend,
        direction=objective.direction,
        pruner=pruner or optuna.pruners.NopPruner(),
        load_if_exists=True,
    )
    if "dense" not in study.user_attrs:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            metric = "accuracy" if objective.direction == "maximize" else "FLOPs of dense"
            study.set_metric_names([metric])
        study.set_user_attr("settings", objective.settings)
        study.set_user_attr("versions", {name: version(name) for name in _PACKAGES})
        study.set_user_attr("device", objective.device_name)
        study.set_user_attr(
            "dense",
            {
                "macs": objective.shape.macs,
                "params": objective.shape.params,
                "val_accuracy": objective.dense_accuracy,
            },
        )
    # These take a while: a worker that was killed in the middle left the study without them.
    if "screened" not in study.user_attrs:
        seen = objective.screen() if screen else {}
        study.set_user_attr("screened", [[*pair, accuracy] for pair, accuracy in seen.items()])
    if "path" not in study.user_attrs:
        study.set_user_attr("path", objective.path if screen else ())
    path = [(first, second) for first, second in study.user_attrs.get("path", ())]
    plan = objective.plan(_screened_best(study), path)
    if isinstance(plan, BudgetSearch):
        # For whoever reads the study without the model: which pair is best depends on these.
        study.set_user_attr("plan", {"curve": plan.curve, "noise": plan.noise})
    study.sampler = BinarySearchSampler(objective.search_space, plan, seed=objective.seed)
    return study


def _screened_best(study: Study) -> Pair | None:
    """The best pair of the study's screen, the first of equals."""
    seen = study.user_attrs.get("screened", [])
    best = max(seen, key=lambda row: row[2], default=None)
    return None if best is None else (best[0], best[1])


def finished_trials(study: Study) -> list[FrozenTrial]:
    """Trials that were trained: complete, over the tolerance, or stopped after an epoch."""
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
    return [
        trial
        for trial in trials
        if trial.state == TrialState.COMPLETE
        or trial.intermediate_values
        or "accuracy_drop" in trial.user_attrs
    ]


def run_study(
    study: Study,
    objective: PruningObjective,
    *,
    n_trials: int,
    say: Callable[[str], None] = print,
) -> None:
    """Run until the study has ``n_trials`` trained trials, those of earlier runs included.

    Trials that a killed process of this machine left running are failed first, so that their pairs
    are tried again.

    Args:
        study: From :func:`create_study`.
        objective: The same objective.
        n_trials: Trained trials in all, at least 1.
        say: Told, in a line each, what was found and what each trial gave.

    Raises:
        InputError: ``n_trials`` is below 1.
    """
    if n_trials < 1:
        raise InputError(f"The number of trials must be at least 1, but got {n_trials!r}.")
    for number in fail_dead_trials(study):
        say(f"trial {number} was left behind by a killed process; its pair is tried again")
    done = len(finished_trials(study))
    if done:
        say(f"resuming {study.study_name!r}: {done} of {n_trials} trials are done, none repeated")

    best = _screened_best(study)
    if best is not None and not study.get_trials(deepcopy=False):
        ratios = "mhsa_ratio {:.3f}, ffn_ratio {:.3f}".format(*best)
        looked_at = len(study.user_attrs["screened"])
        say(f"begins with {ratios}: the best of {looked_at} pairs before any training")

    path = study.user_attrs.get("path", [])
    if path and not study.get_trials(deepcopy=False):
        say(f"begins along {len(path)} pairs, the likeliest of their FLOPs before any training")

    def report(study: Study, trial: FrozenTrial) -> None:
        done = len(finished_trials(study))
        say(_describe(trial, done, n_trials))
        if done >= n_trials:
            study.stop()

    def nothing_left() -> str | None:
        sampler = study.sampler
        return sampler.nothing_left(study) if isinstance(sampler, BinarySearchSampler) else None

    if done < n_trials and nothing_left() is None:
        # Attempts are bounded, so a pair over the budget in the queue cannot make this endless.
        keep_optimizing(study, objective, n_trials=4 * n_trials, callbacks=[report], say=say)
    why = nothing_left()
    if why is not None and len(finished_trials(study)) < n_trials:
        say(f"nothing is left to learn: {why}")


def _describe(trial: FrozenTrial, done: int, n_trials: int) -> str:
    attributes = trial.user_attrs
    ratios = "  ".join(f"{name} {value:.3f}" for name, value in trial.params.items())
    text = f"trial {trial.number:3d}  {ratios}  FLOPs {attributes.get('macs_ratio', 0):.3f}"
    if "accuracy_drop" not in attributes:
        return f"{text}  {trial.state.name.lower()}"
    limit = "" if trial.state == TrialState.COMPLETE else ", over the tolerance"
    return (
        f"{text}  accuracy {attributes['accuracy_pruned']:.2f} -> {attributes['accuracy']:.2f} % "
        f"({-attributes['accuracy_drop']:+.2f}{limit})  "
        f"{attributes['seconds']:.1f} s  ({done} of {n_trials})"
    )


def keep_optimizing(
    study: Study,
    objective: Callable[[Trial], float],
    *,
    n_trials: int,
    callbacks: Sequence[Callable[[Study, FrozenTrial], None]] = (),
    say: Callable[[str], None] = print,
) -> None:
    """``study.optimize`` that goes on after another worker has failed its trial.

    A worker that could not write its heartbeat in time (a suspended laptop, a database out of
    reach) is taken for dead, and its trial is failed; Optuna then raises when the trial ends.

    Args:
        study: The study.
        objective: What it optimises.
        n_trials: Trials to run at the most, those that were lost included.
        callbacks: Called after each trial that was not lost.
        say: Told in a line what was lost.
    """
    begun = 0

    def counted(trial: Trial) -> float:
        nonlocal begun
        begun += 1
        return objective(trial)

    while begun < n_trials:
        try:
            study.optimize(counted, n_trials=n_trials - begun, callbacks=callbacks)
        except (UpdateFinishedTrialError, ValueError, AssertionError) as error:
            if not _trial_was_finished(error):
                raise
            say("a trial was failed by another worker, which took this one for dead; going on")
        else:
            return


def _trial_was_finished(error: BaseException) -> bool:
    """Whether Optuna raised because someone else had finished the trial.

    It has no exception for that: telling raises a ValueError, which an assertion of ``optimize``
    ("Should not reach.") then replaces when the objective itself went well.
    """
    if isinstance(error, AssertionError) and error.__context__ is not None:
        error = error.__context__
    return isinstance(error, UpdateFinishedTrialError) or (
        isinstance(error, ValueError) and str(error).startswith("Cannot tell a")
    )


def fail_dead_trials(study: Study) -> list[int]:
    """Fail RUNNING trials of processes of this machine that no longer exist; give their numbers.

    Other machines' trials are left to the heartbeat. A process id given to another program in
    the meantime looks alive, and falls to the heartbeat too. So does a trial whose process died
    before its first heartbeat: Optuna would leave that one running for ever, so it is given a
    first heartbeat here, and its grace period begins.
    """
    failed = []
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        node, _, process = str(trial.user_attrs.get("worker", "")).rpartition(":")
        if node == platform.node() and process.isdigit() and not _is_alive(int(process)):
            # Not study.tell: this is not the pair's failure, see BinarySearchSampler.
            with contextlib.suppress(UpdateFinishedTrialError):  # by another worker meanwhile
                study._storage.set_trial_state_values(trial._trial_id, state=TrialState.FAIL)
                failed.append(trial.number)
    _start_missing_heartbeats(study)
    return failed


def _start_missing_heartbeats(study: Study) -> None:
    storage = getattr(study._storage, "_backend", study._storage)
    if not isinstance(storage, RDBStorage) or storage.heartbeat_interval is None:
        return
    without = sqlalchemy.text(
        "SELECT trial_id FROM trials WHERE study_id = :study AND state = 'RUNNING' "
        "AND trial_id NOT IN (SELECT trial_id FROM trial_heartbeats)"
    )
    with storage.engine.connect() as connection:
        rows = connection.execute(without, {"study": study._study_id}).scalars().all()
    for trial_id in rows:
        storage.record_heartbeat(trial_id)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _refuse_other_settings(
    name: str, stored: dict[str, Any] | None, wanted: dict[str, Any]
) -> None:
    if stored is None:
        raise InputError(
            f"The storage has a study {name!r} not made by vit_ratio_opt: use another name."
        )
    differences = [
        f"{key} is {stored.get(key)!r}, not {wanted.get(key)!r}"
        for key in sorted({*stored, *wanted})
        if stored.get(key) != wanted.get(key)
    ]
    if differences:
        raise InputError(
            f"Study {name!r} exists with other settings: {'; '.join(differences)}. "
            "Use another study name, or the settings it was made with."
        )


def _redact(url: str) -> str:
    """Everything between ``://`` and ``@`` but the user name may be a password."""
    return re.sub(r"(://[^:/@]*):.*@", r"\1:***@", url)
