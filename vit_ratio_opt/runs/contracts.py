"""Protocols of the objective's pruner and journal; for the trainer see training.context."""

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
        shape: Sizes of the dense model.
        space: Search space: all pairs of ratios, with their costs.
    """

    dense: ViT
    shape: ViTShape
    space: PairSpace

    @property
    def device(self) -> torch.device:
        """Return the device of the models."""

    def prune(self, pair: RatioPair, parent: ViT | None = None) -> ViT:
        """Return the pruned, untrained model of a pair, from a parent or the dense model."""

    def expected_loss(self, pair: RatioPair) -> float | None:
        """Return the estimated loss of a pair, for comparisons; None without an estimate."""

    def rebuild(self, pair: RatioPair, blocks: Sequence[Sequence[int]]) -> ViT:
        """Return a model with the sizes in ``blocks``; its weights are loaded later."""

    def identity(self) -> dict[str, Any]:
        """Return the settings of a study that identify model, pruning and cost."""


class JournalProtocol(Protocol):
    """Write trials: :class:`~vit_ratio_opt.runs.journal.Journal` is the built-in one.

    Attributes:
        store: The artifact store of models and training states; None where none is kept.
    """

    store: ArtifactStore | None

    def check_writable(self) -> None:
        """Raise a CannotWriteError if models or states cannot be kept."""

    def trial(self, trial: BaseTrial) -> AbstractContextManager[None]:
        """Record heartbeats while a trial runs, and why it failed."""

    def fail(self, trial: BaseTrial, error: BaseException) -> None:
        """Record why a trial failed."""

    def keep_model(self, trial: BaseTrial, model: ViT, manifest: Mapping[str, Any]) -> None:
        """Keep the model of a trial."""

    def attach_files(self, trial: BaseTrial) -> None:
        """Attach files to the trial."""

    def model_of(self, trial: FrozenTrial, study: Study, dense: ViT) -> ViT:
        """Return the pruned model of a trial."""

    def save_state(self, trial: BaseTrial, path: Path | None, *, epoch: int) -> None:
        """Keep the training state, the file or folder ``path``, if there is one."""

    def spend_states(self, *trials: BaseTrial | FrozenTrial) -> None:
        """Mark training states for removal once the results of their trials are stored."""

    def discard_spent_states(self) -> None:
        """Remove the states of trainings that have ended."""
