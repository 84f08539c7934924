"""Write a model as an ONNX file, for export and for timing."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.models.blocks import ViT
from vit_ratio_opt.models.shape import read_shape

__all__ = [
    "any_batch",
    "check_onnx",
    "fits_onnx",
    "session_options",
    "silence_exporters",
    "write_onnx",
]

_LARGEST = 2**31  # bytes; protobuf's limit for one file


def any_batch() -> tuple[dict[int, Any]]:
    """Return ``dynamic_shapes`` of an export whose batches have any number of images.

    torch 2.7 cannot export a batch without an upper bound.
    """
    return ({0: torch.export.Dim("batch", max=2**31 - 1)},)


def check_onnx() -> None:
    """Refuse an export to ONNX where a package for it is missing.

    Raises:
        InputError: With the packages, and the command that installs them.
    """
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if not find_spec(name)]
    if missing:
        raise InputError(f"ONNX needs {' and '.join(missing)}: pip install 'vit_ratio_opt[onnx]'.")


def fits_onnx(model: nn.Module) -> bool:
    """Return whether the weights fit in one ONNX file."""
    size: int = sum(tensor.nbytes for tensor in model.state_dict().values())
    return size < _LARGEST


def write_onnx(
    model: ViT, example: torch.Tensor, path: Path, texts: Mapping[str, str] | None = None
) -> None:
    """Write a model as an ONNX file that takes any number of ``images``.

    Args:
        model: The model in evaluation mode, on the CPU.
        example: At least two images ``(batch, channels, height, width)``.
        path: The file to write, whatever its suffix.
        texts: Values for the file's ``metadata_props``.
    """
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass  # onnxscript's

    exported = torch.onnx.export(
        model,
        (example,),
        input_names=["images"],
        output_names=["logits" if read_shape(model).num_classes else "features"],
        dynamic_shapes=any_batch(),
        dynamo=True,
        verbose=False,
    )
    assert exported is not None
    # Without lines of source and their paths on this machine.
    ClearMetadataAndDocStringPass()(exported.model)
    exported.model.metadata_props.update(texts or {})
    exported.save(path, external_data=False)


def session_options() -> Any:
    """Return options of ONNX Runtime with torch's number of threads and without warnings."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = torch.get_num_threads()
    return options


@contextlib.contextmanager
def silence_exporters() -> Iterator[None]:
    """Silence the exporters' output inside the block; their errors still come through."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
