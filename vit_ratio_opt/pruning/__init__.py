from vit_ratio_opt.pruning.calibration import Calibration, calibrate
from vit_ratio_opt.pruning.count import count_macs
from vit_ratio_opt.pruning.importance import Importance, magnitude_importance, taylor_importance
from vit_ratio_opt.pruning.prune import (
    Allocation,
    expected_losses,
    prune,
    prune_ranks,
    prune_units,
)
from vit_ratio_opt.pruning.reconstruct import repair
from vit_ratio_opt.pruning.surgery import (
    UnsupportedModelError,
    check_supported,
    keep_units,
    shape_of,
    shrink_to,
)

__all__ = [
    "Allocation",
    "Calibration",
    "Importance",
    "UnsupportedModelError",
    "calibrate",
    "check_supported",
    "count_macs",
    "expected_losses",
    "keep_units",
    "magnitude_importance",
    "prune",
    "prune_ranks",
    "prune_units",
    "repair",
    "shape_of",
    "shrink_to",
    "taylor_importance",
]
