"""Give the outputs of Hugging Face's classes with the modules of a timm model."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from vit_ratio_opt.models.blocks import ViT

__all__ = ["HuggingFaceOutputs", "differ", "noise_for", "outputs_differ"]

# Outputs may differ by this share of the largest, as those of two orders of summation do.
_TOLERANCE = 1e-4


class HuggingFaceOutputs(nn.Module):
    """A timm encoder that takes and gives what one of Hugging Face's classes does.

    It gives ``last_hidden_state`` and ``pooler_output`` in a ``BaseModelOutputWithPooling``.

    Args:
        model: A timm model, dense or pruned; it is copied, without its classifier.
        like: The Hugging Face model whose outputs are wanted; its ``pooler`` is copied.
    """

    def __init__(self, model: ViT, like: nn.Module) -> None:
        super().__init__()
        self.kind = type(like).__name__
        self.encoder: Any = copy.deepcopy(model)
        self.encoder.reset_classifier(0)
        self.post_layernorm: nn.Module = nn.Identity()
        if self.kind == "CLIPVisionModel":  # gives tokens as they are before the last norm
            self.post_layernorm, self.encoder.norm = self.encoder.norm, nn.Identity()
        self.pooler: Any = copy.deepcopy(getattr(like, "pooler", None))
        self.eval()

    def forward(self, pixel_values: torch.Tensor) -> Any:
        """Return the outputs of images ``(batch, channels, height, width)``.

        Returns:
            ``last_hidden_state``, ``(batch, tokens, width)``, and ``pooler_output``,
            ``(batch, width)``, None where the class has no pooling.
        """
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        tokens = self.encoder.forward_features(pixel_values)
        return BaseModelOutputWithPooling(
            last_hidden_state=tokens, pooler_output=self._pool(tokens)
        )

    def _pool(self, tokens: torch.Tensor) -> Any:
        if self.kind == "SiglipVisionModel":
            pooling = self.encoder.attn_pool
            return None if pooling is None else pooling(tokens)
        if self.kind == "ViTModel":
            return None if self.pooler is None else self.pooler(tokens)
        return self.post_layernorm(tokens[:, 0])


def noise_for(model: ViT) -> torch.Tensor:
    """Return two images of noise as a model takes them, always the same."""
    size = (2, model.patch_embed.proj.in_channels, *model.patch_embed.img_size)
    images = torch.randn(size, generator=torch.Generator().manual_seed(0))
    return images.to(next(model.parameters()))


def outputs_differ(got: Any, expected: Any) -> bool:
    """Return whether two outputs of Hugging Face's classes differ by more than rounding."""
    pairs = [(one.last_hidden_state, one.pooler_output) for one in (got, expected)]
    return any(
        (a is None) != (b is None) or (a is not None and differ(a, b))
        for a, b in zip(*pairs, strict=True)
    )


def differ(got: torch.Tensor, expected: torch.Tensor) -> bool:
    """Return whether outputs differ by more than rounding."""
    if got.shape != expected.shape:
        return True
    largest = max(1.0, float(expected.abs().max()))
    # not "greater than": NaN is no agreement
    return not bool((got - expected).abs().max() <= _TOLERANCE * largest)
