"""A model as a file that other programs run: ONNX, torch.export or TorchScript; ONNX in int8.

Every file takes any number of normalised images ``(batch, channels, height, width)`` in float32
and gives logits ``(batch, classes)``. It carries what a caller needs beside the weights (classes,
mean, std, image size), and takes its name only after it was loaded again and gave the model's own
logits.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, cast

import torch

from vit_ratio_opt.data.image_data import ImageData
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.models.blocks import ViT
from vit_ratio_opt.models.supported import check_supported, check_weights
from vit_ratio_opt.pruning.cascade import CascadeBlocks
from vit_ratio_opt.utils.failures import reason
from vit_ratio_opt.utils.files import replacing

__all__ = [
    "SUFFIXES",
    "Format",
    "check_target",
    "export_model",
    "exported_accuracy",
    "image_shape",
    "load_exported",
    "quantize",
]

Format = Literal["onnx", "torch-export", "torchscript"]
Run = Callable[[torch.Tensor], torch.Tensor]
SUFFIXES: dict[Format, str] = {
    "onnx": ".onnx",
    "torch-export": ".pt2",
    "torchscript": ".torchscript",
}

_MOST_DIFFERENCE = 1e-4
_CHECKED_BATCHES = (1, 2, 5)
_LARGEST_ONNX = 2**31  # bytes; protobuf's limit for one file
_BATCH = 100


def check_target(path: str | Path, to: Format) -> None:
    """Refuse, before any work, an export that could not be made.

    Raises:
        InputError: The format is unknown, the file's name ends otherwise, or a package is missing.
    """
    if to not in SUFFIXES:
        raise InputError(f"`to` must be one of {tuple(SUFFIXES)}, but got {to!r}.")
    if Path(path).suffix != SUFFIXES[to]:
        raise InputError(f"A file for {to} must end in {SUFFIXES[to]!r}, but got {path}.")
    if to == "onnx":
        missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if not find_spec(name)]
        if missing:
            raise InputError(
                f"ONNX needs {' and '.join(missing)}: pip install 'vit_ratio_opt[onnx]'."
            )


def export_model(
    model: ViT,
    path: str | Path,
    to: Format = "onnx",
    *,
    metadata: Mapping[str, Any] | None = None,
    image_size: int | None = None,
) -> float:
    """Write ``model``, load the file again and compare: one file, whole or not at all.

    Args:
        model: Dense, pruned or with a cascade; a copy in evaluation mode on the CPU is exported.
        path: The file, with the suffix of its format, see ``SUFFIXES``; replaced if it is there.
        to: Its format.
        metadata: Kept in the file, texts as they are and all else as JSON: ``metadata_props`` of
            ONNX, an extra file of the others for each. ``image_size`` is added.
        image_size: Pixels of a side, for a model that takes any; the model's own by default.

    Returns:
        The largest difference between the file's logits and the model's, against the larger of
        the logit and 1.

    Raises:
        UnsupportedModelError: The model is none that can be pruned.
        InputError: As :func:`check_target`; the model has weights that are not finite or cannot be
            exported, the file cannot be written, or its logits differ from the model's by more
            than 1e-4.
    """
    path = Path(path)
    check_target(path, to)
    model = check_supported(model)
    check_weights(model)
    shape = image_shape(model, image_size)
    model = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
    if to == "onnx" and sum(p.nbytes for p in model.state_dict().values()) >= _LARGEST_ONNX:
        raise InputError("One ONNX file holds less than 2 GB: export to 'torch-export' instead.")
    described = {**(metadata or {}), "image_size": shape[1:]}
    texts = {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in described.items()
    }
    try:
        with replacing(path) as partial:
            partial.touch()  # some exporters do not say that it is the folder
            with _quiet(), torch.no_grad():
                _write(model, torch.zeros(2, *shape), partial, to, texts)
            difference = _largest_difference(model, load_exported(partial, to), shape)
            if not difference <= _MOST_DIFFERENCE:  # NaN too
                raise InputError(
                    f"The logits of the {to} file differ from the model's by {difference:.2g}, "
                    f"more than {_MOST_DIFFERENCE:g}: it was not kept."
                )
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}.") from None
    except Exception as error:  # each exporter has its own
        raise InputError(f"The model cannot be exported to {to}: {reason(error)}") from None
    return difference


def image_shape(model: ViT, image_size: int | None = None) -> tuple[int, int, int]:
    """Channels, height and width of the images that an exported model takes.

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


def load_exported(path: str | Path, to: Format | None = None) -> Run:
    """What computes the logits of an exported file on the CPU, with torch's number of threads.

    Args:
        path: Written by :func:`export_model` or :func:`quantize`.
        to: Its format; by its suffix by default.

    Raises:
        InputError: The file is missing or damaged, or as :func:`check_target`.
    """
    path = Path(path)
    if to is None:
        formats: dict[str, Format] = {suffix: name for name, suffix in SUFFIXES.items()}
        to = formats.get(path.suffix, "onnx")
        check_target(path, to)
    try:
        with _quiet():
            if to == "onnx":
                import onnxruntime

                options = onnxruntime.SessionOptions()
                options.log_severity_level = 3  # errors
                options.intra_op_num_threads = torch.get_num_threads()
                session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
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
    """Top-1 accuracy of an exported file on the test split of ``data``, in per cent.

    Raises:
        InputError: As :func:`load_exported`, or the images do not fit the model.
    """
    run, right = load_exported(path), 0
    try:
        with torch.inference_mode():
            for images, labels in data.test.batches(_BATCH):
                right += int((run(data.normalise(images)).argmax(dim=1) == labels).sum())
    except Exception as error:  # onnxruntime's and torch's
        raise InputError(f"{path} cannot take images of {data.name}: {reason(error)}") from None
    return 100.0 * right / len(data.test)


def quantize(path: str | Path, output: str | Path) -> Path:
    """Write an ONNX file with the weights of its linear layers, and their products, in int8.

    Each layer's inputs are quantised as they come (dynamic quantisation), so it needs no images to
    calibrate on; the rest stays in float32. What accuracy that costs has to be measured.

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
    model.graph.ClearField("value_info")  # shapes: torch 2.7 stores wrong ones; found out again
    # By onnxruntime, whose integer kernels run wherever it does, and not by torchao, whose are
    # slower than float32 until torch.compile has been at work on the machine itself. Unsigned
    # weights, since signed ones saturate on CPUs without VNNI; a scale for each output of a layer
    # (`per_channel`) then brings the logits nearer to float32's and costs no time.
    try:
        with replacing(output) as partial, _quiet():
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
    model: torch.nn.Module, example: torch.Tensor, path: Path, to: Format, texts: dict[str, str]
) -> None:
    """``path`` is taken as it is: torch.export does not look at the suffix of an open file."""
    # The largest number, and nothing else, is one that torch 2.7 finds no model for.
    any_batch = ({0: torch.export.Dim("batch", max=2**31 - 1)},)
    if to == "onnx":
        from onnx_ir.passes.common import ClearMetadataAndDocStringPass  # onnxscript's

        exported = torch.onnx.export(
            model,
            (example,),
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=any_batch,
            dynamo=True,
            verbose=False,
        )
        assert exported is not None
        # Lines of source, and where they are on this machine.
        ClearMetadataAndDocStringPass()(exported.model)
        exported.model.metadata_props.update(texts)
        exported.save(path, external_data=False)
    elif to == "torch-export":
        program = torch.export.export(model, (example,), dynamic_shapes=any_batch)
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # likewise
        with path.open("wb") as file:
            torch.export.save(program, file, extra_files=texts)
    else:
        trace: Any = torch.jit.trace  # has no types
        torch.jit.save(trace(model, example, check_trace=False), path, texts)


def _largest_difference(model: torch.nn.Module, run: Run, shape: tuple[int, int, int]) -> float:
    """Between the logits of both on random images, in batches of several sizes."""
    generator = torch.Generator().manual_seed(0)
    found = []
    with torch.no_grad():
        for size in _CHECKED_BATCHES:
            images = torch.randn(size, *shape, generator=generator)
            wanted = model(images)
            found.append((run(images) - wanted).abs() / wanted.abs().clamp(min=1))
    return float(torch.cat(found).max())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What the exporters say on the way is no use to the user; their errors still come through."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
