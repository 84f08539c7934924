"""Tests for timing models against each other."""

from __future__ import annotations

import itertools

import pytest
import torch

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.latency import timing
from vit_ratio_opt.latency.timing import TimingEffort, share_weights, time_models
from vit_ratio_opt.models.shape import shape_of
from vit_ratio_opt.space.shape import BlockShape


def test_models_that_are_timed_need_no_memory_of_their_own(tiny_vit):
    smaller = share_weights(tiny_vit, [BlockShape(2, 3, 20)] * 2)
    assert shape_of(smaller).blocks == (BlockShape(2, 3, 20),) * 2
    owned = {p.untyped_storage().data_ptr() for p in tiny_vit.parameters()}
    assert {p.untyped_storage().data_ptr() for p in smaller.parameters()} <= owned
    assert torch.isfinite(smaller(torch.randn(2, 3, 32, 32))).all()


def test_real_models_are_timed_in_turns(tiny_vit):
    models = [tiny_vit, share_weights(tiny_vit, [BlockShape(1, 1, 8)] * 2)]
    taken = time_models(models, batch=2, effort=TimingEffort(turns=1, turn_seconds=0.0))
    assert len(taken) == 2
    assert all(0 < seconds < 60 for seconds in taken)
    with pytest.raises(InputError, match="at least 1"):
        time_models([tiny_vit], batch=0)


def test_what_slows_a_machine_down_changes_no_ratio(make_vit, monkeypatch):
    models, speeds = [make_vit(), make_vit()], itertools.cycle([1.0, 1.0, 1.0, 4.0, 4.0, 4.0, 1.0])
    own = dict(zip(models, (2.0, 0.5), strict=True))
    monkeypatch.setattr(timing, "time_runs", lambda model, *rest: [own[model] * next(speeds)])
    assert time_models(models, effort=TimingEffort(least_runs=1)) == [2.0, 0.5]


def test_no_turn_begins_after_the_time_is_up(make_vit, exact_device):
    models = [make_vit(), make_vit()]
    time_models(models, effort=TimingEffort(turns=50, least_turns=3, max_seconds=0.0))
    assert len(exact_device) == 2 + 1 + 3 * 2  # once each, the reference, and three turns of two
