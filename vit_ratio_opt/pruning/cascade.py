"""Token cascade: for each image, only its informative tokens pass through attention and FFN.

After Song et al. 2022, "CP-ViT: Cascade Vision Transformer Pruning via Progressive Sparsity
Prediction" (arXiv 2203.04570), of which an abstract and a code release that does not run are
public. Both say: a patch is informative when some query attends to it much; its score is
accumulated over heads and blocks, so that a decision rests on all earlier attention; the share of
patches that is left out rises from block to block and follows the range of the attention; the
class token stays. They give numbers of patches by example only; our numbers are those of
:mod:`vit_ratio_opt.space.tokens`.

Interpretations, each of them an option where another one is plausible:

- Left-out tokens are *gathered away* and the outputs of the others are added back (the released
  code sets them to zero, which saves nothing). Their stream is unchanged; a later block may choose
  them again.
- A patch left out of the attention is neither query nor key there, so its score does not change.
  Where all tokens are ``keys``, others still attend to it, which costs more and loses less.
- The score is the largest attention that a patch gets from any query, summed over heads
  (``scores="max"``, as in the released code), or the mean over the queries, or the attention of
  the class token.
- Heads have cumulative scores too, see :mod:`vit_ratio_opt.pruning.survey`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NoReturn, get_args

import torch
from timm.models.vision_transformer import Block
from torch import nn

from vit_ratio_opt.errors import InputError, UnsupportedModelError
from vit_ratio_opt.models.blocks import ViT
from vit_ratio_opt.models.copies import copy_model
from vit_ratio_opt.models.shape import read_shape
from vit_ratio_opt.models.supported import check_supported
from vit_ratio_opt.pruning.attention import attend
from vit_ratio_opt.space.shape import BlockTokens
from vit_ratio_opt.space.tokens import Scores

__all__ = [
    "CascadeBlocks",
    "check_cascade",
    "prune_tokens",
    "reads_prefix_only",
    "remove_cascade",
]


_ONE_BY_ONE = (
    "Blocks that leave out patches have no intermediate features of all patches, so "
    "`forward_intermediates`, `get_intermediate_layers`, `features_only` and "
    "`set_grad_checkpointing` do not go with them: prune weights alone, with `Structural` (for "
    "the modules themselves: `blocks.children()`)."
)


def prune_tokens(model: ViT, tokens: Sequence[BlockTokens], *, scores: Scores = "max") -> ViT:
    """Return a copy of ``model`` in which every block works on some tokens of each image.

    The copy is a timm model with the same weights under the same names; only its ``blocks`` are
    :class:`CascadeBlocks`. It can be trained: the choice of tokens has no gradient, the tokens
    themselves have one. Counts are fixed, so ``torch.compile`` sees fixed shapes.

    Args:
        model: Dense or structurally pruned model; a cascade that it has is replaced.
        tokens: Number of queries, keys and tokens in the FFN, by block. Prefix tokens count, and
            are always kept.
        scores: Which score makes a patch informative.

    Raises:
        UnsupportedModelError: The model cannot be pruned.
        InputError: ``tokens`` or ``scores`` do not fit the model, or it drops patches in training.
    """
    model = check_supported(model)
    shape = read_shape(model)
    if scores not in get_args(Scores):
        raise InputError(f"`scores` must be one of {get_args(Scores)}, but got {scores!r}.")
    if scores == "class" and model.cls_token is None:
        raise InputError("`scores='class'` needs a class token, but the model has none.")
    if len(tokens) != len(shape.blocks):
        raise InputError(
            f"`tokens` must list {len(shape.blocks)} blocks, but lists {len(tokens)}."
        )
    for index, (queries, keys, ffn) in enumerate(tokens):
        if not all(shape.prefix_tokens < n <= shape.tokens for n in (queries, ffn)):
            raise InputError(
                f"Block {index} must have more than {shape.prefix_tokens} and at most "
                f"{shape.tokens} tokens, but got {queries} queries and {ffn} in the FFN."
            )
        if keys not in (queries, shape.tokens):
            raise InputError(
                f"The keys of block {index} must be its {queries} queries or all {shape.tokens} "
                f"tokens, but got {keys}."
            )
    check_cascade(model)
    model = copy_model(model)
    model.blocks = CascadeBlocks(
        model.blocks.children(), tokens, shape.tokens, shape.prefix_tokens, scores
    )
    return model


def check_cascade(model: ViT) -> None:
    """Refuse a model whose blocks cannot leave out tokens.

    Raises:
        UnsupportedModelError: A block is not timm's ``Block``.
        InputError: The model drops patches in training, or checkpoints its gradients.
    """
    for index, block in enumerate(model.blocks.children()):
        if type(block) is not Block:
            raise UnsupportedModelError(
                f"`blocks.{index}` is a {type(block).__name__}: only timm's Block can leave out "
                "tokens. Use the strategy 'structural'."
            )
    if not isinstance(model.patch_drop, nn.Identity):
        raise InputError(
            "A model that drops patches in training (patch_drop_rate) cannot have a cascade."
        )
    if model.grad_checkpointing:  # timm then runs block by block
        raise InputError(
            "Blocks that leave out patches cannot be checkpointed one by one: call "
            "`model.set_grad_checkpointing(False)`."
        )


def reads_prefix_only(model: ViT) -> bool:
    """Return whether the classifier reads no patch: those of the last block change nothing."""
    return bool(model.global_pool == "token")


def remove_cascade(model: ViT) -> ViT:
    """Return a copy of ``model`` without its cascade, or ``model`` itself where it has none."""
    if not isinstance(model.blocks, CascadeBlocks):
        return model
    model = copy_model(model)
    model.blocks = nn.Sequential(*model.blocks.children())
    return model


class CascadeBlocks(nn.ModuleList):
    """The blocks of a ViT, each of which works on the tokens that scored highest so far.

    They run together only. One by one they would work on all tokens, as timm's
    ``forward_intermediates`` and ``features_only`` run them, so iteration is refused. A
    ``Sequential`` would not do: where gradients are checkpointed, timm takes its children.

    Args:
        blocks: timm's blocks.
        block_tokens: Number of queries, keys and tokens in the FFN, by block.
        tokens: Number of tokens of an image.
        prefix_tokens: Number of tokens at the front that are always kept.
        scores: Which score makes a patch informative.
    """

    def __init__(
        self,
        blocks: Iterable[Block],
        block_tokens: Sequence[BlockTokens],
        tokens: int,
        prefix_tokens: int,
        scores: Scores = "max",
    ) -> None:
        super().__init__(blocks)
        self.block_tokens = tuple(BlockTokens(*counts) for counts in block_tokens)
        self.tokens, self.prefix_tokens, self.scores = tokens, prefix_tokens, scores
        # Probabilities are computed only in blocks that a choice of tokens still follows.
        self._is_scored = [
            counts.ffn < tokens or any(min(later) < tokens for later in self.block_tokens[i + 1 :])
            for i, counts in enumerate(self.block_tokens)
        ]

    __repr__ = nn.Module.__repr__  # that of a ModuleList iterates

    def __iter__(self) -> NoReturn:
        raise UnsupportedModelError(_ONE_BY_ONE)

    def __getitem__(self, index: slice | int) -> Any:
        if isinstance(index, slice):
            raise UnsupportedModelError(_ONE_BY_ONE)
        return super().__getitem__(index)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Pass streams ``(batch, tokens, width)`` through all blocks."""
        if x.shape[1] != self.tokens:
            raise InputError(f"The cascade is for {self.tokens} tokens, but got {x.shape[1]}.")
        scores = x.new_zeros((x.shape[0], self.tokens - self.prefix_tokens), dtype=torch.float32)
        blocks: list[Any] = list(self.children())
        for index, (block, counts) in enumerate(zip(blocks, self.block_tokens, strict=True)):
            is_scored = self._is_scored[index]
            if not is_scored and min(counts) == self.tokens:
                x = block(x)
                continue
            x, received = self._attention(block, x, scores, counts, is_scored)
            if received is not None:
                scores = scores + received
            kept = self._best(scores, counts.ffn)
            out = block.ls2(block.mlp(block.norm2(_gather(x, kept))))
            x = _add(x, kept, block.drop_path2(out))
        return x

    def _attention(
        self,
        block: Block,
        x: torch.Tensor,
        scores: torch.Tensor,
        counts: BlockTokens,
        is_scored: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the streams after a block's attention, and what each patch received of it."""
        places = self._best(scores, counts.queries)
        if counts.keys == counts.queries:
            queries = keys = block.norm1(_gather(x, places))
        else:
            keys = block.norm1(x)
            queries = _gather(keys, places)
        out, received = attend(block.attn, queries, keys, self.scores if is_scored else None)
        x = _add(x, places, block.drop_path1(block.ls1(out)))
        if received is not None:
            received = received[:, self.prefix_tokens :]
            if counts.keys < self.tokens and places is not None:
                patches = places[:, self.prefix_tokens :] - self.prefix_tokens
                received = torch.zeros_like(scores).scatter(1, patches, received)
        return x, received

    def _best(self, scores: torch.Tensor, count: int) -> torch.Tensor | None:
        """Return the places of prefix and best patches, ``(batch, count)``; None for all."""
        if count == self.tokens:
            return None
        patches = scores.topk(count - self.prefix_tokens, dim=1).indices + self.prefix_tokens
        prefix = torch.arange(self.prefix_tokens, device=scores.device)
        return torch.cat([prefix.expand(scores.shape[0], -1), patches], dim=1)


def _gather(x: torch.Tensor, places: torch.Tensor | None) -> torch.Tensor:
    """Return the tokens of ``x`` at ``places``."""
    if places is None:
        return x
    # Whole rows at a time: `gather` goes number by number.
    chosen = x.flatten(0, 1).index_select(0, _rows(x, places))
    return chosen.view(*places.shape, x.shape[2])


def _add(x: torch.Tensor, places: torch.Tensor | None, out: torch.Tensor) -> torch.Tensor:
    """Return ``x`` with ``out`` added at ``places``."""
    if places is None:
        return x + out
    rows = out.flatten(0, 1).to(x.dtype)
    return x.flatten(0, 1).index_add(0, _rows(x, places), rows).view_as(x)


def _rows(x: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Return the indices of the tokens in a list of all images' tokens."""
    # Not len(x), which would be a constant in an exported model.
    first = torch.arange(x.shape[0], device=x.device) * x.shape[1]
    return (places + first[:, None]).flatten()
