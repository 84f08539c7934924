"""The contract between a search and a training loop: what a loop is given and what it reports.

A custom training loop is a class with a metric and three methods, see :class:`Trainer`. It
needs no import of this package and knows nothing of Optuna.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import nn

from vit_ratio_opt.space.metric import Metric
from vit_ratio_opt.training.progress import SearchProgress
from vit_ratio_opt.training.save_clock import SaveClock

__all__ = [
    "Report",
    "Stopwatch",
    "Trainer",
    "TrainingDiverged",
    "TrainingStopped",
    "TrialContext",
    "exit_means_stop",
]


class TrainingDiverged(ArithmeticError):
    """The loss is NaN or infinite: another seed or a smaller learning rate may help."""


class TrainingStopped(KeyboardInterrupt):
    """The training was asked to stop. Its state is saved if the context names a file for it.

    A KeyboardInterrupt, because Optuna lets these through whatever ``catch`` names. Inside a
    framework that ends the process on a KeyboardInterrupt, SystemExit does the same.
    """


class Stopwatch:
    """Seconds spent, by activity. Time in a nested block counts for the inner activity only.

    Attributes:
        seconds: Total of each activity.

    Args:
        now: Clock, in seconds.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._now = now
        self._nested = [0.0]  # seconds of the blocks inside each open block

    @contextmanager
    def __call__(self, activity: str) -> Iterator[None]:
        """Add the time inside the block to ``activity``."""
        start = self._now()
        self._nested.append(0.0)
        try:
            yield
        finally:
            seconds = self._now() - start
            self.seconds[activity] += seconds - self._nested.pop()
            self._nested[-1] += seconds


class Report(Protocol):
    """Callback with the result of an epoch."""

    def __call__(self, epoch: int, value: float, loss: float | None = None, /) -> None:
        """Record the epoch's result; an exception raised here ends the training.

        Args:
            epoch: Number of epochs that are done, from 1.
            value: The trainer's metric on the validation split.
            loss: Mean training loss of the epoch, if it is known.
        """


def _ignore_report(epoch: int, value: float, loss: float | None = None, /) -> None: ...


def _ignore() -> None: ...


def _ignore_values(values: Mapping[str, Any], /) -> None: ...


def _never_stop() -> bool:
    return False


@dataclass
class TrialContext:
    """Arguments of a training loop for one model. The defaults suit a training without a search.

    Args:
        seed: Random seed of everything in the training.
        teacher: The dense model, for distillation, on the device of the trained model.
        report: Function called after each epoch. It may raise an exception, such as
            ``optuna.TrialPruned``, to end the training.
        should_stop: Function called before each step. If it returns True, the loop saves its state
            and raises :class:`TrainingStopped`.
        on_resume: Function called after a saved state was loaded, before the training continues.
            A search begins a training again whose loop was given a state and did not call it.
        state: File or folder of the saved state, which the loop writes before it reports an epoch.
            If it exists when the training begins, the loop has to load it and call ``on_resume``.
            None saves nothing.
        should_save: Function that returns whether to save the state now. A loop may ask before
            each step and, with epochs to come, before each report, and then saves only where the
            answer is True, and when it is asked to stop. A loop that never asks saves before each
            report.
        on_save: Function called after the state was saved in the middle of an epoch.
        identity: JSON values that identify the training, such as the pair of ratios. A saved state
            with another identity is refused.
        record: Function called with JSON values that the loop chose by itself, such as its
            learning rate, by name: a search stores them with the trial.
        clock: Stopwatch of the seconds of ``train``, ``data`` and ``evaluate``.
        title: Title of the progress bar.
        progress: Progress bars of the search, or whether to show progress bars; None shows them in
            a terminal only.
    """

    seed: int = 0
    teacher: nn.Module | None = None
    report: Report = _ignore_report
    should_stop: Callable[[], bool] = _never_stop
    on_resume: Callable[[], None] = _ignore
    state: Path | None = None
    should_save: Callable[[], bool] = field(default_factory=SaveClock)
    on_save: Callable[[], None] = _ignore
    identity: Mapping[str, Any] = field(default_factory=dict)
    record: Callable[[Mapping[str, Any]], None] = _ignore_values
    clock: Stopwatch = field(default_factory=Stopwatch)
    title: str = "fine-tune"
    progress: SearchProgress | bool | None = None


@contextmanager
def exit_means_stop(context: TrialContext) -> Iterator[None]:
    """Raise TrainingStopped where a framework raises SystemExit and the context asked to stop."""
    try:
        yield
    except SystemExit as error:
        if not context.should_stop():
            raise
        raise TrainingStopped("stopped inside of a framework") from error


@runtime_checkable
class Trainer(Protocol):
    """Training loop and metric of a task, for a search.

    A search also uses these attributes of a trainer that has them: ``device`` (of the models),
    ``device_name``, ``precision``, ``epochs`` (of each training), ``ranks``, ``test(model)``,
    which returns the metric on the test data, and ``standard_error(model)``, that of the metric
    over draws of the validation data, from which the noise is guessed.
    """

    @property
    def metric(self) -> Metric:
        """Return the metric of :meth:`evaluate` and :meth:`train`; a class attribute is enough."""

    def identity(self) -> dict[str, Any]:
        """Return JSON values that must be equal for two results to be comparable.

        A study stores them. It cannot be resumed with a trainer that returns others.
        """

    def evaluate(self, model: nn.Module) -> float:
        """Return the metric of ``model`` on the validation data."""

    def train(self, model: nn.Module, context: TrialContext) -> float:
        """Train ``model`` in place and return its metric on the validation data.

        Args:
            model: The pruned model.
            context: Seed, teacher and callbacks of the trial.
        """
