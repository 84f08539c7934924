"""The shape of a ViT, what it costs in closed form, and the pairs that a budget allows.

Pure arithmetic on the standard library, so that the search half can use it without torch.

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
of units left, whichever blocks they are left in. The unit of the FFN ratio is a neuron; that of
the MHSA ratio is a whole head, or a *rank*: one dimension of every head of a block, which is what
remains to be counted in when heads are factorised instead of removed.

A block may also work on a part of the tokens only, see :class:`BlockTokens`. With Q tokens that
attend to K tokens and F tokens in the FFN, the rows above become ``(Q + 2 K) D H d``,
``2 Q K H d``, ``Q H d D``, ``F D M`` and ``F M D``.
"""

from __future__ import annotations

import bisect
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from numbers import Real
from typing import Literal, NamedTuple, Protocol

from vit_ratio_opt.errors import InputError

__all__ = [
    "BUDGET_CONSTRAINTS",
    "COST_WORDS",
    "MIN_MHSA_UNITS",
    "MIN_NEURONS",
    "BlockShape",
    "BlockTokens",
    "Cost",
    "MhsaUnit",
    "RatioPair",
    "RatioSpace",
    "ViTShape",
    "as_pair",
    "budget_curve",
    "check_budget",
    "check_pair",
    "cost_saved",
    "curve_and_baseline",
    "evenly",
    "fixed_ratio_pair",
    "least_neurons",
    "pair_columns",
    "removed_units",
    "smallest_cost_ratio",
]

Cost = Literal["macs", "params", "latency"]
"""What a budget is a share of, and what a search with a tolerance makes least of."""

COST_WORDS: dict[Cost, str] = {"macs": "FLOPs", "params": "parameters", "latency": "latency"}
"""What people call a cost, as in "60 % of the FLOPs"."""

BUDGET_CONSTRAINTS: dict[Cost, str] = {"macs": "flops", "params": "params", "latency": "latency"}
"""What the constraint of a trial's budget is called."""

MhsaUnit = Literal["head", "rank"]
"""What ``mhsa_ratio`` counts in: whole heads, or one dimension of every head of a block."""

MIN_MHSA_UNITS = 1
"""Heads, or ranks, that every block keeps."""

MIN_NEURONS = 8
"""Hidden neurons that every block keeps (all of them where a block has fewer)."""


class RatioPair(NamedTuple):
    """Fractions of a model's attention and of its FFN that are removed, each in [0, 1)."""

    mhsa_ratio: float
    ffn_ratio: float


def as_pair(pair: Sequence[float]) -> RatioPair:
    """Return two ratios by name.

    Raises:
        InputError: They are not two.
    """
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise InputError(f"`pair` must be (mhsa_ratio, ffn_ratio), but got {pair!r:.80}.")
    return RatioPair(*pair)


@dataclass(frozen=True)
class BlockShape:
    """One block: ``num_heads`` heads of ``head_dim`` dimensions, ``hidden_dim`` FFN neurons."""

    num_heads: int
    head_dim: int
    hidden_dim: int


class BlockTokens(NamedTuple):
    """How many tokens of one image a block works on, class and other prefix tokens among them."""

    queries: int
    """Tokens that attend, and whose streams the attention changes."""
    keys: int
    """Tokens that they attend to."""
    ffn: int
    """Tokens that pass through the FFN; the streams of the others skip it."""


class RatioSpace(Protocol):
    """What the two ratios of a strategy mean: the pairs there are, and what each of them costs.

    A :class:`ViTShape` is that of structural pruning; :mod:`vit_ratio_opt.space.cascade` has
    others. Costs are MACs, but in a :class:`~vit_ratio_opt.space.costs.CostSpace`.
    """

    @property
    def cost(self) -> Cost:
        """What a pair's cost is counted in."""
        return "macs"

    @property
    def macs(self) -> int:
        """MACs of the dense model."""

    @property
    def mhsa_ratios(self) -> tuple[float, ...]:
        """Every MHSA ratio that makes a difference, rising from 0."""

    @property
    def ffn_ratios(self) -> tuple[float, ...]:
        """Every FFN ratio that makes a difference, rising from 0."""

    @property
    def max_pair(self) -> RatioPair:
        """The largest ratios that leave every block its minimum."""
        return RatioPair(self.mhsa_ratios[-1], self.ffn_ratios[-1])

    @property
    def minimum(self) -> str:
        """What every block keeps at least, in words."""

    def removed(self, pair: RatioPair) -> tuple[int, int]:
        """Whole units that the two ratios remove."""

    def pruned_macs(self, pair: RatioPair) -> int:
        """MACs that are left; they never rise with a ratio."""

    def macs_ratio(self, mhsa_ratio: float, ffn_ratio: float) -> float:
        """Fraction of the MACs that a pair leaves; raises as :meth:`removed` does."""
        return self.pruned_macs(RatioPair(mhsa_ratio, ffn_ratio)) / self.macs

    @property
    def dense_cost(self) -> int:
        """Cost of the dense model."""
        return self.macs

    def pruned_cost(self, pair: RatioPair) -> int:
        """The cost that is left; it never rises with a ratio. Raises as :meth:`removed` does."""
        return self.pruned_macs(pair)

    def cost_ratio(self, mhsa_ratio: float, ffn_ratio: float) -> float:
        """Fraction of the cost that a pair leaves; raises as :meth:`removed` does."""
        return self.pruned_cost(RatioPair(mhsa_ratio, ffn_ratio)) / self.dense_cost


@dataclass(frozen=True)
class ViTShape(RatioSpace):
    """Everything about a ViT that its MACs and parameters depend on.

    Args:
        patches: Patch tokens of one image.
        prefix_tokens: Class, distillation and register tokens.
        patch_dim: Values in one patch, ``in_chans * patch_height * patch_width``.
        embed_dim: Width D of the residual stream.
        num_classes: Outputs of one classifier, 0 for none.
        classifiers: Linear classifiers: 1, 2 with a distillation head, 0 where the classifier is
            something else.
        classified_tokens: Rows a classifier is applied to: 1, or every token without pooling.
        blocks: The blocks from the input to the output.
        fixed_params: Parameters that removing heads and neurons leaves as they are: embeddings,
            norms, LayerScale, the biases of the projection and of fc2, classifiers.
        qkv_bias: Whether qkv has biases.
        fc1_bias: Whether fc1 has biases.
        fc1_rows: Rows of fc1 for each hidden neuron: 2 where it is gated.
        other_macs: MACs of an attention pooling, of blocks for the class token alone, of mixing
            heads, and of a classifier that is not linear.
        head_params: Parameters that a head has besides those of its dimensions.
        whole_heads: Whether heads go whole or not at all, as queries and keys pass through norms
            or rotations.
        all_heads: Whether heads only get lower ranks, and all of them stay, as they are mixed.
        mhsa_unit: What an MHSA ratio of this model counts in.
        round_to: What ranks and hidden neurons that are left in a block are multiples of, wherever
            some are removed.
        block_tokens: The tokens that each block works on; all of them by default.
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
    mhsa_unit: MhsaUnit = "head"
    round_to: int = 1
    block_tokens: tuple[BlockTokens, ...] = ()

    def __post_init__(self) -> None:
        try:
            is_valid = operator.index(self.round_to) >= 1
        except TypeError:  # no whole number
            is_valid = False
        if not is_valid:
            raise InputError(f"`round_to` must be at least 1, but got {self.round_to!r:.80}.")

    @property
    def block_sizes(self) -> list[list[int]]:
        """The blocks as JSON has them: heads, their dimensions, hidden neurons of each."""
        return [[b.num_heads, b.head_dim, b.hidden_dim] for b in self.blocks]

    @cached_property
    def tokens(self) -> int:
        """Length N of the sequence."""
        return self.patches + self.prefix_tokens

    @cached_property
    def heads(self) -> int:
        """Heads in all blocks."""
        return sum(block.num_heads for block in self.blocks)

    @property
    def unit(self) -> MhsaUnit:
        """What an MHSA ratio counts in: where heads go whole, or never, whatever was wished."""
        if self.all_heads:
            return "rank"
        return "head" if self.whole_heads else self.mhsa_unit

    @cached_property
    def mhsa_units(self) -> int:
        """Heads, or ranks, in all blocks."""
        return sum(self._mhsa_units_by_block)

    @property
    def _mhsa_units_by_block(self) -> list[int]:
        if self.unit == "head":
            return [block.num_heads for block in self.blocks]
        return [block.head_dim for block in self.blocks]

    @cached_property
    def attention_dims(self) -> int:
        """Dimensions of all heads in all blocks."""
        return sum(block.num_heads * block.head_dim for block in self.blocks)

    @cached_property
    def neurons(self) -> int:
        """Hidden neurons in all blocks."""
        return sum(block.hidden_dim for block in self.blocks)

    @property
    def dim_macs(self) -> int:
        """MACs of one dimension of one head, the same in every block."""
        return 4 * self.tokens * self.embed_dim + 2 * self.tokens**2

    @property
    def neuron_macs(self) -> int:
        """MACs of one hidden neuron, the same in every block."""
        return (1 + self.fc1_rows) * self.tokens * self.embed_dim

    @property
    def fixed_macs(self) -> int:
        """MACs that no ratio changes: patch embedding, :attr:`other_macs` and classifiers."""
        embed = self.patches * self.patch_dim * self.embed_dim
        return (
            embed
            + self.other_macs
            + self.classified_tokens * self.classifiers * self.embed_dim * self.num_classes
        )

    @cached_property
    def macs(self) -> int:
        """Multiply-adds of one image."""
        if not self.block_tokens:
            attention = self.attention_dims * self.dim_macs
            return self.fixed_macs + attention + self.neurons * self.neuron_macs
        macs = self.fixed_macs
        for block, tokens in zip(self.blocks, self.block_tokens, strict=True):
            dim_macs, neuron_macs = self.unit_macs(tokens)
            macs += block.num_heads * block.head_dim * dim_macs + block.hidden_dim * neuron_macs
        return macs

    def unit_macs(self, tokens: BlockTokens) -> tuple[int, int]:
        """MACs of one dimension of a head, and of one neuron, in a block with so many tokens."""
        queries, keys, ffn = tokens
        attention = 2 * (queries + keys) * self.embed_dim + 2 * queries * keys
        return attention, (1 + self.fc1_rows) * ffn * self.embed_dim

    @property
    def params(self) -> int:
        """Parameters of the model."""
        attention = self.attention_dims * self._dim_params + self.heads * self.head_params
        return self.fixed_params + attention + self.neurons * self._neuron_params

    @property
    def _dim_params(self) -> int:
        return 3 * (self.embed_dim + self.qkv_bias) + self.embed_dim

    @property
    def _neuron_params(self) -> int:
        return self.embed_dim + self.fc1_rows * (self.embed_dim + self.fc1_bias)

    @cached_property
    def mhsa_ratios(self) -> tuple[float, ...]:
        """Every ratio that removes another number of heads, or ranks, rising from 0."""
        step = self.steps[0]
        most = sum(max(0, size - step) for size in self._mhsa_units_by_block)
        return tuple(units / self.mhsa_units for units in range(0, most + 1, step))

    @cached_property
    def ffn_ratios(self) -> tuple[float, ...]:
        """Every ratio that removes another number of neurons, rising from 0."""
        least, step = least_neurons(self.round_to), self.steps[1]
        most = sum(max(0, block.hidden_dim - least) for block in self.blocks)
        return tuple(neurons / self.neurons for neurons in range(0, most + 1, step))

    def least_dims(self, block: BlockShape) -> int:
        """Dimensions of heads that ``block`` keeps at least: one head of the lowest rank."""
        if self.whole_heads:
            return block.head_dim
        rank = min(block.head_dim, self.round_to)
        return rank * block.num_heads if self.all_heads else rank

    @property
    def minimum(self) -> str:
        """What every block keeps at least, in words."""
        return f"{MIN_MHSA_UNITS} {self.unit} and {least_neurons(self.round_to)} neurons"

    @cached_property
    def steps(self) -> tuple[int, int]:
        """Heads, or ranks, and neurons that go together, so that sizes are as ``round_to`` says.

        Ranks go in the smallest steps that come to a whole number of heads of such ranks, which is
        also what every block keeps at least. Not every sum of them can be had, so a model may come
        out smaller than its ratios say, by less than ``round_to`` ranks.
        """
        if self.unit == "head":
            return MIN_MHSA_UNITS, self.round_to
        if self.all_heads:
            return self.round_to, self.round_to
        shared = math.gcd(self.round_to, *(block.num_heads for block in self.blocks))
        return self.round_to // shared, self.round_to

    def removed(self, pair: RatioPair) -> tuple[int, int]:
        """Whole heads, or ranks, and neurons that ``pair`` removes.

        Raises:
            InputError: A ratio is outside [0, largest ratio that leaves every block its minimum].
        """
        check_pair(self, pair)
        mhsa_step, ffn_step = self.steps
        return (
            removed_units(pair.mhsa_ratio, self.mhsa_units, mhsa_step),
            removed_units(pair.ffn_ratio, self.neurons, ffn_step),
        )

    def pruned_macs(self, pair: RatioPair) -> int:
        """MACs after removing ``pair``, whichever units go.

        Raises:
            InputError: A ratio is out of range, or units cost differently from block to block.
        """
        units, neurons = self.removed(pair)
        return self.macs - units * self.mhsa_unit_macs - neurons * self.neuron_macs

    def pruned_params(self, pair: RatioPair) -> int:
        """Parameters after removing ``pair``; raises as :meth:`pruned_macs` does.

        At most so many where ranks go and heads have parameters of their own: some go whole.
        """
        units, neurons = self.removed(pair)
        attention = units * self.mhsa_unit_dims * self._dim_params
        if self.unit == "head":
            attention += units * self.head_params
        return self.params - attention - neurons * self._neuron_params

    @property
    def mhsa_unit_macs(self) -> int:
        """MACs of one head, or one rank; raises as :attr:`mhsa_unit_dims` does."""
        return self.mhsa_unit_dims * self.dim_macs

    @cached_property
    def mhsa_unit_dims(self) -> int:
        """Dimensions of one head, or one rank.

        Raises:
            InputError: They differ from block to block, so that a ratio does not fix the MACs.
        """
        name = "head_dim" if self.unit == "head" else "num_heads"
        sizes = {getattr(block, name) for block in self.blocks}
        if len(sizes) != 1:
            raise InputError(
                f"All blocks must have the same {name} for an MHSA ratio to fix the MACs, but "
                f"they have {sorted(sizes)}. Start from the dense model."
            )
        size: int = sizes.pop()
        return size


# A ratio that came out of a division must give back the count it was made from.
_SLACK = 1e-9


def removed_units(ratio: float, units: int, step: int = 1) -> int:
    """Whole units that ``ratio`` removes: rounded up, so MACs never exceed what was asked for."""
    return math.ceil((ratio * units - _SLACK * units) / step) * step


def least_neurons(round_to: int) -> int:
    """Hidden neurons that every block keeps (all of them where a block has fewer)."""
    return math.ceil(MIN_NEURONS / round_to) * round_to


def check_pair(space: RatioSpace, pair: RatioPair) -> None:
    """Refuse ratios that ``space`` does not have.

    Raises:
        InputError: A ratio is outside [0, largest ratio that leaves every block its minimum].
    """
    for name, ratio, largest in zip(RatioPair._fields, pair, space.max_pair, strict=True):
        value: object = ratio
        if isinstance(value, bool) or not isinstance(value, Real):
            raise InputError(f"`{name}` must be a number, but got {value!r:.80}.")
        if not 0 <= ratio <= largest + _SLACK:
            raise InputError(
                f"`{name}` must be in [0, {largest:.6g}] so that every block keeps at least "
                f"{space.minimum}, but got {ratio!r}."
            )


def smallest_cost_ratio(space: RatioSpace) -> float:
    """The cost fraction of the smallest realisable model: every block at its minimum."""
    return space.cost_ratio(*space.max_pair)


def check_budget(space: RatioSpace, budget: float) -> None:
    """Refuse a budget that is no fraction or that no pruned model can meet.

    Raises:
        InputError: ``budget`` is outside (0, 1] or below :func:`smallest_cost_ratio`.
    """
    word = COST_WORDS[space.cost]
    if not 0 < budget <= 1:
        raise InputError(
            f"The budget must be in (0, 1], a fraction of the dense model's {word}, "
            f"but got {budget!r}."
        )
    smallest = smallest_cost_ratio(space)
    if budget < smallest:
        # Rounded up, so that the number we name can be typed back in.
        shown = math.ceil(smallest * 1e4) / 1e4
        raise InputError(
            f"The budget must be at least {shown:.4f}: the smallest realisable model "
            f"({space.minimum} in every block) needs that share of the dense model's {word}, but "
            f"got {budget!r}."
        )


def budget_curve(space: RatioSpace, budget: float) -> tuple[RatioPair, ...]:
    """The pairs that use up ``budget``, from the least to the most attention pruned.

    For every MHSA ratio there is one smallest FFN ratio to go with it; any other pair within the
    budget prunes more than one of these without need. The pairs are exact: ``removed(pair)`` gives
    back the counts, and the next smaller FFN ratio exceeds the budget.

    Args:
        space: Of the dense model: its shape, for structural pruning.
        budget: Largest fraction of the cost allowed, in (0, 1].

    Returns:
        At least one pair; ``mhsa_ratio`` rises and ``ffn_ratio`` falls along the curve.

    Raises:
        InputError: See :func:`check_budget`.
    """
    check_budget(space, budget)
    allowed = _largest_cost(space.dense_cost, budget)
    ffn_ratios = space.ffn_ratios
    curve = []
    for mhsa_ratio in space.mhsa_ratios:
        least = _first_within(ffn_ratios, allowed, partial(_cost_in_column, space, mhsa_ratio))
        if least < len(ffn_ratios):
            curve.append(RatioPair(mhsa_ratio, ffn_ratios[least]))
        if least == 0:  # more attention would go without need
            break
    return tuple(curve)


def fixed_ratio_pair(space: RatioSpace, budget: float) -> RatioPair:
    """The smallest single ratio, used for both modules, that meets ``budget``: the baseline.

    Raises:
        InputError: See :func:`check_budget`; or one ratio alone cannot meet the budget, because
            the module that has less to give is at its minimum.
    """
    check_budget(space, budget)
    allowed = _largest_cost(space.dense_cost, budget)
    ratios = _fixed_ratios(space)
    least = _first_within(
        ratios, allowed, lambda ratio: space.pruned_cost(RatioPair(ratio, ratio))
    )
    if least < len(ratios):
        return RatioPair(ratios[least], ratios[least])
    smallest = space.cost_ratio(ratios[-1], ratios[-1])
    raise InputError(
        f"One fixed ratio for both modules reaches at best {math.ceil(smallest * 1e4) / 1e4:.4f} "
        f"of the dense model's {COST_WORDS[space.cost]} (at ratio {ratios[-1]:.4f}), but the "
        f"budget is {budget!r}."
    )


def curve_and_baseline(
    space: RatioSpace, budget: float
) -> tuple[tuple[RatioPair, ...], RatioPair | None]:
    """Return the budget's curve and the fixed ratio's pair, which it should beat.

    Where a pair of the curve removes the same units as the fixed ratio, the fixed ratio's pair
    takes its place: otherwise one model would count as two. The baseline is None where one ratio
    alone cannot meet the budget.

    Raises:
        InputError: See :func:`check_budget`.
    """
    curve = budget_curve(space, budget)
    try:
        fixed = fixed_ratio_pair(space, budget)
    except InputError:
        return curve, None
    removed = space.removed(fixed)
    return tuple(fixed if space.removed(pair) == removed else pair for pair in curve), fixed


def cost_saved(space: RatioSpace, points: int = 33) -> dict[str, list[list[float]]]:
    """What each ratio alone saves, for drawing lines of equal cost without the model.

    The savings of the two modules add up, in every strategy.

    Args:
        space: Of the dense model.
        points: Ratios of each module at the most.

    Returns:
        For ``mhsa_ratio`` and ``ffn_ratio``, rising pairs of a ratio and the share of the dense
        model's cost that it saves.
    """
    saved = {}
    for axis, name in enumerate(RatioPair._fields):
        chosen = evenly((space.mhsa_ratios, space.ffn_ratios)[axis], points)
        pairs = [RatioPair(r, 0.0) if axis == 0 else RatioPair(0.0, r) for r in chosen]
        saved[name] = [
            [round(ratio, 6), round(1 - space.pruned_cost(pair) / space.dense_cost, 6)]
            for ratio, pair in zip(chosen, pairs, strict=True)
        ]
    return saved


def evenly(ratios: Sequence[float], points: int) -> list[float]:
    """At most so many of the ratios, the first and the last among them."""
    steps = min(points, len(ratios)) - 1
    return [ratios[round(i * (len(ratios) - 1) / max(1, steps))] for i in range(steps + 1)]


def pair_columns(
    space: RatioSpace, *, fixed_ratio: bool = False
) -> tuple[tuple[float, tuple[float, ...]], ...]:
    """All pairs to the unit: for each MHSA ratio, rising, the FFN ratios, rising.

    Args:
        space: Of the dense model: its shape, for structural pruning.
        fixed_ratio: Only pairs of two equal ratios, one for each step that removes another unit.
    """
    if fixed_ratio:
        return tuple((ratio, (ratio,)) for ratio in _fixed_ratios(space))
    return tuple((mhsa_ratio, space.ffn_ratios) for mhsa_ratio in space.mhsa_ratios)


def _fixed_ratios(space: RatioSpace) -> list[float]:
    largest = min(space.max_pair) + _SLACK
    return sorted(ratio for ratio in {*space.mhsa_ratios, *space.ffn_ratios} if ratio <= largest)


def _cost_in_column(space: RatioSpace, mhsa_ratio: float, ffn_ratio: float) -> int:
    return space.pruned_cost(RatioPair(mhsa_ratio, ffn_ratio))


def _first_within(ratios: Sequence[float], allowed: int, cost_of: Callable[[float], int]) -> int:
    """Index of the first of the rising ratios that leaves at most so much of the cost."""
    return bisect.bisect_left(ratios, -allowed, key=lambda ratio: -cost_of(ratio))


def _largest_cost(dense: int, budget: float) -> int:
    """The largest count that ``count / dense <= budget`` accepts, in floating point."""
    allowed = math.floor(budget * dense)
    while (allowed + 1) / dense <= budget:
        allowed += 1
    while allowed / dense > budget:
        allowed -= 1
    return allowed
