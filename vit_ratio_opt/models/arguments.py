"""Arguments of timm's models that a file or a database may give."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.utils.text import short

__all__ = [
    "MODEL_ARGUMENTS",
    "TRAINING_ARGUMENTS",
    "accept_arguments",
    "accept_name",
]

# A file may not choose where weights come from, only what the model looks like.
MODEL_ARGUMENTS = {
    *("img_size", "patch_size", "in_chans", "num_classes", "global_pool", "embed_dim", "depth"),
    *("num_heads", "mlp_ratio", "qkv_bias", "proj_bias", "init_values", "class_token"),
    *("no_embed_class", "reg_tokens", "pre_norm", "final_norm", "fc_norm", "dynamic_img_size"),
    *("act_layer", "norm_layer", "norm_eps", "qk_norm", "scale_attn_norm", "scale_mlp_norm"),
    *("attn_layer", "use_abs_pos_emb", "use_rel_pos_bias", "use_fc_norm", "swiglu_mlp"),  # BEiT
    *("scale_mlp", "num_reg_tokens", "num_kv_heads", "use_rot_pos_emb", "use_post_norm"),  # EVA
    *("rope_type", "rope_temperature", "rope_grid_offset", "rope_grid_indexing"),
    "rope_rotate_half",
    *("ref_feat_shape", "depth_token_only"),  # CaiT
}
"""What a file or a database row may say about a model, in timm's words."""
TRAINING_ARGUMENTS = {
    *("drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate"),
    *("drop_path_rate", "weight_init", "fix_init"),
}
"""What files of timm say beside that; it changes the training alone."""
_LARGEST = 10**9
_LONGEST = 64
_PLAIN = (bool, int, float, str, type(None))


def accept_name(where: object, name: object) -> str:
    """Return a model's name that does not have anything fetched.

    Raises:
        InputError: It is no text, or names a place instead of a model.
    """
    if not isinstance(name, str) or ":" in name:
        raise InputError(f"{where} names the model {name!r:.200}, which is no timm model.")
    return name


def accept_arguments(where: object, arguments: Any, also: Collection[str] = ()) -> dict[str, Any]:
    """Return arguments that only say what a model looks like.

    Args:
        where: The file or the study that gives them, for messages.
        arguments: A JSON value.
        also: Keys that are accepted beside those of a model's looks.

    Raises:
        InputError: It is no object, or has other keys or other values.
    """
    if not isinstance(arguments, Mapping):
        raise InputError(f"{where} has model arguments that are not accepted: no JSON object.")
    unknown = sorted(short(key, 40) for key in set(arguments) - MODEL_ARGUMENTS - set(also))
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
