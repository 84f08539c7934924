"""timm's modules that cannot be cut, put into ones that can, with the same weights.

Some keep several projections in one matrix or several biases apart, and some reshape what the
heads give to the model's width, so that they could never have fewer. What they are replaced by
computes the same:

======================== ====================== ==================================================
timm's                   becomes                of
======================== ====================== ==================================================
``ParallelScalingBlock`` :class:`ParallelBlock` ViT-22B's blocks
BEiT's ``Attention``     `BiasedAttention`      BEiT, BEiTv2
``EvaAttention``         timm's AttentionRope   EVA, EVA-02, DINOv3, Perception Encoder ...
``AttentionRope``        itself, qkv in one     ViTs with rotary embeddings
``TalkingHeadAttn``      `TalkingHeads`         CaiT
======================== ====================== ==================================================
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Attention, AttentionRope, Mlp
from timm.models import beit
from timm.models.cait import TalkingHeadAttn
from timm.models.eva import EvaAttention
from timm.models.vision_transformer import ParallelScalingBlock
from torch import nn

__all__ = [
    "SEPARATED",
    "BiasedAttention",
    "ParallelBlock",
    "TalkingHeads",
    "separate",
    "separate_names",
]

SEPARATED = (ParallelScalingBlock, beit.Attention, EvaAttention, TalkingHeadAttn)
"""What :func:`separate` replaces."""


class ParallelBlock(nn.Module):
    """timm's ``ParallelScalingBlock`` (Dehghani 2023, arXiv 2302.05442) in separate layers.

    timm keeps fc1 and qkv in one matrix, and can have no other number of heads than the width
    says. The same weights in its ``Attention`` and ``Mlp`` can be cut.

    Args:
        block: timm's; its weights are not taken, see :func:`separate_names`.
    """

    def __init__(self, block: ParallelScalingBlock) -> None:
        super().__init__()
        width, heads = block.in_norm.normalized_shape[0], block.num_heads
        bias = block.attn_out_proj.bias is not None
        self.norm = block.in_norm
        self.attn = Attention(
            width,
            num_heads=heads,
            qkv_bias=block.in_proj.bias is not None,
            proj_bias=bias,
            attn_drop=block.attn_drop.p,
        )
        self.attn.q_norm, self.attn.k_norm = block.q_norm, block.k_norm
        self.mlp = Mlp(width, hidden_features=block.in_split[0], bias=(True, bias))
        self.mlp.act, self.mlp.drop1 = block.mlp_act, block.mlp_drop
        self.ls, self.drop_path = block.ls, block.drop_path

    def forward(
        self, x: torch.Tensor, attn_mask: torch.Tensor | None = None, is_causal: bool = False
    ) -> torch.Tensor:
        """Streams ``(batch, tokens, width)``."""
        y = self.norm(x)
        y = self.attn(y, attn_mask=attn_mask, is_causal=is_causal) + self.mlp(y)
        out: torch.Tensor = x + self.drop_path(self.ls(y))
        return out


class BiasedAttention(nn.Module):
    """BEiT's attention (Bao 2021, arXiv 2106.08254) with any number of heads of any size.

    To the logits of every head it adds a learned bias for each distance between two patches.
    timm's has no bias for keys; the softmax does not see the one that this has.

    Args:
        attn: timm's; its weights are not taken, see :func:`separate_names`.
    """

    def __init__(self, attn: beit.Attention) -> None:
        super().__init__()
        self.num_heads, self.scale = attn.num_heads, attn.scale
        self.attn_dim = attn.proj.in_features
        self.head_dim = self.attn_dim // self.num_heads
        width = attn.qkv.in_features
        self.qkv = nn.Linear(width, 3 * self.attn_dim, bias=attn.q_bias is not None)
        self.q_norm, self.k_norm, self.norm = nn.Identity(), nn.Identity(), nn.Identity()
        self.attn_drop, self.proj, self.proj_drop = attn.attn_drop, attn.proj, attn.proj_drop
        self.window_size = attn.window_size
        self.relative_position_index: torch.Tensor | None
        self.relative_position_bias_table = attn.relative_position_bias_table
        self.register_buffer(
            "relative_position_index", attn.relative_position_index, persistent=False
        )

    if hasattr(beit.Attention, "set_window_size"):  # timm 1.0.31: the model's `set_input_size`
        set_window_size = beit.Attention.set_window_size

    def init_non_persistent_buffers(self) -> None:
        """As timm's modules have it, for one that was made on the meta device."""
        self._init_buffers()

    def _init_buffers(self) -> None:
        index = self.relative_position_index
        if index is not None:
            index.copy_(beit.gen_relative_position_index(self.window_size, device=index.device))

    def position_bias(self) -> torch.Tensor | None:
        """What is added to the logits, ``(1, heads, tokens, tokens)``; None without a table."""
        if self.relative_position_bias_table is None:
            return None
        bias: torch.Tensor = self.relative_position_bias_table[self.relative_position_index]
        return bias.permute(2, 0, 1)[None].contiguous()

    def forward(
        self, x: torch.Tensor, shared_rel_pos_bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Tokens ``(batch, tokens, width)``; a bias that blocks share is for timm's signature."""
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        dropout = self.attn_drop.p if self.training else 0.0
        x = F.scaled_dot_product_attention(
            q, k, v, attn_mask=self.position_bias(), dropout_p=dropout, scale=self.scale
        )
        x = x.transpose(1, 2).reshape(batch, tokens, self.attn_dim)
        out: torch.Tensor = self.proj_drop(self.proj(x))
        return out


class TalkingHeads(nn.Module):
    """CaiT's attention (Touvron 2021, arXiv 2103.17239) with heads of any size.

    Before and after the softmax the heads are mixed (Shazeer 2020, arXiv 2003.02436), so none can
    go without changing the others.

    Args:
        attn: timm's; its weights are taken.
    """

    def __init__(self, attn: TalkingHeadAttn) -> None:
        super().__init__()
        self.num_heads, self.scale = attn.num_heads, attn.scale
        self.attn_dim = attn.proj.in_features
        self.head_dim = self.attn_dim // self.num_heads
        self.q_norm, self.k_norm, self.norm = nn.Identity(), nn.Identity(), nn.Identity()
        self.qkv, self.proj_l, self.proj_w = attn.qkv, attn.proj_l, attn.proj_w
        self.attn_drop, self.proj, self.proj_drop = attn.attn_drop, attn.proj, attn.proj_drop

    @staticmethod
    def mixed(layer: nn.Linear, heads: torch.Tensor) -> torch.Tensor:
        """``(batch, heads, queries, keys)`` through a layer from heads to heads."""
        mixed: torch.Tensor = layer(heads.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return mixed

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens ``(batch, tokens, width)``."""
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        logits = (q * self.scale) @ k.mT
        weights = self.mixed(self.proj_l, logits).softmax(dim=-1)
        weights = self.attn_drop(self.mixed(self.proj_w, weights))
        x = (weights @ v).transpose(1, 2).reshape(batch, tokens, self.attn_dim)
        out: torch.Tensor = self.proj_drop(self.proj(x))
        return out


def separate(model: Any) -> None:
    """Replace what cannot be cut in a timm model, in place. Models of other kinds are left alone.

    What has parts that no replacement has (gates, grouped queries) stays, for
    :func:`~vit_ratio_opt.models.surgery.check_supported` to name.
    """
    blocks = getattr(model, "blocks", [])
    if any(getattr(getattr(block, "attn", None), "num_kv_groups", 1) > 1 for block in blocks):
        return
    replaced = {index: _replacement(block) for index, block in enumerate(blocks)}
    replaced = {index: new for index, new in replaced.items() if new is not None}
    if not replaced:
        return
    state = separate_names(model.state_dict())
    for index, new in replaced.items():
        block = blocks[index]
        new.to(next(block.parameters()).device).train(block.training)
        if isinstance(new, ParallelBlock):
            blocks[index] = new
        else:
            block.attn = new
    model.load_state_dict(state, assign=True)


def _replacement(block: Any) -> Any:
    """Of the block or its attention, with weights still to be set; None where it can stay."""
    attn: Any = getattr(block, "attn", None)
    if type(block) is ParallelScalingBlock and block.out_proj is None:
        return ParallelBlock(block)
    if type(attn) is beit.Attention:
        return BiasedAttention(attn)
    if type(attn) is TalkingHeadAttn:
        return TalkingHeads(attn)
    apart = type(attn) is AttentionRope and attn.qkv is None
    if type(attn) is EvaAttention or apart:
        return _rope_attention(attn)
    return None


def _rope_attention(attn: EvaAttention | AttentionRope) -> AttentionRope:
    """timm's, with queries, keys and values in one layer. Keys may be given a bias of zeros."""
    layers = [attn.qkv] if attn.qkv is not None else [attn.q_proj, attn.k_proj, attn.v_proj]
    bias = getattr(attn, "q_bias", None) is not None or any(
        layer.bias is not None for layer in layers
    )
    new = AttentionRope(
        layers[0].in_features,
        num_heads=attn.num_heads,
        qkv_bias=bias,
        num_prefix_tokens=attn.num_prefix_tokens,
        attn_head_dim=attn.head_dim,
        proj_bias=attn.proj.bias is not None,
        rotate_half=attn.rotate_half,
    )
    for name in ("q_norm", "k_norm", "attn_drop", "norm", "gate", "proj", "proj_drop"):
        setattr(new, name, getattr(attn, name))
    return new


def separate_names(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict of the replacements from one of timm's; any other one as it is."""
    separate = dict(state)
    for matrix in [key for key in state if key.endswith(".in_proj.weight")]:
        block, width = matrix.removesuffix("in_proj.weight"), state[matrix].shape[-1]
        for old in [key for key in separate if key.startswith(block)]:
            tensor, name = separate.pop(old), old.removeprefix(block)
            if name.startswith("in_proj."):  # [fc1, queries, keys, values]
                name = name.removeprefix("in_proj.")
                hidden = len(tensor) - 3 * width
                separate[f"{block}mlp.fc1.{name}"] = tensor[:hidden].clone()
                separate[f"{block}attn.qkv.{name}"] = tensor[hidden:].clone()
                continue
            for part, new in _SEPARATE.items():
                name = re.sub(f"^{part}", new, name)
            separate[block + name] = tensor
    for key in [key for key in state if key.endswith((".attn.q_bias", ".attn.q_proj.weight"))]:
        attn = key[: key.index(".q_") + 1]
        for part, forms in (("weight", ["_proj.weight"]), ("bias", ["_bias", "_proj.bias"])):
            found = {
                x: separate.pop(name)
                for x in "qkv"
                for form in forms
                if (name := f"{attn}{x}{form}") in separate
            }
            if found:  # keys may have no bias
                zeros = torch.zeros_like(found["q"])
                separate[f"{attn}qkv.{part}"] = torch.cat([found.get(x, zeros) for x in "qkv"])
    return separate


_SEPARATE = {
    "mlp_bias$": "mlp.fc1.bias",
    "attn_out_proj": "attn.proj",
    "mlp_out_proj": "mlp.fc2",
    "in_norm": "norm",
    "([qk]_norm)": r"attn.\1",
}
