"""Searches with a trainer of the user's own: the same trials, saved states, and bad trainers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import optuna
import pytest
import torch
import torch.nn.functional as F
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState
from support import new_study
from timm.optim import create_optimizer_v2
from timm.scheduler.cosine_lr import CosineLRScheduler
from torch import nn

import vit_ratio_opt as vro
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.records.answer import answer_of
from vit_ratio_opt.records.trial import attribute

FEW = 256  # training images


@pytest.fixture(scope="module")
def data():
    whole = vro.load_digits()
    return replace(whole, train=whole.train.subset(torch.arange(FEW)))


@pytest.fixture
def compose(dense, data, tmp_path):
    """A search of a trainer, with a folder of its own for models."""

    def make(trainer: Any, name: str = "models", **changes: Any) -> vro.Search:
        search = vro.Search(
            dense,
            data,
            vro.Budget(0.6),
            training=trainer,
            options=vro.SearchOptions(calibration=vro.CalibrationOptions(images=64), **changes),
            run=vro.RunOptions(checkpoints=tmp_path / name, progress=False, state_every=0),
        )
        search.journal.attach = None
        return search

    return make


@pytest.fixture
def storage():
    """A database that several searches of a test open."""
    return InMemoryStorage()


def run(search: vro.Search, n_trials: int, storage: Any = None, **options: Any) -> optuna.Study:
    study = new_study(search, "s", storage=storage or InMemoryStorage(), screen=False, **options)
    search.run(study, n_trials, say=lambda line: None, explain=False)
    return study


# The built-in trainer, written out


class WrittenOut:
    """The loop of the built-in trainer, in plain PyTorch and timm."""

    metric = vro.Metric("accuracy", "%")

    def __init__(self, data: vro.ImageData, recipe: vro.Recipe) -> None:
        self.data, self.recipe, self.epochs = data, recipe, recipe.epochs

    def identity(self) -> dict[str, Any]:
        return {"loop": "written out"}

    def evaluate(self, model: nn.Module) -> float:
        return vro.evaluate(model, self.data, self.data.val)

    def train(self, model: nn.Module, context: vro.TrialContext) -> float:
        recipe, train = self.recipe, self.data.train
        pixels, labels = next(train.batches(FEW))
        images = self.data.normalise(pixels)
        with torch.inference_mode():
            targets = context.teacher.eval()(images)
        steps = recipe.epochs * -(-FEW // recipe.batch_size)
        optimizer = create_optimizer_v2(
            model, "adamw", lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True
        )
        scheduler = CosineLRScheduler(
            optimizer, steps, lr_min=recipe.lr / 100, t_in_epochs=False,
            warmup_t=round(recipe.warmup * steps), warmup_lr_init=recipe.lr / 100,
        )  # fmt: skip
        generator, step = torch.Generator().manual_seed(context.seed), 0
        for epoch in range(recipe.epochs):
            model.train()
            losses = []
            for own in torch.randperm(FEW, generator=generator).split(recipe.batch_size):
                scheduler.step_update(step)
                logits = model(images[own])
                soft, student = (
                    F.log_softmax(x / recipe.temperature, dim=1) for x in (targets[own], logits)
                )
                kl = F.kl_div(student, soft, reduction="batchmean", log_target=True)
                share = recipe.distillation
                loss = (1 - share) * F.cross_entropy(logits, labels[own])
                loss = loss + share * (kl * recipe.temperature**2)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
                optimizer.step()
                losses.append(loss.item())
                step += 1
            value = self.evaluate(model)
            context.report(epoch + 1, value, sum(losses) / len(losses))
        return value


def test_a_plain_loop_that_does_the_same_gives_the_same_trials_to_the_digit(compose, data):
    pruner = optuna.pruners.MedianPruner(n_startup_trials=1)
    recipe = vro.Recipe(epochs=2, batch_size=64, lr=3e-3)
    ours = run(compose(recipe, "ours"), 4, pruner=pruner)
    theirs = run(compose(WrittenOut(data, recipe), "theirs"), 4, pruner=pruner)
    assert len(ours.trials) == len(theirs.trials) >= 4
    same = {
        "accuracy", "accuracy_drop", "accuracy_pruned", "blocks", "epochs", "losses", "macs",
        "params", "parent_trial", "seed", "total_epochs", "weights",
    }  # fmt: skip
    for one, other in zip(ours.trials, theirs.trials, strict=True):
        assert one.params == other.params
        assert (one.state, one.value) == (other.state, other.value)
        assert one.intermediate_values == other.intermediate_values
        planned, also = (
            {k: v for k, v in trial.system_attrs.items() if not k.startswith("artifacts")}
            for trial in (one, other)
        )
        assert planned == also
        assert one.user_attrs.keys() - {"device", "training_state"} == other.user_attrs.keys()
        for name in same & one.user_attrs.keys():
            assert one.user_attrs[name] == other.user_attrs[name], name
    assert str(answer_of(ours)) == str(answer_of(theirs))
    assert {trial.state for trial in ours.trials} == {TrialState.COMPLETE, TrialState.PRUNED}


# States of a training


class Keeps:
    """A trainer that reports two epochs and saves its state in a file or a folder."""

    metric = vro.Metric("accuracy")
    loads = True

    def __init__(self, is_folder: bool = False) -> None:
        self.is_folder = is_folder
        self.ends: BaseException | None = None  # raised after the first epoch
        self.trained: list[int] = []

    def identity(self) -> dict[str, Any]:
        return {}

    def evaluate(self, model: nn.Module) -> float:
        return model.head.bias[0].item()

    def train(self, model: nn.Module, context: vro.TrialContext) -> float:
        state, done = context.state, 0
        file = state / "deep" / "state.pt" if self.is_folder else state
        if state.exists() and self.loads:
            saved = torch.load(file, weights_only=True)
            model.load_state_dict(saved["model"])
            done = saved["epoch"]
            context.on_resume()
        for epoch in range(done + 1, 3):
            if context.should_stop():
                raise SystemExit  # as frameworks do
            with torch.no_grad():
                model.head.bias.add_(1)
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.save({"model": model.state_dict(), "epoch": epoch}, file)
            self.trained.append(epoch)
            context.report(epoch, self.evaluate(model))
            if self.ends is not None:
                raise self.ends
        return self.evaluate(model)


@pytest.mark.parametrize("is_folder", [False, True])
def test_a_state_in_a_file_or_a_folder_is_kept_and_resumed(compose, storage, is_folder, tmp_path):
    straight = run(compose(Keeps(is_folder), "straight"), 1)
    trainer = Keeps(is_folder)
    search = compose(trainer)
    study = new_study(search, "s", storage=storage, screen=False)
    trainer.ends = RuntimeError("gone")
    study.optimize(search.objective, n_trials=1, catch=RuntimeError)
    trainer.ends = None
    study = run(compose(trainer), 1, storage)
    failed, resumed = study.trials
    assert failed.user_attrs["training_state"]["epoch"] == 1
    assert resumed.user_attrs["resumed_from"] == {"trial": 0, "epoch": 1}
    assert trainer.trained == [1, 2]
    assert resumed.intermediate_values == straight.trials[0].intermediate_values
    assert resumed.user_attrs["weights"] == straight.trials[0].user_attrs["weights"]
    left = [path.name for path in (tmp_path / "models" / "artifacts").glob("training-state*")]
    assert left == []


def test_a_later_save_does_not_change_what_was_kept(compose, storage, tmp_path):
    """A store may link files, and torch.save overwrites its file in place."""

    class SavesAgain(Keeps):
        def train(self, model, context):
            def report(*values):
                context.report(*values)
                context.state.write_bytes(b"half of the next")

            return super().train(model, replace(context, report=report))

    trainer = SavesAgain()
    trainer.ends = RuntimeError("gone")
    search = compose(trainer)
    study = new_study(search, "s", storage=storage, screen=False)
    study.optimize(search.objective, n_trials=1, catch=RuntimeError)
    trainer = Keeps()
    study = run(compose(trainer), 1, storage)
    assert trainer.trained == [2]
    assert "resumed_from" in study.trials[1].user_attrs


@pytest.mark.parametrize("harm", ["not loaded", "damaged"])
def test_a_state_that_is_not_loaded_costs_its_epochs_but_no_wrong_number(
    compose, storage, harm, tmp_path, caplog
):
    straight = run(compose(Keeps(), "straight"), 1)
    trainer = Keeps()
    trainer.ends = RuntimeError("gone")
    search = compose(trainer)
    study = new_study(search, "s", storage=storage, screen=False)
    study.optimize(search.objective, n_trials=1, catch=RuntimeError)
    trainer = Keeps()
    if harm == "not loaded":
        trainer.loads = False
    else:
        (path,) = (tmp_path / "models" / "artifacts").glob("training-state*")
        path.write_bytes(path.read_bytes()[:100])
    optuna.logging.enable_propagation()
    study = run(compose(trainer), 1, storage)
    optuna.logging.disable_propagation()
    assert "Trial 1 begins again: " in caplog.text
    if harm == "not loaded":
        assert "did not load the saved state" in caplog.text
    assert "resumed_from" not in study.trials[1].user_attrs
    assert study.trials[1].user_attrs["weights"] == straight.trials[0].user_attrs["weights"]
    assert study.trials[1].intermediate_values == straight.trials[0].intermediate_values


def test_a_framework_that_exits_when_asked_to_stop_ends_the_trial_as_stopped(compose, storage):
    trainer = Keeps()
    search = compose(trainer)
    study = new_study(search, "s", storage=storage, screen=False)
    search.objective.should_stop = lambda: bool(trainer.trained)
    with pytest.raises(vro.TrainingStopped):
        study.optimize(search.objective, n_trials=1)
    (stopped,) = study.trials
    assert stopped.state == TrialState.FAIL
    assert stopped.user_attrs["failure"].startswith("TrainingStopped: ")
    assert stopped.user_attrs["training_state"]["epoch"] == 1  # without losses
    assert run(compose(trainer), 1, storage).trials[1].user_attrs["resumed_from"]["epoch"] == 1
    assert trainer.trained == [1, 2]


def test_an_exit_that_nobody_asked_for_is_one(compose, storage):
    trainer = Keeps()
    trainer.ends = SystemExit(3)
    search = compose(trainer)
    study = new_study(search, "s", storage=storage, screen=False)
    with pytest.raises(SystemExit):
        study.optimize(search.objective, n_trials=1)


# Bad trainers


class Measures:
    """A trainer that does nothing but measure; tests replace its methods."""

    metric = vro.Metric("mIoU")

    def __init__(self) -> None:
        self.values = iter(range(100))

    def identity(self) -> dict[str, Any]:
        return {}

    def evaluate(self, model: nn.Module) -> Any:
        return float(next(self.values))

    def train(self, model: nn.Module, context: vro.TrialContext) -> Any:
        return self.evaluate(model)


def wrap_head(model: nn.Module, _: Any) -> float:
    model.head = nn.Sequential(model.head)
    return 1.0


BAD = {
    "None": (lambda model, context: None, InputError, "as one number, but gave None"),
    "tensor": (lambda model, _: torch.ones(3), InputError, r"a Tensor of shape \(3,\)"),
    "reported": (lambda _, context: context.report(1, None), InputError, "gave None"),
    "raises": (lambda model, context: 1 / 0, ZeroDivisionError, "division by zero"),
    "layers": (wrap_head, InputError, "the layer head was a Linear and is a Sequential"),
    "nan": (lambda model, _: float("nan"), vro.TrainingDiverged, "gave nan as the mIoU"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_trainer_costs_one_sentence_and_the_study_goes_on(compose, storage, case):
    train, kind, match = BAD[case]
    trainer = Measures()
    trainer.train = train
    search = compose(trainer)
    study = new_study(search, "s", storage=storage, screen=False)
    before = dict(study.user_attrs)
    with pytest.raises(kind, match=match):
        search.run(study, 2, say=lambda line: None, explain=False)
    assert {trial.state for trial in study.trials} <= {TrialState.FAIL, TrialState.WAITING}
    assert kind.__name__ in study.trials[0].user_attrs["failure"]
    assert study.user_attrs == before
    study = run(compose(Measures()), 1, storage)  # a mended trainer
    done = [trial for trial in study.trials if trial.state == TrialState.COMPLETE]
    assert len(done) == 1
    if kind is InputError:  # which says nothing about the pair
        assert done[0].params == study.trials[0].params


@pytest.mark.parametrize("value", [None, torch.ones(2), float("nan")])
def test_a_bad_metric_of_the_dense_model_makes_no_study(compose, storage, value):
    trainer = Measures()
    trainer.evaluate = lambda model: value
    with pytest.raises(InputError, match="`evaluate` of Measures"):
        new_study(compose(trainer), "s", storage=storage)
    assert optuna.get_all_study_names(storage) == []


def test_a_tensor_of_one_element_is_a_metric(compose):
    trainer = Measures()
    trainer.evaluate = lambda model: torch.tensor([0.25])
    (trial,) = run(compose(trainer), 1).trials
    assert trial.value == 0.25
    assert type(attribute(trial, "accuracy_pruned")) is float


def test_a_constant_metric_is_warned_about_and_the_study_ends(compose, caplog):
    trainer = Measures()
    trainer.evaluate = lambda model: 0.5
    optuna.logging.enable_propagation()
    study = run(compose(trainer), 4)
    optuna.logging.disable_propagation()
    (said,) = {record.message for record in caplog.records if "for each of" in record.message}
    assert said.startswith("The mIoU is 0.5 for the dense model and for each of 3 pruned")
    assert answer_of(study) is not None


def test_a_trainer_that_saves_nothing_costs_no_warning(compose, caplog):
    trainer = Measures()
    trainer.train = lambda model, context: context.report(1, 0.5) or 0.5
    optuna.logging.enable_propagation()
    (trial,) = run(compose(trainer), 1).trials
    optuna.logging.disable_propagation()
    assert trial.intermediate_values == {1: 0.5}
    assert "state_not_kept" not in trial.user_attrs
    assert "training state" not in caplog.text
