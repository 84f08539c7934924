"""Arguments of timm's models that a file or a database may give."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.models.families import FAMILIES
from vit_ratio_opt.utils.text import shorten

__all__ = [
    "MODEL_ARGUMENTS",
    "TRAINING_ARGUMENTS",
    "accept_arguments",
    "accept_name",
]

# A file may not choose the origin of weights, only the structure of the model.
_SHARED = {
    *("img_size", "patch_size", "in_chans", "num_classes", "global_pool", "embed_dim", "depth"),
    *("num_heads", "mlp_ratio", "qkv_bias", "init_values", "act_layer", "norm_layer", "norm_eps"),
}
MODEL_ARGUMENTS = _SHARED.union(*(family.arguments for family in FAMILIES.values()))
"""timm's arguments that a file or a database row may give a model."""
TRAINING_ARGUMENTS = {
    *("drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate"),
    *("drop_path_rate", "weight_init", "fix_init"),
}
"""Further arguments of timm that files may give; they change the training alone."""

_LARGEST = 10**9
_LONGEST = 64
_PLAIN = (bool, int, float, str, type(None))


def accept_name(where: object, name: object) -> str:
    """Return a model's name if it downloads nothing.

    Args:
        where: The file or the study that gives the name, for messages.
        name: Any value.

    Raises:
        InputError: The name is no text, or names a place instead of a model.
    """
    if not isinstance(name, str) or ":" in name:
        raise InputError(f"{where} names the model {name!r:.200}, which is no timm model.")
    return name


def accept_arguments(where: object, arguments: Any, also: Collection[str] = ()) -> dict[str, Any]:
    """Return arguments that only describe the structure of a model.

    Args:
        where: The file or the study that gives them, for messages.
        arguments: A JSON value.
        also: Keys that are accepted beside :data:`MODEL_ARGUMENTS`.

    Raises:
        InputError: ``arguments`` is no object, or has other keys or other values.
    """
    if not isinstance(arguments, Mapping):
        raise InputError(f"{where} has model arguments that are not accepted: no JSON object.")
    unknown = sorted(shorten(key, 40) for key in set(arguments) - MODEL_ARGUMENTS - set(also))
    if unknown:
        raise InputError(
            f"{where} has model arguments that are not accepted: {unknown[:5]}. Only those that "
            "say what a model looks like are."
        )
    for key, value in arguments.items():
        parts = value if isinstance(value, (list, tuple)) and len(value) <= 3 else [value]
        if not all(map(_is_plain, parts)):
            raise InputError(
                f"{where} has the model argument {key} with the value {value!r:.60}, which is not "
                "accepted: it must be a number, a short text, true, false, null or a few of them."
            )
    return dict(arguments)


def _is_plain(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) <= _LONGEST
    if isinstance(value, (int, float)):
        return math.isfinite(value) and abs(value) <= _LARGEST
    return isinstance(value, _PLAIN)
