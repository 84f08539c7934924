from __future__ import annotations

import os
from dataclasses import replace

import optuna
import pytest
import torch
from optuna.artifacts import FileSystemArtifactStore, get_all_artifact_meta
from optuna.trial import FixedTrial, TrialState
from support import make_search, new_study

import vit_ratio_opt.training.trainer as trainer_module
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.model_files.load import load_pruned
from vit_ratio_opt.models.shape import shape_of
from vit_ratio_opt.pruning.calibration import calibrate
from vit_ratio_opt.pruning.cascade import prune_tokens
from vit_ratio_opt.runs.journal import Journal
from vit_ratio_opt.runs.lines import describe_trial
from vit_ratio_opt.runs.screening import likely_best
from vit_ratio_opt.space.costs import PARAMS
from vit_ratio_opt.space.pairs import RatioPair
from vit_ratio_opt.space.shape import BlockTokens
from vit_ratio_opt.space.structural import StructuralSpace
from vit_ratio_opt.space.tokens import LATE, CascadeRule
from vit_ratio_opt.training.context import TrainingDiverged
from vit_ratio_opt.training.evaluate import evaluate
from vit_ratio_opt.training.recipe import Recipe

# Ratios of 8 heads and 128 neurons.
LIGHT, HALF, HEAVY = RatioPair(0.25, 0.25), RatioPair(0.5, 0.5), RatioPair(0.625, 0.75)
MUCH_ATTENTION = RatioPair(0.75, 0.125)


@pytest.fixture
def make(few_digits, dense, tmp_path):
    def make_objective(*, attach=False, **changes):
        options = {
            "budget": 1.0,
            "recipe": Recipe(epochs=1, batch_size=128),
            "checkpoints": tmp_path / "models",
            "iterative": True,
            "calibration_images": 64,
            "progress": False,
        }
        search = make_search(dense, few_digits, **{**options, **changes})
        if not attach:  # drawing a training takes longer than the training
            search.journal.attach = None
        return search

    return make_objective


def run_pairs(objective, storage, *pairs, name="s"):
    """The study after a new process, as it were, has run these pairs."""
    study = new_study(objective, name, storage=storage, screen=False)
    for pair in pairs:
        study.enqueue_trial(pair._asdict())
    study.optimize(objective.objective, n_trials=len(pairs))
    return study


def parents(study):
    return [trial.user_attrs["parent_trial"] for trial in study.trials]


def artifact_of(trial, study, tmp_path):
    metas = get_all_artifact_meta(trial, storage=study._storage)
    (meta,) = [meta for meta in metas if meta.filename == trial.user_attrs["checkpoint"]]
    return tmp_path / "models" / "artifacts" / meta.artifact_id


def test_a_trial_starts_from_the_nearest_that_pruned_neither_module_more(make, memory):
    study = run_pairs(make(), memory, LIGHT, MUCH_ATTENTION, HALF, HEAVY)
    assert parents(study) == ["dense", "dense", 0, 2]
    assert [t.user_attrs["epochs"] for t in study.trials] == [1, 1, 1, 1]
    assert [t.user_attrs["total_epochs"] for t in study.trials] == [1, 1, 2, 3]


@pytest.mark.parametrize("allocation", ["global", "energy", "uniform"])
def test_macs_and_params_are_those_of_the_pair_whatever_the_parent(
    make, memory, dense, tmp_path, allocation
):
    objective = make(allocation=allocation)
    largest = objective.space.max_pair
    params = StructuralSpace(objective.pruner.shape, cost=PARAMS)
    pairs = LIGHT, RatioPair(0.26, 0.27), HEAVY, largest
    study = run_pairs(objective, memory, *pairs)
    assert parents(study) == ["dense", 0, 1, 2]
    for trial, pair in zip(study.trials, pairs, strict=True):
        model, _ = load_pruned(tmp_path / "models" / trial.user_attrs["checkpoint"], dense)
        shape = shape_of(model)
        assert shape.macs == trial.user_attrs["macs"] == objective.space.pruned_macs(pair)
        assert shape.params == trial.user_attrs["params"] == params.pruned_cost(pair)


def test_a_child_starts_from_its_parents_trained_weights(make, memory, dense, tmp_path):
    objective = make()
    study = run_pairs(objective, memory, LIGHT, HALF)
    parent, _ = load_pruned(tmp_path / "models" / "trial-0000.safetensors", dense)
    child = objective.pruner.prune(HALF, parent)
    # Pruning leaves the classifier as it is, so it tells whose weights these are.
    assert torch.equal(child.head.weight, parent.head.weight)
    assert not torch.equal(child.head.weight, dense.head.weight)
    accuracy = evaluate(child, objective.data, objective.data.val)
    assert study.trials[1].user_attrs["accuracy_pruned"] == accuracy
    first, second = (describe_trial(study, trial, n_trials=3) for trial in study.trials)
    assert first.endswith("(2 of 3)")
    assert second.endswith("(2 of 3)  from trial 0")


def test_switched_off_every_trial_starts_dense(make, memory, tmp_path):
    study = run_pairs(make(iterative=False), memory, LIGHT, HALF)
    assert parents(study) == ["dense", "dense"]
    assert study.trials[1].user_attrs["total_epochs"] == 1
    assert sorted(os.listdir(tmp_path / "models")) == [
        ".vit_ratio_opt", "artifacts", "trial-0000.safetensors", "trial-0001.safetensors",
    ]  # fmt: skip


def test_a_first_trial_is_the_same_iterative_or_not(make, memory):
    studies = [run_pairs(make(iterative=on), memory, HALF, name=f"s{on}") for on in (True, False)]
    first, second = (study.trials[0] for study in studies)
    assert first.value == second.value
    assert first.user_attrs["accuracy_pruned"] == second.user_attrs["accuracy_pruned"]


def test_a_new_process_finds_parents_and_gives_the_uninterrupted_trials(make, url):
    straight = run_pairs(make(), url, LIGHT, HALF, HEAVY, name="straight")
    for pair in (LIGHT, HALF, HEAVY):
        resumed = run_pairs(make(), url, pair, name="resumed")
    assert parents(resumed) == parents(straight) == ["dense", 0, 1]
    assert [t.value for t in resumed.trials] == [t.value for t in straight.trials]


def test_another_machine_finds_parents_in_a_shared_store(make, memory, tmp_path):
    (tmp_path / "shared").mkdir()
    store = FileSystemArtifactStore(tmp_path / "shared")
    run_pairs(make(artifacts=store, checkpoints=tmp_path / "here", attach=True), memory, LIGHT)
    there = make(artifacts=store, checkpoints=tmp_path / "there", attach=True)
    study = run_pairs(there, memory, HALF)
    assert parents(study) == ["dense", 0]
    kept = [name for name in os.listdir(tmp_path / "shared") if "training-state" not in name]
    assert len(kept) == 6  # of each trial a model, a curve and a table


@pytest.mark.parametrize("damage", ["dangling", "truncated"])
def test_an_unreadable_parent_is_passed_over(make, memory, tmp_path, damage):
    study = run_pairs(make(), memory, LIGHT, HALF)
    near, far = (artifact_of(trial, study, tmp_path) for trial in reversed(study.trials))

    def break_off(path):
        if damage == "dangling":
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[:-100])

    break_off(near)
    # More attention and less of the FFN each time, so that neither can be the other's parent.
    assert parents(run_pairs(make(), memory, RatioPair(0.625, 0.75)))[2:] == [0]
    break_off(far)
    study = run_pairs(make(), memory, RatioPair(0.75, 0.625))
    assert parents(study)[3:] == ["dense"]
    assert all(trial.state == TrialState.COMPLETE for trial in study.trials)


def test_a_repeat_starts_where_the_first_trial_of_its_pair_started(make, memory):
    study = run_pairs(make(), memory, LIGHT, HEAVY, HALF, HEAVY, LIGHT)
    assert parents(study) == ["dense", 0, 0, 0, "dense"]
    assert [t.user_attrs["total_epochs"] for t in study.trials] == [1, 2, 2, 2, 1]
    assert [t.user_attrs["seed"] for t in study.trials] == [0, 0, 0, 1, 1]


def test_a_trial_over_the_tolerance_is_a_parent_too(make, memory):
    objective = make(budget=None, tolerance=1.0)
    objective.objective.dense_accuracy = 100.0
    study = run_pairs(objective, memory, LIGHT, HALF)
    assert [trial.state for trial in study.trials] == [TrialState.PRUNED] * 2
    assert parents(study) == ["dense", 0]


def test_a_trial_that_kept_no_model_is_no_parent(make, memory):
    objective = make()
    study = objective.create_study(
        "s", storage=memory, pruner=optuna.pruners.ThresholdPruner(lower=101)
    )
    study.enqueue_trial(LIGHT._asdict())
    study.optimize(objective.objective, n_trials=1)
    assert study.trials[0].state == TrialState.PRUNED
    study = run_pairs(objective, memory, HALF)
    assert study.trials[1].user_attrs["parent_trial"] == "dense"


def test_a_trial_outside_of_any_study_starts_dense(make):
    trial = FixedTrial(HALF._asdict())
    make().objective(trial)
    assert trial.user_attrs["parent_trial"] == "dense"


def test_iterative_and_not_are_different_studies(make, memory):
    run_pairs(make(), memory, LIGHT)
    with pytest.raises(InputError, match="iterative is True, not False"):
        new_study(make(iterative=False), "s", storage=memory, screen=False)


@pytest.mark.parametrize("option", ["iterative", "artifacts"])
def test_iterative_needs_a_folder_of_checkpoints(make, tmp_path, option):
    changes = {"iterative": option == "iterative"}
    if option == "artifacts":
        changes[option] = FileSystemArtifactStore(tmp_path)
    with pytest.raises(InputError, match="need `checkpoints`: name a folder"):
        make(checkpoints=None, **changes)


@pytest.mark.parametrize("unit", ["head", "rank"])
@pytest.mark.parametrize("repair", [True, False])
def test_what_is_pruned_is_what_the_ratios_say(make, unit, repair):
    objective = make(mhsa_unit=unit, repair=repair)
    pair = RatioPair(0.5, 0.5)
    assert shape_of(objective.pruner.prune(pair)).macs == objective.space.pruned_macs(pair)


def test_repair_brings_a_pruned_model_nearer_to_the_dense_one(make, few_digits, dense):
    images, _ = next(few_digits.val.batches(64))
    images = few_digits.normalise(images)
    pair = RatioPair(0.5, 0.75)

    def error(**changes):
        with torch.no_grad():
            return (
                (make(**changes).pruner.prune(pair)(images) - dense.eval()(images)).square().mean()
            )

    assert error() < 0.8 * error(repair=False)


def test_the_likely_best_pair_costs_least_and_is_where_the_screen_begins(make):
    objective = make(budget=0.6)
    likely = likely_best(objective.pruner, objective.curve)
    assert likely in objective.curve
    assert tuple(objective.first_pairs()["screened"][0][:2]) == likely
    heads = make(budget=0.6, mhsa_unit="head")
    assert likely_best(heads.pruner, heads.curve) is None
    assert make(budget=None, tolerance=1.0, iterative=False).curve == ()
    assert make(budget=0.6).first_pairs()["path"] == ()


@pytest.mark.parametrize("strategy", ["structural", "cascade", "both"])
def test_a_search_with_a_tolerance_begins_on_the_path_of_least_expected_loss(
    make, memory, strategy
):
    options = {"budget": None, "tolerance": 5.0, "strategy": strategy, "iterative": False}
    search = make(**options)
    study = search.create_study("s", storage=memory)
    path = [tuple(pair) for pair in study.user_attrs["path"]]
    costs = [search.space.macs_ratio(*pair) for pair in path]
    assert len(path) > 1
    assert costs == sorted(costs, reverse=True)
    if strategy == "cascade":
        assert list(make(**options).first_pairs()["path"]) == path
    assert make(fixed_ratio=True, **options).first_pairs()["path"] == ()
    study.optimize(make(**options).objective, n_trials=1)
    assert tuple(study.trials[0].params.values()) in path


def test_a_calibration_is_shared_by_the_objectives_of_one_folder(make, tmp_path):
    make(cache=tmp_path / "cache").pruner.prune(LIGHT)
    (path,) = (tmp_path / "cache").iterdir()
    written = path.stat().st_ino  # its time is that of its last use
    make(cache=tmp_path / "cache").pruner.prune(HALF)
    assert path.stat().st_ino == written


def test_another_unit_is_refused(make):
    with pytest.raises(InputError, match="`mhsa_unit` must be 'head' or 'rank'"):
        make(mhsa_unit="token")


# Strategies


@pytest.mark.parametrize("fixed_ratio", [False, True])
@pytest.mark.parametrize("strategy", ["cascade", "both"])
def test_every_strategy_trains_keeps_and_reports_its_model(
    make, memory, dense, few_digits, strategy, fixed_ratio
):
    options = {
        "strategy": strategy,
        "fixed_ratio": fixed_ratio,
        "budget": 0.85,
        "iterative": False,
    }
    objective = make(**options)
    study = new_study(objective, "s", storage=memory, screen=False)
    study.optimize(objective.objective, n_trials=2)
    for trial in study.trials:
        assert trial.state == TrialState.COMPLETE
        pair = RatioPair(*trial.params.values())
        model, manifest = load_pruned(
            objective.journal.checkpoints / trial.user_attrs["checkpoint"], dense
        )
        shape = shape_of(model)
        assert shape.block_tokens
        assert shape.macs == trial.user_attrs["macs"] <= objective.space.pruned_macs(pair)
        assert shape.params == trial.user_attrs["params"]
        assert trial.user_attrs["macs_ratio"] <= 0.85
        assert evaluate(model, few_digits, few_digits.val) == trial.user_attrs["accuracy"]
        assert (pair.mhsa_ratio == pair.ffn_ratio) >= fixed_ratio
        assert manifest["pruned"] == strategy
    again = new_study(make(**options), "s", storage=memory, screen=False)
    assert len(again.trials) == len(study.trials) > 0
    with pytest.raises(InputError, match="pruned"):
        new_study(make(budget=0.85, iterative=False), "s", storage=memory, screen=False)


def test_a_cascade_trial_may_start_from_a_parent(make, memory):
    objective = make(strategy="cascade", rule=LATE)
    ratios = objective.space.ffn_ratios
    study = run_pairs(objective, memory, RatioPair(0.0, ratios[1]), RatioPair(0.0, ratios[1]))
    assert parents(study) == ["dense", "dense"]  # a repeat starts where the first one did
    study = run_pairs(make(strategy="both"), memory, LIGHT, HALF, name="both")
    assert parents(study) == ["dense", 0]


def test_a_rule_with_heads_removes_heads(make):
    rule = CascadeRule(heads=True)
    objective = make(strategy="cascade", rule=rule, iterative=False)
    pair = objective.space.max_pair
    shape = shape_of(objective.pruner.prune(pair))
    assert [block.num_heads for block in shape.blocks] == list(objective.space.heads(pair))
    assert min(block.num_heads for block in shape.blocks) < 4
    assert shape.macs == objective.space.pruned_macs(pair)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strategy": "tokens"}, "`strategy` must be one of"),
        ({"strategy": "both", "mhsa_unit": "head"}, "needs ranks and allocation 'global'"),
        ({"strategy": "both", "allocation": "uniform"}, "needs ranks and allocation 'global'"),
        ({"strategy": "cascade", "round_to": 8}, "a cascade cuts no weights"),
        ({"rule": LATE}, "`rule` .* is for the strategies"),
        ({"strategy": "cascade", "rule": CascadeRule(heads=True)}, "does not go with a rule"),
        ({"strategy": "cascade", "budget": 0.1}, "1 patch in the attention and in the FFN"),
    ],
)
def test_settings_that_do_not_go_with_a_strategy_are_refused(make, changes, message):
    with pytest.raises(InputError, match=message):
        make(**changes)


def test_a_model_with_a_cascade_is_refused(make, digits, dense):
    cut = prune_tokens(dense, [BlockTokens(5, 5, 3)] * 2)
    with pytest.raises(InputError, match="a cascade already"):
        make_search(cut, digits, budget=0.5)
    with pytest.raises(InputError, match="a cascade already"):
        calibrate(cut, [torch.zeros(2, 1, 8, 8)])


# What goes wrong in a trial, and how the next one goes on


def fails_in_the_middle(monkeypatch, *errors):
    """The first trainings raise, as a device would, after their first epoch."""
    left = list(errors)
    original = trainer_module.finetune

    def finetune(model, data, recipe, context, **options):
        def once(epoch, *more):
            context.report(epoch, *more)
            if left:
                raise left.pop(0)

        return original(model, data, recipe, replace(context, report=once), **options)

    monkeypatch.setattr(trainer_module, "finetune", finetune)


def quietly(study, objective, n_trials):
    objective.run(study, n_trials=n_trials, say=lambda line: None, explain=False)


@pytest.fixture
def plain(make):
    options = {
        "iterative": False, "budget": 0.6, "recipe": Recipe(epochs=3, batch_size=128),
        "state_every": 0,
    }  # fmt: skip
    return lambda **changes: make(**{**options, **changes})


def test_a_failed_trial_says_why_and_the_next_one_goes_on_from_its_last_epoch(
    plain, memory, monkeypatch
):
    straight = new_study(plain(), "straight", storage=memory, screen=False)
    quietly(straight, plain(), 1)
    fails_in_the_middle(monkeypatch, RuntimeError("CUDA error: the device is gone"))
    study = new_study(plain(), "s", storage=memory, screen=False)
    quietly(study, plain(), 1)
    failed, resumed = study.trials
    assert failed.state == TrialState.FAIL
    assert failed.user_attrs["failure"] == "RuntimeError: CUDA error: the device is gone"
    assert resumed.user_attrs["resumed_from"] == {"trial": 0, "epoch": 1}
    assert resumed.params == straight.trials[0].params
    assert resumed.value == straight.trials[0].value
    assert resumed.user_attrs["losses"] == straight.trials[0].user_attrs["losses"]
    assert resumed.intermediate_values == straight.trials[0].intermediate_values


@pytest.mark.parametrize("strategy", ["cascade", "both"])
def test_a_cascade_goes_on_from_its_last_epoch(plain, memory, monkeypatch, strategy):
    options = {"strategy": strategy, "budget": 0.9}
    straight = new_study(plain(**options), "straight", storage=memory, screen=False)
    quietly(straight, plain(**options), 1)
    fails_in_the_middle(monkeypatch, RuntimeError("gone"))
    study = new_study(plain(**options), "s", storage=memory, screen=False)
    quietly(study, plain(**options), 1)
    assert study.trials[1].user_attrs["resumed_from"]["epoch"] == 1
    assert study.trials[1].value == straight.trials[0].value


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_state_that_cannot_be_read_costs_a_warning_and_the_epochs(
    plain, memory, monkeypatch, tmp_path, damage, caplog
):
    straight = new_study(plain(), "straight", storage=memory, screen=False)
    quietly(straight, plain(), 1)
    for path in (tmp_path / "models" / "artifacts").glob("[!.]*"):
        path.unlink()
    fails_in_the_middle(monkeypatch, RuntimeError("gone"))
    study = new_study(plain(), "s", storage=memory, screen=False)
    study.optimize(plain().objective, n_trials=1, catch=RuntimeError)
    (state,) = (tmp_path / "models" / "artifacts").glob("training-state-*")
    if damage == "missing":
        state.unlink()
    else:
        state.write_bytes(state.read_bytes()[:-100])
    optuna.logging.enable_propagation()
    quietly(study, plain(), 1)
    optuna.logging.disable_propagation()
    assert "begins again" in caplog.text
    assert study.trials[1].value == straight.trials[0].value
    assert study.trials[1].user_attrs["losses"] == straight.trials[0].user_attrs["losses"]


def test_a_full_artifact_store_costs_no_training(plain, memory, tmp_path):
    class Full(FileSystemArtifactStore):
        def write(self, artifact_id, content_body):
            if artifact_id.startswith("training-state"):
                raise OSError(28, "No space left on device")
            super().write(artifact_id, content_body)

    def objective(path):
        path.mkdir(exist_ok=True)
        return plain(artifacts=Full(path), checkpoints=path)

    path = tmp_path / "full"
    study = objective(path).create_study("s", storage=memory)
    quietly(study, objective(path), 2)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 2
    assert "No space left on device" in study.trials[0].user_attrs["state_not_kept"]


def test_a_trainer_that_saves_no_state_is_no_warning(tmp_path, caplog):
    study = optuna.create_study()
    trial = study.ask()
    optuna.logging.enable_propagation()
    Journal(tmp_path / "models").save_state(trial, tmp_path / "state", epoch=1)
    optuna.logging.disable_propagation()
    assert "was not saved" not in caplog.text
    assert not study.trials[0].user_attrs


def test_a_training_that_diverged_is_tried_again_with_the_next_seed(plain, memory, monkeypatch):
    fails_in_the_middle(monkeypatch, TrainingDiverged("The loss is nan after step 5 of 15."))
    study = new_study(plain(), "s", storage=memory, screen=False)
    quietly(study, plain(), 1)
    diverged, again = study.trials
    assert diverged.user_attrs["failure"].startswith("TrainingDiverged: The loss is nan")
    assert again.params == diverged.params
    assert [diverged.user_attrs["seed"], again.user_attrs["seed"]] == [0, 1]
    assert "resumed_from" not in again.user_attrs


def test_a_pair_is_handed_back_however_often_its_worker_has_to_stop(plain, memory, monkeypatch):
    objective = plain()
    study = new_study(objective, "s", storage=memory, screen=False)
    for _ in range(12):  # more than failures and deaths together
        objective.objective.should_stop = lambda: True
        with pytest.raises(KeyboardInterrupt):
            study.optimize(objective.objective, n_trials=1)
    objective.objective.should_stop = None
    quietly(study, plain(), 1)
    assert len({tuple(trial.params.values()) for trial in study.trials}) == 1
    assert [trial.state for trial in study.trials] == [TrialState.FAIL] * 12 + [
        TrialState.COMPLETE
    ]
    assert study.trials[-1].user_attrs["resumed_from"]["trial"] == 11


def test_no_state_outlives_its_training(plain, memory, tmp_path):
    objective = plain(attach=True)
    study = new_study(objective, "s", storage=memory, screen=False)
    quietly(study, objective, 2)
    left = [path.name for path in (tmp_path / "models" / "artifacts").glob("[!.]*")]
    assert len(left) == 6  # models, curves and tables
    assert not any(name.startswith("training-state") for name in left)


def latency_of(space, *, fast=False):
    """A device on which nothing but attention, or nothing but the FFN, takes time."""
    units, neurons = space.removed(space.max_pair)
    dear, cheap = [1_000_000, 100_000], [1_000, 0]
    mhsa, ffn = (cheap, dear) if fast else (dear, cheap)
    return {
        "rest": 1_000,
        "mhsa": [[0, mhsa[0]], [units, mhsa[1]]],
        "ffn": [[0, ffn[0]], [neurons, ffn[1]]],
        "error": 0.02, "device": "cpu", "threads": 1, "batch": 1,
    }  # fmt: skip


def latency_objective(make, **changes):
    space = make(iterative=False).space
    options = {"cost": "latency", "latency": latency_of(space), "iterative": False, "budget": 0.5}
    return make(recipe=Recipe(epochs=0), **{**options, **changes})


def model_file(objective, trial):
    return objective.journal.checkpoints / trial.user_attrs["checkpoint"]


@pytest.mark.parametrize("round_to", [1, 4])
def test_a_budget_of_parameters_is_met(make, memory, round_to):
    objective = make(cost="params", budget=0.5, round_to=round_to, recipe=Recipe(epochs=0))
    study = new_study(objective, "s", storage=memory, screen=False)
    objective.run(study, n_trials=2, say=lambda line: None, explain=False)
    for trial in study.trials:
        model, manifest = load_pruned(model_file(objective, trial), objective.dense)
        share = shape_of(model).params / objective.pruner.shape.params
        assert trial.user_attrs["cost_ratio"] == manifest["cost_ratio"] == share <= 0.5
        assert trial.user_attrs["macs_ratio"] == shape_of(model).macs / objective.pruner.shape.macs
        assert set(trial.constraints) == {"params"}
    assert study.user_attrs["settings"]["cost"] == "params"


def test_with_a_tolerance_the_value_is_the_share_of_the_cost(make, memory):
    objective = latency_objective(make, budget=None, tolerance=99.0)
    study = new_study(objective, "s", storage=memory, screen=False)
    assert study.metric_names == ["latency of dense"]
    study.enqueue_trial(RatioPair(0.0, 0.0)._asdict())
    study.enqueue_trial(RatioPair(0.5, 0.25)._asdict())
    study.optimize(objective.objective, n_trials=2)
    nothing, half = study.trials
    assert nothing.value == nothing.user_attrs["cost_ratio"] == 1.0
    assert half.value == objective.space.cost_ratio(0.5, 0.25) < half.user_attrs["macs_ratio"]
    assert objective.directions == ["minimize"]


def test_a_pair_over_the_latency_is_pruned_before_any_training(make, memory):
    objective = latency_objective(make)
    study = new_study(objective, "s", storage=memory, screen=False)
    study.enqueue_trial(RatioPair(0.25, 0.875)._asdict())
    study.optimize(objective.objective, n_trials=1)
    assert study.trials[0].state == TrialState.PRUNED
    assert study.trials[0].constraints["latency"] > 0
    assert "blocks" not in study.trials[0].user_attrs


def test_the_best_of_a_latency_study_is_measured_when_it_is_tested(make, memory, monkeypatch):
    monkeypatch.setattr(
        "vit_ratio_opt.runs.testing.time_models", lambda models, **how: [0.004, 0.0015]
    )
    objective = latency_objective(make)
    study = new_study(objective, "s", storage=memory, screen=False)
    objective.run(study, n_trials=1, say=lambda line: None, explain=False)
    objective.test(study)
    tested = study.user_attrs["tested"]
    assert (tested["dense_ms"], tested["pruned_ms"]) == (4.0, 1.5)


def test_a_resumed_study_keeps_the_latency_that_it_was_made_with(make, memory):
    first = latency_objective(make)
    new_study(first, "s", storage=memory, screen=False)
    second = latency_objective(make, latency=latency_of(first.space, fast=True))
    assert second.curve != first.curve
    assert second.settings == first.settings
    study = new_study(second, "s", storage=memory, screen=False)
    assert second.curve == first.curve
    assert second.space.cost.curves == first.space.cost.curves
    second.run(study, n_trials=1, say=lambda line: None, explain=False)
    assert study.trials[0].constraints["latency"] <= 0


def test_cascades_have_no_other_cost_than_macs(make):
    with pytest.raises(InputError, match="removes no parameter"):
        make(cost="params", strategy="cascade", iterative=False)
    with pytest.raises(InputError, match="`iterative`"):
        make(cost="latency")
