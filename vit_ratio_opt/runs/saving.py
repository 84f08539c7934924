"""Keep the state of a running training in the artifact store, as often as a run asks for it."""

from __future__ import annotations

from dataclasses import replace

from optuna.trial import BaseTrial

from vit_ratio_opt.runs.contracts import JournalProtocol
from vit_ratio_opt.runs.resume import last_epoch
from vit_ratio_opt.training.context import TrialContext
from vit_ratio_opt.training.save_clock import SaveClock

__all__ = ["StateKeeper"]


class StateKeeper:
    """Keep the state of one trial's training at intervals, and when the training is stopped.

    No state is kept after the last epoch: the trial ends soon, and a killed one resumes from the
    state before.

    Args:
        journal: Journal of the trial.
        trial: The trial.
        context: Context of the training, whose ``state`` the trainer writes.
        seconds: Seconds between two states.
        epochs: Number of epochs of the training, where it is known.
    """

    def __init__(
        self,
        journal: JournalProtocol,
        trial: BaseTrial,
        context: TrialContext,
        seconds: float,
        epochs: int | None,
    ) -> None:
        self._journal, self._trial, self._context = journal, trial, context
        self._clock, self._epochs = SaveClock(seconds), epochs
        self._answer: bool | None = None  # the last one to a trainer that asks

    @property
    def context(self) -> TrialContext:
        """Return the context for the trainer."""
        return replace(
            self._context, report=self._report, should_save=self._should_save, on_save=self.keep
        )

    def keep(self) -> None:
        """Keep the state that the trainer has saved in the middle of an epoch."""
        state, epoch = self._context.state, last_epoch(self._trial)
        self._journal.save_state(self._trial, state, epoch=epoch)

    def _should_save(self) -> bool:
        self._answer = self._clock()
        return self._answer

    def _report(self, epoch: int, value: float, loss: float | None = None, /) -> None:
        self._context.report(epoch, value, loss)
        # A trainer that asks what is due has saved this epoch only if the answer was True.
        is_due = self._clock() if self._answer is None else self._answer
        if is_due and epoch != self._epochs:
            self._journal.save_state(self._trial, self._context.state, epoch=epoch)
