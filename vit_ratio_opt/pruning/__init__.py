from vit_ratio_opt.pruning.calibration import Calibration, calibrate
from vit_ratio_opt.pruning.cascade import (
    AttentionSurvey,
    CascadeBlocks,
    attention_survey,
    cascade,
    check_cascade,
    keep_heads,
    reads_prefix_only,
    without_cascade,
)
from vit_ratio_opt.pruning.count import count_macs
from vit_ratio_opt.pruning.importance import Importance, magnitude_importance, taylor_importance
from vit_ratio_opt.pruning.prune import (
    Allocation,
    expected_losses,
    prune,
    prune_ranks,
    prune_to_macs,
    prune_units,
)
from vit_ratio_opt.pruning.reconstruct import repair
from vit_ratio_opt.pruning.surgery import (
    UnsupportedModelError,
    check_all_tokens,
    check_supported,
    keep_units,
    shape_of,
    shrink_to,
)

__all__ = [
    "Allocation",
    "AttentionSurvey",
    "Calibration",
    "CascadeBlocks",
    "Importance",
    "UnsupportedModelError",
    "attention_survey",
    "calibrate",
    "cascade",
    "check_all_tokens",
    "check_cascade",
    "check_supported",
    "count_macs",
    "expected_losses",
    "keep_heads",
    "keep_units",
    "magnitude_importance",
    "prune",
    "prune_ranks",
    "prune_to_macs",
    "prune_units",
    "reads_prefix_only",
    "repair",
    "shape_of",
    "shrink_to",
    "taylor_importance",
    "without_cascade",
]
