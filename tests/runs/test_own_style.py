"""Studies with a training loop of the user's own: in Optuna's style, and as a trainer."""

from __future__ import annotations

import itertools
from typing import Any

import optuna
import pytest
import torch
from optuna.storages import InMemoryStorage
from optuna.study import Study, StudyDirection
from optuna.trial import TrialState
from support import new_study
from torch import nn

import vit_ratio_opt as vro
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.records.answer import answer_of
from vit_ratio_opt.records.study import record_of
from vit_ratio_opt.records.trials import finished_trials
from vit_ratio_opt.report.html import html_page
from vit_ratio_opt.report.notes import study_note, trial_note
from vit_ratio_opt.report.rows import build_report
from vit_ratio_opt.report.trial_rows import trial_rows
from vit_ratio_opt.utils.text import csv_text

LIMIT = vro.Budget(0.6)


def make_dense() -> nn.Module:
    torch.manual_seed(0)
    return vro.create_model(
        "vit_tiny_patch16_224", img_size=8, patch_size=4, in_chans=1, embed_dim=32, depth=2,
        num_heads=4, mlp_ratio=2.0, num_classes=10,
    )  # fmt: skip


class Task:
    """Images on this device, and a training loop that knows nothing of this package."""

    def __init__(self) -> None:
        data, cpu = vro.load_digits(), torch.device("cpu")
        few = data.train.subset(torch.arange(256))
        self.train_batches = list(data.batches(few, 64, cpu))
        self.val_batches = list(data.batches(data.val.subset(torch.arange(128)), 128, cpu))

    def accuracy(self, model: nn.Module) -> float:
        model.eval()
        with torch.inference_mode():
            right = [(model(x).argmax(1) == y).float() for x, y in self.val_batches]
        return 100 * float(torch.cat(right).mean())

    def train(self, model: nn.Module, lr: float) -> float:
        optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        model.train()
        for x, y in self.train_batches:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        return self.accuracy(model)


@pytest.fixture(scope="module")
def task() -> Task:
    return Task()


@pytest.fixture(scope="module")
def pruner(task) -> vro.Pruner:
    return vro.Pruner(make_dense(), task.train_batches[:1])


# In Optuna's style


def open_study(pruner: vro.Pruner, storage: Any, limit: Any = LIMIT, name: str = "own") -> Study:
    """The second example of the README, which creates its study or goes on with it."""
    return optuna.create_study(
        study_name=name,
        direction="minimize" if isinstance(limit, vro.Tolerance) else "maximize",
        sampler=vro.BinarySearchSampler(pruner.space, limit),
        storage=storage,
        load_if_exists=True,
    )


def make_objective(pruner: vro.Pruner, task: Task) -> Any:
    def objective(trial: optuna.Trial) -> float:
        model = pruner.suggest(trial, LIMIT)
        return task.train(model, lr=trial.suggest_float("lr", 1e-3, 1e-1, log=True))

    return objective


def pairs_of(study: Study) -> list[tuple[float, float]]:
    return [(t.params["mhsa_ratio"], t.params["ffn_ratio"]) for t in study.trials]


@pytest.fixture(scope="module")
def own(pruner, task, tmp_path_factory) -> Study:
    """A study of four trials in two runs of the script."""
    url = f"sqlite:///{tmp_path_factory.mktemp('own') / 'study.db'}"
    for _ in range(2):
        study = open_study(pruner, url)
        study.optimize(make_objective(pruner, task), n_trials=2)
    return study


def test_an_objective_of_ones_own_is_searched_and_resumed(own, pruner):
    assert [trial.state for trial in own.trials] == [TrialState.COMPLETE] * 4
    assert len(set(pairs_of(own))) == 4
    assert len({trial.params["lr"] for trial in own.trials}) == 4
    for trial in own.trials:
        pair = vro.RatioPair(trial.params["mhsa_ratio"], trial.params["ffn_ratio"])
        model = pruner.prune(pair)
        assert trial.user_attrs["macs"] == vro.shape_of(model).macs
        assert trial.user_attrs["params"] == vro.shape_of(model).params
        assert trial.user_attrs["macs_ratio"] <= 0.6
        assert trial.constraints["flops"] <= 0
    first = vro.RatioPair(*pairs_of(own)[0])
    assert first.mhsa_ratio == pytest.approx(first.ffn_ratio, abs=0.05)  # the fixed ratio


def test_its_answer_is_that_of_its_sampler_and_shown_everywhere(own):
    answer = answer_of(own)
    assert answer.found.pair == own.sampler.answer(own)
    assert "% of the FLOPs" in str(answer)
    rows = build_report([own])["rows"]
    assert [row["name"] for row in rows] == ["dense", "fixed", "searched"]
    assert rows[-1]["trial"] == answer.found.trial.number
    (page, note) = html_page([own]), study_note(own)
    for text in (page, note):
        assert f"trial {answer.found.trial.number}" in text
        assert "None" not in text.replace("None yet", "")
    assert "lr" in trial_note(own, own.trials[0])
    header, *lines = csv_text(trial_rows(own)).splitlines()
    assert {"mhsa_ratio", "ffn_ratio", "macs", "params"} <= set(header.split(","))
    assert len(lines) == 4


def test_a_pair_over_the_budget_ends_before_anything_is_pruned(pruner, task, monkeypatch):
    study = open_study(pruner, InMemoryStorage())
    study.enqueue_trial({"mhsa_ratio": 0.0, "ffn_ratio": 0.0})
    monkeypatch.setattr(pruner, "prune", None)
    study.optimize(make_objective(pruner, task), n_trials=1)
    (trial,) = study.trials
    assert trial.state == TrialState.PRUNED
    assert trial.constraints["flops"] == pytest.approx(0.4)
    assert "lr" not in trial.params
    assert finished_trials(study) == []


def _run_script(url: str, trials: int) -> None:
    task = Task()
    pruner = vro.Pruner(make_dense(), task.train_batches[:1])
    open_study(pruner, url).optimize(make_objective(pruner, task), n_trials=trials)


def test_two_processes_repeat_no_pair(start, pruner, url, tmp_path):
    open_study(pruner, url)
    processes = [start(_run_script, url, 2) for _ in range(2)]
    for process in processes:
        process.join(180)
        assert process.exitcode == 0, (tmp_path / "log").read_text()[-2000:]
    study = open_study(pruner, url)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 4
    assert len(set(pairs_of(study))) == 4
    assert answer_of(study).found.pair == study.sampler.answer(study)


@pytest.mark.parametrize("loss", [0.5, 10.0])
def test_with_a_tolerance_a_result_is_the_cost_or_pruned(pruner, loss):
    limit = vro.Tolerance(2.0)

    def objective(trial):
        model = pruner.suggest(trial, limit)
        assert vro.shape_of(model).macs == trial.user_attrs["macs"]
        return pruner.result(trial, limit, 80.0 - loss, dense_value=80.0)

    study = open_study(pruner, InMemoryStorage(), limit)
    study.optimize(objective, n_trials=2)
    for trial in study.trials:
        assert trial.user_attrs["accuracy"] == 80.0 - loss
        assert trial.user_attrs["accuracy_drop"] == loss
        assert trial.constraints["accuracy_drop"] == loss - 2.0
        if loss > 2.0:
            assert trial.state == TrialState.PRUNED
        else:
            assert trial.value == trial.user_attrs["macs_ratio"]
    answer = answer_of(study)
    assert (answer.found is None) == (loss > 2.0)
    assert "Tolerance" not in html_page([study])
    assert "2 points" in study_note(study)


def test_for_a_frontier_a_result_is_metric_and_cost(pruner, task):
    limit, dense_value = vro.Frontier(levels=4), 80.0

    def objective(trial):
        model = pruner.suggest(trial, limit)
        kept = vro.shape_of(model).macs / vro.shape_of(pruner.dense).macs
        return pruner.result(trial, limit, dense_value - 20 * (1 - kept) ** 2, dense_value)

    def study_of(directions):
        sampler = vro.BinarySearchSampler(pruner.space, limit, dense=dense_value)
        return optuna.create_study(directions=directions, sampler=sampler)

    study = study_of(["maximize", "minimize"])
    study.optimize(objective, n_trials=5)
    for trial in study.trials:
        assert trial.values == [trial.user_attrs["accuracy"], trial.user_attrs["macs_ratio"]]
    record, answer = record_of(study), answer_of(study)
    assert record.limit.frontier == 4
    assert record.has_frontier
    assert answer.dense_accuracy == dense_value
    costs = [candidate.cost_ratio for candidate in answer.front]
    assert costs == sorted(set(costs))
    assert answer.at(budget=0.7).found.cost_ratio == max(c for c in costs if c <= 0.7)
    assert answer.at(tolerance=19.0).found.accuracy > 61.0
    assert "the frontier of accuracy and FLOPs" in study_note(study)
    with pytest.raises(ValueError, match=r"create it with `directions=\['maximize', 'minimize'"):
        study_of(["maximize"]).optimize(objective, n_trials=1)
    with pytest.raises(InputError, match=r"create it with `directions=\['maximize', 'minimize'"):
        study_of(["maximize", "maximize"]).optimize(objective, n_trials=1)


def test_within_a_budget_a_result_is_the_accuracy(pruner):
    study = open_study(pruner, InMemoryStorage())
    trial = study.ask()
    pruner.suggest(trial, LIMIT)
    assert pruner.result(trial, LIMIT, 70.0, dense_value=80.0) == 70.0
    assert trial.user_attrs["accuracy_drop"] == 10.0


# A trainer of one's own in a search


class Mine:
    """A trainer that imports nothing of this package but the class of its metric."""

    metric = vro.Metric("mean recall", "points")
    device = torch.device("cpu")

    def __init__(self, task: Task, lr: float = 0.05, epochs: int = 2) -> None:
        self.task, self.lr, self.epochs = task, lr, epochs
        self.stop_after: int | None = None
        self.trained: list[tuple[int, ...]] = []

    def identity(self) -> dict[str, Any]:
        return {"name": "mine", "lr": self.lr}

    def evaluate(self, model: nn.Module) -> float:
        return self.task.accuracy(model)

    def train(self, model: nn.Module, context: vro.TrialContext) -> float:
        torch.manual_seed(context.seed)
        first = 1
        if context.state is not None and context.state.exists():
            saved = torch.load(context.state, weights_only=True)
            model.load_state_dict(saved["model"])
            first = saved["epoch"] + 1
            context.on_resume()
        self.trained.append(tuple(range(first, self.epochs + 1)))
        for epoch in range(first, self.epochs + 1):
            value = self.task.train(model, self.lr)
            if context.state is not None:
                torch.save({"model": model.state_dict(), "epoch": epoch}, context.state)
            context.report(epoch, value, 1.0 / epoch)
            if epoch == self.stop_after:
                raise KeyboardInterrupt
        return value


def compose(
    task: Task, trainer: Any, folder: Any = None, limit: Any = LIMIT, *, attach: bool = False
) -> vro.Search:
    search = vro.Search(
        make_dense(),
        task.train_batches[:1],
        limit,
        training=trainer,
        run=vro.RunOptions(checkpoints=folder, progress=False, state_every=0),
    )
    if not attach:  # drawing a training takes longer than the training
        search.journal.attach = None
    return search


def run(search: vro.Search, study: Study, n_trials: int) -> list[str]:
    said: list[str] = []
    search.run(study, n_trials, say=said.append)
    return said


def test_a_trainer_of_ones_own_is_searched_resumed_and_reported(task, tmp_path, url):
    search = compose(task, Mine(task), tmp_path / "models", attach=True)
    study = search.create_study("s", storage=url)
    run(search, study, 1)
    again = compose(task, Mine(task), tmp_path / "models")
    study = again.create_study("s", storage=url)
    said = run(again, study, 3)
    assert any("1 of 3 trials are done" in line for line in said)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 3
    assert len(set(pairs_of(study))) == 3
    assert study.trials[0].intermediate_values.keys() == {1, 2}
    assert study.trials[0].user_attrs["losses"] == [1.0, 0.5]
    assert study.metric_names == ["mean recall"]
    assert study.user_attrs["settings"]["trainer"] == {"name": "mine", "lr": 0.05}
    answer = again.answer(study)
    model = answer.load_model()
    found = answer.found.trial
    assert task.accuracy(model) == pytest.approx(found.user_attrs["metric"])
    for text in (html_page([study]), study_note(study), str(answer), " ".join(said)):
        assert "mean recall" in text
        assert "None" not in text.replace("None yet", "")
    rows = build_report([study])["rows"]
    assert rows[-1]["trial"] == found.number
    assert len(trial_rows(study)) == 3


def test_another_identity_of_a_trainer_is_another_study(task, url):
    compose(task, Mine(task)).create_study("s", storage=url)
    with pytest.raises(InputError, match=r"other settings: trainer\.lr is 0\.05, not 0\.1"):
        compose(task, Mine(task, lr=0.1)).create_study("s", storage=url)
    with pytest.raises(InputError, match="a custom trainer: run the script"):
        vro.load_search("s", url)


def test_a_trainers_own_state_is_kept_and_resumed(task, tmp_path, memory):
    whole = compose(task, Mine(task), tmp_path / "whole")
    straight = new_study(whole, "straight", storage=memory, screen=False)
    straight.optimize(whole.objective, n_trials=1)
    trainer = Mine(task)
    trainer.stop_after = 1
    search = compose(task, trainer, tmp_path / "models")
    study = new_study(search, "s", storage=memory, screen=False)
    with pytest.raises(KeyboardInterrupt):
        study.optimize(search.objective, n_trials=1)
    trainer.stop_after = None
    study.optimize(search.objective, n_trials=1)
    stopped, resumed = study.trials
    assert stopped.state == TrialState.FAIL
    assert resumed.user_attrs["resumed_from"] == {"trial": 0, "epoch": 1}
    assert trainer.trained == [(1, 2), (2,)]
    assert resumed.value == straight.trials[0].value
    assert resumed.intermediate_values == straight.trials[0].intermediate_values
    assert resumed.user_attrs["losses"] == [1.0, 0.5]


def test_the_test_images_of_a_trainer_are_its_own(task, tmp_path, memory):
    trainer = Mine(task)
    search = compose(task, trainer, tmp_path / "models")
    study = new_study(search, "s", storage=memory, screen=False)
    run(search, study, 1)
    with pytest.raises(InputError, match=r"no test data: give it a method `test\(model\)`"):
        search.test(study)
    counted = itertools.count(40)
    trainer.test = lambda model: next(counted)  # type: ignore[attr-defined]
    dense, answer = 40.0, 41.0
    assert search.test(study) == answer
    assert search.test(study) == answer
    assert study.user_attrs["tested"]["dense"] == dense


def test_with_a_tolerance_a_trainer_is_asked_for_what_is_lost(task, memory):
    search = compose(task, Mine(task, epochs=0), limit=vro.Tolerance(5.0))
    study = new_study(search, "s", storage=memory, screen=False)
    run(search, study, 2)
    dense = task.accuracy(search.dense)
    assert search.dense_accuracy == dense
    for trial in study.trials:
        lost = dense - trial.user_attrs["metric"]
        assert trial.user_attrs["metric_loss"] == lost
        assert trial.constraints["mean_recall_drop"] == lost - 5.0


class Error(Mine):
    """The share of wrong images: smaller is better."""

    metric = vro.Metric("error", larger_is_better=False)

    def evaluate(self, model: nn.Module) -> float:
        return 1 - self.task.accuracy(model) / 100

    def train(self, model: nn.Module, context: vro.TrialContext) -> float:
        super().train(model, context)
        return self.evaluate(model)


def test_the_smallest_value_is_the_best_where_smaller_is_better(task, url):
    search = compose(task, Error(task, epochs=0))
    study = search.create_study("s", storage=url)
    said = " ".join(run(search, study, 4))
    assert study.direction == StudyDirection.MINIMIZE
    screened = {(first, second): value for first, second, value in study.user_attrs["screened"]}
    assert min(screened, key=screened.__getitem__) in pairs_of(study)[:2]
    answer = search.answer(study)
    best = min(trial.value for trial in study.trials)
    assert answer.found.own_accuracies[0] == pytest.approx(best)
    assert answer.found.own_accuracies[0] == answer.found.trial.user_attrs["metric"]
    assert answer.found.pair == study.sampler.answer(study)
    for text in (html_page([study]), study_note(study), str(answer), said):
        assert "error" in text
        assert "accuracy" not in text.lower().replace("accuracy-against", "")


def test_a_tolerance_is_in_the_unit_of_a_metric_that_is_better_when_smaller(task, url):
    search = compose(task, Error(task, epochs=0), limit=vro.Tolerance(0.05))
    study = new_study(search, "s", storage=url, screen=False)
    run(search, study, 3)
    for trial in study.trials:
        risen = trial.user_attrs["metric"] - search.dense_accuracy
        assert trial.user_attrs["metric_loss"] == pytest.approx(risen)
        assert trial.constraints["error_rise"] == pytest.approx(risen - 0.05)
        assert (trial.state == TrialState.PRUNED) == (risen > 0.05)
    answer = search.answer(study)
    for candidate in [answer.found] if answer.found else []:
        assert candidate.accuracy <= search.dense_accuracy + 0.05
    assert "error at most 0.05 higher than the dense model's" in study_note(study)


def test_a_recipe_needs_images_with_labels(task):
    with pytest.raises(InputError, match="Training by a recipe needs `data`"):
        compose(task, vro.Recipe())


def test_a_study_that_would_call_the_worst_pair_the_best_is_refused(pruner):
    study = optuna.create_study(sampler=vro.BinarySearchSampler(pruner.space, LIMIT))
    with pytest.raises(InputError, match=r"direction 'minimize'.* `direction='maximize'`"):
        study.optimize(lambda trial: float(pruner.suggest(trial, LIMIT) is None), n_trials=1)
    others = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    with pytest.raises(InputError, match="a smaller value is better, give"):
        pruner.suggest(others.ask(), LIMIT)


def test_a_loss_is_minimised_where_the_metric_says_so(pruner):
    metric = vro.Metric("loss", larger_is_better=False, noise=0.01)
    sampler = vro.BinarySearchSampler(pruner.space, LIMIT, metric=metric)
    study = optuna.create_study(sampler=sampler)

    def objective(trial):
        pruner.suggest(trial, LIMIT)
        value = abs(trial.params["mhsa_ratio"] - 0.3)
        return pruner.result(trial, LIMIT, value, 0.0)

    study.optimize(objective, n_trials=8)
    found = answer_of(study).found
    assert found.pair == study.sampler.answer(study)
    assert abs(found.pair[0] - 0.3) < 0.1
    assert found.accuracy < 0.1
    assert "validation loss expected" in str(answer_of(study))


def test_another_learning_rate_is_no_certainty(pruner):
    """Two trainings of a pair that differ by points leave doubts about all pairs."""
    study = open_study(pruner, InMemoryStorage())
    values = iter([93.0, 97.0, 90.0, 96.5, 96.0, 92.0])

    def objective(trial):
        pruner.suggest(trial, LIMIT)
        return next(values)

    study.optimize(objective, n_trials=2)
    best = study.best_params
    study.enqueue_trial(best)
    study.optimize(objective, n_trials=2)
    answer = answer_of(study)
    assert answer.found.error > 0.5
    assert 0.5 < answer.found.probability < 0.99


def test_accuracies_may_be_fractions(pruner):
    """The pairs and the answer are those of the same accuracies in per cent."""
    found = []
    for unit in (1.0, 100.0):
        study = open_study(pruner, InMemoryStorage())

        def objective(trial, unit=unit):
            pruner.suggest(trial, LIMIT)
            return unit * (0.9 - (trial.params["mhsa_ratio"] - 0.4) ** 2)

        study.optimize(objective, n_trials=6)
        candidate = answer_of(study).found
        found.append((pairs_of(study), candidate.pair, round(candidate.error / unit, 9)))
    assert found[0] == found[1]
    assert 0 < found[0][2] < 0.01


def test_own_style_refuses_a_study_of_other_sizes_and_keeps_an_earlier_one(monkeypatch):
    images = [torch.randn(4, 1, 8, 8)]

    def suggest(study, **options):
        return vro.Pruner(make_dense(), images, **options).suggest(study.ask(), LIMIT)

    def study_of(pruner):
        sampler = vro.BinarySearchSampler(pruner.space, LIMIT)
        return optuna.create_study(direction="maximize", sampler=sampler)

    study = study_of(vro.Pruner(make_dense(), images))
    suggest(study)
    assert study.user_attrs["round_to"] == 1
    monkeypatch.setattr("vit_ratio_opt.pruning.pruner.usual_round_to", lambda shape, device: 4)
    with pytest.raises(InputError, match=r"multiples of 1, but here they are of 4: give that"):
        suggest(study)
    suggest(study, pruning=vro.Structural(round_to=1))
    earlier = study_of(vro.Pruner(make_dense(), images, pruning=vro.Structural(round_to=2)))
    earlier.set_user_attr("dense", {"macs": 1, "params": 1})  # stored no number
    suggest(earlier, pruning=vro.Structural(round_to=2))
    with pytest.raises(InputError, match=r"multiples of 1, but here they are of 4"):
        suggest(earlier)
