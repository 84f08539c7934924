"""What the objective needs of a pruner and of a journal; for the trainer see training.context."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from optuna.study import Study
from optuna.trial import BaseTrial, FrozenTrial

from vit_ratio_opt.models.blocks import ViT
from vit_ratio_opt.space.pairs import PairSpace, RatioPair
from vit_ratio_opt.space.shape import ViTShape

if TYPE_CHECKING:
    from vit_ratio_opt._compat import ArtifactStore

__all__ = ["JournalProtocol", "PrunerProtocol"]


class PrunerProtocol(Protocol):
    """Prune a dense model: :class:`~vit_ratio_opt.pruning.pruner.ModelPruner` is the built-in one.

    Attributes:
        dense: The dense model.
        shape: Its sizes.
        space: The pairs of ratios that there are, with their costs.
    """

    dense: ViT
    shape: ViTShape
    space: PairSpace

    @property
    def device(self) -> torch.device:
        """Device of the models."""

    def prune(self, pair: RatioPair, parent: ViT | None = None) -> ViT:
        """Return the pruned, untrained model of a pair, from a parent or the dense model."""

    def expected_loss(self, pair: RatioPair) -> float | None:
        """Return an estimate of what a pair loses, to compare pairs by; None without any."""

    def rebuild(self, pair: RatioPair, blocks: Sequence[Sequence[int]]) -> ViT:
        """Return a model of these sizes, whose weights are yet to be read."""

    def identity(self) -> dict[str, Any]:
        """Return the settings of a study that are about model, pruning and cost."""


class JournalProtocol(Protocol):
    """Write trials: :class:`~vit_ratio_opt.runs.journal.Journal` is the built-in one.

    Attributes:
        store: The artifact store of models and training states; None where none is kept.
    """

    store: ArtifactStore | None

    def check_writable(self) -> None:
        """Raise a CannotWriteError if models or states cannot be kept."""

    def trial(self, trial: BaseTrial) -> AbstractContextManager[None]:
        """Give signs of life while a trial runs, and record why it failed."""

    def fail(self, trial: BaseTrial, error: BaseException) -> None:
        """Record why a trial failed."""

    def keep_model(self, trial: BaseTrial, model: ViT, manifest: Mapping[str, Any]) -> None:
        """Keep the model of a trial."""

    def attach_files(self, trial: BaseTrial) -> None:
        """Attach files for people who look at the trial."""

    def model_of(self, trial: FrozenTrial, study: Study, dense: ViT) -> ViT:
        """Return the pruned model of a trial."""

    def save_state(self, trial: BaseTrial, file: Path | None, *, epoch: int) -> None:
        """Keep the training state in ``file``."""

    def spend_states(self, *trials: BaseTrial | FrozenTrial) -> None:
        """Remember states that are not needed once the result of their trial is stored."""

    def discard_spent_states(self) -> None:
        """Remove the states of trainings that have ended."""
