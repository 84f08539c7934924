"""Options of a search: choice of the pairs, place and device of the run, places of the files."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.pruning.options import CalibrationOptions
from vit_ratio_opt.training.save_clock import STATE_SECONDS, check_state_every
from vit_ratio_opt.utils.checks import (
    LARGEST_SEED,
    check_count,
    check_flags,
    check_number,
    check_path,
)

if TYPE_CHECKING:
    import torch

    from vit_ratio_opt._compat import ArtifactStore
    from vit_ratio_opt.models.device import Precision
    from vit_ratio_opt.training.distributed import Ranks

__all__ = ["Places", "RunOptions", "SearchOptions"]


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """Options that change which pairs are trained, and the results of trials.

    Args:
        fixed_ratio: Whether to search the baseline instead: one ratio for both modules.
        noise: Standard deviation of the metric over seeds, in its unit; a given value
            is not corrected. By default the noise is estimated: from half the standard error that
            the size of the validation split gives, and from pairs that were trained several
            times.
        confirmations: Number of times that the best pair is trained again before the search ends.
        screen: Whether to evaluate pruned models without training before the first trial. A search
            within a budget then begins at the best pair, one with a tolerance on the path of the
            best pairs.
        iterative: Whether each trial may start from the nearest finished trial that pruned neither
            module more, where that is no worse before the training than to start from the dense
            model.
        seed: Random seed of calibration and fine-tuning.
        calibration: The training images that criteria, factors and reconstruction use.

    Raises:
        InputError: A value has another type or is out of range.
    """

    fixed_ratio: bool = False
    noise: float | None = None
    confirmations: int = 1
    screen: bool = True
    iterative: bool = False
    seed: int = 0
    calibration: CalibrationOptions = field(default_factory=CalibrationOptions)

    def __post_init__(self) -> None:
        check_flags(self, "fixed_ratio", "screen", "iterative")
        noise = self.noise
        if noise is not None:
            rule = "at least 0, in the unit of the metric"
            noise = check_number("noise", noise, rule, least=0, most=math.inf)
        confirmations = check_count("confirmations", self.confirmations, least=0)
        seed = check_count("seed", self.seed, least=0, most=LARGEST_SEED)
        if not isinstance(self.calibration, CalibrationOptions):
            raise InputError(
                f"`calibration` must be a CalibrationOptions, but got {self.calibration!r:.80}: "
                "give vro.CalibrationOptions(images=512), for example."
            )
        object.__setattr__(self, "noise", noise)  # NumPy's numbers are no JSON values
        object.__setattr__(self, "confirmations", confirmations)
        object.__setattr__(self, "seed", seed)


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Folders, device, precision and processes of a run. Only the precision changes results.

    Args:
        checkpoints: Folder of the pruned models; None saves no models.
        artifacts: Store of models and training states that workers share: a folder,
            ``s3://bucket``, or any store of Optuna's. By default the folder ``artifacts`` of
            ``checkpoints``.
        device: Device of models and images, such as ``"cuda:0"``; by default a GPU, if there is
            one, that no other worker of this machine uses. A custom trainer chooses its own.
        precision: ``"float32"``, ``"bfloat16"`` or ``"float16"``, of training, evaluation
            and timing. By default the precision of the study, for a new study the usual one of
            the device.
        progress: Whether to show progress bars; None shows them in a terminal only.
        ranks: Processes that share the training of each trial. Rank 0 runs the study, the others
            call :func:`vit_ratio_opt.runs.ranks.join_trainings`.
        state_every: Seconds between two saves of a training's state: what a killed process loses
            at most. 0 saves before every step.

    Raises:
        InputError: A value has another type or is out of range.
    """

    checkpoints: str | Path | None = None
    artifacts: ArtifactStore | str | Path | None = None
    device: torch.device | str | None = None
    precision: Precision | None = None
    progress: bool | None = None
    ranks: Ranks | None = None
    state_every: float = STATE_SECONDS

    def __post_init__(self) -> None:
        check_path("checkpoints", self.checkpoints)
        if not hasattr(self.artifacts, "open_reader"):  # a store
            check_path("artifacts", self.artifacts)
        if self.ranks is not None and not hasattr(self.ranks, "broadcast"):
            raise InputError(
                f"`ranks` must be a Ranks, but got {self.ranks!r:.80}: give "
                "Ranks.from_environment() in a process that torchrun started."
            )
        if self.progress is not None:
            check_flags(self, "progress")
        object.__setattr__(self, "state_every", check_state_every(self.state_every))


@dataclass(frozen=True, kw_only=True)
class Places:
    """Places of a study's files on this machine; by default those that the study stores.

    Args:
        checkpoint: File or folder of the dense model.
        start: File of the pruned model that the study started from, if it did.
        data: Folder of the images.
        artifacts: Folder or ``s3://bucket`` for models and training states of all workers.
        checkpoints: Folder for the pruned models of this worker.

    Raises:
        InputError: A place is no path.
    """

    checkpoint: str | Path | None = None
    start: str | Path | None = None
    data: str | Path | None = None
    artifacts: str | Path | None = None
    checkpoints: str | Path | None = None

    def __post_init__(self) -> None:
        for name, place in vars(self).items():
            check_path(name, place)
