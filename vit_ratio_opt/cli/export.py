"""``vit-ratio-opt export``: write a model for other programs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from vit_ratio_opt.cli.command import Panel, option
from vit_ratio_opt.cli.files import model_files
from vit_ratio_opt.cli.options import ImageSizeOption
from vit_ratio_opt.data.folders import check_folder
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.utils.files import check_outputs, check_writable

__all__ = ["ExportOptions", "export"]


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Options of ``vit-ratio-opt export``."""

    model: Annotated[Path, typer.Argument(help="Safetensors file of the model, pruned or dense.")]
    to: Annotated[
        Literal["onnx", "torch-export", "torchscript"], option(Panel.OUTPUT, "Format of the file.")
    ] = "onnx"
    output: Annotated[
        Path | None, option(Panel.OUTPUT, "Path of the file; by default beside the model.")
    ] = None
    int8: Annotated[
        bool,
        option(Panel.OUTPUT, "Write a second ONNX file in int8, and measure both.", "--int8"),
    ] = False
    data: Annotated[
        Path | None,
        option(Panel.DATA, "Folder of the images, to measure the metric on the test split."),
    ] = None
    image_size: ImageSizeOption = None


def export(options: ExportOptions) -> None:
    """Write a model as a file for other programs, load the file and compare its logits.

    The file takes normalised images, (batch, channels, height, width), and returns logits. With
    --data, the study's metric is measured on the test images that the study reported on.
    """
    from vit_ratio_opt.model_files.export import export_model, image_shape, quantize
    from vit_ratio_opt.model_files.load import load_model
    from vit_ratio_opt.models.shape import shape_of

    output, smaller = _check_files(options)
    loaded, manifest = load_model(options.model)
    height = image_shape(loaded, options.image_size)[1]
    keys = ("classes", "mean", "std", "metric")
    metadata: dict[str, Any] = {key: manifest[key] for key in keys if key in manifest}
    if "calibration_task" in manifest:
        metadata["task"] = manifest["calibration_task"]
    images: Any = None
    if options.int8 or options.data is not None:
        images = _study_images(loaded, manifest, options.data, height)
        metadata |= {"classes": images.classes, "mean": images.mean, "std": images.std}
        metadata["task"] = images.task
    difference = export_model(
        loaded, output, options.to, metadata=metadata, image_size=options.image_size
    )
    share = manifest.get("macs_ratio")
    of_dense = f" ({share:.4f} of the dense model's)" if isinstance(share, float) else ""
    print(
        f"written to {output}: {_megabytes(output)}, {shape_of(loaded).macs:,} FLOPs{of_dense}, "
        f"outputs within {difference:.1e} of the model's"
    )
    if options.int8:
        print(f"written to {quantize(output, smaller)}: {_megabytes(smaller)} in int8")
    if images is not None:
        name = (manifest.get("recipe") or {}).get("metric")
        _print_metric([output, smaller] if options.int8 else [output], images, name)


def _check_files(options: ExportOptions) -> tuple[Path, Path]:
    """Return the paths of the file and of its int8 version.

    Raises:
        InputError: A path cannot be read or written, or the format has no int8 version.
    """
    from vit_ratio_opt.model_files.exported import SUFFIXES, check_target

    model, to = options.model, options.to
    if not model.name:
        raise InputError("MODEL must name a file.")
    if options.data is not None:
        check_folder(options.data)
    output = options.output or model.with_suffix(SUFFIXES[to])
    check_writable(output)
    if not output.name:
        raise InputError("--output must name a file.")
    smaller = output.with_suffix(".int8.onnx")
    if options.int8 and to != "onnx":
        raise InputError(f"--int8 is for --to onnx, not for {to}.")
    check_outputs([output, smaller] if options.int8 else [output], model_files(model))
    check_target(output, to)
    return output, smaller


def _study_images(model: Any, manifest: dict[str, Any], data: Path | None, height: int) -> Any:
    """Load the images of the model's study.

    Raises:
        InputError: The images cannot be loaded or do not fit the model.
    """
    from vit_ratio_opt.data.preprocessing import preprocess_of
    from vit_ratio_opt.data.stored import study_images
    from vit_ratio_opt.runs.fit import check_fit

    images = study_images(manifest, data, image_size=height, preprocess=preprocess_of(model))
    check_fit(model, images)
    return images


def _print_metric(paths: list[Path], images: Any, name: str | None) -> None:
    """Print the metric of an exported file, and of its int8 version, on the test images.

    Args:
        paths: The file, and that in int8 where there is one.
        images: The data set.
        name: Name of the study's metric; None for the usual one of the task.
    """
    from vit_ratio_opt.model_files.exported import exported_outputs
    from vit_ratio_opt.training.metrics import MEASURES, measure_of

    if images.task == "features" or (name is not None and name not in MEASURES):
        needed = "the metric compares with the dense model"
        if images.task != "features":
            needed = f"the metric {name!r} needs the program of the study"
        print(f"no metric is measured: {needed}")
        return
    measure, targets = measure_of(name, images), images.test.labels
    texts = [
        measure.metric.text(measure(exported_outputs(path, images), targets)) for path in paths
    ]
    print(
        f"{measure.metric.name} on the {len(images.test):,} test images of {images.name}: "
        f"{', in int8 '.join(texts)}"
    )


def _megabytes(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:.2f} MB"
