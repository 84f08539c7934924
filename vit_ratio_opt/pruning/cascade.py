"""CP-ViT's cascade: for each image, only its informative tokens pass through attention and FFN.

After Song et al. 2022, "CP-ViT: Cascade Vision Transformer Pruning via Progressive Sparsity
Prediction" (arXiv 2203.04570), of which an abstract and a code release that does not run are
public. What they say: a patch is informative when some query attends to it much; its score is
accumulated over heads and blocks, so that a decision rests on all that was seen so far; the share
of patches that is left out rises from block to block and follows the range of the attention; the
class token stays. They say how many patches only by example. That is settled, block by block, in
:mod:`vit_ratio_opt.space.cascade`; here the numbers are given and kept.

Interpretations, each of them an option where another one is plausible:

- Left-out tokens are *gathered away* and what the others get is added back (their code sets them
  to zero, which saves nothing). Their stream goes on unchanged; a later block may take them up.
- A patch left out of the attention is neither query nor key there, so its score stays as it is.
  Where all tokens are ``keys``, it can still be attended to, which costs more and loses less.
- The score is the largest attention that a patch gets from any query, summed over heads
  (``scores="max"``, as in their code), or the mean over the queries, or what the class token pays.
- Heads have cumulative scores too, see :func:`attention_survey`. Their weights cannot be gathered
  image by image without making copies of them, so which heads go is decided once for all images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, get_args

import torch
import torch.nn.functional as F
from timm.layers import Attention
from timm.models.vision_transformer import Block
from torch import nn

from vit_ratio_opt.errors import InputError, UnsupportedModelError
from vit_ratio_opt.models.blocks import ViT, branches
from vit_ratio_opt.models.copies import copy_model
from vit_ratio_opt.models.device import evaluating
from vit_ratio_opt.models.shape import check_all_tokens, shape_of
from vit_ratio_opt.models.supported import check_supported
from vit_ratio_opt.models.surgery import keep_units
from vit_ratio_opt.models.weights import check_full_precision, check_weights
from vit_ratio_opt.pruning.batches import check_images
from vit_ratio_opt.space.cascade import Scores
from vit_ratio_opt.space.geometry import BlockTokens

__all__ = [
    "AttentionSurvey",
    "CascadeBlocks",
    "attention_survey",
    "cascade",
    "check_cascade",
    "keep_heads",
    "reads_prefix_only",
    "without_cascade",
]


def cascade(model: ViT, tokens: Sequence[BlockTokens], *, scores: Scores = "max") -> ViT:
    """A copy of ``model`` in which every block works on so many tokens of each image.

    It is the timm model that it was, with the same weights under the same names; only its
    ``blocks`` are :class:`CascadeBlocks`. Training goes through it: which tokens are chosen has no
    gradient, what is made of them has. Counts are fixed, so ``torch.compile`` sees fixed shapes.

    Args:
        model: Dense or structurally pruned; a cascade that it has is replaced.
        tokens: For every block; prefix tokens count, and are always among them.
        scores: What makes a patch informative.

    Raises:
        UnsupportedModelError: The model cannot be pruned.
        InputError: ``tokens`` or ``scores`` do not fit the model, or it drops patches by itself.
    """
    model = check_supported(model)
    shape = shape_of(model)
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
    model.blocks = CascadeBlocks(model.blocks, tokens, shape.tokens, shape.prefix_tokens, scores)
    return model


def check_cascade(model: ViT) -> None:
    """Refuse a model whose blocks cannot leave out tokens.

    Raises:
        UnsupportedModelError: They are of other kinds than timm's ``Block``.
        InputError: The model drops patches by itself.
    """
    for index, block in enumerate(model.blocks):
        if type(block) is not Block:
            raise UnsupportedModelError(
                f"`blocks.{index}` is a {type(block).__name__}: only timm's Block can leave out "
                "tokens. Use the strategy 'structural'."
            )
    if not isinstance(model.patch_drop, nn.Identity):
        raise InputError(
            "A model that drops patches in training (patch_drop_rate) cannot have a cascade."
        )


def reads_prefix_only(model: ViT) -> bool:
    """Whether the classifier reads nothing of the patches: the last block's are of no use."""
    return bool(model.global_pool == "token")


class AttentionSurvey(NamedTuple):
    """What the attention of a model does on some images, by block."""

    ranges: tuple[float, ...]
    """Mean distance between a patch and what it attends to, as a share of what it would be if it
    attended to all patches alike (the mean attention distance of Dosovitskiy et al. 2021)."""
    heads: tuple[torch.Tensor, ...]
    """Cumulative scores of the heads, ``(heads,)``: the largest attention that each patch gets
    through a head, averaged over patches and images, and added up over the blocks so far. Heads of
    different blocks have nothing but their number in common; it is CP-ViT that adds them up."""


@torch.no_grad()
def attention_survey(model: ViT, batches: Iterable[torch.Tensor]) -> AttentionSurvey:
    """Look at the attention of ``model``, without a cascade, on normalised images.

    Args:
        model: Supported; it is not changed.
        batches: Of images, on the model's device.

    Raises:
        UnsupportedModelError: The model cannot be pruned.
        InputError: It has a cascade, or there are no images.
    """
    model = check_all_tokens(model)
    check_full_precision(model)
    check_weights(model)
    shape, prefix = shape_of(model), model.num_prefix_tokens
    rows, columns = model.patch_embed.grid_size
    places = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).float()
    distances = torch.cdist(places, places)
    ranges = torch.zeros(len(shape.blocks), dtype=torch.float64)
    heads = [torch.zeros(block.num_heads, dtype=torch.float64) for block in shape.blocks]
    images = 0

    def look(index: int) -> Callable[[Attention, tuple[torch.Tensor, ...]], None]:
        def hook(attn: Attention, inputs: tuple[torch.Tensor, ...]) -> None:
            q, k, _ = _heads(attn, inputs[0], inputs[0])
            attention = _attention(attn, q, k)[..., prefix:]
            heads[index].add_(attention.amax(2).mean(2).double().sum(0).cpu())
            between = attention[:, :, prefix:]
            share = between / between.sum(3, keepdim=True)
            ranges[index] += (share * distances.to(share)).sum(3).mean((1, 2)).double().sum().cpu()

        return hook

    with evaluating(model):
        hooks = [
            attention.module.register_forward_pre_hook(look(index))
            for index, (attention, _) in enumerate(branches(model))
        ]
        try:
            for number, batch in enumerate(batches):
                check_images(model, batch, number)
                images += len(batch)
                model(batch)
        finally:
            for handle in hooks:
                handle.remove()
    if not images:
        raise InputError("The survey of the attention needs at least one image.")
    uniform = distances.mean().item()
    cumulative, total = [], torch.zeros(0, dtype=torch.float64)
    for own in heads:
        known = F.pad(total, (0, max(0, len(own) - len(total))))[: len(own)]
        total = known + own / images
        cumulative.append(total)
    # Rounded, so that two machines that differ in the last bits make the same cascade of it.
    return AttentionSurvey(
        tuple(round(value / images / uniform, 2) for value in ranges.tolist()), tuple(cumulative)
    )


def keep_heads(model: ViT, counts: Sequence[int], survey: AttentionSurvey) -> ViT:
    """A copy of ``model`` with so many heads in each block, those with the highest scores."""
    return keep_units(
        model,
        [
            sorted(scores.sort(stable=True, descending=True).indices[:count].tolist())
            for scores, count in zip(survey.heads, counts, strict=True)
        ],
        [range(block.hidden_dim) for block in shape_of(model).blocks],
    )


def without_cascade(model: ViT) -> ViT:
    """``model`` with all tokens in all blocks: a copy where it had a cascade, else itself."""
    if not isinstance(model.blocks, CascadeBlocks):
        return model
    model = copy_model(model)
    model.blocks = nn.Sequential(*model.blocks)
    return model


class CascadeBlocks(nn.Sequential):
    """The blocks of a ViT, each of which works on the tokens that scored highest so far.

    Args:
        blocks: timm's.
        block_tokens: See :func:`cascade`.
        tokens: Tokens of an image.
        prefix_tokens: Those of them, at the front, that are always kept.
        scores: See :func:`cascade`.
    """

    def __init__(
        self,
        blocks: Iterable[Block],
        block_tokens: Sequence[BlockTokens],
        tokens: int,
        prefix_tokens: int,
        scores: Scores = "max",
    ) -> None:
        super().__init__(*blocks)
        self.block_tokens = tuple(BlockTokens(*counts) for counts in block_tokens)
        self.tokens, self.prefix_tokens, self.scores = tokens, prefix_tokens, scores
        # A block's attention has to say what it looks at only where a choice still follows it.
        self._is_scored = [
            counts.ffn < tokens or any(min(later) < tokens for later in self.block_tokens[i + 1 :])
            for i, counts in enumerate(self.block_tokens)
        ]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Streams ``(batch, tokens, width)`` through all blocks."""
        if x.shape[1] != self.tokens:
            raise InputError(f"The cascade is for {self.tokens} tokens, but got {x.shape[1]}.")
        scores = x.new_zeros((x.shape[0], self.tokens - self.prefix_tokens), dtype=torch.float32)
        blocks: list[Block] = list(self)
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
        """The streams after a block's attention, and what each patch received of it."""
        places = self._best(scores, counts.queries)
        if counts.keys == counts.queries:
            queries = keys = block.norm1(_gather(x, places))
        else:
            keys = block.norm1(x)
            queries = _gather(keys, places)
        out, received = _attend(block.attn, queries, keys, self.scores if is_scored else None)
        x = _add(x, places, block.drop_path1(block.ls1(out)))
        if received is not None:
            received = received[:, self.prefix_tokens :]
            if counts.keys < self.tokens and places is not None:
                patches = places[:, self.prefix_tokens :] - self.prefix_tokens
                received = torch.zeros_like(scores).scatter(1, patches, received)
        return x, received

    def _best(self, scores: torch.Tensor, count: int) -> torch.Tensor | None:
        """Places ``(batch, count)`` of the prefix and the highest scores; None for all tokens."""
        if count == self.tokens:
            return None
        patches = scores.topk(count - self.prefix_tokens, dim=1).indices + self.prefix_tokens
        prefix = torch.arange(self.prefix_tokens, device=scores.device)
        return torch.cat([prefix.expand(scores.shape[0], -1), patches], dim=1)


def _gather(x: torch.Tensor, places: torch.Tensor | None) -> torch.Tensor:
    """The tokens of ``x`` at ``places``, whole rows at a time: a gather goes number by number."""
    if places is None:
        return x
    chosen = x.flatten(0, 1).index_select(0, _rows(x, places))
    return chosen.view(*places.shape, x.shape[2])


def _add(x: torch.Tensor, places: torch.Tensor | None, out: torch.Tensor) -> torch.Tensor:
    """``x`` with ``out`` added at ``places``."""
    if places is None:
        return x + out
    rows = out.flatten(0, 1).to(x.dtype)
    return x.flatten(0, 1).index_add(0, _rows(x, places), rows).view_as(x)


def _rows(x: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Where the tokens are when all images' are in one list."""
    # Not len(x), which would be a constant in an exported model.
    first = torch.arange(x.shape[0], device=x.device) * x.shape[1]
    return (places + first[:, None]).flatten()


def _attend(
    attn: Attention, queries: torch.Tensor, keys: torch.Tensor, scores: Scores | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The attention of ``queries`` to ``keys``, and the score of each key where it is wanted.

    Without scores the fused kernel runs, which never has the probabilities in memory.
    """
    q, k, v = _heads(attn, queries, keys)
    dropout = attn.attn_drop.p if attn.training else 0.0
    received = None
    if scores is None:
        out = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
    else:
        attention = _attention(attn, q, k)
        received = _received(attention.detach(), scores)
        out = F.dropout(attention, dropout) @ v
    out = out.transpose(1, 2).flatten(2)
    return attn.proj_drop(attn.proj(out)), received


def _heads(
    attn: Attention, queries: torch.Tensor, keys: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys and values, each ``(batch, heads, tokens, head_dim)``."""
    width = attn.attn_dim
    if queries is keys:
        q, k, v = attn.qkv(keys).chunk(3, dim=2)
    else:
        weight, bias = attn.qkv.weight, attn.qkv.bias
        parts = bias.split((width, 2 * width)) if bias is not None else (None, None)
        q = F.linear(queries, weight[:width], parts[0])
        k, v = F.linear(keys, weight[width:], parts[1]).chunk(2, dim=2)
    q, k, v = (part.unflatten(2, (-1, attn.head_dim)).transpose(1, 2) for part in (q, k, v))
    return attn.q_norm(q), attn.k_norm(k), v


def _attention(attn: Attention, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """Probabilities ``(batch, heads, queries, keys)``."""
    attention: torch.Tensor = ((q * attn.scale) @ k.transpose(2, 3)).softmax(dim=3)
    return attention


def _received(attention: torch.Tensor, scores: Scores) -> torch.Tensor:
    """Scores ``(batch, keys)`` from probabilities ``(batch, heads, queries, keys)``."""
    if scores == "max":
        received = attention.amax(dim=2)
    elif scores == "mean":
        received = attention.mean(dim=2)
    else:
        received = attention[:, :, 0]
    return received.sum(dim=1, dtype=torch.float32)
