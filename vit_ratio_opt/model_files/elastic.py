"""Save all levels of an elastic model as one safetensors file, and load them again.

The file is that of the pruned model of the largest level, with the own vectors of the other levels
beside its tensors (``levels.1.norm.weight`` ...) and the sizes of all levels in its manifest.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.model_files.load import read_pruned, rebuild_pruned
from vit_ratio_opt.model_files.manifest import ELASTIC_FORMAT
from vit_ratio_opt.model_files.save import describe_pruned, write_tensors
from vit_ratio_opt.models.blocks import ViT
from vit_ratio_opt.models.elastic import ElasticLevel, ElasticViT
from vit_ratio_opt.models.shape import shape_of
from vit_ratio_opt.models.state_dicts import checksum
from vit_ratio_opt.space.pairs import RatioPair
from vit_ratio_opt.space.shape import BlockShape, ViTShape

__all__ = ["load_elastic", "save_elastic"]

_OWN = "levels."


def save_elastic(model: ElasticViT, path: str | Path) -> None:
    """Save all levels of an elastic model as one file.

    For models whose dense model ``create_model`` or ``load_dense`` made, the file needs nothing
    else to be loaded.

    Args:
        model: The model.
        path: The file to write.

    Raises:
        InputError: The file cannot be written, a weight is not finite, or the model was changed so
            that no file could hold it.
    """
    if not isinstance(model, ElasticViT):
        raise InputError(
            f"`model` must be an ElasticViT, but is a {type(model).__name__}: save it with "
            "`save_pruned` or `save_dense`."
        )
    levels = [
        {
            "pair": list(level.pair),
            "macs_ratio": level.macs_ratio,
            "blocks": [[b.num_heads, b.head_dim, b.hidden_dim] for b in level.blocks],
        }
        for level in model.levels
    ]
    text = json.dumps({**describe_pruned(model.largest), "levels": levels})
    state = dict(model.largest.state_dict())
    for level in range(1, len(levels)):
        for name in model.vector_names:
            vector, first = model.vector(level, name), model.vector(0, name)
            if vector.shape != first.shape:
                raise InputError(
                    f"`{name}` has shape {tuple(vector.shape)} in level {level} and "
                    f"{tuple(first.shape)} in the largest: the model was changed after it was "
                    "built, so build it again from the changed dense model."
                )
            if not torch.isfinite(vector).all():
                raise InputError(f"`{name}` of level {level} has values that are not finite.")
            state[f"{_OWN}{level}.{name}"] = vector
    digest = checksum(state, text)
    metadata = {"format": ELASTIC_FORMAT, "manifest": text, "checksum": digest}
    write_tensors(state, Path(path), metadata)


def load_elastic(path: str | Path, dense: ViT | None = None) -> ElasticViT:
    """Load an elastic model, in evaluation mode.

    Args:
        path: A file of :func:`save_elastic`.
        dense: The model that it was built from, which gives the architecture and is not changed.
            It may be left out where the file names it.

    Raises:
        InputError: The file is missing, damaged, of another format, does not fit ``dense``, or
            does not name its dense model.
    """
    path = Path(path)
    state, manifest = read_pruned(path, ELASTIC_FORMAT)
    levels = _levels(path, manifest.content)
    shared = {name: part for name, part in state.items() if not name.startswith(_OWN)}
    largest = rebuild_pruned(path, shared, manifest, dense)
    try:
        model = ElasticViT(largest, levels)
    except InputError as error:
        raise InputError(f"{path} has other levels than its model: {error}") from None
    _check_shares(path, shape_of(largest), levels)
    _load_vectors(path, model, {name: state[name] for name in state.keys() - shared.keys()})
    return model.eval()


def _check_shares(path: Path, largest: ViTShape, levels: Sequence[ElasticLevel]) -> None:
    """Refuse levels whose shares of the MACs are not those of their sizes."""
    first = levels[0].macs_ratio
    for level in levels:
        share = first * replace(largest, blocks=level.blocks).macs / largest.macs
        is_pair = all(0 <= ratio <= 1 for ratio in level.pair)
        if not (0 < first <= 1 and abs(level.macs_ratio - share) < 1e-6 and is_pair):
            raise InputError(f"{path} has damaged levels in its manifest.")


def _levels(path: Path, content: Mapping[str, Any]) -> list[ElasticLevel]:
    try:
        return [
            ElasticLevel(
                RatioPair(*(float(ratio) for ratio in level["pair"])),
                tuple(BlockShape(*(int(size) for size in block)) for block in level["blocks"]),
                float(level["macs_ratio"]),
            )
            for level in content["levels"]
        ]
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
        raise InputError(f"{path} has damaged levels in its manifest.") from None


def _load_vectors(path: Path, model: ElasticViT, own: Mapping[str, torch.Tensor]) -> None:
    wanted = {
        f"{_OWN}{level}.{name}": model.vector(level, name)
        for level in range(1, len(model.levels))
        for name in model.vector_names
    }
    for name in sorted(wanted.keys() ^ own.keys()):
        state = "lacks" if name in wanted else "has no place for"
        raise InputError(f"{path} does not fit the model: it {state} `{name:.80}`.")
    with torch.no_grad():
        for name, vector in wanted.items():
            if own[name].shape != vector.shape:
                raise InputError(
                    f"{path} does not fit the model: `{name}` has shape {tuple(own[name].shape)} "
                    f"instead of {tuple(vector.shape)}."
                )
            vector.copy_(own[name])
