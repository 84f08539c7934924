"""Tests for the options of pruning."""

from __future__ import annotations

import functools
import subprocess
import sys
from typing import Any

import pytest

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.pruning.options import (
    Both,
    CalibrationOptions,
    Structural,
    Tokens,
    pruning_options,
)
from vit_ratio_opt.space.tokens import CP_VIT, LATE, CascadeRule


def score(model: object, batches: object) -> Any:
    raise NotImplementedError


def test_each_strategy_has_its_name_and_defaults() -> None:
    assert (Structural().name, Tokens().name, Both().name) == ("structural", "cascade", "both")
    assert (Tokens().rule, Both().rule) == (CP_VIT, LATE)
    for options in (Structural(), Tokens(), Both()):
        assert pruning_options(options.name) == options


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Structural(unit="dim"), "`mhsa_unit` must be 'head' or 'rank', but got 'dim'"),
        (
            lambda: Structural(allocation="some"),
            "`allocation` must be 'global', 'energy' or 'uniform'",
        ),
        (lambda: Structural(round_to=0), "`round_to` must be at least 1, but got 0"),
        (lambda: Structural(round_to=1.5), "`round_to` must be at least 1, but got 1.5"),
        (lambda: Structural(criterion=score), "scores heads and neurons, no ranks"),
        (lambda: Structural(unit="head", criterion=1), "`criterion` must be a function"),
        (lambda: Structural(unit="head", criterion=lambda *_: None), "must have a name"),
        (lambda: Structural(unit="head", criterion=functools.partial(score)), "must have a name"),
        (lambda: Tokens(rule="late"), "`rule` must be a CascadeRule"),
        (lambda: Both(rule=CascadeRule(heads=True)), "for the strategy 'cascade' only"),
        (lambda: Both(by_cascade=1.5), r"`by_cascade` must be in \[0, 1\], but got 1.5"),
        (lambda: CalibrationOptions(images=0), "`calibration_images` must be at least 1"),
    ],
)
def test_invalid_values_are_refused(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize(
    ("strategy", "given", "message"),
    [
        ("tokens", {}, "`strategy` must be one of"),
        ("structural", {"rule": LATE}, "`rule` .* is for the strategies"),
        ("structural", {"by_cascade": 0.1}, "is for the strategy 'both'"),
        ("both", {"unit": "head"}, "needs ranks and allocation 'global'"),
        ("both", {"allocation": "uniform"}, "needs ranks and allocation 'global'"),
        ("both", {"unit": "head", "criterion": score}, "needs ranks"),
        ("cascade", {"round_to": 8}, "`round_to` is for structural .* a cascade cuts no weights"),
        ("cascade", {"repair": False}, "`repair` is for structural pruning"),
        ("cascade", {"unit": "head"}, "`unit` is for structural pruning"),
        ("cascade", {"skip": ("blocks.0",)}, "`skip` is for structural pruning"),
        (
            "both",
            {"skip": ("blocks.0",)},
            "`skip` is for the strategy 'structural', not for 'both'",
        ),
        ("both", {"bounds": {"blocks.0": (0, 0.5)}}, "`bounds` is for the strategy 'structural'"),
    ],
)
def test_options_of_another_strategy_are_refused(strategy: str, given: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        pruning_options(strategy, **given)


def test_a_criterion_is_known_by_its_name() -> None:
    assert Structural(unit="head").criterion_name is None
    assert Structural(unit="head", criterion=score).criterion_name == "score"
    named = functools.partial(score)
    named.name = "tenth"  # type: ignore[attr-defined]
    assert Structural(unit="head", criterion=named).criterion_name == "tenth"


def test_options_with_bounds_are_values() -> None:
    first = Structural(skip=["blocks.0"], bounds={"blocks.1": [0, 0.5]})
    second = Structural(skip=("blocks.0",), bounds={"blocks.1": (0, 0.5)})
    assert first == second
    assert hash(first) == hash(second)


def test_options_import_no_torch() -> None:
    code = "import sys, vit_ratio_opt.pruning.options; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
