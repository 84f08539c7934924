"""How often the state of a trial's training is kept in the store."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from support import make_search, new_study

from vit_ratio_opt.runs.artifacts import ArtifactFolder
from vit_ratio_opt.runs.lineage import (
    keep_state,
    remove_states,
    state_artifact,
    state_artifacts,
)
from vit_ratio_opt.runs.saving import StateKeeper
from vit_ratio_opt.training.context import TrainingDiverged, TrialContext
from vit_ratio_opt.training.recipe import Recipe
from vit_ratio_opt.training.save_clock import SaveClock


class Store:
    """A journal that only notes for which epochs it is asked to keep a state."""

    def __init__(self) -> None:
        self.epochs: list[int] = []

    def save_state(self, trial: Any, path: Path | None, *, epoch: int) -> None:
        self.epochs.append(epoch)


@pytest.fixture
def make(monkeypatch):
    """The keeper of a trial of 4 epochs, what it keeps, and a clock that is set by hand."""

    def make_one(seconds: float) -> tuple[TrialContext, StateKeeper, list[int], list[float]]:
        trial, journal, now = optuna.create_study().ask(), Store(), [0.0]
        context = TrialContext(
            state=Path("state"), report=lambda epoch, value, *_: trial.report(value, epoch)
        )
        clock = lambda seconds: SaveClock(seconds, now=lambda: now[0])  # noqa: E731
        monkeypatch.setattr("vit_ratio_opt.runs.saving.SaveClock", clock)
        keeper = StateKeeper(journal, trial, context, seconds=seconds, epochs=4)
        return keeper.context, keeper, journal.epochs, now

    return make_one


def test_a_trainer_that_never_asks_has_a_state_kept_when_the_seconds_are_over(make):
    context, _, kept, now = make(seconds=20)
    for epoch in (1, 2, 3, 4):
        now[0] = 15.0 * epoch
        context.report(epoch, 0.5)
    assert kept == [2]  # at 30 s; not the last, at 60 s


def test_a_trainer_that_asks_has_those_kept_that_it_has_saved(make):
    context, _, kept, now = make(seconds=20)
    now[0] = 25.0
    assert context.should_save()  # before a step: it saves, and says so
    context.on_save()
    now[0] = 44.0
    assert not context.should_save()
    now[0] = 46.0  # over by now, but what lies there is the state of the first epoch's middle
    context.report(1, 0.5)
    assert context.should_save()
    context.report(2, 0.5)
    assert kept == [0, 2]


def test_a_stopped_training_is_kept_whatever_the_time(make):
    context, keeper, kept, _ = make(seconds=1000)
    context.report(1, 0.5)
    keeper.keep()
    assert kept == [1]


def test_a_trial_that_fails_within_an_epoch_resumes_there(few_digits, dense, memory, tmp_path):
    """Its state before its last step is in the store: only that one is made again."""

    def make_one(**changes: Any) -> Any:
        search = make_search(
            dense, few_digits, budget=0.6, recipe=Recipe(epochs=2, batch_size=128),
            checkpoints=tmp_path / "models", calibration_images=64, progress=False,
            state_every=0, **changes,
        )  # fmt: skip
        search.journal.attach = None
        return search

    straight = new_study(make_one(), "straight", storage=memory, screen=False)
    straight.optimize(make_one().objective, n_trials=1)
    search, steps = make_one(), iter(range(100))

    def fails() -> bool:
        if next(steps) == 3:
            raise RuntimeError("gone")
        return False

    search.objective.should_stop = fails
    study = new_study(search, "s", storage=memory, screen=False)
    study.optimize(search.objective, n_trials=1, catch=RuntimeError)
    again = make_one()
    asked: list[None] = []
    again.objective.should_stop = lambda: bool(asked.append(None))
    study.sampler = new_study(again, "s", storage=memory, screen=False).sampler
    study.optimize(again.objective, n_trials=1)
    failed, resumed = study.trials
    assert failed.state == TrialState.FAIL
    per_epoch = -(-len(few_digits.train) // 128)
    done = failed.user_attrs["training_state"]["epoch"]
    assert done == 2 // per_epoch
    assert len(asked) == 2 * per_epoch - 2
    assert resumed.user_attrs["resumed_from"] == {"trial": 0, "epoch": done}
    for name in ("accuracy", "losses", "weights"):
        assert resumed.user_attrs[name] == straight.trials[0].user_attrs[name], name
    assert resumed.intermediate_values == straight.trials[0].intermediate_values
    assert replace(search.run_options, state_every=7).state_every == 7.0


# What is left in the store


def states_in(folder: Path) -> set[str]:
    return {path.name for path in (folder / "artifacts").glob("training-state-*")}


@pytest.fixture
def trained(few_digits, dense, memory, tmp_path):
    """A search of trainings that save each step, and its study."""
    search = make_search(
        dense, few_digits, budget=0.6, recipe=Recipe(epochs=2, batch_size=128),
        checkpoints=tmp_path / "models", calibration_images=64, progress=False, state_every=0,
    )  # fmt: skip
    search.journal.attach = None
    return search, new_study(search, "s", storage=memory, screen=False)


def interrupt(search: Any, study: optuna.Study, error: BaseException, *, after: int) -> None:
    """Run a trial that ends in its training."""
    steps = iter(range(1000))

    def fails() -> bool:
        if next(steps) == after:
            raise error
        return False

    search.objective.should_stop = fails
    study.optimize(search.objective, n_trials=1, catch=(RuntimeError, TrainingDiverged))
    search.objective.should_stop = None


def test_a_kill_at_any_moment_leaves_no_state_that_the_trial_does_not_name(tmp_path, memory):
    class Killed(BaseException):
        pass

    class Store(ArtifactFolder):
        kills = ""

        def write(self, *arguments: Any) -> None:
            super().write(*arguments)
            if self.kills == "after the upload":
                raise Killed

    folder, state = tmp_path / "models" / "artifacts", tmp_path / "state"
    state.write_bytes(b"state")
    for moment in ("after the upload", "before the removal"):
        store, trial = Store(folder), optuna.create_study(storage=memory).ask()
        for epoch in (1, 2, 3):
            keep_state(trial, state, store, epoch=epoch)
            assert len(states_in(folder.parent)) == 1
        with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Killed):
            store.kills = moment
            patch.setattr("vit_ratio_opt.runs.lineage.remove_states", lambda *_: None)
            keep_state(trial, state, store, epoch=4)
        assert len(states_in(folder.parent)) == 2
        assert states_in(folder.parent) == set(state_artifacts(trial))
        store.kills = ""
        keep_state(trial, state, store, epoch=5)  # the next attempt takes the same name
        assert states_in(folder.parent) <= set(state_artifacts(trial))
        remove_states(state_artifacts(trial), store)
        assert not states_in(folder.parent)


def test_only_the_state_that_was_resumed_and_the_own_one_are_in_the_store(trained, tmp_path):
    search, study = trained
    for after in (2, 3, 4):
        interrupt(search, study, RuntimeError("gone"), after=after)
        assert len(states_in(tmp_path / "models")) <= 2


def test_no_state_outlives_a_training_that_diverged_or_that_a_pruner_ended(trained, tmp_path):
    search, study = trained
    for error in (TrainingDiverged("nan"), optuna.TrialPruned()):
        interrupt(search, study, RuntimeError("gone"), after=3)
        assert states_in(tmp_path / "models")
        interrupt(search, study, error, after=3)
        search.journal.discard_spent_states()  # as before the next trial
        assert not states_in(tmp_path / "models")


def test_what_a_worker_left_that_was_killed_between_two_trials_is_removed_in_the_end(
    trained, tmp_path, memory
):
    search, study = trained
    interrupt(search, study, RuntimeError("gone"), after=3)
    study.optimize(search.objective, n_trials=1)
    done = study.trials[1]
    assert "resumed_from" in done.user_attrs
    search.journal._spent_states = []  # its memory
    assert states_in(tmp_path / "models")
    again = new_study(search, "s", storage=memory, screen=False)
    search.run(again, 1, say=lambda line: None, explain=False)
    assert not states_in(tmp_path / "models")
    # A state that a later training resumes from stays.
    interrupt(search, study, RuntimeError("gone"), after=3)
    search.run(again, 1, say=lambda line: None, explain=False)
    assert states_in(tmp_path / "models") == {state_artifact(study.trials[-1])}
