"""When a training saves its state."""

from __future__ import annotations

import pytest
import timm
import torch

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.training.context import TrialContext
from vit_ratio_opt.training.finetune import finetune
from vit_ratio_opt.training.recipe import Recipe
from vit_ratio_opt.training.save_clock import SaveClock, check_state_every
from vit_ratio_opt.training.saved_state import TrainingState

RECIPE = Recipe(epochs=3, batch_size=512, distillation=0)  # 3 steps an epoch


@pytest.fixture
def saved_steps(digits, tmp_path, monkeypatch):
    """The steps after which a training saves whose steps take a second, and the calls."""

    def run(seconds: float, **changes: object) -> list[tuple[str, int]]:
        events: list[tuple[str, int]] = []
        torch.manual_seed(0)
        model = timm.create_model(
            "vit_tiny_patch16_224", img_size=8, patch_size=4, in_chans=1, embed_dim=16, depth=1,
            num_heads=4, mlp_ratio=2.0, num_classes=10,
        )  # fmt: skip
        steps = 0

        def count(module: torch.nn.Module, _: object) -> None:
            nonlocal steps
            steps += module.training

        model.register_forward_pre_hook(count)
        original = TrainingState.save

        def save(state: TrainingState, order: torch.Tensor, progress: dict[str, float]) -> None:
            assert progress["step"] == steps
            events.append(("save", steps))
            original(state, order, progress)

        monkeypatch.setattr(TrainingState, "save", save)
        context = TrialContext(
            state=tmp_path / "state",
            should_save=SaveClock(seconds, now=lambda: steps),
            on_save=lambda: events.append(("on_save", steps)),
            report=lambda *_: events.append(("report", steps)),
        )
        vars(context).update(changes)
        finetune(model, digits, RECIPE, context)
        return events

    return run


@pytest.mark.parametrize(("seconds", "saved"), [(3, [3, 6]), (6, [6]), (9, [])])
def test_short_epochs_share_a_state_and_none_is_saved_after_the_last(saved_steps, seconds, saved):
    events = saved_steps(seconds)
    assert [step for name, step in events if name == "save"] == saved
    assert [step for name, step in events if name == "report"] == [3, 6, 9]
    assert not any(name == "on_save" for name, _ in events)  # a report follows


def test_a_long_epoch_is_saved_within_and_that_is_announced(saved_steps):
    assert saved_steps(2) == [
        ("save", 2), ("on_save", 2), ("report", 3), ("save", 4), ("on_save", 4),
        ("save", 6), ("report", 6), ("save", 8), ("on_save", 8), ("report", 9),
    ]  # fmt: skip


def test_without_a_place_nothing_asks_and_nothing_is_saved(saved_steps):
    def asks() -> bool:
        raise AssertionError

    events = saved_steps(0, state=None, should_save=asks)
    assert {name for name, _ in events} == {"report"}


def test_a_clock_counts_from_the_last_time_that_it_was_over():
    now = 0.0
    clock = SaveClock(10, now=lambda: now)
    answers = []
    for now in (5.0, 12.0, 15.0, 21.0, 22.0):  # noqa: B007
        answers.append(clock())
    assert answers == [False, True, False, False, True]
    clock.restart()
    assert not clock()


@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), True, "often"])
def test_what_is_no_number_of_seconds_is_refused(value):
    with pytest.raises(InputError, match="`state_every` must be at least 0, in seconds"):
        check_state_every(value)
