"""The format of a pruned model's file: what its header holds, and which headers are read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.models.arguments import accept_arguments, accept_name
from vit_ratio_opt.space.shape import BlockShape, BlockTokens

__all__ = [
    "ELASTIC_FORMAT",
    "PRUNED_FORMAT",
    "Manifest",
    "is_pruned",
    "read_manifest",
    "reader_of",
]

PRUNED_FORMAT = "vit_ratio_opt/1"
"""Value of ``format`` in the header of a pruned model's file; the number is its version."""

ELASTIC_FORMAT = "vit_ratio_opt/elastic/1"
"""Value of ``format`` in the header of an elastic model's file; the number is its version."""

_READERS = {PRUNED_FORMAT: "load_pruned", ELASTIC_FORMAT: "load_elastic"}


class Manifest(NamedTuple):
    """The JSON object of a pruned model's file, checked.

    Args:
        content: The object as it is in the file.
        blocks: The sizes of every block.
        tokens: The tokens of every block of a cascade; None without a cascade.
        scores: Score by which patches of a cascade are informative.
    """

    content: dict[str, Any]
    blocks: list[BlockShape]
    tokens: list[BlockTokens] | None
    scores: Any

    def architecture(self, path: Path) -> tuple[str, dict[str, Any]]:
        """Return timm's name and arguments of the dense model.

        Args:
            path: The file, for messages.

        Raises:
            InputError: The manifest names no dense model, or one that is not accepted.
        """
        stored = self.content.get("architecture")
        if not isinstance(stored, dict):
            raise InputError(
                f"{path} does not name the dense model that it was pruned from: give the "
                "dense model."
            )
        name = accept_name(path, stored.get("timm_name"))
        return name, accept_arguments(path, stored.get("timm_kwargs", {}))


def is_pruned(metadata: Mapping[str, str]) -> bool:
    """Return whether a file with this header holds a pruned model, of any version."""
    return metadata.get("format", "").split("/")[0] == PRUNED_FORMAT.split("/")[0]


def reader_of(metadata: Mapping[str, str]) -> str:
    """Return the name of the function that reads a file for which :func:`is_pruned` is True."""
    return _READERS.get(metadata["format"], "load_pruned")


def read_manifest(
    path: Path, metadata: Mapping[str, str], expected: str = PRUNED_FORMAT
) -> Manifest:
    """Return the manifest in a file's header.

    Args:
        path: The file, for messages.
        metadata: The header of the file.
        expected: The format that the file must have.

    Raises:
        InputError: The file is of another format, or its manifest is damaged.
    """
    _check_format(path, metadata.get("format"), expected)
    try:
        content = json.loads(metadata["manifest"])
        blocks = [BlockShape(*(int(n) for n in block)) for block in content["blocks"]]
        chosen, tokens, scores = content.get("cascade"), None, None
        if chosen is not None:
            tokens = [BlockTokens(*(int(n) for n in counts)) for counts in chosen["tokens"]]
            scores = chosen["scores"]
    except (AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError):
        raise InputError(f"{path} has a damaged manifest.") from None
    return Manifest(content, blocks, tokens, scores)


def _check_format(path: Path, found: str | None, expected: str) -> None:
    if found == expected:
        return
    if found in _READERS:
        raise InputError(
            f"{path} holds another kind of model (format {found!r}): read it with "
            f"`{_READERS[found]}`."
        )
    name, _, number = str(found).rpartition("/")
    if name == expected.rpartition("/")[0] and number.isdecimal():
        raise InputError(
            f"{path} was written by a newer version of vit_ratio_opt (format {found!r}), and this "
            f"one reads {expected!r}: upgrade with `pip install -U vit_ratio_opt`."
        )
    kind = "pruned" if expected == PRUNED_FORMAT else "elastic"
    raise InputError(
        f"{path} must have format {expected!r}, but has {found!r:.80}: it holds no {kind} "
        "model. `load_dense` reads dense ones."
    )
