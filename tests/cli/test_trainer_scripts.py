"""The scripts in ``studies/trainers/``: short, resumable to the bit, and their searches run."""

from __future__ import annotations

import copy
import importlib
import sys
from pathlib import Path

import optuna
import pytest
import torch
from torch.utils.data import Subset

import vit_ratio_opt as vro
from vit_ratio_opt.models.state_dicts import weights_hash

FOLDER = Path(__file__).parents[2] / "studies" / "trainers"
SCRIPTS = sorted(path for path in FOLDER.glob("*.py") if path.name != "digits.py")
NEEDS = {
    "accelerate_loop": "accelerate", "huggingface_trainer": "accelerate",
    "lightning_trainer": "lightning",
}  # fmt: skip
sys.path.insert(0, str(FOLDER))

scripts = pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
# Libraries about one process, no GPU and few images.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def load(monkeypatch):
    """Import a script, with few images; its trainer is its only class with a metric."""

    def load_script(script):
        pytest.importorskip(NEEDS.get(script.stem, "torch"))
        module = importlib.import_module(script.stem)
        monkeypatch.setattr(module, "TRAIN", Subset(module.TRAIN, range(192)))
        return module

    return load_script


def trainer_of(module, epochs):
    (kind,) = [
        kind
        for kind in vars(module).values()
        if isinstance(kind, type) and isinstance(getattr(kind, "metric", None), vro.Metric)
    ]
    return kind(epochs)


@scripts
def test_a_script_is_short_and_imports_the_package_alone(script):
    lines = script.read_text().splitlines()
    assert len(lines) <= 100
    ours = [line for line in lines if "import" in line and "vit_ratio_opt" in line]
    assert ours == ["import vit_ratio_opt as vro"]


@pytest.fixture(scope="module")
def dense_and_pruned():
    import digits

    dense = vro.load_dense(digits.DENSE)
    pixels, labels = next(digits.DATA.train.batches(64))
    pruner = vro.Pruner(dense, [(digits.DATA.normalise(pixels), labels)])
    pruned = pruner.prune((0.5, 0.5)).train()
    return pruner.dense, lambda: copy.deepcopy(pruned)


class Gone(Exception):
    pass


@scripts
def test_an_interrupted_training_resumes_and_ends_as_if_nothing_had_been(
    script, load, dense_and_pruned, tmp_path
):
    module = load(script)
    dense, prune = dense_and_pruned
    trainer = trainer_of(module, epochs=2)

    def end(folder, is_interrupted):
        """The weights, and what was reported."""
        reports, resumed = [], []

        def report(epoch, value, loss=None, /):
            reports.append((epoch, float(value)))
            if is_interrupted and epoch == 1:
                raise Gone

        context = vro.TrialContext(
            seed=3, teacher=dense, state=folder / "state", report=report,
            on_resume=lambda: resumed.append(len(reports)),
        )  # fmt: skip
        folder.mkdir()
        model = prune()
        if is_interrupted:
            with pytest.raises(Gone):
                trainer.train(model, context)
            model = prune()
            with torch.no_grad():  # the state has to bring the weights
                model.head.weight.zero_()
        value = trainer.train(model, context)
        assert value == trainer.evaluate(model)
        assert value == pytest.approx(reports[-1][1], abs=1e-4)
        assert [epoch for epoch, _ in reports] == [1, 2]
        assert resumed == ([1] if is_interrupted else [])
        assert not model._forward_hooks
        return weights_hash(model), reports

    assert end(tmp_path / "whole", False) == end(tmp_path / "interrupted", True)


@scripts
def test_a_training_that_is_asked_to_stop_stops_and_resumes(
    script, load, dense_and_pruned, tmp_path
):
    module = load(script)
    dense, prune = dense_and_pruned
    trainer, reports, resumed = trainer_of(module, epochs=2), [], []
    context = vro.TrialContext(
        teacher=dense, state=tmp_path / "state",
        report=lambda epoch, *_: reports.append(epoch),
        should_stop=lambda: reports == [1] and not resumed,
        on_resume=lambda: resumed.append(True),
    )  # fmt: skip
    with pytest.raises((vro.TrainingStopped, SystemExit)):
        trainer.train(prune(), context)
    assert reports == [1]
    trainer.train(prune(), context)
    assert reports == [1, 2]
    assert resumed == [True]


@scripts
def test_its_search_runs_and_a_pruner_ends_a_trial(script, load, tmp_path, monkeypatch):
    module = load(script)
    monkeypatch.setattr("vit_ratio_opt.runs.search_task.screen", lambda *_, **options: {})
    monkeypatch.setattr("vit_ratio_opt.composer.trial_files", lambda *_: {})
    strict = optuna.pruners.ThresholdPruner(lower=101)  # per cent
    for n_trials in (1, 2):
        with monkeypatch.context() as patch:
            if n_trials == 2:
                patch.setattr(optuna.pruners, "MedianPruner", lambda: strict)
                patch.setattr(vro.Search, "run", lambda search, study, n: study.optimize(
                    search.objective, n_trials=1
                ))  # fmt: skip
            module.main(tmp_path, n_trials=n_trials, epochs=1)
    url = f"sqlite:///{tmp_path / 'study.db'}"
    (name,) = optuna.get_all_study_names(url)
    trained, pruned = optuna.load_study(study_name=name, storage=url).trials
    assert trained.state == optuna.trial.TrialState.COMPLETE
    assert trained.intermediate_values == pytest.approx({1: trained.value}, abs=1e-4)
    assert "state_not_kept" not in trained.user_attrs
    model, _ = vro.load_pruned(tmp_path / "models" / trained.user_attrs["checkpoint"])
    assert type(model).__module__.startswith("timm.")
    assert pruned.state == optuna.trial.TrialState.PRUNED
    assert list(pruned.intermediate_values) == [1]
