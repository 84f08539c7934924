"""The options that several commands share, in the groups in which ``--help`` shows them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

from vit_ratio_opt.cli.command import (
    LONGEST_SECONDS,
    Panel,
    check_finite,
    check_numbers,
    check_text,
    check_texts,
    option,
)
from vit_ratio_opt.data.preprocessing import LARGEST_SIDE
from vit_ratio_opt.data.task import Task
from vit_ratio_opt.runs.options import Places
from vit_ratio_opt.runs.storage_url import DEFAULT_STORAGE

__all__ = [
    "DenseOptions",
    "DeviceOption",
    "EpochsOption",
    "ExifRotationOption",
    "GraceOption",
    "HostOption",
    "ImageOptions",
    "ImageSizeOption",
    "JsonLogOption",
    "LearningRateOption",
    "PlaceOptions",
    "PrecisionOption",
    "SeedOption",
    "SkipDamagedOption",
    "StateEveryOption",
    "StorageOption",
    "StudyNameOption",
    "StudyNamesOption",
    "StudyOptions",
    "TensorBoardOption",
    "TotalTrialsOption",
]

_MOST_EPOCHS, _MOST_SEED = 100_000, 2**31 - 1

StorageOption = Annotated[
    str,
    option(
        Panel.STUDY,
        "Database URL of the study, or grpc://HOST:PORT of a proxy.",
        callback=check_text,
        envvar="OPTUNA_STORAGE",
    ),
]
StudyNameOption = Annotated[
    str, option(Panel.STUDY, "Name of the study in the storage.", callback=check_text)
]
StudyNamesOption = Annotated[
    list[str] | None,
    option(
        Panel.STUDY,
        "Name of a study to take; all studies by default. Can be given several times.",
        "--study-name",
        callback=check_texts,
    ),
]
TotalTrialsOption = Annotated[
    int | None,
    option(
        Panel.STUDY,
        "Number of trained trials of the study, earlier ones included. By default the search "
        "runs until no pair is left that could change the answer.",
        min=1,
    ),
]
HostOption = Annotated[
    str, option(Panel.WORKERS, "Network address to listen on.", callback=check_text)
]
GraceOption = Annotated[
    int,
    option(
        Panel.WORKERS,
        "Seconds without a heartbeat after which a running trial is stale and its pair is "
        "requeued. Give all workers of a study the same value.",
        min=2,
        max=LONGEST_SECONDS,
    ),
]
StateEveryOption = Annotated[
    float,
    option(
        Panel.WORKERS,
        "Seconds between two saves of a training's state, from which a killed trial resumes. 0 "
        "saves before every step.",
        min=0,
        max=LONGEST_SECONDS,
        callback=check_finite,
    ),
]
EpochsOption = Annotated[
    int, option(Panel.TRAINING, "Number of epochs of fine-tuning.", min=0, max=_MOST_EPOCHS)
]
LearningRateOption = Annotated[
    float | None,
    option(
        Panel.TRAINING,
        "Peak learning rate of fine-tuning. By default it fits the width of the model and what "
        "pruning lost.",
    ),
]
SeedOption = Annotated[
    int,
    option(
        Panel.TRAINING,
        "Random seed for data splits, calibration and fine-tuning.",
        min=0,
        max=_MOST_SEED,
    ),
]
ImageSizeOption = Annotated[
    int | None,
    option(
        Panel.DATA,
        "Side in pixels to which the images of a folder are resized and cropped. By default the "
        "size of the model's input.",
        min=1,
        max=LARGEST_SIDE,
    ),
]
ExifRotationOption = Annotated[
    bool,
    option(
        Panel.DATA,
        "Rotate photographs by their EXIF orientation. torchvision and timm do not.",
        "--exif-rotation",
    ),
]
SkipDamagedOption = Annotated[
    bool,
    option(
        Panel.DATA,
        "Skip images that cannot be read. By default they are an error.",
        "--skip-damaged",
    ),
]
DeviceOption = Annotated[
    str | None,
    option(
        Panel.WORKERS,
        "Device such as cuda:1 or cpu. By default a GPU, if there is one, that no other worker of "
        "this machine uses.",
    ),
]
PrecisionOption = Annotated[
    Literal["float32", "bfloat16", "float16"] | None,
    option(
        Panel.TRAINING,
        "Precision of training and evaluation. By default bfloat16 on a GPU that has it; on a CPU "
        "the faster of float32 and bfloat16, each for training and evaluation, by timing the "
        "model.",
    ),
]
JsonLogOption = Annotated[
    Path | None, option(Panel.OUTPUT, "File to which each trial appends one line of JSON.")
]
TensorBoardOption = Annotated[
    Path | None,
    option(
        Panel.OUTPUT,
        "Folder for TensorBoard logs of each trial: curves and ratios.",
        "--tensorboard",
    ),
]


@dataclass(frozen=True, kw_only=True)
class DenseOptions:
    """The model that is pruned."""

    checkpoint: Annotated[
        Path | None,
        option(
            Panel.MODEL,
            "Dense model: a safetensors file, a state dict or training checkpoint with any "
            "suffix, or a folder of Hugging Face or timm.",
        ),
    ] = None
    weights: Annotated[
        Literal["ema", "raw"] | None,
        option(
            Panel.MODEL,
            "Weights to take from a --checkpoint that holds both: the moving average (ema) or "
            "the trained weights (raw).",
        ),
    ] = None
    model: Annotated[
        str | None,
        option(
            Panel.MODEL,
            "Name of the model in timm, or torchvision/vit_b_16 and similar for a file of "
            "torchvision's weights. By default the name that the --checkpoint contains. Without "
            "a --checkpoint, timm downloads its pretrained weights.",
        ),
    ] = None
    start: Annotated[
        Path | None,
        option(
            Panel.MODEL,
            "Pruned model of an earlier study of this dense model, to prune it further. Limits "
            "then refer to the pruned model.",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """The images to train and evaluate on."""

    data: Annotated[
        Path,
        option(
            Panel.DATA,
            "Folder of the images: train/CLASS/*, test/CLASS/* and optionally val/CLASS/*, or "
            "images/* with train.csv, or CIFAR-10 as torchvision stores it. With --task "
            "features any folder of images.",
        ),
    ]
    image_size: ImageSizeOption = None
    mean: Annotated[
        str | None,
        option(
            Panel.DATA,
            "Mean of each channel of pixels in [0, 1] with which the model was trained, such as "
            "0.485,0.456,0.406. By default that of the model's file.",
            callback=check_numbers,
        ),
    ] = None
    std: Annotated[
        str | None,
        option(
            Panel.DATA,
            "Standard deviation of each channel, such as 0.229,0.224,0.225. By default that of "
            "the model's file.",
            callback=check_numbers,
        ),
    ] = None
    exif_rotation: ExifRotationOption = False
    skip_damaged: SkipDamagedOption = False
    task: Annotated[
        Task,
        option(
            Panel.DATA,
            "What the labels are: one class for each image, several classes, or numbers. The last "
            "two need a train.csv. 'features' needs no labels: the outputs of the dense model "
            "are the targets.",
        ),
    ] = "single-label"
    image_column: Annotated[
        str | None,
        option(
            Panel.DATA,
            "Column of train.csv with the names of the image files. By default 'filename'.",
        ),
    ] = None
    label_columns: Annotated[
        str | None,
        option(
            Panel.DATA,
            "Columns of train.csv with the labels, separated by commas: one, or one of 0 and 1 "
            "for each class, or one for each number of a regression. By default 'label'.",
        ),
    ] = None
    label_separator: Annotated[
        str | None,
        option(
            Panel.DATA,
            "Character between the classes of an image where one column of train.csv has all of "
            "them, such as ';'.",
        ),
    ] = None
    validation: Annotated[
        Literal["train", "val", "test"] | None,
        option(
            Panel.DATA,
            "Images on which pairs are compared. 'val': the folder val/, the default if train/, "
            "val/ and test/ exist. 'test': half of the test split, while results are reported on "
            "the other half; for a dense model that was trained on all training images. 'train': "
            "a tenth of the training images.",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """One study in a storage."""

    study_name: StudyNameOption
    storage: StorageOption = DEFAULT_STORAGE


@dataclass(frozen=True, kw_only=True)
class PlaceOptions:
    """Where the files of a study are on this machine."""

    checkpoint: Annotated[
        Path | None,
        option(
            Panel.MODEL,
            "Path of the dense model on this machine. By default the path in the study.",
        ),
    ] = None
    start: Annotated[
        Path | None,
        option(
            Panel.MODEL,
            "Path on this machine of the pruned model that the study started from. By default "
            "the path in the study.",
        ),
    ] = None
    data: Annotated[
        Path | None,
        option(
            Panel.DATA, "Folder of the images on this machine. By default the folder in the study."
        ),
    ] = None
    artifacts: Annotated[
        str | None,
        option(
            Panel.WORKERS,
            "Folder or s3://BUCKET that all workers share. By default the place in the study.",
        ),
    ] = None
    checkpoints: Annotated[
        Path | None,
        option(
            Panel.WORKERS,
            "Folder for this worker's pruned models. By default the folder in the study.",
        ),
    ] = None

    @property
    def places(self) -> Places:
        """Return the same, for the package."""
        return Places(**{field.name: getattr(self, field.name) for field in fields(Places)})
