"""Refit the last layers that several levels share, so that all of them follow the dense model.

A level's layer is a slice of the shared one, so the least squares of all levels are one problem:
the inputs of a smaller level are zero where its slice ends, and each level has a bias of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from vit_ratio_opt.models.blocks import stages
from vit_ratio_opt.models.device import as_double
from vit_ratio_opt.models.elastic import ElasticViT
from vit_ratio_opt.models.family import Branch
from vit_ratio_opt.pruning.batches import tokens_at
from vit_ratio_opt.pruning.calibration import Calibration
from vit_ratio_opt.pruning.least_squares import NormalEquations
from vit_ratio_opt.pruning.passes import in_precision
from vit_ratio_opt.pruning.reconstruct import (
    Tail,
    checked,
    embed_batches,
    missing_output,
    target_of,
)

__all__ = ["repair_levels"]


def repair_levels(
    model: ElasticViT, images: Iterable[torch.Tensor], calibration: Calibration
) -> None:
    """Refit ``proj`` and ``fc2`` of all levels together in place, by block and module.

    The error is summed over the levels, so the smallest ones, which have the largest errors, count
    most. Modules whose output passes through a norm before it is added stay as they are.

    Memory: the streams of all levels, ``levels * images * tokens * width`` numbers.

    Args:
        model: The model.
        images: Normalised batches ``(batch, channels, height, width)`` of the calibration, on the
            model's device.
        calibration: Calibration of the dense model.

    Raises:
        InputError: The model, the images and the calibration do not belong together.
    """
    _, batches = checked(model.largest, images, calibration)
    device = batches[0].device
    with torch.inference_mode(), in_precision(device, "float32"):
        levels = [_Level(model, i, batches, calibration) for i in range(len(model.levels))]
        for shared, *stage in zip(
            stages(model.largest), *(stages(level.model) for level in levels), strict=True
        ):
            for level, branches in zip(levels, stage, strict=True):
                level.enter(branches)
            for number, branch in enumerate(shared):
                if levels[0].tails[number].is_linear:
                    _refit(branch, number, levels, calibration)
            for level in levels:
                level.leave()


def _refit(
    branch: Branch, number: int, levels: Sequence[_Level], calibration: Calibration
) -> None:
    """Refit the last layer of one branch of the stage that all levels have entered."""
    layer = branch.last
    target, weights = target_of(calibration.blocks[branch.index], branch.kind, layer.weight.device)
    equations = NormalEquations(bias=False, precision=calibration.precision)
    kept = [level.kept(branch) for level in levels]
    biases = [] if layer.bias is None else [level.bias(branch) for level in levels]
    samples = [level.samples(number, target) for level in levels]
    for batch in zip(*samples, strict=True):
        inputs = [
            _padded(x, own, index, len(biases))
            for index, ((x, _), own) in enumerate(zip(batch, kept, strict=True))
        ]
        wanted = torch.cat([y for _, y in batch], dim=1)
        equations.add(torch.cat(inputs, dim=1), wanted, weights.repeat(len(levels)))
    start = torch.cat([layer.weight.mT, *(bias[None] for bias in biases)])
    solution, _, _ = equations.solve(as_double(start))
    layer.weight.copy_(solution[: layer.in_features].mT)
    for bias, own_bias in zip(biases, solution[layer.in_features :], strict=True):
        bias.copy_(own_bias)
    for index, (level, own) in enumerate(zip(levels, kept, strict=True)):
        tail = level.tails[number].layer
        tail.weight.copy_(layer.weight[:, own])
        if biases:
            tail.bias.copy_(biases[index])


def _padded(x: torch.Tensor, kept: torch.Tensor, index: int, biases: int) -> torch.Tensor:
    """Return inputs with zeros where a level's slice ends, then the indicators of its bias."""
    padded = x.new_zeros((*x.shape[:2], len(kept) + biases))
    padded[..., : len(kept)][..., kept] = x
    if biases:
        padded[..., len(kept) + index] = 1
    return padded


class _Level:
    """A level's model while its streams pass through the blocks.

    Attributes:
        model: Copy of the level's model.
        tails: Last layers of the branches of the stage.

    Args:
        elastic: The elastic model.
        index: Index of the level.
        images: Batches of images.
        calibration: Calibration of the dense model.
    """

    def __init__(
        self,
        elastic: ElasticViT,
        index: int,
        images: Sequence[torch.Tensor],
        calibration: Calibration,
    ) -> None:
        self.model = elastic.extract(index)
        self.tails: list[Tail] = []
        self._elastic, self._index, self._precision = elastic, index, calibration.precision
        self._sizes = [len(batch) for batch in images]
        positions = calibration.positions.to(images[0].device)
        self._positions = torch.split(positions, self._sizes)
        self._streams, self._options = embed_batches(self.model, images, self._precision)
        self._inputs: list[list[torch.Tensor]] = []

    def enter(self, branches: Sequence[Branch]) -> None:
        """Compute the inputs of the last layers of a stage."""
        self.tails = [Tail(b, self._options.get(b.kind, {}), self._precision) for b in branches]
        self._inputs = [[tail.inputs(stream) for stream in self._streams] for tail in self.tails]

    def samples(
        self, number: int, target: torch.Tensor
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return inputs and wanted outputs of a last layer at the sampled tokens, by batch."""
        now, *sampled = (
            [tokens_at(*batch) for batch in zip(values, self._positions, strict=True)]
            for values in (self._streams, *self._inputs)
        )
        goals = torch.split(target, self._sizes)
        wanted = missing_output(goals, now, self.tails, sampled, number)
        undo = self.tails[number].undo_scale
        return [(x, undo(x, y)) for x, y in zip(sampled[number], wanted, strict=True)]

    def leave(self) -> None:
        """Add the outputs of the stage to the streams."""
        for batch in range(len(self._streams)):
            for tail, own in zip(self.tails, self._inputs, strict=True):
                self._streams[batch] += tail.add(own[batch])

    def kept(self, branch: Branch) -> torch.Tensor:
        """Return which inputs of the shared last layer this level has, ``(inputs,)``."""
        old, new = (self._elastic.levels[i].blocks[branch.index] for i in (0, self._index))
        kept = torch.zeros(branch.last.in_features, dtype=torch.bool)
        if branch.kind == "ffn":
            kept[: new.hidden_dim] = True
        else:
            heads = kept.view(old.num_heads, old.head_dim)
            heads[: new.num_heads, : new.head_dim] = True
        return kept.to(branch.last.weight.device)

    def bias(self, branch: Branch) -> torch.Tensor:
        """Return the bias of this level's last layer, a parameter of the elastic model."""
        return self._elastic.vector(self._index, f"{branch.name}.{branch.last_name}.bias")
