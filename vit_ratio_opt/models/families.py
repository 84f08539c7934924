"""The families of Vision Transformers that can be pruned, found by the class of a model.

To add a family, put a :class:`~vit_ratio_opt.models.family.Family` under the model's class:
``FAMILIES[MyViT] = Family(...)``. Do so in the module that defines the class, so that every
process that loads such a model knows its family.
"""

from __future__ import annotations

from typing import Any

from timm.models.beit import Beit
from timm.models.cait import Cait
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from vit_ratio_opt.models import beit, cait, deit, eva, vit
from vit_ratio_opt.models.family import Family

__all__ = ["FAMILIES", "family_of"]

FAMILIES: dict[type[nn.Module], Family] = {
    VisionTransformer: vit.FAMILY,
    VisionTransformerDistilled: deit.FAMILY,
    Beit: beit.FAMILY,
    Eva: eva.FAMILY,
    Cait: cait.FAMILY,
}
"""Family of each class of models. A subclass is another class: it may compute something else."""


def family_of(model: Any) -> Family | None:
    """Return the family of a model; None for a class that cannot be pruned."""
    return FAMILIES.get(type(model))
