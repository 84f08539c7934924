"""Ways to prune a ViT that are not ours, held to the same budget and the same counter.

For the benchmark of pruning quality: Torch-Pruning (https://github.com/VainF/Torch-Pruning), the
plain baseline of one ratio, L1 magnitude and the same share from every block, and the choices that
MoDeGPT (Lin 2024, arXiv 2408.09632) makes for neurons and for blocks, in the place of ours.

What was tried for Torch-Pruning, on the CIFAR-10 model of width 64 (78.0 % on 2,000 validation
images) at 0.8, 0.6 and 0.4 of the MACs: right after pruning, and after one epoch on 6,400 training
images with cross-entropy (5,000 validation images; one seed, so tenths of a point mean nothing):

=========  ==========  ==========  ==========  ==================  ==================
variant    normalizer  head share  isomorphic  pruned              fine-tuned
=========  ==========  ==========  ==========  ==================  ==================
structure  None        0.5         yes         72.7, 62.6, 51.1    75.4, 70.1, 62.6
structure  mean        0.5         yes         72.5, 62.4, 49.4    74.4, 69.6, 61.2
structure  None        1           yes         72.4, 58.3, 36.1    74.8, 68.8, 60.4
structure  mean        1           yes         71.7, 58.3, 37.3    73.9, 68.1, 57.7
width      None        0.5         no          72.7, 63.8, 49.6    75.4, 69.1, 61.4
width      None        1           no          72.4, 60.4, 39.8    74.8, 69.2, 61.2
width      mean        1           no          72.8, 53.0, 25.3    73.8, 67.0, 49.0
width      mean        1           yes         66.6, 40.3, 23.5    71.8, 61.2, 43.9
=========  ==========  ==========  ==========  ==================  ==================

Without normalizer and isomorphic ranking ``width`` hardly touches the width (64, 64, 61 of 64 in
the fifth row), so it comes to nearly the same as ``structure``. On the model of width 128 (75.8 %)
the first row leads too: 75.8, 73.1, 69.7 right after pruning, and 75.4, 71.2, 66.0 for the second.

Also tried, at a head share of 1, before the best units were protected (see below), right after
pruning: the normalizers max, sum, standarization and gaussian, each with and without
``multivariable``, and, with the normalizer mean, biases and the group reductions sum, max, first
and prod. Added up over the three budgets they gave 160 to 173, no normalizer 173, mean 170 (max
missed 0.4). ``max_pruning_ratio`` does nothing in one step; three steps with 0.8 gave 164, where
one gave 167. More steps fail in 1.6.1 where a step has no head to remove. A head share of 0.25
gives more at 0.8 and 0.6 (74.9, 65.0) but cannot reach 0.4.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
import torch_pruning as tp
from timm.models.vision_transformer import VisionTransformer

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.models.shape import shape_of
from vit_ratio_opt.pruning.allocate import cheapest_heads, even_counts
from vit_ratio_opt.pruning.calibration import Calibration
from vit_ratio_opt.pruning.factorize import rank_losses
from vit_ratio_opt.pruning.importance import magnitude_importance
from vit_ratio_opt.pruning.prune import prune, prune_blocks
from vit_ratio_opt.space.curve import fixed_ratio_pair
from vit_ratio_opt.space.pairs import RatioPair
from vit_ratio_opt.space.structural import StructuralSpace
from vit_ratio_opt.space.units import StructuralUnits, least_neurons

__all__ = ["Variant", "influence_blocks", "leverage_neurons", "torch_pruning", "uniform_l1"]

Variant = Literal["structure", "width"]
"""What may go: heads and hidden neurons, or the width of the residual stream as well."""

_COARSE_STEPS = 20
_HALVINGS = 12


def torch_pruning(
    model: VisionTransformer,
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    macs_ratio: float,
    *,
    variant: Variant = "structure",
    head_share: float = 0.5,
    isomorphic: bool = True,
    normalizer: str | None = None,
    multivariable: bool = False,
) -> VisionTransformer:
    """What Torch-Pruning 1.6.1 makes of ``model`` within a budget; ``model`` is not changed.

    DepGraph (Fang et al. 2023, arXiv:2301.12900) with global group Taylor importance and removal
    of whole heads, set up as in Torch-Pruning's own example for timm's ViT: gradients of the mean
    cross-entropy added up over ``batches``, the classifier's outputs kept, head dimensions kept.
    Torch-Pruning takes ratios, not a budget, so the smallest ratio that meets the budget is
    bisected for; then, with the heads left as they are, the ratio of all else is lowered again as
    far as the budget allows, since a head is a large step.

    The defaults are the strongest that we found for it; the module's docstring has what was tried.

    Current timm and Torch-Pruning fit together only with these repairs and helps:

    - timm's ``Attention`` (1.0.23 and later) reads ``num_heads``, ``head_dim`` and ``attn_dim``,
      which Torch-Pruning does not know: the pruned model fails in its forward pass until they are
      set. (``scale`` depends on ``head_dim`` alone, which stays. The example's patched forward
      pass is no longer needed, and fused attention is traced as it is.)
    - The number of heads is read from the pruned ``qkv``: Torch-Pruning counts its own
      ``num_heads`` down also for a block that it then declines to prune.
    - Torch-Pruning declines to empty a block and then leaves all of it, so that a larger ratio can
      give a larger model. Here the best unit of each group, a head or a neuron, always stays.
    - ``in_channel_groups`` and ``out_channel_groups`` are passed because their defaults are shared
      between pruners and would keep every model of the bisection alive.
    - ``embed_dim``, ``num_features`` and ``head_hidden_size`` of the model are set after its width
      was pruned. Nothing in its forward pass reads them; the counter does.

    Args:
        model: A supported timm ViT.
        batches: Normalised images ``(batch, channels, height, width)`` and labels ``(batch,)``, on
            the model's device.
        macs_ratio: Largest fraction of the dense model's MACs, in (0, 1], both as
            :func:`vit_ratio_opt.pruning.shape_of` counts them.
        variant: What may go.
        head_share: The heads' pruning ratio as a share of the ratio of all else, in (0, 1]; 1 is
            one ratio for both. Larger ones are tried where the budget is out of its reach.
        isomorphic: Whether only groups of one kind are ranked against each other (Fang et al.
            2024, arXiv:2407.04616).
        normalizer: Of a group's scores, see ``tp.importance.GroupTaylorImportance``, whose default
            is ``"mean"``.
        multivariable: Whether a unit's products of weight and gradient are added up before their
            absolute value is taken, instead of after.

    Raises:
        UnsupportedModelError: The model cannot be pruned.
        InputError: A number is out of range, ``batches`` is empty, or no ratio meets the budget.
    """
    for name, value in (("macs_ratio", macs_ratio), ("head_share", head_share)):
        if not 0 < value <= 1:
            raise InputError(f"`{name}` must be in (0, 1], but got {value!r}.")
    allowed = macs_ratio * shape_of(model).macs
    gradients, image = _gradients(model, batches)

    def within_budget(ratio: float, head_ratio: float) -> VisionTransformer | None:
        pruned = copy.deepcopy(model).eval()
        for parameter, gradient in zip(pruned.parameters(), gradients, strict=True):
            parameter.grad = None if gradient is None else gradient.clone()
        importance = tp.importance.GroupTaylorImportance(
            normalizer=normalizer, multivariable=multivariable
        )
        _step(pruned, image, importance, ratio, head_ratio, variant, isomorphic)
        return pruned if shape_of(pruned).macs <= allowed else None

    # From below, because the MACs do not fall all the way to a ratio of 1, where Torch-Pruning
    # declines to empty anything.
    steps = [step / _COARSE_STEPS for step in range(1, _COARSE_STEPS)]
    for share in (head_share, (head_share + 1) / 2, 1.0):
        fits = next((step for step in steps if within_budget(step, share * step)), None)
        if fits is not None:
            break
    else:
        raise InputError(f"No ratio meets the budget {macs_ratio!r} with Torch-Pruning.")
    ratio, _ = _least(
        lambda ratio: within_budget(ratio, share * ratio), fits - 1 / _COARSE_STEPS, fits
    )
    _, best = _least(lambda lower: within_budget(lower, share * ratio), 0.0, ratio)
    best.zero_grad(set_to_none=True)
    return best.train(model.training)


def uniform_l1(model: VisionTransformer, macs_ratio: float) -> VisionTransformer:
    """One ratio for both modules, L1 magnitude, the same share from every block.

    Args:
        model: A supported timm ViT; it is not changed.
        macs_ratio: Largest fraction of the dense model's MACs, in (0, 1].

    Raises:
        UnsupportedModelError: The model cannot be pruned.
        InputError: No single ratio meets the budget.
    """
    pair = fixed_ratio_pair(StructuralSpace(shape_of(model), "head"), macs_ratio)
    return prune(model, pair, magnitude_importance(model, p=1), allocation="uniform")


def leverage_neurons(
    calibration: Calibration, model: VisionTransformer, images: Iterable[torch.Tensor]
) -> Calibration:
    """MoDeGPT's choice of neurons: those of the lowest ridge leverage score go first.

    The diagonal of ``C (C + 1)^-1``, where C are the hidden activations' products summed over all
    tokens. How many go from each block stays as it was, because scores of two blocks cannot be
    compared; its Nystroem reconstruction is the least squares that :func:`vit_ratio_opt.repair`
    does on the pruned stream.
    """
    sums = [torch.zeros(())] * len(model.blocks)

    def add(index: int, hidden: torch.Tensor) -> None:
        flat = hidden.flatten(0, 1).double()
        sums[index] = sums[index] + flat.mT @ flat

    hooks = [
        block.mlp.fc2.register_forward_pre_hook(lambda module, args, i=index: add(i, args[0]))
        for index, block in enumerate(model.blocks)
    ]
    _show(model, images, hooks)
    orders = [torch.linalg.solve(c + torch.eye(len(c)), c).diagonal().argsort() for c in sums]
    return replace(
        calibration,
        blocks=tuple(
            replace(block, neuron_order=order)
            for block, order in zip(calibration.blocks, orders, strict=True)
        ),
    )


def influence_blocks(
    pair: RatioPair,
    calibration: Calibration,
    model: VisionTransformer,
    images: Iterable[torch.Tensor],
    smoothing: float,
) -> VisionTransformer:
    """MoDeGPT's spread over the blocks: a softmax of what each block does to its input.

    A block's share of what is removed is that of ``exp(-s / smoothing)``, where s is 1 minus the
    mean cosine of the tokens before and after it, the same for both modules; no block loses more
    than all but one of its ranks.
    """
    sums = torch.zeros(len(model.blocks))

    def add(index: int, before: torch.Tensor, after: torch.Tensor) -> None:
        sums[index] += (1 - F.cosine_similarity(before, after, dim=-1)).mean(dim=1).sum()

    hooks = [
        block.register_forward_hook(lambda module, args, output, i=index: add(i, args[0], output))
        for index, block in enumerate(model.blocks)
    ]
    count = _show(model, images, hooks)
    shares = (-sums / count / smoothing).softmax(dim=0).tolist()
    shape = shape_of(model)
    removed = StructuralUnits(shape).removed(pair)
    heads, ones = shape.blocks[0].num_heads, [1] * len(shares)
    ranks = even_counts([b.head_dim for b in shape.blocks], removed[0], ones, ones, shares)
    tables = [rank_losses(block.factors)[0] for block in calibration.blocks]
    chosen = [
        cheapest_heads([table], heads * (len(table[0]) - gone))[0]
        for table, gone in zip(tables, ranks, strict=True)
    ]
    least = [least_neurons(1)] * len(shares)
    counts = even_counts([b.hidden_dim for b in shape.blocks], removed[1], least, ones, shares)
    return prune_blocks(model, chosen, counts, calibration)


def _show(
    model: VisionTransformer,
    images: Iterable[torch.Tensor],
    hooks: Iterable[torch.utils.hooks.RemovableHandle],
) -> int:
    """Let the hooks see the images, then remove them; how many images there were."""
    count = 0
    try:
        with torch.inference_mode():
            for batch in images:
                model(batch)
                count += len(batch)
    finally:
        for hook in hooks:
            hook.remove()
    return count


def _gradients(
    model: VisionTransformer, batches: Iterable[tuple[torch.Tensor, torch.Tensor]]
) -> tuple[list[torch.Tensor | None], torch.Tensor]:
    """Each parameter's gradient, added up over the batches, and one image ``(1, ...)``."""
    dense = copy.deepcopy(model).eval()
    image = None
    for images, labels in batches:
        torch.autograd.backward(F.cross_entropy(dense(images), labels))
        image = images[:1]
    if image is None:
        raise InputError("Taylor importance needs at least one batch of images, but got none.")
    return [parameter.grad for parameter in dense.parameters()], image


def _step(
    model: VisionTransformer,
    image: torch.Tensor,
    importance: Callable[[Any], torch.Tensor | None],
    ratio: float,
    head_ratio: float,
    variant: Variant,
    isomorphic: bool,
) -> None:
    """One step of Torch-Pruning in place, from the gradients in ``model``, and timm's repairs."""
    classifier = model.get_classifier()
    ignored = list(classifier) if isinstance(classifier, tuple) else [classifier]
    if variant == "structure":
        # One layer that writes to the residual stream is enough: its group is all that do.
        ignored.append(model.patch_embed.proj)
    num_heads = {block.attn.qkv: block.attn.num_heads for block in model.blocks}
    with warnings.catch_warnings():
        # It finds tokens, position embeddings and LayerScale by itself, and says so.
        warnings.filterwarnings("ignore", message="Unwrapped parameters detected")
        pruner = tp.pruner.BasePruner(
            model,
            image,
            _keep_best(importance, dict(num_heads)),
            global_pruning=True,
            isomorphic=isomorphic,
            pruning_ratio=ratio,
            head_pruning_ratio=head_ratio,
            num_heads=num_heads,
            prune_num_heads=True,
            prune_head_dims=False,
            ignored_layers=ignored,
            in_channel_groups={},
            out_channel_groups={},
        )
    for group in pruner.step(interactive=True):
        group.prune()
    for block in model.blocks:
        attn = block.attn
        attn.attn_dim = attn.qkv.out_features // 3
        attn.num_heads = attn.attn_dim // attn.head_dim
    width = model.patch_embed.proj.out_channels
    model.embed_dim = model.num_features = model.head_hidden_size = width


def _keep_best(
    importance: Callable[[Any], torch.Tensor | None], num_heads: dict[torch.nn.Module, int]
) -> Callable[[Any], torch.Tensor | None]:
    """``importance`` with an infinite score for the best unit of each group."""

    def protected(group: Any) -> torch.Tensor | None:
        scores = importance(group)
        if scores is None:
            return None
        heads = [
            num_heads[dep.target.module]
            for dep, _ in group
            if dep.target.module in num_heads and dep.handler == tp.prune_linear_out_channels
        ]
        # A row a unit: a head's dimensions, or one neuron or dimension of the residual stream.
        units = scores.clone().view(heads[0] if heads else len(scores), -1)
        units[units.mean(dim=1).argmax()] = torch.inf
        return units.flatten()

    return protected


def _least(attempt: Callable[[float], Any], low: float, high: float) -> tuple[float, Any]:
    """The least ratio at which ``attempt`` gives a model, found by halving, and that model.

    Args:
        attempt: Gives None where the budget is not met.
        low: Not tried.
        high: Where it is met.
    """
    best = attempt(high)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        model = attempt(middle)
        if model is None:
            low = middle
        else:
            high, best = middle, model
    return high, best
