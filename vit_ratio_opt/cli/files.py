"""Find the files that a command reads and writes, to refuse bad ones before any work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optuna.study import Study

from vit_ratio_opt.cli.command import split_numbers
from vit_ratio_opt.cli.options import DenseOptions, ImageOptions
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.records.study import StudyRecord
from vit_ratio_opt.report.trackers import JsonLog, TensorBoardLog
from vit_ratio_opt.utils.files import check_outputs, check_writable

if TYPE_CHECKING:
    from vit_ratio_opt.data.image_data import ImageData

__all__ = [
    "check_model_output",
    "files_with_card",
    "load_dense_model",
    "load_option_images",
    "model_files",
    "study_model_files",
    "trackers",
]


def check_model_output(path: Path) -> None:
    """Raise unless a model and its card can be written.

    Raises:
        InputError: The suffix is not ``.safetensors``, or the place cannot be written.
    """
    if path.suffix != ".safetensors":
        raise InputError(f"A model goes into a .safetensors file, but --output is {path}.")
    check_outputs(files_with_card(path), ())


def files_with_card(path: Path) -> list[Path]:
    """Return the files that a training writes: the model, its card and the training state."""
    return [path, path.with_suffix(".md"), path.with_name(f"{path.name}.training")]


def model_files(model: Path | None) -> list[Path]:
    """Return the files of a model that is a file or a folder."""
    if model is None or not model.is_dir():
        return [] if model is None else [model]
    return [*model.glob("model*"), *model.glob("pytorch_model*")]


def study_model_files(
    study: Study, checkpoint: Path | None, start: Path | None, checkpoints: Path | None
) -> list[Path]:
    """Return the model files of a study: dense model, start model and those of its trials.

    Args:
        study: A study of this package.
        checkpoint: Path of the dense model; None for the path in the study.
        start: Path of the pruned model that the study started from; None for the path in the
            study.
        checkpoints: Folder of the trials' models; None for the folder in the study.
    """
    origin = StudyRecord.read(study.study_name, study.user_attrs).origin
    model = origin.get("model") or {}
    files = []
    for given, named in ((checkpoint, model.get("checkpoint")), (start, model.get("pruned"))):
        files += model_files(given or (Path(named) if isinstance(named, str) else None))
    folder = checkpoints or origin.get("checkpoints")
    names = [trial.user_attrs.get("checkpoint") for trial in study.trials]
    return files + [Path(folder, name) for name in names if folder and isinstance(name, str)]


def load_dense_model(options: DenseOptions) -> Any:
    """Load the model that options select.

    Args:
        options: Options of the command.

    Raises:
        InputError: No model is named, or it cannot be loaded.
    """
    from vit_ratio_opt.model_files.load import load_dense, load_pruned
    from vit_ratio_opt.models.create import create_model

    if options.checkpoint is not None:
        dense = load_dense(options.checkpoint, name=options.model, weights=options.weights)
    elif options.weights is not None:
        raise InputError("--weights chooses among those of a --checkpoint: give one.")
    elif options.model is not None:
        dense = create_model(options.model, pretrained=True)
    else:
        raise InputError("No model is named: give --checkpoint, --model or both.")
    return dense if options.start is None else load_pruned(options.start, dense)[0]


def load_option_images(options: ImageOptions, dense: Any, seed: int) -> ImageData:
    """Load the images that options select, preprocessed for a model.

    Args:
        options: Options of the command.
        dense: The model that takes the images.
        seed: Random seed of the splits.

    Raises:
        InputError: The images cannot be loaded, or do not fit the model.
    """
    height, width = dense.patch_embed.img_size
    if options.image_size is not None and not height == width == options.image_size:
        raise InputError(
            f"The model takes images of {height} x {width} pixels, but --image-size is "
            f"{options.image_size}: leave it out, and images are resized to the model's size."
        )

    from vit_ratio_opt.data.load import default_validation, load_images
    from vit_ratio_opt.data.options import LoadOptions
    from vit_ratio_opt.data.preprocessing import preprocess_or_assume

    columns = options.label_columns
    load_options = LoadOptions(
        mean=None if options.mean is None else split_numbers(options.mean),
        std=None if options.std is None else split_numbers(options.std),
        exif_rotation=options.exif_rotation,
        skip_damaged=options.skip_damaged,
        task=options.task,
        image_key=options.image_column,
        label_key=None if columns is None else [name.strip() for name in columns.split(",")],
        label_separator=options.label_separator,
    )
    return load_images(
        options.data,
        image_size=options.image_size,
        validation=options.validation or default_validation(options.data, "test", load_options),
        seed=seed,
        preprocess=preprocess_or_assume(dense),
        options=load_options,
    )


def trackers(json_log: Path | None, tensorboard: Path | None) -> list[Callable[..., None]]:
    """Return the callbacks of a study that the options of these names ask for.

    Raises:
        InputError: A file cannot be written, or TensorBoard is not installed.
    """
    chosen: list[Callable[..., None]] = []
    if json_log is not None:
        check_writable(json_log)
        chosen.append(JsonLog(json_log))
    if tensorboard is not None:
        chosen.append(TensorBoardLog(tensorboard))
    return chosen
