from __future__ import annotations

import subprocess
import sys

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.artifacts import upload_artifact

from vit_ratio_opt.runs.artifacts import ArtifactFolder
from vit_ratio_opt.runs.lineage import fetch_checkpoint, nearest_parents
from vit_ratio_opt.space.curve import budget_curve
from vit_ratio_opt.space.pairs import RatioPair
from vit_ratio_opt.space.shape import BlockShape, ViTShape
from vit_ratio_opt.space.structural import StructuralSpace

# 8 heads of 22,032 MACs each and 128 neurons of 1,088.
TINY = StructuralSpace(
    ViTShape(
        patches=16,
        prefix_tokens=1,
        patch_dim=3 * 8 * 8,
        embed_dim=32,
        num_classes=4,
        blocks=(BlockShape(num_heads=4, head_dim=8, hidden_dim=64),) * 2,
        fixed_params=7332,
    ),
    unit="head",
)
unit_counts = st.tuples(st.integers(0, 6), st.integers(0, 112))


def pair(heads: int, neurons: int) -> RatioPair:
    return RatioPair(heads / 8, neurons / 128)


def test_the_nearest_in_macs_comes_first():
    finished = {0: pair(0, 0), 1: pair(2, 32), 2: pair(3, 64), 3: pair(4, 0)}
    assert nearest_parents(TINY, pair(4, 64), finished) == [2, 3, 1, 0]


def test_of_equally_near_ones_the_earliest_comes_first():
    finished = {5: pair(2, 32), 3: pair(2, 32), 4: pair(2, 32)}
    assert nearest_parents(TINY, pair(4, 64), finished) == [3, 4, 5]


def test_nothing_finished_gives_no_parent():
    assert nearest_parents(TINY, pair(4, 64), {}) == []


@pytest.mark.parametrize("other", [pair(5, 0), pair(0, 65), pair(6, 112)])
def test_a_trial_that_pruned_more_of_one_module_is_no_parent(other):
    assert nearest_parents(TINY, pair(4, 64), {0: other}) == []


def test_a_trial_that_pruned_as_much_of_one_module_is_a_parent():
    finished = {0: pair(4, 63), 1: pair(3, 64)}
    assert nearest_parents(TINY, pair(4, 64), finished) == [0, 1]


def test_ratios_that_remove_the_same_whole_units_are_a_repeat():
    assert nearest_parents(TINY, RatioPair(0.5, 0.5), {0: RatioPair(0.49, 0.499)}) == []


def test_a_repeat_starts_where_the_first_trial_of_its_pair_could_have_started():
    finished = {0: pair(1, 8), 1: pair(4, 64), 2: pair(3, 60)}
    assert nearest_parents(TINY, pair(4, 64), finished) == [0]


@given(target=unit_counts, others=st.lists(unit_counts, max_size=8))
def test_every_parent_leaves_something_to_prune_and_is_no_further_than_the_next(target, others):
    finished = {number: pair(*counts) for number, counts in enumerate(others)}
    parents = nearest_parents(TINY, pair(*target), finished)
    macs = [TINY.pruned_macs(finished[number]) for number in parents]
    assert macs == sorted(macs)
    assert all(m > TINY.pruned_macs(pair(*target)) for m in macs)


@given(budget=st.floats(0.39, 1))
def test_pairs_on_the_curve_of_one_budget_are_no_parents_of_each_other(budget):
    curve = dict(enumerate(budget_curve(TINY, budget)))
    for number, child in curve.items():
        others = {other: p for other, p in curve.items() if other != number}
        assert nearest_parents(TINY, child, others) == []


@pytest.fixture
def uploaded(tmp_path):
    """A study with a trial of two artifacts, the store, the checkpoint and its artifact's id."""
    study = optuna.create_study()
    trial = study.ask()
    store = ArtifactFolder(tmp_path / "models" / "artifacts")
    ids = []
    for name in ("model.safetensors", "figure.png"):
        path = tmp_path / name
        path.write_bytes(name.encode())
        ids.append(
            upload_artifact(artifact_store=store, file_path=str(path), study_or_trial=trial)
        )
    trial.set_user_attr("checkpoint", "model.safetensors")
    study.tell(trial, 0.0)
    return study, store, tmp_path / "model.safetensors", ids[0]


def test_the_checkpoint_is_found_among_other_artifacts(uploaded):
    study, store, _, _ = uploaded
    with fetch_checkpoint(study.trials[0], study._storage, store) as path:
        assert path.read_bytes() == b"model.safetensors"
    assert not path.exists()


def test_lineage_does_not_import_torch():
    code = "import sys, vit_ratio_opt.runs.lineage; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
