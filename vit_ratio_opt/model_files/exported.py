"""Run files that :mod:`~vit_ratio_opt.model_files.export` wrote."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, cast

import torch

from vit_ratio_opt.data.image_data import ImageData
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.models.onnx_file import check_onnx, session_options, silence_exporters
from vit_ratio_opt.utils.failures import reason

__all__ = [
    "Format",
    "Run",
    "SUFFIXES",
    "check_target",
    "exported_accuracy",
    "exported_outputs",
    "load_exported",
]

Format = Literal["onnx", "torch-export", "torchscript"]
Run = Callable[[torch.Tensor], torch.Tensor]
SUFFIXES: dict[Format, str] = {
    "onnx": ".onnx",
    "torch-export": ".pt2",
    "torchscript": ".torchscript",
}
_BATCH = 100


def check_target(path: str | Path, to: Format) -> None:
    """Refuse an export that could not be made, before any work is done.

    Raises:
        InputError: The format is unknown, the file's name ends otherwise, or a package is missing.
    """
    if to not in SUFFIXES:
        raise InputError(f"`to` must be one of {tuple(SUFFIXES)}, but got {to!r}.")
    if Path(path).suffix != SUFFIXES[to]:
        raise InputError(f"A file for {to} must end in {SUFFIXES[to]!r}, but got {path}.")
    if to == "onnx":
        check_onnx()


def load_exported(path: str | Path, to: Format | None = None) -> Run:
    """Return a function from images to the logits of an exported file, on the CPU.

    It uses torch's number of threads.

    Args:
        path: A file of ``export_model`` or ``quantize``.
        to: Format of the file; by default that of its suffix.

    Raises:
        InputError: The file is missing or damaged, its suffix is unknown, or a package is missing.
    """
    path = Path(path)
    if to is None:
        formats: dict[str, Format] = {suffix: name for name, suffix in SUFFIXES.items()}
        to = formats.get(path.suffix, "onnx")
        check_target(path, to)
    try:
        with silence_exporters():
            if to == "onnx":
                import onnxruntime

                session = onnxruntime.InferenceSession(
                    path, session_options(), ["CPUExecutionProvider"]
                )
                return lambda images: torch.from_numpy(
                    session.run(None, {"images": images.numpy()})[0]
                )
            if to == "torchscript":
                script: Any = torch.jit.load  # has no types
                return cast(Run, script(path, map_location="cpu"))
            with path.open("rb") as file:
                return torch.export.load(file).module()
    except Exception as error:  # each loader has its own
        raise InputError(f"{path} is no readable {to} file: {reason(error)}") from None


def exported_accuracy(path: str | Path, data: ImageData) -> float:
    """Return the top-1 accuracy of an exported file on the test split of ``data``, in per cent.

    Raises:
        InputError: The file cannot be loaded, the images do not fit the model, or have several
            labels or targets.
    """
    if data.task != "single-label":
        raise InputError(
            f"Top-1 accuracy is for images with one class each, but {data.name} has the task "
            f"{data.task!r}."
        )
    right = int((exported_outputs(path, data).argmax(dim=1) == data.test.labels).sum())
    return 100.0 * right / len(data.test)


def exported_outputs(path: str | Path, data: ImageData) -> torch.Tensor:
    """Return the outputs of an exported file on the test split of ``data``, ``(images, k)``.

    Raises:
        InputError: The file cannot be loaded, or the images do not fit the model.
    """
    run = load_exported(path)
    try:
        with torch.inference_mode():
            batches = data.test.batches(_BATCH)
            return torch.cat([run(data.normalise(images)) for images, _ in batches])
    except Exception as error:  # onnxruntime's and torch's
        raise InputError(f"{path} cannot take images of {data.name}: {reason(error)}") from None
