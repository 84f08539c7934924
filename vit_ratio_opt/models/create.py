"""Create timm's models, and refuse in one sentence those that cannot be pruned."""

from __future__ import annotations

import contextlib
import difflib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import timm
import torch
from torch.overrides import TorchFunctionMode

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.models.arguments import MODEL_ARGUMENTS, TRAINING_ARGUMENTS
from vit_ratio_opt.models.blocks import ViT
from vit_ratio_opt.models.preprocess import remember_timm_config
from vit_ratio_opt.models.separate import separate
from vit_ratio_opt.models.supported import check_supported
from vit_ratio_opt.utils.failures import reason

__all__ = ["ARCHITECTURE", "SOURCE", "create_model", "source_of"]

ARCHITECTURE = "vit_ratio_opt_architecture"
"""Attribute of a model, which pruned copies keep: timm's name and arguments."""

SOURCE = "vit_ratio_opt_source"
"""Attribute of a model: how to load it again elsewhere, in JSON values."""

# Keys of timm's `pretrained_cfg` that say where weights come from.
_PLACES = ("file", "url", "hf_hub_id", "custom_load", "source")


def create_model(name: str, *, pretrained: bool = False, **arguments: Any) -> ViT:
    """Create a timm model, and refuse in one sentence a model that cannot be pruned.

    Args:
        name: A timm model name, or ``hf-hub:owner/model``.
        pretrained: Fetch timm's weights (needs a network the first time).
        **arguments: Arguments of ``timm.create_model``, such as ``img_size`` or ``num_classes``,
            and ``norm_eps``, the epsilon of all layer norms, for which timm takes no JSON value.

    Raises:
        InputError: The name is unknown, an argument does not fit or names a file, or the weights
            cannot be loaded.
        UnsupportedModelError: The model exists but cannot be pruned.
    """
    _refuse_files(name, arguments)
    if ":" not in name and not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f" Did you mean {', '.join(close)}?" if close else ""
        raise InputError(f"timm has no model named {name!r:.200}.{hint}")
    if pretrained:  # say what cannot be pruned before anything is fetched
        create_model(name, **arguments)
    for_timm = dict(arguments)
    norm_eps = for_timm.pop("norm_eps", 1e-6)
    if not isinstance(norm_eps, (int, float)) or not 0 < norm_eps < 1:
        raise InputError(f"`norm_eps` must be a number between 0 and 1, but is {norm_eps!r}.")
    try:
        with _never_unpickling(), _never_filling_meta_tensors():
            model = timm.create_model(name, pretrained=pretrained, **for_timm)
    except Exception as error:  # timm raises whatever the model's constructor or the hub raises
        what = (
            "its pretrained weights cannot be loaded" if pretrained else "its arguments do not fit"
        )
        raise InputError(
            f"timm model {name!r:.200} cannot be made, {what}: {reason(error):.300}"
        ) from None
    separate(model)
    check_supported(model)
    model.eval()
    if "norm_eps" in arguments:
        for module in model.modules():
            if isinstance(module, torch.nn.LayerNorm):
                module.eps = norm_eps
    described = {key: arguments[key] for key in arguments if key not in TRAINING_ARGUMENTS}
    if ":" not in name and set(described) <= MODEL_ARGUMENTS:
        with contextlib.suppress(TypeError):  # classes as arguments: no file can say which
            kept = json.loads(json.dumps(described))
            setattr(model, ARCHITECTURE, {"timm_name": name, "timm_kwargs": kept})
    if pretrained:
        with contextlib.suppress(TypeError):
            json.dumps(arguments)
            setattr(model, SOURCE, {"model": name, "arguments": arguments})
        remember_timm_config(model, origin=f"timm's {name}")
    return model


def source_of(model: ViT) -> dict[str, Any] | None:
    """Return how ``load_again`` finds a model, in JSON values; None where that is not known.

    It is known for models that this package has read or saved, with the weights they had then.
    """
    source: dict[str, Any] | None = getattr(model, SOURCE, None)
    return source


def _refuse_files(name: str, arguments: Mapping[str, Any]) -> None:
    """Refuse arguments that name files: ``load_dense`` reads them, timm's loaders may unpickle."""
    given = [arguments.get(key) for key in ("pretrained_cfg", "pretrained_cfg_overlay")]
    places = any(
        key in config for config in given if isinstance(config, Mapping) for key in _PLACES
    )
    if places or arguments.get("checkpoint_path") or name.lower().startswith("local-dir:"):
        raise InputError(
            f"timm model {name!r:.200} is to be read from a file or an address that was given: "
            "use `load_dense`, which reads files without unpickling."
        )


@contextlib.contextmanager
def _never_unpickling() -> Iterator[None]:
    """Make ``torch.load`` refuse to unpickle, also where a version of timm asks for it."""
    key = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(key)
    os.environ[key] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[key]
        else:
            os.environ[key] = before


def _never_filling_meta_tensors() -> contextlib.AbstractContextManager[object]:
    """Skip the initial values of tensors if the default device is "meta"."""
    return _NoValues() if torch.empty(0).is_meta else contextlib.nullcontext()


class _NoValues(TorchFunctionMode):
    """Skip what sets the values of meta tensors, which have none.

    For a model with twelve blocks, timm's initial values take 0.1 s on the device "meta", most of
    the time to create it.
    """

    _FILLING = frozenset(
        getattr(torch.Tensor, name)
        for name in ("uniform_", "normal_", "erfinv_", "mul_", "add_", "clamp_", "fill_", "zero_")
    )

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if func in self._FILLING and args[0].is_meta:
            return args[0]
        return func(*args, **(kwargs or {}))
