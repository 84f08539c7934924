"""The sizes of a ViT, and its MACs and parameters in closed form.

One MAC is one fused multiply-add; papers and fvcore call this number FLOPs. Counted are the matrix
products: patch embedding, qkv, Q K^T, A V, output projection, fc1, fc2 and the classifier. Not
counted, because no pruning changes them and they are below one per cent: norms, LayerScale,
softmax, GELU, residual additions and pooling.

Per block, with N tokens, width D, H heads of d dimensions and M hidden neurons:

============  =============  ==================
module        MACs           parameters
============  =============  ==================
qkv           3 N D H d      3 H d (D + bias)
Q K^T, A V    2 N^2 H d
projection    N H d D        H d D  (+ D)
fc1           N D M          M (D + bias)
fc2           N M D          M D  (+ D)
============  =============  ==================

A gated FFN (SwiGLU) has the row of fc1 twice. Where a block has several attentions and FFNs in
parallel, each pair of them counts as a block here. So MACs and parameters are linear in the number
of head dimensions and neurons, whichever blocks these are in.

A block may also work on a part of the tokens only, see :class:`BlockTokens`. With Q tokens that
attend to K tokens and F tokens in the FFN, the rows above become ``(Q + 2 K) D H d``,
``2 Q K H d``, ``Q H d D``, ``F D M`` and ``F M D``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

__all__ = ["BlockShape", "BlockTokens", "ViTShape"]


@dataclass(frozen=True)
class BlockShape:
    """One block: ``num_heads`` heads of ``head_dim`` dimensions, ``hidden_dim`` FFN neurons."""

    num_heads: int
    head_dim: int
    hidden_dim: int


class BlockTokens(NamedTuple):
    """Numbers of tokens of one image that a block works on, prefix tokens included."""

    queries: int
    """Tokens that attend (queries); the attention changes no others."""
    keys: int
    """Tokens that are attended to."""
    ffn: int
    """Tokens that pass through the FFN; the others skip it."""


@dataclass(frozen=True)
class ViTShape:
    """Sizes of a ViT on which its MACs and parameters depend.

    Args:
        patches: Patch tokens of one image.
        prefix_tokens: Class, distillation and register tokens.
        patch_dim: Values in one patch, ``in_chans * patch_height * patch_width``.
        embed_dim: Width D of the residual stream.
        num_classes: Outputs of one classifier, 0 for none.
        blocks: The blocks from the input to the output.
        fixed_params: Parameters that removing heads and neurons does not change: embeddings,
            norms, LayerScale, the biases of the projection and of fc2, classifiers.
        classifiers: Linear classifiers: 1, 2 with a distillation head, 0 where the classifier is
            not linear.
        classified_tokens: Rows that a classifier is applied to: 1, or every token without pooling.
        qkv_bias: Whether qkv has biases.
        fc1_bias: Whether fc1 has biases.
        fc1_rows: Rows of fc1 for each hidden neuron: 2 where the FFN is gated.
        other_macs: MACs of an attention pooling, of blocks for the class token alone, of mixing
            heads, and of a classifier that is not linear.
        head_params: Parameters of a head besides those of its dimensions.
        whole_heads: Whether heads can only be removed whole, because queries and keys pass
            through norms or rotations.
        all_heads: Whether heads can only get a lower rank, because they are mixed.
        block_tokens: The tokens that each block works on; empty where blocks work on all tokens.
    """

    patches: int
    prefix_tokens: int
    patch_dim: int
    embed_dim: int
    num_classes: int
    blocks: tuple[BlockShape, ...]
    fixed_params: int
    classifiers: int = 1
    classified_tokens: int = 1
    qkv_bias: bool = True
    fc1_bias: bool = True
    fc1_rows: int = 1
    other_macs: int = 0
    head_params: int = 0
    whole_heads: bool = False
    all_heads: bool = False
    block_tokens: tuple[BlockTokens, ...] = ()

    @property
    def block_sizes(self) -> list[list[int]]:
        """Return the blocks as JSON: heads, their dimensions and hidden neurons of each block."""
        return [[b.num_heads, b.head_dim, b.hidden_dim] for b in self.blocks]

    @cached_property
    def tokens(self) -> int:
        """Return the length N of the sequence."""
        return self.patches + self.prefix_tokens

    @cached_property
    def heads(self) -> int:
        """Return the heads in all blocks."""
        return sum(block.num_heads for block in self.blocks)

    @cached_property
    def attention_dims(self) -> int:
        """Return the dimensions of all heads in all blocks."""
        return sum(block.num_heads * block.head_dim for block in self.blocks)

    @cached_property
    def neurons(self) -> int:
        """Return the hidden neurons in all blocks."""
        return sum(block.hidden_dim for block in self.blocks)

    @property
    def dim_macs(self) -> int:
        """Return the MACs of one dimension of one head where blocks work on all tokens."""
        return 4 * self.tokens * self.embed_dim + 2 * self.tokens**2

    @property
    def neuron_macs(self) -> int:
        """Return the MACs of one hidden neuron where blocks work on all tokens."""
        return (1 + self.fc1_rows) * self.tokens * self.embed_dim

    @property
    def fixed_macs(self) -> int:
        """Return the MACs that no ratio changes: embedding, :attr:`other_macs` and classifiers."""
        embed = self.patches * self.patch_dim * self.embed_dim
        return (
            embed
            + self.other_macs
            + self.classified_tokens * self.classifiers * self.embed_dim * self.num_classes
        )

    @cached_property
    def macs(self) -> int:
        """Return the MACs of one image."""
        if not self.block_tokens:
            attention = self.attention_dims * self.dim_macs
            return self.fixed_macs + attention + self.neurons * self.neuron_macs
        macs = self.fixed_macs
        for block, tokens in zip(self.blocks, self.block_tokens, strict=True):
            dim_macs, neuron_macs = self.unit_macs(tokens)
            macs += block.num_heads * block.head_dim * dim_macs + block.hidden_dim * neuron_macs
        return macs

    def unit_macs(self, tokens: BlockTokens) -> tuple[int, int]:
        """Return the MACs of one head dimension and of one neuron of a block.

        Args:
            tokens: The tokens that the block works on.
        """
        queries, keys, ffn = tokens
        attention = 2 * (queries + keys) * self.embed_dim + 2 * queries * keys
        return attention, (1 + self.fc1_rows) * ffn * self.embed_dim

    @property
    def params(self) -> int:
        """Return the parameters of the model."""
        attention = self.attention_dims * self.dim_params + self.heads * self.head_params
        return self.fixed_params + attention + self.neurons * self.neuron_params

    @property
    def dim_params(self) -> int:
        """Return the parameters of one dimension of one head."""
        return 3 * (self.embed_dim + self.qkv_bias) + self.embed_dim

    @property
    def neuron_params(self) -> int:
        """Return the parameters of one hidden neuron."""
        return self.embed_dim + self.fc1_rows * (self.embed_dim + self.fc1_bias)
