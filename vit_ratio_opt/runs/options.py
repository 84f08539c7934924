"""Options of a search: how pairs are searched, where the search runs, where its files are."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.pruning.options import CalibrationOptions

if TYPE_CHECKING:
    import torch

    from vit_ratio_opt._compat import ArtifactStore
    from vit_ratio_opt.models.device import Precision
    from vit_ratio_opt.training.distributed import Ranks

__all__ = ["Places", "RunOptions", "SearchOptions"]


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """How pairs are searched. Trials depend on all of these.

    Args:
        fixed_ratio: Search the baseline instead: one ratio for both modules.
        noise: Standard deviation of the accuracy over seeds, in points, taken as it is. By default
            it is estimated: from half the standard error that the size of the validation split
            gives, and from pairs that were trained several times.
        confirmations: Number of times that the best pair is trained again before the search ends.
        screen: Whether a new study begins with the best pair of a look without training, or with
            a tolerance along a path of likely pairs.
        iterative: Whether each trial starts from the nearest finished trial that pruned neither
            module more.
        seed: Random seed of calibration and fine-tuning.
        calibration: The training images that criteria, factors and reconstruction use.
    """

    fixed_ratio: bool = False
    noise: float | None = None
    confirmations: int = 1
    screen: bool = True
    iterative: bool = False
    seed: int = 0
    calibration: CalibrationOptions = field(default_factory=CalibrationOptions)

    def __post_init__(self) -> None:
        if self.noise is not None and not self.noise >= 0:
            raise InputError(f"`noise` must be at least 0, but got {self.noise!r}.")


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Where and on what a search runs here. But for the precision, no result depends on these.

    Args:
        checkpoints: Folder of the pruned models; none are kept without it.
        artifacts: Where models and states of interrupted trainings are uploaded to and read from:
            a folder, ``s3://bucket``, or any store of Optuna's. By default the folder
            ``artifacts`` of ``checkpoints``.
        device: Device of models and images; a GPU by default, if there is one.
        precision: ``"float32"``, ``"bfloat16"`` or ``"float16"``, in which models are trained,
            evaluated and timed. By default that of the study, and of a new study the usual one of
            the device.
        progress: Whether to show progress bars; None shows them in a terminal only.
        ranks: Processes that share the training of each trial. Rank 0 runs the study, the others
            call :func:`vit_ratio_opt.runs.ranks.join_trainings`.
    """

    checkpoints: str | Path | None = None
    artifacts: ArtifactStore | str | Path | None = None
    device: torch.device | str | None = None
    precision: Precision | None = None
    progress: bool | None = None
    ranks: Ranks | None = None


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where the parts of a study are on this machine; by default where the study says.

    Args:
        checkpoint: The dense model.
        start: The pruned model that the study begins with, if it does.
        data: Folder of the images.
        artifacts: Folder or ``s3://bucket`` that all workers share.
        checkpoints: Folder for the models of this worker.
    """

    checkpoint: str | Path | None = None
    start: str | Path | None = None
    data: str | Path | None = None
    artifacts: str | Path | None = None
    checkpoints: str | Path | None = None
