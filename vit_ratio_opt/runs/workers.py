"""More than one process or machine on a study: signs of life, dead workers, signals."""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import os
import platform
import signal
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

import optuna
import sqlalchemy
from optuna.exceptions import TrialPruned, UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from vit_ratio_opt._compat import rdb_of
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.runs.connections import stopping
from vit_ratio_opt.runs.database import RDBStorage
from vit_ratio_opt.runs.storage import BEATS_IN_GRACE
from vit_ratio_opt.utils.failures import is_storage_error

__all__ = [
    "Reaper",
    "SearchStopped",
    "StopRequest",
    "fail_dead_trials",
    "fail_stale_trials",
    "hand_own_trials_back",
    "is_dead",
    "keep_optimizing",
    "process_name",
    "sign_of_life",
    "stop_on_signals",
]

_BEAT = "vit_ratio_opt:beat"
# Behind a proxy, where Optuna's own heartbeats cannot be had.
_PROXIED_BEAT_SECONDS = 30.0
# A thread that uses less of a CPU waits; psycopg looks ten times a second whether it still has to.
_LEAST_CPU = 0.002
_LEAST_STALL_SECONDS = 5.0
# After the second signal, for whatever can be put right on the way out.
_LAST_SECONDS = 2.0
# Failures in a row that no pair explains.
_MOST_FAILURES = 3

_logger = logging.getLogger(f"optuna.{__name__}")
_optunas_logger = logging.getLogger("optuna.study._optimize")


def process_name(process: int | None = None) -> str:
    """Of a process of this machine among all that may run trials; this one by default.

    Containers may share a machine's name, but not its process numbers: their namespace is named
    too.
    """
    return f"{_machine()}:{os.getpid() if process is None else process}"


def is_dead(name: str) -> bool:
    """Whether a :func:`process_name` is of this machine, and of no process that is there."""
    machine, _, process = name.rpartition(":")
    return machine == _machine() and process.isdigit() and not _is_alive(int(process))


@functools.cache
def _machine() -> str:
    try:
        return f"{platform.node()}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return platform.node()


@contextlib.contextmanager
def sign_of_life(
    trial_id: int, storage: BaseStorage, *, every: float | None = None
) -> Iterator[None]:
    """Say regularly, in a thread, that the trial's process is alive.

    Optuna does so in ``study.optimize`` alone, not behind its proxy, and no more once a single
    write has failed. Behind a proxy a counter is written into the trial instead, which a
    :class:`Reaper` beside the database turns into heartbeats.

    None is given while the thread that called this hangs, in a call that never ends: after half
    the grace in which it has computed nothing, so that another worker gets the pair.

    Args:
        trial_id: Of the running trial.
        storage: The study's.
        every: Seconds; the storage's own interval, or half a minute, by default.
    """
    recorder = _recorder(trial_id, storage)
    database = rdb_of(storage)
    interval = every or (
        _PROXIED_BEAT_SECONDS if database is None else database.heartbeat_interval
    )
    if recorder is None or interval is None:
        yield
        return
    ended, makes_progress = threading.Event(), _Progress(interval * BEATS_IN_GRACE / 2)

    def beat() -> None:
        while True:
            try:
                if makes_progress():
                    record()
            except Exception as error:  # the next one may get through
                _logger.debug(f"A heartbeat was lost: {error}")
            if ended.wait(interval):
                storage.remove_session()  # SQLAlchemy keeps one for each thread
                return

    thread = threading.Thread(target=beat, daemon=True, name=f"sign of life of {trial_id}")
    with recorder as record:
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def _recorder(
    trial_id: int, storage: BaseStorage
) -> contextlib.AbstractContextManager[Callable[[], object]] | None:
    """Return what gives a function that records a heartbeat; None where the storage has none."""
    database = rdb_of(storage)
    if isinstance(database, RDBStorage):
        return database.heartbeats(trial_id)
    if database is not None:
        return contextlib.nullcontext(functools.partial(database.record_heartbeat, trial_id))
    if isinstance(storage, optuna.storages.GrpcStorageProxy):
        count = itertools.count()
        return contextlib.nullcontext(
            lambda: storage.set_trial_system_attr(trial_id, _BEAT, next(count))
        )
    return None


class _Progress:
    """Whether the thread that makes this computes: one that hangs in a call uses no CPU.

    Args:
        seconds: How long it may hang. Where the system does not tell, it may do so for ever.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = max(seconds, _LEAST_STALL_SECONDS)
        self._clock = None
        if hasattr(time, "pthread_getcpuclockid"):
            self._clock = time.pthread_getcpuclockid(threading.get_ident())
        self._since, self._used = time.monotonic(), self._cpu_seconds()

    def __call__(self) -> bool:
        """Whether it has computed lately."""
        now, used = time.monotonic(), self._cpu_seconds()
        stalled = now - self._since
        if self._clock is None or used - self._used > _LEAST_CPU * stalled:
            self._since, self._used = now, used
            return True
        return stalled < self._seconds

    def _cpu_seconds(self) -> float:
        return 0.0 if self._clock is None else time.clock_gettime(self._clock)


class Reaper:
    """Fails the RUNNING trials of dead workers, so that their pairs are tried again.

    To be run regularly beside the database: for workers behind a proxy it is the only one who can.

    Args:
        storage: A database, with heartbeats.
    """

    def __init__(self, storage: BaseStorage) -> None:
        self._storage = storage
        self._beats: dict[int, Any] = {}

    def reap(self, names: Sequence[str] = ()) -> list[tuple[str, int]]:
        """Look once, at the named studies or all.

        Returns:
            Study name and number of each trial that was failed.
        """
        studies = [
            optuna.load_study(study_name=name, storage=self._storage)
            for name in names or optuna.get_all_study_names(self._storage)
        ]
        reaped = []
        for study in studies:
            before = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
            self._pass_beats_on(before)
            fail_dead_trials(study)
            fail_stale_trials(study)
            after = study.get_trials(deepcopy=False)
            reaped += [
                (study.study_name, trial.number)
                for trial in before
                if after[trial.number].state == TrialState.FAIL
                # Its own worker says why.
                and "failure" not in after[trial.number].user_attrs
            ]
        return reaped

    def _pass_beats_on(self, running: Sequence[FrozenTrial]) -> None:
        """What counts is that a counter has moved: clocks of machines differ."""
        database = rdb_of(self._storage)
        if database is None or database.heartbeat_interval is None:
            return
        for trial in running:
            beat = trial.system_attrs.get(_BEAT)
            if beat is not None and self._beats.get(trial._trial_id) != beat:
                self._beats[trial._trial_id] = beat
                database.record_heartbeat(trial._trial_id)


def fail_dead_trials(study: Study) -> list[int]:
    """Fail RUNNING trials of processes of this machine that no longer exist; give their numbers.

    Other machines' trials are left to the heartbeat. A process id given to another program in
    the meantime looks alive, and falls to the heartbeat too. So does a trial whose process died
    before its first heartbeat: Optuna would leave that one running for ever, so it is given a
    first heartbeat here, and its grace period begins.
    """
    failed = []
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if is_dead(str(trial.user_attrs.get("worker", ""))):
            # Not study.tell: this is not the pair's failure, see BinarySearchSampler.
            with contextlib.suppress(UpdateFinishedTrialError):  # by another worker meanwhile
                study._storage.set_trial_state_values(trial._trial_id, state=TrialState.FAIL)
                failed.append(trial.number)
    _start_missing_heartbeats(study)
    return failed


def fail_stale_trials(study: Study) -> None:
    """Optuna's: fail the trials whose last heartbeat is older than the grace period."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        optuna.storages.fail_stale_trials(study)


def _start_missing_heartbeats(study: Study) -> None:
    storage = rdb_of(study._storage)
    if storage is None or storage.heartbeat_interval is None:
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


def keep_optimizing(
    study: Study,
    objective: Callable[[Trial], float],
    *,
    n_trials: int,
    callbacks: Sequence[Callable[[Study, FrozenTrial], None]] = (),
    say: Callable[[str], None] = print,
) -> int:
    """``study.optimize`` that goes on after a trial that was lost.

    - Another worker has failed the trial. A worker that could not write its heartbeat in time (a
      suspended laptop, a database out of reach) is taken for dead; Optuna then raises when the
      trial ends.
    - The objective failed: the trial ends FAIL, and the next one begins. Three in a row are no
      pair's fault, and what the last one raised is raised. So is an InputError at once.

    Args:
        study: The study.
        objective: What it optimises.
        n_trials: Trials to run at the most, those that were lost included.
        callbacks: Called after each trial that was not lost.
        say: Told in a line what was lost.

    Returns:
        How many were begun.
    """
    begun, in_a_row, is_quiet = 0, 0, False
    last: Exception | None = None

    def guarded(trial: Trial) -> float:
        nonlocal begun, in_a_row, is_quiet, last
        begun, is_quiet = begun + 1, False
        try:
            value = objective(trial)
        except TrialPruned:
            in_a_row = 0
            raise
        except KeyboardInterrupt:
            is_quiet = True
            raise
        except Exception as error:
            is_lost = isinstance(error, UpdateFinishedTrialError)
            is_quiet = is_lost or is_storage_error(error)
            if is_lost:
                raise
            is_lasting = isinstance(error, InputError)  # what the user has to mend first
            in_a_row, last = _MOST_FAILURES if is_lasting else in_a_row + 1, error
            if in_a_row == _MOST_FAILURES:
                study.stop()
            raise
        in_a_row = 0
        return value

    def no_failure(record: logging.LogRecord) -> bool:
        """Optuna would warn, with a traceback, of a trial that somebody has stopped or taken."""
        return not is_quiet

    _optunas_logger.addFilter(no_failure)
    try:
        while begun < n_trials:
            try:
                study.optimize(
                    guarded, n_trials=n_trials - begun, callbacks=callbacks, catch=(Exception,)
                )
                break
            except Exception as error:
                if not _trial_was_finished(error):
                    raise
                say(
                    "a trial was failed by another worker, which took this one for dead: its "
                    "result is dropped; going on"
                )
    finally:
        _optunas_logger.removeFilter(no_failure)
    if in_a_row == _MOST_FAILURES and last is not None:
        raise last
    return begun


def hand_own_trials_back(study: Study) -> None:
    """Fail the RUNNING trials of this process, which has lost them to a failure of the storage.

    If the storage fails again, they fall to the heartbeat.
    """
    with contextlib.suppress(Exception):
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if trial.user_attrs.get("worker") == process_name():
                study._storage.set_trial_state_values(trial._trial_id, state=TrialState.FAIL)


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


class SearchStopped(SystemExit):
    """A signal has ended the search, its trial handed back, or a training, its state kept.

    Where nobody catches it, the process ends as one that was ended by the signal: not with 0, so
    that whoever started it (Slurm, Kubernetes) knows that there is more to do.

    Args:
        number: The signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


class StopRequest:
    """Whether a signal has asked to stop, and which."""

    def __init__(self) -> None:
        self.signal = 0
        self._set = threading.Event()

    def __call__(self) -> bool:
        """Whether it was asked."""
        return self._set.is_set()

    def ask(self, number: int) -> None:
        """By this signal."""
        self.signal = number
        self._set.set()

    def wait(self, seconds: float) -> None:
        """So long, or until it is asked."""
        self._set.wait(seconds)


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """SIGTERM (preemption) and Ctrl-C ask to stop; a second one of them ends at once.

    The second one interrupts what is being done, and ends the process two seconds later if that
    could not be interrupted: a call in C, or a database that does not answer.

    Outside the main thread, where no signal comes, nothing is changed.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def stop(number: int, frame: FrameType | None) -> None:
        if request():
            raise KeyboardInterrupt
        request.ask(number)
        stopping.set()
        # Not print: the signal may have come in the middle of one.
        os.write(2, b"\nstopping: the training is put by; once more to end at once\n")

    reader, writer = socket.socketpair()
    writer.setblocking(False)
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, stop) for number in numbers}
    # Python's handlers wait for the main thread, which may hang; this is written at once.
    wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_end_at_once, args=(reader,), daemon=True, name="signals").start()
    try:
        yield request
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        writer.close()
        stopping.clear()


def _end_at_once(reader: socket.socket) -> None:
    """End the process at the second signal, unless it has ended what it did by then."""
    with reader:
        received = 0
        while received < 2:
            numbers = reader.recv(1)
            if not numbers:
                return
            received += numbers[0] in (signal.SIGTERM, signal.SIGINT)
        reader.settimeout(_LAST_SECONDS)
        with contextlib.suppress(TimeoutError):
            while more := reader.recv(1):
                if more[0] in (signal.SIGTERM, signal.SIGINT):  # a third one
                    break
            else:
                return
        os._exit(128 + numbers[0])
