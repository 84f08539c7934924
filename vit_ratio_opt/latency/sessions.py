"""Run models in ONNX Runtime, as the files of ``export_model`` are run.

Each model is exported in float32 to a temporary file, with any number of images in a batch, and
becomes a session with torch's number of threads. On CUDA the images and the outputs stay on the
device, and the clock is the host's, since a run returns when the device has finished.
"""

from __future__ import annotations

import copy
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import nn

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.latency.deployed import Run
from vit_ratio_opt.models.device import synchronize
from vit_ratio_opt.models.onnx_file import (
    check_onnx,
    fits_onnx,
    session_options,
    silence_exporters,
    write_onnx,
)
from vit_ratio_opt.utils.failures import reason

__all__ = ["find_provider", "open_session", "runtime_conditions"]

_CPU = "CPUExecutionProvider"
_CUDA = ("TensorrtExecutionProvider", "CUDAExecutionProvider")  # the first that works is used


def find_provider(device: torch.device) -> str:
    """Return the provider by which ONNX Runtime runs models on a device.

    It is the first that a session can be opened with: TensorRT, then CUDA, on a CUDA device; the
    CPU's on a CPU.

    Raises:
        InputError: A package is missing, the device is another one, or ONNX Runtime cannot use it.
    """
    check_onnx()
    import onnxruntime

    if device.type == "cpu":
        return _CPU
    if device.type != "cuda":
        raise InputError(
            f"ONNX Runtime is timed on a CPU or with CUDA, but the model is on {device}: give "
            "device='cpu', or another engine than 'onnxruntime'."
        )
    built = onnxruntime.get_available_providers()
    failures = [] if any(name in built for name in _CUDA) else [f"it has only {', '.join(built)}"]
    for name in _CUDA:
        if name in built:
            try:
                _open(_smallest_model(), name, device)
            except Exception as error:  # onnxruntime's
                failures.append(f"{name} fails: {reason(error)}")
            else:
                return name
    raise InputError(
        f"ONNX Runtime {onnxruntime.__version__} cannot run on {device}: {'; '.join(failures)}. "
        "Run `pip uninstall onnxruntime` and `pip install onnxruntime-gpu`, of a version for this "
        "CUDA and cuDNN, or give device='cpu'."
    )


def runtime_conditions(device: torch.device) -> dict[str, str]:
    """Return the provider and the versions on which a latency in ONNX Runtime depends.

    Raises:
        InputError: As :func:`find_provider`.
    """
    provider = find_provider(device)
    import onnxruntime  # of a package that may have another name

    return {
        "provider": provider,
        "onnxruntime": onnxruntime.__version__,
        "onnxscript": version("onnxscript"),
    }


def open_session(model: nn.Module, images: torch.Tensor, provider: str) -> Run:
    """Return a run of ``images`` in ONNX Runtime; it holds a copy of the model.

    Args:
        model: Model on the device of ``images``, which is not changed.
        images: Batch ``(batch, channels, height, width)`` in float32; every run reads this memory.
        provider: Provider of :func:`find_provider`.

    Raises:
        InputError: The model cannot be exported, or the provider cannot run it.
    """
    model = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
    if not fits_onnx(model):
        raise InputError(
            "One ONNX file holds less than 2 GB: time this model by the engine 'eager' or "
            "'compiled'."
        )
    example = torch.zeros(2, *images.shape[1:])
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        try:
            with silence_exporters(), torch.no_grad():
                write_onnx(model, example, path)
            session = _open(path, provider, images.device)
        except Exception as error:  # the exporter's and onnxruntime's
            raise InputError(f"The model cannot be run by {provider}: {reason(error)}") from None
    return _bind(session, images)


def _open(model: Path | bytes, provider: str, device: torch.device) -> Any:
    """Return a session whose first provider is ``provider``.

    Raises:
        RuntimeError: ONNX Runtime went on with another provider.
    """
    import onnxruntime

    names = _CUDA[_CUDA.index(provider) :] if provider in _CUDA else ()
    built, on = onnxruntime.get_available_providers(), {"device_id": str(device.index or 0)}
    options = session_options()
    # Or the threads of one session would go on spinning while the next one is timed.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(
        model,
        options,
        [*((name, on) for name in names if name in built), _CPU],
        enable_fallback=0,
    )
    first, *_ = session.get_providers()
    if first != provider:
        raise RuntimeError(f"onnxruntime went on with {first}; are its libraries installed?")
    return session


def _bind(session: Any, images: torch.Tensor) -> Run:
    """Return a run that reads ``images`` where they are, and leaves the outputs there."""
    binding, device = session.io_binding(), images.device
    place = (device.type, device.index or 0)
    (read,), (written,) = session.get_inputs(), session.get_outputs()
    binding.bind_input(read.name, *place, np.float32, tuple(images.shape), images.data_ptr())
    binding.bind_output(written.name, *place)
    synchronize(device)  # onnxruntime has a stream of its own
    return lambda images: session.run_with_iobinding(binding)


def _smallest_model() -> bytes:
    """Return an ONNX model that every version of onnxruntime can run."""
    from onnx import TensorProto, helper

    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    node = helper.make_node("Relu", ["x"], ["y"])
    graph = helper.make_graph([node], "smallest", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    return bytes(model.SerializeToString())
