"""Progress bars: loss, accuracy, images a second and time left; silent when not in a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

__all__ = ["TrainingProgress"]


class TrainingProgress:
    """One bar over all steps of a fine-tuning, on standard error.

    Args:
        title: What is trained.
        steps: Batches in all epochs.
        enabled: None shows the bar in a terminal only.
    """

    def __init__(self, title: str, steps: int, *, enabled: bool | None = None) -> None:
        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not (console.is_terminal if enabled is None else enabled),
            transient=True,
        )
        self._task = self._progress.add_task(title, total=steps, status="")
        self._images = 0

    def __enter__(self) -> TrainingProgress:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    @property
    def enabled(self) -> bool:
        """Whether anyone sees it; what it shows need not be computed otherwise."""
        return not self._progress.disable

    def skip(self, steps: int) -> None:
        """So many batches were done before."""
        self._progress.update(self._task, completed=steps)

    def advance(self, images: int, loss: float, accuracy: float) -> None:
        """One batch of ``images`` done, with its loss and its accuracy in per cent."""
        self._images += images
        elapsed = self._progress.tasks[self._task].elapsed or 1e-9
        status = f"loss {loss:.3f}  acc {accuracy:5.1f} %  {self._images / elapsed:,.0f} img/s"
        self._progress.update(self._task, advance=1, status=status)
