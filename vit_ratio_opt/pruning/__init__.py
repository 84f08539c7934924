from vit_ratio_opt.pruning.count import count_macs
from vit_ratio_opt.pruning.importance import Importance, magnitude_importance, taylor_importance
from vit_ratio_opt.pruning.prune import Allocation, prune, prune_units
from vit_ratio_opt.pruning.surgery import (
    UnsupportedModelError,
    check_supported,
    keep_units,
    shape_of,
    shrink_to,
)

__all__ = [
    "Allocation",
    "Importance",
    "UnsupportedModelError",
    "check_supported",
    "count_macs",
    "keep_units",
    "magnitude_importance",
    "prune",
    "prune_units",
    "shape_of",
    "shrink_to",
    "taylor_importance",
]
