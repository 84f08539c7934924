"""Prune a dense model to a pair of ratios: criterion, cut, reconstruction, tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from vit_ratio_opt.data.task import Task
from vit_ratio_opt.errors import InputError, UnsupportedModelError
from vit_ratio_opt.models.architecture import architecture_of
from vit_ratio_opt.models.blocks import ViT
from vit_ratio_opt.models.copies import frozen_parts
from vit_ratio_opt.models.device import model_device
from vit_ratio_opt.models.shape import shape_of
from vit_ratio_opt.models.state_dicts import weights_hash
from vit_ratio_opt.models.surgery import ALL_HEADS, shrink_to
from vit_ratio_opt.pruning.batches import check_sequence
from vit_ratio_opt.pruning.bounds import named_bounds, resolve_bounds
from vit_ratio_opt.pruning.cache import cached_calibration
from vit_ratio_opt.pruning.calibration import Calibration, calibrate
from vit_ratio_opt.pruning.cascade import (
    check_cascade,
    prune_tokens,
    reads_prefix_only,
    remove_cascade,
)
from vit_ratio_opt.pruning.importance import Importance, score_units
from vit_ratio_opt.pruning.options import (
    Allocation,
    Both,
    CalibrationOptions,
    CalibrationPrecision,
    Pruning,
    Structural,
    Tokens,
)
from vit_ratio_opt.pruning.prune import prune_ranks, prune_to_macs, prune_units
from vit_ratio_opt.pruning.reconstruct import repair
from vit_ratio_opt.pruning.rounding import usual_round_to
from vit_ratio_opt.pruning.sizes import expected_losses
from vit_ratio_opt.pruning.survey import AttentionSurvey, keep_heads, survey_attention
from vit_ratio_opt.space.both import Combined
from vit_ratio_opt.space.bounds import FREE, BlockBounds
from vit_ratio_opt.space.costs import MACS, Cost
from vit_ratio_opt.space.pairs import PairSpace, RatioPair, as_pair, check_pair
from vit_ratio_opt.space.shape import BlockShape
from vit_ratio_opt.space.structural import StructuralSpace
from vit_ratio_opt.space.tokens import TokenSpace
from vit_ratio_opt.space.units import MhsaUnit
from vit_ratio_opt.utils.caching import default_cache

__all__ = ["Batch", "ModelPruner"]

Batch = torch.Tensor | tuple[torch.Tensor, torch.Tensor]
"""Normalised images ``(batch, channels, height, width)``, alone or with their labels."""

# The mean over this many images of a survey of the attention does not move with more.
_SURVEYED = 128


class ModelPruner:
    """Prune a dense ViT, calibrated once, to any pair of ratios.

    Args:
        dense: The dense model, in evaluation mode; it is neither changed nor copied.
        images: Calibration batches on the model's device, or a function that returns them when
            they are needed first. Labels are needed for importance scores (unit ``"head"``) only.
        pruning: Weights, patches or both, and how they are removed.
        cost: Cost that a budget limits.
        calibration: Largest number of images of the calibration, folder of its cache, and meaning
            of the model's outputs.
        seed: Random seed of the calibration.

    Attributes:
        space: Search space: all pairs of ratios, with their costs.
        shape: Sizes of the dense model.
        round_to: Number of which ranks and neurons left in a block are multiples.
        is_round_to_given: Whether ``pruning`` has a number of which sizes are multiples.
        precision: Precision of the passes of calibration and repair.

    Raises:
        UnsupportedModelError: The model cannot be pruned in this way.
        InputError: Cost and pruning do not go together.
    """

    def __init__(
        self,
        dense: ViT,
        images: Iterable[Batch] | Callable[[], Iterable[Batch]],
        *,
        pruning: Pruning | None = None,
        cost: Cost = MACS,
        calibration: CalibrationOptions | None = None,
        seed: int = 0,
    ) -> None:
        self.dense = dense
        self.shape = shape_of(dense)
        self.pruning = Structural() if pruning is None else pruning
        self.is_round_to_given = getattr(self.pruning, "round_to", 1) != "auto"
        self.round_to = self._chosen_round_to()
        self.calibration_options = calibration or CalibrationOptions()
        self.precision: CalibrationPrecision = self.calibration_options.precision or "float32"
        self.seed = seed
        self._images = images
        if isinstance(self.pruning, (Tokens, Both)):
            check_cascade(dense)
        if self.shape.all_heads and self._unit == "head":
            raise UnsupportedModelError(ALL_HEADS)
        self.space: PairSpace = self._space(cost)

    @property
    def device(self) -> torch.device:
        """Return the device of the dense model."""
        return model_device(self.dense)

    def use_precision(self, precision: CalibrationPrecision) -> None:
        """Calibrate and repair in a precision from here on."""
        if precision != self.precision:
            self.precision = precision
            for name in ("calibration", "_expected_losses"):
                vars(self).pop(name, None)

    def price(self, cost: Cost, *, round_to: int | None = None) -> None:
        """Replace the cost of the search space, for example by a measured latency.

        Args:
            cost: Cost of the pairs.
            round_to: Number of which sizes are multiples from now on, such as that of a study;
                it has no effect where the caller of the constructor has given one.

        Raises:
            InputError: The cost does not go with what is pruned, or is of another model.
        """
        if round_to is not None and not self.is_round_to_given:
            self.round_to = round_to
            vars(self).pop("_expected_losses", None)
        self.space = self._space(cost)

    def prune(self, pair: RatioPair | Sequence[float], parent: ViT | None = None) -> ViT:
        """Return the pruned and repaired model of a pair, before any training.

        Args:
            pair: Ratios of the dense model, also where ``parent`` is given.
            parent: A model on the same device that pruned neither module more; the dense model by
                default.

        Raises:
            InputError: The space does not have the pair.
        """
        pair = as_pair(pair)
        check_pair(self.space, pair)
        if parent is not None:
            self.check_parents()
        start = self.dense if parent is None else remove_cascade(parent)
        if isinstance(self.space, TokenSpace):
            if self.space.rule.heads:
                start = keep_heads(start, self.space.heads(pair), self.survey)
            return self._with_tokens(start, pair)
        pruned = self._cut(start, pair)
        if self._repairs:
            repair(pruned, self._image_batches, self.calibration)
        return self._with_tokens(pruned, pair)

    def check_parents(self) -> None:
        """Refuse bounds that a model can break which starts from another pruned model.

        Raises:
            InputError: A block has a floor, or a ceiling above 0.
        """
        if any(own not in (FREE, (0.0, 0.0)) for block in self._bounds for own in block):
            raise InputError(
                "`bounds` are shares of the dense model, so they do not go with trials that start "
                "from pruned ones (`iterative`); `skip` does."
            )

    def rebuild(self, pair: RatioPair, blocks: Sequence[Sequence[int]]) -> ViT:
        """Return a model with the sizes in ``blocks``; its weights are loaded later.

        Args:
            pair: Ratios of the model, which determine the tokens of a cascade.
            blocks: Heads, their dimensions and hidden neurons of each block.
        """
        model = shrink_to(self.dense, [BlockShape(*block) for block in blocks])
        return self._with_tokens(model, pair).to(self.device)

    def expected_loss(self, pair: RatioPair) -> float | None:
        """Return the loss that pruning a pair is estimated to add, in nats, without any repair.

        None for whole heads and for tokens, for which there is no estimate.
        """
        if not isinstance(self.space, StructuralSpace) or self._unit == "head":
            return None
        attention, ffn = self._expected_losses
        units, neurons = self.space.removed(pair)
        return float(attention[units * self.space.mhsa_unit_dims] + ffn[neurons])

    def identity(self) -> dict[str, Any]:
        """Return the settings of a study that identify the model, its pruning and its cost."""
        tokens = self._tokens
        return {
            "pruned": self.pruning.name,
            "rule": None if tokens is None else asdict(tokens.rule),
            "ranges": None if tokens is None else tuple(map(float, tokens.ranges)),
            "by_cascade": self.pruning.by_cascade if isinstance(self.pruning, Both) else None,
            "cost": self.space.cost.name,
            "latency_batch": getattr(self.space.cost, "batch", 1),
            "latency_engine": getattr(self.space.cost, "engine", "eager"),
            "mhsa_unit": self._unit,
            "repair": not isinstance(self.pruning, Both | Structural) or self.pruning.repair,
            "allocation": self.allocation,
            "round_to": self.round_to,
            "bounds": named_bounds(self.dense, self._bounds) or None,
            "criterion": getattr(self.pruning, "criterion_name", None),
            "calibration_images": self.calibration_options.images,
            "calibration_task": self._task,
            "calibration_precision": None if self.precision == "float32" else self.precision,
            "seed": self.seed,
            **self._model_identity,
        }

    @cached_property
    def calibration(self) -> Calibration:
        """Return moments and factors of the dense model, computed once or read from the cache."""
        folder = self.calibration_options.cache
        return cached_calibration(
            self.dense,
            self._image_batches,
            default_cache() if folder is None else Path(folder),
            memory=self.calibration_options.memory,
            **self._calibrated,
        )

    @cached_property
    def importance(self) -> Importance:
        """Return the scores of the heads and neurons of the dense model, computed once."""
        return self._score(self.dense)

    @cached_property
    def survey(self) -> AttentionSurvey:
        """Return statistics of the dense model's attention on some images, computed once."""
        wanted, images = _SURVEYED, []
        for batch in self._image_batches:
            images.append(batch[:wanted])
            wanted -= len(images[-1])
            if not wanted:
                break
        return survey_attention(self.dense, images)

    @cached_property
    def batches(self) -> list[Batch]:
        """Return the calibration batches, with no more images than the options allow."""
        given = self._images() if callable(self._images) else self._images
        check_sequence("images", given)
        left, batches = self.calibration_options.images, []
        for batch in given:
            part = _first(batch, left)
            batches.append(part)
            left -= len(_images_of(part))
            if left <= 0:
                break
        return batches

    @property
    def _image_batches(self) -> list[torch.Tensor]:
        return [_images_of(batch) for batch in self.batches]

    def _score(self, model: ViT) -> Importance:
        criterion = self.pruning.criterion if isinstance(self.pruning, Structural) else None
        return score_units(model, self._labelled_batches, criterion)

    @property
    def _labelled_batches(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        labelled = [batch for batch in self.batches if not isinstance(batch, torch.Tensor)]
        if len(labelled) < len(self.batches):
            raise InputError(
                "Scores of heads and neurons need labels: give batches `(images, labels)`, or use "
                "`Structural(unit='rank')`."
            )
        return labelled

    @property
    def _calibrated(self) -> dict[str, Any]:
        return {"seed": self.seed, "task": self._task, "precision": self.precision}

    @property
    def _task(self) -> Task:
        return self.calibration_options.task or "single-label"

    @property
    def _unit(self) -> MhsaUnit:
        return self.pruning.unit if isinstance(self.pruning, Structural) else "rank"

    def _chosen_round_to(self) -> int:
        if isinstance(self.pruning, Tokens):
            return 1
        given = self.pruning.round_to
        return usual_round_to(self.shape, self.device) if given == "auto" else given

    @cached_property
    def _bounds(self) -> tuple[BlockBounds, ...]:
        if not isinstance(self.pruning, Structural):
            return ()
        return resolve_bounds(self.dense, self.pruning.skip, self.pruning.bounds)

    @property
    def _repairs(self) -> bool:
        return not isinstance(self.pruning, Tokens) and self.pruning.repair

    @property
    def allocation(self) -> Allocation:
        """Return how each ratio is allocated across blocks."""
        return self.pruning.allocation if isinstance(self.pruning, Structural) else "global"

    @property
    def _tokens(self) -> TokenSpace | None:
        """Return the space of the tokens that are left out, alone or beside weights."""
        space = self.space.cascade if isinstance(self.space, Combined) else self.space
        return space if isinstance(space, TokenSpace) else None

    def _space(self, cost: Cost) -> PairSpace:
        cost.check(strategy=self.pruning.name)
        if isinstance(self.pruning, Structural):
            return StructuralSpace(
                self.shape, self.pruning.unit, self.round_to, cost, bounds=self._bounds
            )
        rule, ranges = self.pruning.rule, self.pruning.ranges
        if ranges is None:
            ranges = self.survey.ranges if rule.by_range else ()
        tokens = TokenSpace(self.shape, rule, tuple(ranges), reads_prefix_only(self.dense))
        if isinstance(self.pruning, Tokens):
            return tokens
        return Combined(tokens, self.pruning.by_cascade, self.round_to)

    def _cut(self, start: ViT, pair: RatioPair) -> ViT:
        """Return ``start`` with fewer heads, ranks and neurons."""
        now, is_dense = shape_of(start), start is self.dense
        known: Calibration | None = None
        if self._unit == "rank":
            known = self.calibration
            if not is_dense:
                known = calibrate(start, self._image_batches, **self._calibrated)
        if isinstance(self.space, Combined):
            assert known is not None
            limits, tokens = self.space.module_macs(pair), self.space.tokens(pair)
            return prune_to_macs(start, *limits, tokens, known, round_to=self.round_to)
        assert isinstance(self.space, StructuralSpace)
        units, neurons = self.space.removed(pair)
        neurons -= self.shape.neurons - now.neurons
        how: dict[str, Any] = {
            "allocation": self.allocation,
            "round_to": self.round_to,
            "bounds": self._bounds,
        }
        if known is not None:
            dims = units * self.space.mhsa_unit_dims
            dims -= self.shape.attention_dims - now.attention_dims
            return prune_ranks(start, dims, neurons, known, **how)
        heads = units - (self.shape.heads - now.heads)
        scores = self.importance if is_dense else self._score(start)
        return prune_units(start, heads, neurons, scores, **how)

    def _with_tokens(self, model: ViT, pair: RatioPair) -> ViT:
        if isinstance(self.space, (TokenSpace, Combined)):
            assert self._tokens is not None
            return prune_tokens(model, self.space.tokens(pair), scores=self._tokens.rule.scores)
        return model

    @cached_property
    def _expected_losses(self) -> tuple[Any, Any]:
        assert isinstance(self.space, StructuralSpace)
        return expected_losses(self.space, self.calibration)

    @cached_property
    def _model_identity(self) -> dict[str, Any]:
        """Return the settings that describe the dense model."""
        return {
            "model": str(getattr(self.dense, "default_cfg", {}).get("architecture", "custom")),
            "weights": weights_hash(self.dense),
            "architecture": architecture_of(self.dense),
            "frozen": frozen_parts(self.dense) or None,
        }


def _images_of(batch: Batch) -> torch.Tensor:
    return batch if isinstance(batch, torch.Tensor) else batch[0]


def _first(batch: Batch, images: int) -> Batch:
    """Return the first images of a batch, with their labels where it has any."""
    if isinstance(batch, torch.Tensor):
        return batch[:images]
    return batch[0][:images], batch[1][:images]
