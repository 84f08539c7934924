"""The ``vit-ratio-opt`` command, and what the scripts in ``studies/`` share, without torch."""

from __future__ import annotations

import contextlib
import errno
import functools
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from json import JSONDecodeError
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, Optional

import optuna
import typer
from optuna.study import Study
from rich.console import Console
from typer.rich_utils import rich_format_error

from vit_ratio_opt._compat import rdb_of
from vit_ratio_opt.data.folders import check_folder
from vit_ratio_opt.data.preprocessing import LARGEST_SIDE
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.records.answer import candidate_of, trained_trial
from vit_ratio_opt.records.snapshot import snapshot
from vit_ratio_opt.records.study import StudyRecord
from vit_ratio_opt.records.trials import accuracy_of, load_studies
from vit_ratio_opt.report.rows import build_report, group_studies, timing_split, trial_rows
from vit_ratio_opt.report.sentences import answer_sentences, expected
from vit_ratio_opt.report.terminal import results_table, trials_table
from vit_ratio_opt.report.trackers import JsonLog, TensorBoardLog
from vit_ratio_opt.runs.proxy import serve_proxy
from vit_ratio_opt.runs.reaping import Reaper
from vit_ratio_opt.runs.signals import SearchStopped
from vit_ratio_opt.runs.storage import (
    BEATS_IN_GRACE,
    DEFAULT_STORAGE,
    GRACE_SECONDS,
    GRPC_PORT,
    database_files,
    open_storage,
)
from vit_ratio_opt.space.cascade import CP_VIT, LATE, CascadeRule, Strategy
from vit_ratio_opt.space.geometry import Cost, MhsaUnit
from vit_ratio_opt.utils.failures import is_storage_error, reason
from vit_ratio_opt.utils.files import (
    check_outputs,
    check_writable,
    check_writable_folder,
    file_name,
    is_plain,
    write_json,
    write_text,
)
from vit_ratio_opt.utils.network import check_port
from vit_ratio_opt.utils.redact import redact
from vit_ratio_opt.utils.text import csv_text, plain, short
from vit_ratio_opt.utils.versions import check_versions

__all__ = [
    "BudgetOption",
    "CascadeOption",
    "CheckpointOption",
    "ConfidenceOption",
    "CostOption",
    "EpochsOption",
    "ExifRotationOption",
    "FixedRatioOption",
    "ImageSizeOption",
    "JsonLogOption",
    "IterativeOption",
    "LatencyBatchOption",
    "MhsaUnitOption",
    "ModelOption",
    "OutputOption",
    "RepairOption",
    "RoundToOption",
    "SearchNameOption",
    "SeedOption",
    "SkipDamagedOption",
    "StartOption",
    "StorageOption",
    "StrategyOption",
    "StudyNameOption",
    "TensorBoardOption",
    "ToleranceOption",
    "TrialsOption",
    "ValidationOption",
    "WeightsOption",
    "app",
    "cascade_rule",
    "check_output",
    "checkpoint_folder",
    "dense_model",
    "main",
    "make_folder",
    "print_report",
    "run_command",
    "trackers",
]


def _confidence(value: float) -> float:
    """Refuse a confidence outside of (0.5, 1) before any work."""
    if not 0.5 < value < 1:
        raise typer.BadParameter(f"{value:g} is not in (0.5, 1).")
    return value


def _text(value: str | None) -> str | None:
    """Refuse a text that no database can keep."""
    if value is None:
        return None
    if not value.strip():
        raise typer.BadParameter("it is empty.")
    if len(value) > _LONGEST_TEXT:
        raise typer.BadParameter(f"it is longer than {_LONGEST_TEXT} characters.")
    if "\0" in value or not value.encode(errors="ignore").decode() == value:
        raise typer.BadParameter("it is no UTF-8 text.")
    return value


def _texts(values: list[str] | None) -> list[str] | None:
    for value in values or ():
        _text(value)
    return values


def _finite(value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value:g} is no finite number.")
    return value


_LONGEST_TEXT = 500  # Optuna's columns have 512 characters
_MOST_SECONDS = 31_536_000  # a year
_MOST_EPOCHS, _MOST_SEED = 100_000, 2**31 - 1

BudgetOption = Annotated[
    float, typer.Option(help="Largest share of the dense model's --cost, in (0, 1].")
]
ToleranceOption = Annotated[
    Optional[float],  # noqa: UP045  typer evaluates it, also on Python 3.10
    typer.Option(
        help="Instead of a budget: the largest loss of accuracy, in points; the least --cost "
        "wins.",
        show_default=False,
    ),
]
ConfidenceOption = Annotated[
    float,
    typer.Option(
        callback=_confidence,
        help="Probability with which the answer has to keep the --tolerance, in (0.5, 1).",
    ),
]
CostOption = Annotated[
    Cost,
    typer.Option(
        help="What is paid for: 'macs' (FLOPs), 'params' (parameters), or 'latency', the time on "
        "this device, foretold from a table that is measured once."
    ),
]
LatencyBatchOption = Annotated[
    int, typer.Option(min=1, help="Images at once whose latency counts.")
]
TrialsOption = Annotated[int, typer.Option(min=1, help="Trained trials in all, earlier runs too.")]
EpochsOption = Annotated[
    int, typer.Option(min=0, max=_MOST_EPOCHS, help="Epochs of fine-tuning in each trial.")
]
LearningRateOption = Annotated[float, typer.Option(help="Peak learning rate of fine-tuning.")]
ImageSizeOption = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(
        min=1,
        max=LARGEST_SIDE,
        help="Pixels that the images of a folder are resized and cropped to; by default those of "
        "the model.",
        show_default=False,
    ),
]
SeedOption = Annotated[
    int,
    typer.Option(
        min=0,
        max=_MOST_SEED,
        help="Random seed for data splits, calibration and fine-tuning.",
    ),
]
StudyNameOption = Annotated[
    str, typer.Option(callback=_text, help="The study's name in the storage.")
]
ExifRotationOption = Annotated[
    bool,
    typer.Option(
        "--exif-rotation",
        help="Turn photographs as their EXIF data says; torchvision and timm do not.",
    ),
]
SkipDamagedOption = Annotated[
    bool,
    typer.Option(
        "--skip-damaged", help="Leave out images that cannot be read, instead of refusing them."
    ),
]
StorageOption = Annotated[
    Optional[str],  # noqa: UP045  typer evaluates it, also on Python 3.10
    typer.Option(
        callback=_text,
        envvar="OPTUNA_STORAGE",
        help="A database URL; a SQLite file in --folder by default.",
        show_default=False,
    ),
]
IterativeOption = Annotated[
    bool,
    typer.Option(help="Start from the nearest trained trial that pruned neither module more."),
]
MhsaUnitOption = Annotated[
    MhsaUnit,
    typer.Option(
        help="What goes from the attention: 'rank', dimensions of factorised heads, or 'head', "
        "whole heads by Taylor scores."
    ),
]
RepairOption = Annotated[
    bool, typer.Option(help="Refit the layers behind what was pruned by least squares.")
]
RoundToOption = Annotated[
    int,
    typer.Option(
        min=1, max=65_536, help="Ranks and hidden neurons are multiples of this, for speed."
    ),
]
CheckpointOption = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(
        help="The dense model: a safetensors file, a state dict or training checkpoint of any "
        "suffix, or a folder of Hugging Face or timm.",
        show_default=False,
    ),
]
WeightsOption = Annotated[
    Optional[Literal["ema", "raw"]],  # noqa: UP045
    typer.Option(
        help="Which weights of the --checkpoint to take where it holds both: the averaged (ema) "
        "or the trained (raw) ones.",
        show_default=False,
    ),
]
ModelOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        help="timm's name of the model, or torchvision/vit_b_16 and the like for a file of "
        "torchvision's weights; the one that the --checkpoint gives by default. Without a "
        "--checkpoint timm's weights are fetched.",
        show_default=False,
    ),
]
StartOption = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(
        help="A pruned model of an earlier study of the dense model: one strategy after the "
        "other. Limits then refer to it.",
        show_default=False,
    ),
]
FixedRatioOption = Annotated[
    bool, typer.Option("--fixed-ratio", help="Run the baseline: both ratios equal.")
]
StrategyOption = Annotated[
    Strategy,
    typer.Option(help="What is pruned: weights, the tokens that pass through them, or both."),
]
CascadeOption = Annotated[
    Optional[Literal["cp-vit", "late"]],  # noqa: UP045
    typer.Option(
        help="How tokens are left out: as CP-ViT does (the default of --strategy cascade), or "
        "late and as queries only, which loses less (that of both).",
        show_default=False,
    ),
]
ValidationOption = Annotated[
    Optional[Literal["train", "val", "test"]],  # noqa: UP045
    typer.Option(
        help="Images to choose on. 'val': the folder val/, the default where train/, val/ and "
        "test/ are there. 'test': half of the test split, reporting on the other, for a dense "
        "model that has seen all training images. 'train': a tenth of the training images.",
        show_default=False,
    ),
]
SearchNameOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--study-name",
        callback=_text,
        help="The study's name; from limit and strategy by default.",
        show_default=False,
    ),
]
OutputOption = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(help="Write the rows as JSON to this file.", show_default=False),
]
JsonLogOption = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(help="Append a line of JSON for each trial to this file.", show_default=False),
]
TensorBoardOption = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--tensorboard", help="Folder for TensorBoard: curves and ratios of each trial."),
]
_StudyUrl = Annotated[
    str,
    typer.Option(
        "--storage",
        callback=_text,
        envvar="OPTUNA_STORAGE",
        help="A database URL, or grpc://host:port of a proxy.",
    ),
]
_OneStudy = Annotated[
    str, typer.Option("--study-name", callback=_text, help="The study's name in the storage.")
]
_Studies = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(
        "--study-name",
        callback=_texts,
        help="Only these studies; may be repeated.",
        show_default=False,
    ),
]
_Host = Annotated[str, typer.Option(callback=_text, help="Address to listen on.")]
_Grace = Annotated[
    int,
    typer.Option(
        min=2,
        max=_MOST_SECONDS,
        help="Seconds without a sign of life until a running trial is tried again; the same for "
        "all workers of a study.",
    ),
]

_AllTrials = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(
        min=1,
        help="Trained trials of the study in all; until nothing is left to learn by default.",
        show_default=False,
    ),
]
_Checkpoint = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(help="The dense model here; where the study says by default."),
]
_Start = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(help="The pruned model that the study begins with, here; likewise."),
]
_Data = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(help="Folder of the images here; likewise."),
]
_Artifacts = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="Folder or s3://bucket that all workers share; likewise."),
]
_Checkpoints = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(help="Folder for the models of a worker; likewise."),
]
_Device = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="Such as cuda:1 or cpu; the first GPU by default.", show_default=False),
]

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def _vit_ratio_opt() -> None:
    """Work on studies that search the pruning ratios of a Vision Transformer, and look at them."""


@app.command()
def report(
    storage: _StudyUrl = DEFAULT_STORAGE,
    study_name: _Studies = None,
    html: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Write one page with figures, which needs no network."),
    ] = None,
    markdown: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Write sentences and tables as Markdown."),
    ] = None,
    csv: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Write all trials as CSV."),
    ] = None,
    json: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Write the rows of the table as JSON; studies of one dense model."),
    ] = None,
) -> None:
    """Print the table dense / fixed / searched, every trial, and where the time went.

    Or write them: on one page, several studies can be compared.
    """
    written = [path for path in (html, markdown, csv, json) if path is not None]
    check_outputs(written, database_files(storage))
    loaded = load_studies(open_storage(storage, must_exist=True), study_name or ())
    studies = [snapshot(study) for study in loaded]
    console = Console(markup=False, highlight=False)
    if json is not None:
        write_json(build_report(studies), json)
    if csv is not None:
        write_text(csv_text([row for study in studies for row in trial_rows(study)]), csv)
    if html is not None or markdown is not None:
        from vit_ratio_opt.report.html import html_page  # with plotly
        from vit_ratio_opt.report.markdown import markdown_page

        if html is not None:
            write_text(html_page(studies, storage), html)
        if markdown is not None:
            write_text(markdown_page(studies), markdown)
    for path in filter(is_plain, written):  # a reader of a pipe wants nothing else in it
        console.print(plain(f"written to {path}"), soft_wrap=True)
    if written:
        return
    for group in group_studies(studies):
        for study in group:
            console.print(trials_table(study))
            console.print()
            for sentence in answer_sentences(study):
                console.print(plain(sentence))
        print_report(group, None, console)


@app.command()
def dashboard(
    storage: _StudyUrl = DEFAULT_STORAGE,
    host: _Host = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8080,
    study_name: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            callback=_text,
            help="Open this study instead of the list of all.",
            show_default=False,
        ),
    ] = None,
    browse: Annotated[bool, typer.Option(help="Open a browser, when run in a terminal.")] = True,
) -> None:
    """Serve optuna-dashboard with the studies' artifacts.

    It has no passwords: keep it on this machine, or behind a proxy that has.
    """
    from vit_ratio_opt.report.dashboard import serve_dashboard
    from vit_ratio_opt.runs.artifacts import open_artifacts

    backend = open_storage(storage, must_exist=True)
    check_port(host, port)
    browse = browse and sys.stdout.isatty()
    serve_dashboard(
        backend, host, port, open_artifacts=open_artifacts, study_name=study_name, browse=browse
    )


@app.command()
def worker(
    study_name: _OneStudy,
    storage: _StudyUrl = DEFAULT_STORAGE,
    n_trials: _AllTrials = None,
    checkpoint: _Checkpoint = None,
    start: _Start = None,
    data: _Data = None,
    artifacts: _Artifacts = None,
    checkpoints: _Checkpoints = None,
    device: _Device = None,
    json_log: JsonLogOption = None,
    tensorboard: TensorBoardOption = None,
    wait: Annotated[
        bool,
        typer.Option(help="Stay while others are at work, and take over what they leave."),
    ] = True,
    grace: _Grace = GRACE_SECONDS,
) -> None:
    """Join a study: take trials from it until it is done.

    The study says what model, images and settings it is about. On SIGTERM or Ctrl-C the training
    is put by and the trial handed back. Under torchrun all processes share the training of each
    trial.
    """
    if data is not None:
        check_folder(data)
    backend = open_storage(storage, must_exist=True, grace=grace)
    # A misspelt name is told before torch is at work.
    (named,) = load_studies(backend, [study_name])
    if json_log is not None:
        check_outputs(
            [json_log],
            [*database_files(storage), *_models_of(named, checkpoint, start, checkpoints)],
        )
    callbacks = trackers(json_log, tensorboard)

    from vit_ratio_opt.runs.origin import load_objective
    from vit_ratio_opt.runs.study import create_study, run_study
    from vit_ratio_opt.training.distributed import Ranks, RanksBroken

    ranks = Ranks.from_environment()
    objective = load_objective(
        study_name,
        backend,
        checkpoint=checkpoint,
        start=start,
        data=data,
        artifacts=artifacts,
        checkpoints=checkpoints,
        device=device,
        ranks=ranks,
    )
    objective.beat_seconds = grace / BEATS_IN_GRACE
    if ranks is not None and ranks.rank > 0:
        objective.follow()
        ranks.leave()
        return
    heard = True
    try:
        study = create_study(objective, study_name=study_name, storage=backend)
        run_study(
            study,
            objective,
            n_trials=n_trials,
            wait=wait,
            say=lambda text: print(text, flush=True),
            callbacks=callbacks,
        )
    except RanksBroken:
        heard = False
        raise
    finally:
        if ranks is not None and heard:
            ranks.tell(None)
            ranks.leave()


@app.command()
def ray(
    study_name: _OneStudy,
    storage: _StudyUrl = DEFAULT_STORAGE,
    address: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Of a cluster, such as auto or ray://HOST:10001; by default a new one."),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="How many at once.")] = 1,
    gpus_per_worker: Annotated[float, typer.Option(min=0, callback=_finite)] = 1,
    cpus_per_worker: Annotated[float, typer.Option(min=0, callback=_finite)] = 1,
    n_trials: _AllTrials = None,
    checkpoint: _Checkpoint = None,
    start: _Start = None,
    data: _Data = None,
    artifacts: _Artifacts = None,
    checkpoints: _Checkpoints = None,
    grace: _Grace = GRACE_SECONDS,
) -> None:
    """Run workers on a Ray cluster, and again those that are lost with their node."""
    from vit_ratio_opt.runs.ray_cluster import run_on_ray

    load_studies(open_storage(storage, must_exist=True, grace=grace), [study_name])
    work = functools.partial(
        _work,
        storage=storage,
        study_name=study_name,
        n_trials=n_trials,
        checkpoint=checkpoint,
        start=start,
        data=data,
        artifacts=artifacts,
        checkpoints=checkpoints,
        grace=grace,
    )
    run_on_ray(
        work,
        address=address,
        workers=workers,
        gpus_per_worker=gpus_per_worker,
        cpus_per_worker=cpus_per_worker,
    )


def _work(**options: Any) -> int:
    """Run one worker in a task of Ray's."""
    worker(**options)
    return 0


@app.command()
def serve(
    storage: _StudyUrl = DEFAULT_STORAGE,
    host: _Host = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = GRPC_PORT,
    threads: Annotated[int, typer.Option(min=1, max=1024, help="Requests at once.")] = 16,
    grace: _Grace = GRACE_SECONDS,
) -> None:
    """Serve a database to many workers over gRPC, as --storage grpc://HOST:PORT.

    It has no passwords: keep it on this machine, or in a network of yours. Trials of dead workers
    are failed here, as no worker behind it can.
    """
    serve_proxy(storage, host, port, threads, grace)


@app.command()
def reap(
    storage: _StudyUrl = DEFAULT_STORAGE,
    study_name: _Studies = None,
    every: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(
            min=1,
            max=_MOST_SECONDS,
            callback=_finite,
            help="Seconds until the next look; one look by default.",
        ),
    ] = None,
    grace: _Grace = GRACE_SECONDS,
) -> None:
    """Fail the running trials of dead workers, so that their pairs are tried again.

    Workers and `serve` do so themselves.
    """
    backend = open_storage(storage, must_exist=True, grace=grace)
    if rdb_of(backend) is None:
        raise InputError("Reaping needs the database itself, not a proxy: give its URL.")
    reaper = Reaper(backend)
    names = [study.study_name for study in load_studies(backend, study_name or ())]
    while True:
        for name, number in reaper.reap(names):
            print(f"study {name!r}: trial {number} was left behind; its pair is free", flush=True)
        if every is None:
            return
        time.sleep(every)


@app.command("export")
def export_command(
    model: Annotated[
        Path, typer.Argument(help="Its safetensors file, pruned or dense.", show_default=False)
    ],
    to: Annotated[
        Literal["onnx", "torch-export", "torchscript"], typer.Option(help="The file's format.")
    ] = "onnx",
    output: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="The file; beside the model by default.", show_default=False),
    ] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="Write an ONNX file in int8 as well; measure both.")
    ] = False,
    data: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Folder of the images: measure accuracy on the study's test split."),
    ] = None,
    image_size: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            min=1, max=LARGEST_SIDE, help="Pixels of a side; the model's own by default."
        ),
    ] = None,
) -> None:
    """Write a model as a file for other programs, load it again and compare.

    It takes normalised images, (batch, channels, height, width), and gives logits. With --data its
    accuracy is measured, on the very test images that the model's study reported on.
    """
    from vit_ratio_opt.data.preprocessing import preprocess_of
    from vit_ratio_opt.model_files.export import export_model, image_shape, quantize
    from vit_ratio_opt.model_files.exported import SUFFIXES, check_target, exported_accuracy
    from vit_ratio_opt.model_files.load import load_model
    from vit_ratio_opt.models.shape import shape_of
    from vit_ratio_opt.runs.objective import check_fit
    from vit_ratio_opt.runs.origin import study_images

    if not model.name:
        raise InputError("MODEL must name a file.")
    if data is not None:
        check_folder(data)
    output = output or model.with_suffix(SUFFIXES[to])
    check_output(output)
    if not output.name:
        raise InputError("--output must name a file.")
    smaller = output.with_suffix(".int8.onnx")
    if int8 and to != "onnx":
        raise InputError(f"--int8 is for --to onnx, not for {to}.")
    check_outputs([output, smaller] if int8 else [output], _files_of(model))
    check_target(output, to)
    loaded, manifest = load_model(model)
    height = image_shape(loaded, image_size)[1]
    keys = ("classes", "mean", "std")
    metadata: dict[str, Any] = {key: manifest[key] for key in keys if key in manifest}
    images = None
    if int8 or data is not None:
        images = study_images(manifest, data, image_size=height, preprocess=preprocess_of(loaded))
        check_fit(loaded, images)
        metadata = {"classes": images.classes, "mean": images.mean, "std": images.std}
    difference = export_model(loaded, output, to, metadata=metadata, image_size=image_size)
    share = manifest.get("macs_ratio")
    of_dense = f" ({share:.4f} of the dense model's)" if isinstance(share, float) else ""
    print(
        f"written to {output}: {_megabytes(output)}, {shape_of(loaded).macs:,} FLOPs{of_dense}, "
        f"logits within {difference:.1e} of the model's"
    )
    if int8:
        print(f"written to {quantize(output, smaller)}: {_megabytes(smaller)} in int8")
    if images is not None:
        found = f"{exported_accuracy(output, images):.2f} %"
        if int8:
            found += f", in int8 {exported_accuracy(smaller, images):.2f} %"
        print(f"accuracy on the {len(images.test):,} test images of {images.name}: {found}")


def _megabytes(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:.2f} MB"


@app.command()
def final(
    study_name: _OneStudy,
    storage: _StudyUrl = DEFAULT_STORAGE,
    trial: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=0, help="Number of the trial; the answer's by default."),
    ] = None,
    epochs: EpochsOption = 10,
    lr: LearningRateOption = 1e-3,
    seed: SeedOption = 0,
    output: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="The model's file; STUDY.safetensors here by default."),
    ] = None,
    checkpoint: _Checkpoint = None,
    start: _Start = None,
    data: _Data = None,
    artifacts: _Artifacts = None,
    checkpoints: _Checkpoints = None,
    device: _Device = None,
) -> None:
    """Train a trial's model longer, test it once, and write it with a model card.

    Stopped, it goes on from its last epoch when it is run again.
    """
    path = output or Path(f"{file_name(study_name)}.safetensors")
    check_model_output(path)
    if data is not None:
        check_folder(data)
    backend = open_storage(storage, must_exist=True)
    (study,) = load_studies(backend, [study_name])
    check_outputs(
        _with_card(path),
        [*database_files(storage), *_models_of(study, checkpoint, start, checkpoints)],
    )
    chosen = trained_trial(study, trial)

    from dataclasses import replace

    from vit_ratio_opt.runs.final import finish
    from vit_ratio_opt.runs.origin import load_objective
    from vit_ratio_opt.space.geometry import RatioPair

    objective = load_objective(
        study_name,
        backend,
        checkpoint=checkpoint,
        start=start,
        data=data,
        artifacts=artifacts,
        checkpoints=checkpoints,
        device=device,
    )
    candidate = candidate_of(study, chosen)
    lineage = {
        "study": study_name,
        "trial": chosen.number,
        "parent_trial": chosen.user_attrs.get("parent_trial"),
        "search_accuracy": accuracy_of(chosen, study),
        "search_expected": None if candidate is None else candidate.accuracy,
        "search_error": None if candidate is None else candidate.error,
    }
    if candidate is not None:
        print(
            f"trial {chosen.number}: MHSA ratio {candidate.pair[0]:.3f} and FFN ratio "
            f"{candidate.pair[1]:.3f}, {expected(candidate)} validation accuracy expected from "
            "the search",
            flush=True,
        )
    _finish(
        lambda: finish(
            objective,
            RatioPair(*(chosen.params[name] for name in RatioPair._fields)),
            objective.model_of(chosen, study).to(objective.device),
            path,
            recipe=replace(objective.recipe, epochs=epochs, lr=lr),
            seed=seed,
            lineage=lineage,
        ),
        path,
    )


@app.command()
def prune(
    data: Annotated[Path, typer.Option(help="Folder of the images.")],
    mhsa_ratio: Annotated[float, typer.Option(help="Of the attention, to remove; in [0, 1).")],
    ffn_ratio: Annotated[float, typer.Option(help="Of the FFN, to remove; in [0, 1).")],
    checkpoint: CheckpointOption = None,
    weights: WeightsOption = None,
    model: ModelOption = None,
    start: StartOption = None,
    output: Annotated[Path, typer.Option(help="The pruned model's file.")] = Path(
        "pruned.safetensors"
    ),
    epochs: EpochsOption = 0,
    lr: LearningRateOption = 1e-3,
    image_size: ImageSizeOption = None,
    exif_rotation: ExifRotationOption = False,
    skip_damaged: SkipDamagedOption = False,
    validation: ValidationOption = None,
    strategy: StrategyOption = "structural",
    cascade: CascadeOption = None,
    mhsa_unit: MhsaUnitOption = "rank",
    repair: RepairOption = True,
    round_to: RoundToOption = 1,
    seed: SeedOption = 0,
) -> None:
    """Prune by two given ratios, without a search; fine-tune, test once, write with a card."""
    check_model_output(output)
    check_folder(data)
    for name, ratio in (("mhsa_ratio", mhsa_ratio), ("ffn_ratio", ffn_ratio)):
        if not 0 <= ratio < 1:
            raise InputError(f"`{name}` must be in [0, 1), but got {ratio!r}.")
    check_outputs(_with_card(output), [*_files_of(checkpoint), *_files_of(start)])
    dense = dense_model(checkpoint, model, start, weights)

    from vit_ratio_opt.data.dataset import default_validation, load_images
    from vit_ratio_opt.data.preprocessing import preprocess_or_assume
    from vit_ratio_opt.runs.final import finish
    from vit_ratio_opt.runs.objective import PruningObjective
    from vit_ratio_opt.space.geometry import RatioPair, check_pair
    from vit_ratio_opt.training.recipe import Recipe

    recipe = Recipe(epochs=epochs, lr=lr)
    objective = PruningObjective(
        dense,
        load_images(
            data,
            image_size=image_size,
            validation=validation or default_validation(data, "test"),
            seed=seed,
            preprocess=preprocess_or_assume(dense),
            exif_rotation=exif_rotation,
            skip_damaged=skip_damaged,
        ),
        budget=1.0,
        recipe=recipe,
        strategy=strategy,
        rule=cascade_rule(cascade),
        mhsa_unit=mhsa_unit,
        repair=repair,
        round_to=round_to,
        seed=seed,
    )
    pair = RatioPair(mhsa_ratio, ffn_ratio)
    check_pair(objective.space, pair)
    _finish(
        lambda: finish(
            objective, pair, objective.prune(pair), output, recipe=objective.recipe, seed=seed
        ),
        output,
    )


def _finish(make: Callable[[], dict[str, Any]], path: Path) -> None:
    """Make the model and print what came out."""
    from vit_ratio_opt.runs.final import card_path
    from vit_ratio_opt.training.context import TrainingDiverged

    try:
        made = make()
    except TrainingDiverged as error:
        raise InputError(f"The training failed, {error}: try a smaller --lr.") from None
    except SearchStopped:
        print("stopped, with nothing lost: run the same again to go on from here", flush=True)
        raise
    dense = made["dense"]
    print(
        f"{made['macs_ratio']:.4f} of the FLOPs, {made['params']:,} of {dense['params']:,} "
        f"parameters; validation {dense['val_accuracy']:.2f} -> {made['val_accuracy']:.2f} %, "
        f"test {dense['test_accuracy']:.2f} -> {made['test_accuracy']:.2f} %"
    )
    print(f"written to {path}, its card to {card_path(path)}")


def check_model_output(path: Path) -> None:
    """Refuse, before any work, a file of a model or a card that could not be written after it.

    Raises:
        InputError: Its suffix is another one, or see :func:`check_output`.
    """
    if path.suffix != ".safetensors":
        raise InputError(f"A model goes into a .safetensors file, but --output is {path}.")
    check_outputs(_with_card(path), ())


def _with_card(path: Path) -> list[Path]:
    """What is written with a model: its card, and the state of its training."""
    return [path, path.with_suffix(".md"), path.with_name(f"{path.name}.training")]


def _files_of(model: Path | None) -> list[Path]:
    """The files of a model that is a file or a folder."""
    if model is None or not model.is_dir():
        return [] if model is None else [model]
    return [*model.glob("model*"), *model.glob("pytorch_model*")]


def _models_of(
    study: Study, checkpoint: Path | None, start: Path | None, checkpoints: Path | None
) -> list[Path]:
    """The files of a study's models: dense, start and trials', where it or the user says."""
    origin = StudyRecord.read(study.study_name, study.user_attrs).origin
    model = origin.get("model") or {}
    files = []
    for given, named in ((checkpoint, model.get("checkpoint")), (start, model.get("pruned"))):
        files += _files_of(given or (Path(named) if isinstance(named, str) else None))
    folder = checkpoints or origin.get("checkpoints")
    names = [trial.user_attrs.get("checkpoint") for trial in study.trials]
    return files + [Path(folder, name) for name in names if folder and isinstance(name, str)]


def dense_model(
    checkpoint: Path | None,
    model: str | None,
    start: Path | None,
    weights: Literal["ema", "raw"] | None = None,
) -> Any:
    """Return the model that the options of these names ask for.

    Raises:
        InputError: None is named, or it cannot be had.
    """
    from vit_ratio_opt.model_files.load import load_dense, load_pruned
    from vit_ratio_opt.models.create import create_model

    if checkpoint is not None:
        dense = load_dense(checkpoint, name=model, weights=weights)
    elif weights is not None:
        raise InputError("--weights chooses among those of a --checkpoint: give one.")
    elif model is not None:
        dense = create_model(model, pretrained=True)
    else:
        raise InputError("No model is named: give --checkpoint, --model or both.")
    return dense if start is None else load_pruned(start, dense)[0]


def trackers(json_log: Path | None, tensorboard: Path | None) -> list[Callable[..., None]]:
    """The callbacks that the options of these names ask for.

    Raises:
        InputError: A file cannot be written, or TensorBoard is not installed.
    """
    chosen: list[Callable[..., None]] = []
    if json_log is not None:
        check_output(json_log)
        chosen.append(JsonLog(json_log))
    if tensorboard is not None:
        chosen.append(TensorBoardLog(tensorboard))
    return chosen


def cascade_rule(name: Literal["cp-vit", "late"] | None) -> CascadeRule | None:
    """The rule that ``--cascade`` names; None leaves it to the strategy."""
    return None if name is None else {"cp-vit": CP_VIT, "late": LATE}[name]


def print_report(
    studies: Sequence[Study], output: Path | None = None, console: Console | None = None
) -> None:
    """The table of the studies' rows and their time split; the rows as JSON into ``output``."""
    console = console or Console(markup=False, highlight=False)
    studies = [snapshot(study) for study in studies]
    built = build_report(studies)
    console.print()
    console.print(results_table(built))
    console.print()
    if "dense_full_test_accuracy" in built:
        console.print(
            "Ratios were chosen on one half of the test split and are reported on the other; "
            f"dense on the full test split: {built['dense_full_test_accuracy']:.2f} %.",
            soft_wrap=True,
        )
    for study in studies:
        split = timing_split(study)
        if split:
            shares = ", ".join(f"{name} {100 * share:.1f} %" for name, share in split.items())
            console.print(f"time of {short(study.study_name)!r}: {shares}", soft_wrap=True)
    if output is not None:
        write_json(built, output)
        console.print(plain(f"rows written to {output}"), soft_wrap=True)


def check_output(path: Path | None) -> None:
    """Refuse, before any work, a file that could not be written after it.

    Raises:
        InputError: See :func:`~vit_ratio_opt.utils.files.check_writable`.
    """
    if path is not None:
        check_writable(path)


def make_folder(folder: Path) -> None:
    """Make the folder of a study's files.

    Raises:
        InputError: It cannot be made or written.
    """
    check_writable_folder(folder)


def checkpoint_folder(folder: Path, study_name: str) -> Path:
    """The folder of a study's models; two names never share one, whatever is in them."""
    return folder / "checkpoints" / file_name(study_name)


def run_command(command: Callable[..., Any] | typer.Typer) -> NoReturn:
    """Run a command line; an :class:`InputError` becomes one sentence and exit code 2.

    So does a failure of the storage, such as a database that is full, of the operating system, and
    of the memory. Ctrl-C ends with 130, a reader that has gone with 1.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    _repair_streams()
    if not isinstance(command, typer.Typer):
        single = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        single.command()(command)
        command = single
    code = 0
    try:
        check_versions()
        returned = command(standalone_mode=False)
        code = returned if isinstance(returned, int) else 0
        sys.stdout.flush()
    except _UsageError as error:
        error.message = plain(redact(error.message))
        rich_format_error(error)
        code = error.exit_code
    except InputError as error:
        code = _refuse(str(error))
    except BrokenPipeError:
        code = 1
    except KeyboardInterrupt:
        code = 130
    except Exception as error:
        if is_storage_error(error):
            code = _refuse(f"The storage cannot be used: {reason(error)}")
        elif isinstance(error, OSError) and error.errno is not None:
            where = "" if error.filename is None else f"{short(error.filename, 200)}: "
            code = _refuse(f"{where}{error.strerror}.")
        elif isinstance(error, JSONDecodeError):  # an attribute that is half written, say
            code = _refuse(f"What the storage or a file holds is damaged, no JSON: {error}.")
        elif _is_out_of_memory(error):
            code = _refuse("The memory is not enough: use smaller images or models.")
        else:
            raise
    _leave(code)


# click's, of which typer may have a copy.
_UsageError: Any = typer.BadParameter.__mro__[2]


def _refuse(sentence: str) -> int:
    print(f"Error: {plain(redact(sentence))}", file=sys.stderr)
    return 2


def _is_out_of_memory(error: Exception) -> bool:
    words = ("can't allocate memory", "out of memory", "not enough memory")
    is_torchs = isinstance(error, RuntimeError) and any(w in str(error).lower() for w in words)
    return isinstance(error, MemoryError) or is_torchs


def _repair_streams() -> None:
    """Have streams that exist, and take every name whatever the terminal's encoding is."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the process that has started this one
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  until the end
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _leave(code: int) -> NoReturn:
    """Exit; what cannot be written any more is dropped, since Python would complain."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError as error:
            code = 1
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            if error.errno != errno.EPIPE and stream is sys.stdout:
                _refuse(f"The output cannot be written: {error.strerror}.")
    sys.exit(code)


def main() -> None:
    """Entry point of ``vit-ratio-opt``."""
    run_command(app)
