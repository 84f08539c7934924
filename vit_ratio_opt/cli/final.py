"""``vit-ratio-opt final``: train the model of a trial longer and write it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from optuna.study import Study
from optuna.trial import FrozenTrial

from vit_ratio_opt.cli.command import Panel, option
from vit_ratio_opt.cli.files import check_model_output, files_with_card, study_model_files
from vit_ratio_opt.cli.options import (
    DeviceOption,
    EpochsOption,
    LearningRateOption,
    PlaceOptions,
    SeedOption,
    StateEveryOption,
    StudyOptions,
)
from vit_ratio_opt.data.folders import check_folder
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.records.answer import trained_trial
from vit_ratio_opt.records.candidates import candidate_of
from vit_ratio_opt.records.loading import load_studies
from vit_ratio_opt.records.study import record_of
from vit_ratio_opt.records.trials import accuracy_of
from vit_ratio_opt.report.sentences import expected_text
from vit_ratio_opt.runs.signals import SearchStopped
from vit_ratio_opt.runs.storage import open_storage
from vit_ratio_opt.runs.storage_url import database_files
from vit_ratio_opt.training.save_clock import STATE_SECONDS
from vit_ratio_opt.utils.files import check_outputs, file_name

__all__ = ["FinalOptions", "final", "make_model"]


@dataclass(frozen=True, kw_only=True)
class FinalOptions(PlaceOptions, StudyOptions):
    """Options of ``vit-ratio-opt final``."""

    trial: Annotated[
        int | None,
        option(
            Panel.STUDY,
            "Number of the trial to train. By default the study's answer, which is the knee of a "
            "frontier; the command frontier names its other trials.",
            min=0,
        ),
    ] = None
    epochs: EpochsOption = 10
    lr: LearningRateOption = None
    seed: SeedOption = 0
    output: Annotated[
        Path | None,
        option(
            Panel.OUTPUT, "Path of the model's file; by default STUDY.safetensors in this folder."
        ),
    ] = None
    device: DeviceOption = None
    state_every: StateEveryOption = STATE_SECONDS


def final(options: FinalOptions) -> None:
    """Train a trial's model longer, test it once, and write it with a model card.

    After an interruption the same command resumes from the last saved state.
    """
    path = options.output or Path(f"{file_name(options.study_name)}.safetensors")
    check_model_output(path)
    if options.data is not None:
        check_folder(options.data)
    backend = open_storage(options.storage, must_exist=True)
    (study,) = load_studies(backend, [options.study_name])
    read = study_model_files(study, options.checkpoint, options.start, options.checkpoints)
    check_outputs(files_with_card(path), [*database_files(options.storage), *read])
    chosen = trained_trial(study, options.trial)

    from dataclasses import replace

    from vit_ratio_opt.restore import load_search
    from vit_ratio_opt.runs.final import finish
    from vit_ratio_opt.runs.options import RunOptions
    from vit_ratio_opt.space.pairs import RatioPair

    run = RunOptions(device=options.device, state_every=options.state_every)
    search = load_search(options.study_name, backend, options.places, run)
    recipe = replace(
        search.recipe, epochs=options.epochs, lr="auto" if options.lr is None else options.lr
    )
    lineage = _lineage(study, chosen)
    make_model(
        lambda: finish(
            search.objective,
            RatioPair(*(chosen.params[name] for name in RatioPair._fields)),
            search.model_of(study, chosen),
            path,
            trainer=search.trainer_for(recipe),
            seed=options.seed,
            lineage=lineage,
        ),
        path,
    )


def _lineage(study: Study, chosen: FrozenTrial) -> dict[str, Any]:
    """Return what a model card says about the trial; print what the search predicts for it."""
    candidate, metric = candidate_of(study, chosen), record_of(study).metric
    if candidate is not None:
        print(
            f"trial {chosen.number}: MHSA ratio {candidate.pair[0]:.3f} and FFN ratio "
            f"{candidate.pair[1]:.3f}, {expected_text(candidate, metric)} {metric.label} expected "
            "from the search",
            flush=True,
        )
    return {
        "study": study.study_name,
        "trial": chosen.number,
        "parent_trial": chosen.user_attrs.get("parent_trial"),
        "search_accuracy": accuracy_of(chosen, study),
        "search_expected": None if candidate is None else candidate.accuracy,
        "search_error": None if candidate is None else candidate.error,
    }


def make_model(make: Callable[[], dict[str, Any]], path: Path) -> None:
    """Train and write a model, and print its size and accuracy.

    Args:
        make: Trains the model and writes it to ``path``; returns its manifest.
        path: File of the model.

    Raises:
        InputError: The training diverged.
        SearchStopped: A signal stopped the training.
    """
    from vit_ratio_opt.model_files.card import card_path, metric_of
    from vit_ratio_opt.training.context import TrainingDiverged

    try:
        made = make()
    except TrainingDiverged as error:
        raise InputError(f"The training failed, {error}: try a smaller --lr.") from None
    except SearchStopped:
        print("Stopped; progress saved. Run the same command to resume.", flush=True)
        raise
    dense, metric = made["dense"], metric_of(made)
    validated, tested = (
        f"{metric.number(dense[key])} -> {metric.text(made[key])}"
        for key in ("val_accuracy", "test_accuracy")
    )
    print(
        f"{made['macs_ratio']:.4f} of the FLOPs, {made['params']:,} of {dense['params']:,} "
        f"parameters; validation {validated}, test {tested}"
    )
    print(f"written to {path}, its card to {card_path(path)}")
