"""Bars for search, trial and epoch with the time left; nothing where nobody watches."""

from __future__ import annotations

import contextlib
import sys

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

__all__ = ["SearchProgress", "TrainingProgress", "waiting"]

# The time left is told from so many seconds: long enough to even out epochs and evaluations.
_SPEED_SECONDS = 600


def waiting(
    text: str, *, enabled: bool | None = None
) -> contextlib.AbstractContextManager[object]:
    """A turning wheel with a text, for what has no known end.

    Args:
        text: What is waited for.
        enabled: None shows it in a terminal only.
    """
    console = Console(stderr=True)
    shown = console.is_terminal if enabled is None else enabled
    return console.status(text) if shown else contextlib.nullcontext()


class SearchProgress:
    """The bar of a search, on standard error, under which those of its trainings appear.

    Args:
        n_trials: Trained trials that it is to have; None if it has no such number.
        enabled: None shows it in a terminal only.
    """

    def __init__(self, n_trials: int | None, *, enabled: bool | None = None) -> None:
        self.bars = _bars(enabled)
        self._done = 0
        self._task = self.bars.add_task("search", total=n_trials, status="")

    def __enter__(self) -> SearchProgress:
        self.bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.bars.stop()

    def trained(self, trials: int) -> None:
        """So many are trained, those of other workers included."""
        self._done = trials
        self.bars.update(self._task, completed=trials)

    def within_trial(self, share: float) -> None:
        """How far this process's trial is, in [0, 1]."""
        self.bars.update(self._task, completed=self._done + share)


class TrainingProgress:
    """Two bars: over all steps of a fine-tuning, and over those of its epoch.

    Args:
        title: What is trained.
        steps: Batches in all epochs.
        epoch_steps: Batches of one.
        shown: Within a search's bars; or None to show them in a terminal only.
    """

    def __init__(
        self, title: str, steps: int, epoch_steps: int, *, shown: SearchProgress | bool | None
    ) -> None:
        self._search = shown if isinstance(shown, SearchProgress) else None
        self._bars = shown.bars if isinstance(shown, SearchProgress) else _bars(shown)
        self._tasks: list[TaskID] = []
        self._title, self._steps, self._epoch_steps = title, steps, epoch_steps
        self._images = 0

    def __enter__(self) -> TrainingProgress:
        if self._search is None:
            self._bars.start()
        self._tasks = [
            self._bars.add_task(self._title, total=self._steps, status=""),
            self._bars.add_task("epoch 1", total=self._epoch_steps, status=""),
        ]
        return self

    def __exit__(self, *exception: object) -> None:
        for task in self._tasks:
            self._bars.remove_task(task)
        if self._search is None:
            self._bars.stop()

    @property
    def enabled(self) -> bool:
        """Whether anyone sees it; what it shows need not be computed otherwise."""
        return not self._bars.disable

    def skip(self, steps: int) -> None:
        """So many batches were done before."""
        self._show(steps)

    def advance(self, step: int, images: int, loss: float, accuracy: float) -> None:
        """``step`` batches are done; the last, of so many images, had this loss and per cent."""
        self._images += images
        whole = next(task for task in self._bars.tasks if task.id == self._tasks[0])
        elapsed = whole.elapsed or 1e-9
        status = f"loss {loss:.3f}  acc {accuracy:5.1f} %  {self._images / elapsed:,.0f} img/s"
        self._show(step, status)

    def _show(self, step: int, status: str = "") -> None:
        trial, epoch = self._tasks
        # A step that ends an epoch is its last one, not the first of the next.
        number = max(0, step - 1) // max(1, self._epoch_steps)
        self._bars.update(trial, completed=step, status=status)
        self._bars.update(
            epoch, completed=step - number * self._epoch_steps, description=f"epoch {number + 1}"
        )
        if self._search is not None:
            self._search.within_trial(step / max(1, self._steps))


def _bars(enabled: bool | None) -> Progress:
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}", markup=False),  # it may be a file's name
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[status]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not (console.is_terminal if enabled is None else enabled),
        transient=True,
        speed_estimate_period=_SPEED_SECONDS,
        # What is printed must get past the bars, but into its file if it goes to one.
        redirect_stdout=sys.stdout.isatty(),
    )
