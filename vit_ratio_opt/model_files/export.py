"""Export models to files that other programs run: ONNX, torch.export, TorchScript, ONNX in int8.

Every file takes any number of normalised images ``(batch, channels, height, width)`` in float32
and gives what the model gives: logits ``(batch, classes)``, or the features of a model without a
classifier. It carries what a caller needs beside the weights (classes, mean, std, image size), and
gets its name only after it was loaded again and gave the model's own outputs.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.model_files.exported import (
    Format,
    Run,
    check_target,
    load_exported,
)
from vit_ratio_opt.models.blocks import ViT
from vit_ratio_opt.models.onnx_file import any_batch, fits_onnx, silence_exporters, write_onnx
from vit_ratio_opt.models.supported import check_supported
from vit_ratio_opt.models.weights import check_weights
from vit_ratio_opt.pruning.cascade import CascadeBlocks
from vit_ratio_opt.utils.failures import reason
from vit_ratio_opt.utils.files import replacing

__all__ = [
    "export_model",
    "image_shape",
    "quantize",
]

_MOST_DIFFERENCE = 1e-4
_CHECKED_BATCHES = (1, 2, 5)


def export_model(
    model: ViT,
    path: str | Path,
    to: Format = "onnx",
    *,
    metadata: Mapping[str, Any] | None = None,
    image_size: int | None = None,
) -> float:
    """Write ``model`` to one file, load the file again and compare the outputs.

    The file is written whole or not at all.

    Args:
        model: Dense, pruned or with a cascade; a copy in evaluation mode on the CPU is exported.
        path: The file to write, with the suffix of its format, see ``SUFFIXES``. An existing file
            is replaced.
        to: Format of the file.
        metadata: Values that the file holds, texts as they are and others as JSON:
            ``metadata_props`` of ONNX, an extra file for each value in the other formats.
            ``image_size`` is added.
        image_size: Height and width in pixels, for a model that takes images of any size; by
            default the model's own.

    Returns:
        The largest difference between the file's outputs and the model's, against the larger of
        the output and 1.

    Raises:
        UnsupportedModelError: The model cannot be pruned.
        InputError: The format or suffix is unknown, a package is missing, the model has weights
            that are not finite or cannot be exported, the file cannot be written, or its outputs
            differ from the model's by more than 1e-4.
    """
    path = Path(path)
    check_target(path, to)
    model = check_supported(model)
    check_weights(model)
    shape = image_shape(model, image_size)
    model = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
    if to == "onnx" and not fits_onnx(model):
        raise InputError("One ONNX file holds less than 2 GB: export to 'torch-export' instead.")
    texts = _as_texts({**(metadata or {}), "image_size": shape[1:]})
    try:
        with replacing(path) as partial:
            partial.touch()  # some exporters do not say that the folder is the problem
            with silence_exporters(), torch.no_grad():
                _write(model, torch.zeros(2, *shape), partial, to, texts)
            difference = _largest_difference(model, load_exported(partial, to), shape)
            if not difference <= _MOST_DIFFERENCE:  # NaN too
                raise InputError(
                    f"The outputs of the {to} file differ from the model's by {difference:.2g}, "
                    f"more than {_MOST_DIFFERENCE:g}: it was not kept."
                )
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}.") from None
    except Exception as error:  # each exporter has its own
        raise InputError(f"The model cannot be exported to {to}: {reason(error)}") from None
    return difference


def _as_texts(values: Mapping[str, Any]) -> dict[str, str]:
    return {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in values.items()
    }


def image_shape(model: ViT, image_size: int | None = None) -> tuple[int, int, int]:
    """Return channels, height and width of the images that an exported model takes.

    Args:
        model: The model.
        image_size: Height and width in pixels; by default the model's own.

    Raises:
        InputError: The model takes no images of ``image_size`` pixels.
    """
    if image_size is not None and (isinstance(image_size, bool) or image_size < 1):
        raise InputError(f"`image_size` must be at least 1 pixel, but got {image_size!r:.80}.")
    channels, own = model.patch_embed.proj.in_channels, tuple(model.patch_embed.img_size)
    if image_size is None or own == (image_size, image_size):
        return channels, *own
    if not model.dynamic_img_size or isinstance(model.blocks, CascadeBlocks):
        raise InputError(f"The model takes images of {own} pixels, not of {image_size}.")
    return channels, image_size, image_size


def quantize(path: str | Path, output: str | Path) -> Path:
    """Write an ONNX file with the weights of its linear layers, and their products, in int8.

    Each layer's inputs are quantised at run time (dynamic quantisation), so it needs no images to
    calibrate on; the rest stays in float32. Measure the accuracy that it costs.

    Args:
        path: An ONNX file of :func:`export_model`.
        output: The file to write, with the suffix ``.onnx``.

    Raises:
        InputError: A file cannot be read or written, or a package is missing.
    """
    path, output = Path(path), Path(output)
    check_target(output, "onnx")
    load_exported(path)
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(path)
    model.graph.ClearField(
        "value_info"
    )  # shapes: torch 2.7 stores wrong ones; onnxruntime infers them
    # onnxruntime, not torchao: its integer kernels run on every machine, while torchao's are
    # slower than float32 without torch.compile on the machine itself. Unsigned weights, since
    # signed ones saturate on CPUs without VNNI. A scale for each output of a layer
    # (`per_channel`) brings the logits nearer to float32's and costs no time.
    try:
        with replacing(output) as partial, silence_exporters():
            quantize_dynamic(
                model,
                partial,
                op_types_to_quantize=["MatMul", "Gemm"],
                per_channel=True,
                weight_type=QuantType.QUInt8,
                extra_options={"MatMulConstBOnly": True},
            )
    except OSError as error:
        raise InputError(f"{output} cannot be written: {error.strerror or error}.") from None
    return output


def _write(
    model: ViT, example: torch.Tensor, path: Path, to: Format, texts: dict[str, str]
) -> None:
    """Write the file as ``path``, whatever its suffix."""
    if to == "onnx":
        write_onnx(model, example, path, texts)
    elif to == "torch-export":
        program = torch.export.export(model, (example,), dynamic_shapes=any_batch())
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # paths on this machine
        with path.open("wb") as file:
            torch.export.save(program, file, extra_files=texts)
    else:
        trace: Any = torch.jit.trace  # has no types
        torch.jit.save(trace(model, example, check_trace=False), path, texts)


def _largest_difference(model: torch.nn.Module, run: Run, shape: tuple[int, int, int]) -> float:
    """Return the largest relative difference of outputs on random images, in several batches."""
    generator = torch.Generator().manual_seed(0)
    found = []
    with torch.no_grad():
        for size in _CHECKED_BATCHES:
            images = torch.randn(size, *shape, generator=generator)
            wanted = model(images)
            found.append((run(images) - wanted).abs() / wanted.abs().clamp(min=1))
    return float(torch.cat(found).max())
