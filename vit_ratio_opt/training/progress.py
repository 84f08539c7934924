"""Progress bars of a search, a training and an epoch, with the time left; shown in terminals."""

from __future__ import annotations

import contextlib
import sys
import time

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

__all__ = ["SearchProgress", "TrainingProgress", "show_waiting"]

# The time left is estimated from the last 10 minutes, which evens out epochs and evaluations.
_SPEED_SECONDS = 600
_REFRESH_SECONDS = 0.2


def show_waiting(
    text: str, *, enabled: bool | None = None
) -> contextlib.AbstractContextManager[object]:
    """Show a spinner with a text inside the block, for work of unknown length.

    Args:
        text: Text beside the spinner.
        enabled: Whether to show it; None shows it in a terminal only.
    """
    console = Console(stderr=True)
    shown = console.is_terminal if enabled is None else enabled
    return console.status(text) if shown else contextlib.nullcontext()


class SearchProgress:
    """Progress bar of a search on standard error, with those of its trainings below it.

    Args:
        n_trials: Number of trained trials at the end of the search; None if it is unknown.
        enabled: Whether to show it; None shows it in a terminal only.
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

    def show_trained(self, trials: int) -> None:
        """Show how many trials are trained, including those of other workers."""
        self._done = trials
        self.bars.update(self._task, completed=trials)

    def show_trial(self, share: float) -> None:
        """Show the share of this process's trial that is done, in [0, 1]."""
        self.bars.update(self._task, completed=self._done + share)


class TrainingProgress:
    """Two progress bars: over all steps of a training, and over the steps of its epoch.

    Args:
        title: Title of the training.
        steps: Number of batches in all epochs.
        epoch_steps: Number of batches in one epoch.
        shown: Bars of the search below which these appear, or whether to show them; None shows
            them in a terminal only.
    """

    def __init__(
        self, title: str, steps: int, epoch_steps: int, *, shown: SearchProgress | bool | None
    ) -> None:
        self._search = shown if isinstance(shown, SearchProgress) else None
        self.bars = shown.bars if isinstance(shown, SearchProgress) else _bars(shown)
        self._tasks: list[TaskID] = []
        self._title, self._steps, self._epoch_steps = title, steps, epoch_steps
        self._images, self._shown_at = 0, 0.0

    def __enter__(self) -> TrainingProgress:
        if self._search is None:
            self.bars.start()
        self._tasks = [
            self.bars.add_task(self._title, total=self._steps, status=""),
            self.bars.add_task("epoch 1", total=self._epoch_steps, status=""),
        ]
        return self

    def __exit__(self, *exception: object) -> None:
        for task in self._tasks:
            self.bars.remove_task(task)
        if self._search is None:
            self.bars.stop()

    @property
    def enabled(self) -> bool:
        """Return whether the bars are visible; what they show need not be computed otherwise."""
        return not self.bars.disable

    def skip(self, steps: int) -> None:
        """Show that ``steps`` batches were done before this training was resumed."""
        self._show(steps)

    def count(self, images: int) -> None:
        """Count the images of a batch that is done."""
        self._images += images

    def is_due(self, step: int) -> bool:
        """Return whether to show that ``step`` batches are done, a few times a second.

        What is shown has to be read from a GPU, which then waits. An epoch's end is always shown.
        """
        is_due = time.monotonic() >= self._shown_at + _REFRESH_SECONDS
        return self.enabled and (is_due or step % max(1, self._epoch_steps) == 0)

    def advance(self, step: int, loss: float, accuracy: float | None) -> None:
        """Show that a batch is done.

        Args:
            step: Number of batches that are done.
            loss: Loss of the last batch.
            accuracy: Accuracy on the last batch, in per cent; None without labels.
        """
        self._shown_at = time.monotonic()
        whole = next(task for task in self.bars.tasks if task.id == self._tasks[0])
        elapsed = whole.elapsed or 1e-9
        correct = "" if accuracy is None else f"acc {accuracy:5.1f} %  "
        status = f"loss {loss:.3f}  {correct}{self._images / elapsed:,.0f} img/s"
        self._show(step, status)

    def _show(self, step: int, status: str = "") -> None:
        trial, epoch = self._tasks
        # A step that ends an epoch is its last one, not the first of the next.
        number = max(0, step - 1) // max(1, self._epoch_steps)
        self.bars.update(trial, completed=step, status=status)
        self.bars.update(
            epoch, completed=step - number * self._epoch_steps, description=f"epoch {number + 1}"
        )
        if self._search is not None:
            self._search.show_trial(step / max(1, self._steps))


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
        # Printed text has to appear above the bars, but in its file if it is redirected.
        redirect_stdout=sys.stdout.isatty(),
    )
