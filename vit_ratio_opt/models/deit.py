"""The family of timm's ``VisionTransformerDistilled``: a ViT with two classifiers."""

from __future__ import annotations

from dataclasses import replace

from vit_ratio_opt.models import vit

__all__ = ["FAMILY"]

FAMILY = replace(vit.FAMILY, classifiers=("head", "head_dist"))
