"""Refuse weights that are missing, shared, or no plain finite numbers."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import nn

from vit_ratio_opt.errors import InputError, UnsupportedModelError
from vit_ratio_opt.models.untouched import join_path

__all__ = ["check_not_shared", "check_full_precision", "check_weights"]

_PLAIN = (torch.Tensor, nn.Parameter)


def check_not_shared(model: nn.Module) -> None:
    """Refuse weights that share memory: cutting one would change the other, and files refuse both.

    Raises:
        UnsupportedModelError: With the names of the first two.
    """
    spans = []
    named: dict[int, str] = {}
    for name, tensor in _named_weights(model):
        first = named.setdefault(id(tensor), name)
        if first != name:
            raise UnsupportedModelError(_shared(first, name))
        if type(tensor) in _PLAIN and tensor.layout == torch.strided and not tensor.is_meta:
            sizes = zip(tensor.shape, tensor.stride(), strict=True)
            length = 1 + sum((size - 1) * stride for size, stride in sizes)
            start = tensor.data_ptr()
            if tensor.numel():
                end = start + length * tensor.element_size()
                spans.append((str(tensor.device), start, end, name))
    for (device, _, end, first), (other, start, _, name) in pairwise(sorted(spans)):
        if device == other and start < end:
            raise UnsupportedModelError(_shared(first, name))


def _shared(first: str, second: str) -> str:
    return (
        f"`{first}` and `{second}` share their memory: give each its own "
        "(`copy.deepcopy` of one module), so that each can be cut."
    )


def _named_weights(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of the model's file by name; a tensor with two names is yielded twice."""
    yield from model.named_parameters(remove_duplicate=False)
    for name, module in model.named_modules(remove_duplicate=False):
        for key, buffer in module._buffers.items():
            if buffer is not None and key not in module._non_persistent_buffers_set:
                yield join_path(name, key), buffer


def check_weights(model: nn.Module, *, finite: str = "") -> None:
    """Refuse weights that have no values, are no plain numbers, or are not finite.

    Args:
        model: Any module.
        finite: Beginning of the names of weights whose values must be finite; all by default.

    Raises:
        InputError: With the name of the first weight that is refused.
    """
    sums, first = [], None
    for name, tensor in _named_weights(model):
        first = first or (name, tensor)
        _check_plain(name, tensor)
        if tensor.device != first[1].device:
            raise InputError(
                f"`{name}` is on {tensor.device}, but `{first[0]}` on {first[1].device}: move the "
                "model to one device, such as `model.to('cpu')`."
            )
        if tensor.is_floating_point() and name.startswith(finite):
            sums.append((name, tensor, tensor.detach().float().sum()))
    # One synchronisation of the device for all; a sum may overflow where no value does.
    if sums and not bool(torch.stack([total for _, _, total in sums]).isfinite().all()):
        for name, tensor, _ in sums:
            if not bool(tensor.detach().isfinite().all()):
                raise InputError(
                    f"`{name}` has values that are NaN or infinite: its training has diverged or "
                    "its file is damaged. Load other weights."
                )


def _check_plain(name: str, tensor: torch.Tensor) -> None:
    """Refuse a tensor that has no values or is no plain, real tensor."""
    if tensor.is_meta:
        raise InputError(
            f"`{name}` is on the device 'meta' and has no values: load the weights first."
        )
    is_plain = type(tensor) in _PLAIN
    if not is_plain or tensor.layout != torch.strided or tensor.is_quantized:
        kind = str(tensor.layout) if is_plain else type(tensor).__name__
        raise InputError(
            f"`{name}` is a tensor of another kind ({kind}): pass the model with plain weights, "
            "and quantise or shard the pruned one."
        )
    if tensor.is_complex():
        raise InputError(f"`{name}` is complex, but weights must be real numbers.")


def check_full_precision(model: nn.Module) -> None:
    """Refuse a model whose activations and gradients cannot be measured in full precision.

    Raises:
        InputError: The weights are not all in float32 (or all in float64), or inference mode is
            on or was on when they were made.
    """
    if torch.is_inference_mode_enabled():
        raise InputError("Gradients are needed: call this outside of `torch.inference_mode()`.")
    if any(parameter.is_inference() for parameter in model.parameters()):
        raise InputError(
            "The model was made in `torch.inference_mode()`, so it has no gradients: pass "
            "`copy.deepcopy(model)`."
        )
    types = {p.dtype for p in model.parameters() if p.is_floating_point()}
    if len(types) > 1 or not types <= {torch.float32, torch.float64}:
        found = " and ".join(sorted(str(t).removeprefix("torch.") for t in types))
        raise InputError(f"The model must be in float32, but is in {found}: call `model.float()`.")
