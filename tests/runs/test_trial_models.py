"""Models of trials: whose file is whose, and what happens where one cannot be written."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import optuna
import pytest
import support
import torch
from optuna.artifacts import FileSystemArtifactStore
from optuna.storages import InMemoryStorage
from optuna.study import Study
from optuna.trial import TrialState
from support import make_search

from vit_ratio_opt.composer import Search
from vit_ratio_opt.data.image_data import ImageData
from vit_ratio_opt.errors import CannotWriteError, InputError
from vit_ratio_opt.model_files.load import load_dense, load_pruned
from vit_ratio_opt.model_files.save import save_dense
from vit_ratio_opt.models.create import create_model
from vit_ratio_opt.models.state_dicts import weights_hash
from vit_ratio_opt.pruning.pruner import ModelPruner
from vit_ratio_opt.records.answer import trained_trial
from vit_ratio_opt.runs.final import finish
from vit_ratio_opt.space.pairs import RatioPair
from vit_ratio_opt.training.evaluate import evaluate
from vit_ratio_opt.training.recipe import Recipe
from vit_ratio_opt.training.trainer import ImageTrainer

MODEL = "vit_tiny_patch16_224"
ARGUMENTS = {
    "img_size": 8, "patch_size": 4, "in_chans": 1, "embed_dim": 32, "depth": 2, "num_heads": 4,
    "mlp_ratio": 2.0, "num_classes": 10,
}  # fmt: skip
Make = Callable[..., Search]


@pytest.fixture(scope="module")
def dense_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dense") / "dense.safetensors"
    torch.manual_seed(0)
    save_dense(create_model(MODEL, **ARGUMENTS), path, name=MODEL, arguments=ARGUMENTS)
    return path


@pytest.fixture
def make(dense_file: Path, few_digits: ImageData, tmp_path: Path) -> Make:
    def make_one(data: ImageData = few_digits, **changes: Any) -> Search:
        options = {
            "budget": 0.6, "recipe": Recipe(epochs=1, batch_size=128), "progress": False,
            "calibration_images": 64, "checkpoints": tmp_path / "models",
        }  # fmt: skip
        search = make_search(load_dense(dense_file), data, **{**options, **changes})
        search.journal.attach = None  # drawing a training takes longer than the training
        return search

    return make_one


def run(study: Study, search: Search, n_trials: int = 1) -> None:
    search.run(study, n_trials=n_trials, say=lambda line: None, explain=False)


def new_study(search: Search, storage: Any, name: str = "s") -> Study:
    return support.new_study(search, name, storage=storage, screen=False)


def assert_models_are_the_trials(
    search: Search, study: Study, tmp_path: Path, trials: int
) -> None:
    """What ``model_of``, ``test`` and ``final`` read is what each trial trained."""
    assert len(study.trials) == trials
    for trial in study.trials:
        model = search.model_of(study, trial)
        assert weights_hash(model) == trial.user_attrs["weights"]
        found, manifest = load_pruned(search.journal.checkpoints / trial.user_attrs["checkpoint"])
        assert weights_hash(found) == trial.user_attrs["weights"]
        assert manifest["lineage"]["study"] == study.study_name
        path = tmp_path / f"{study.study_name}-{trial.number}.safetensors"
        pair = RatioPair(**trial.params)
        finish(search.objective, pair, model, path, trainer=search.trainer_for(Recipe(epochs=0)))
        assert weights_hash(load_pruned(path)[0]) == trial.user_attrs["weights"]
    accuracy = search.test(study)
    tested = study.user_attrs["tested"]
    own = search.model_of(study, study.trials[tested["trial"]])
    assert accuracy == evaluate(own, search.data, search.data.test)


def test_two_studies_of_two_workers_each_share_a_folder_and_no_file(
    make: Make, digits: ImageData, tmp_path: Path, start_command: Callable[..., BaseProcess]
) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    searches = {"a": make(digits, noise=50.0), "b": make(digits, noise=50.0, seed=1)}
    studies = {name: new_study(searches[name], url, name) for name in searches}
    workers = [
        start_command("worker", "--storage", url, "--study-name", name, "--n-trials", 2)
        for name in ("a", "b", "a", "b")
    ]
    for worker in workers:
        worker.join(180)
        assert worker.exitcode == 0, (tmp_path / "log").read_text()[-2000:]
    kept = [trial.user_attrs["checkpoint"] for study in studies.values() for trial in study.trials]
    assert len(kept) == len(set(kept)) == 4
    assert {path.name for path in (tmp_path / "models").glob("*.safetensors")} == set(kept)
    for name, study in studies.items():
        assert_models_are_the_trials(searches[name], study, tmp_path, trials=2)


@pytest.mark.parametrize("case", ["two databases", "made again", "a copy goes on"])
def test_studies_of_one_name_share_a_folder_and_no_file(
    make: Make, tmp_path: Path, case: str
) -> None:
    url, other_url = (f"sqlite:///{tmp_path / name}.db" for name in ("one", "other"))
    first = make()
    study = new_study(first, url)
    run(study, first)
    if case == "made again":
        optuna.delete_study(study_name="s", storage=url)
        other_url = url
    elif case == "a copy goes on":
        shutil.copy(tmp_path / "one.db", tmp_path / "other.db")
    second = make(seed=0 if case == "a copy goes on" else 1)
    other = new_study(second, other_url)
    run(other, second, 2)
    if case != "made again":
        run(study, first, 2)
        assert_models_are_the_trials(first, study, tmp_path, trials=2)
    assert_models_are_the_trials(second, other, tmp_path, trials=2)
    names = [trial.user_attrs["checkpoint"] for trial in other.trials]
    assert names[-1 if case == "a copy goes on" else 0] != "trial-0000.safetensors"


def test_a_study_that_was_copied_under_another_name_keeps_its_models(make: Make, url: str) -> None:
    search = make()
    study = new_study(search, url)
    run(study, search)
    optuna.copy_study(
        from_study_name="s", from_storage=url, to_storage=url, to_study_name="copied"
    )
    copied = optuna.load_study(study_name="copied", storage=url)
    (trial,) = copied.trials
    for _ in ("the folder", "the artifact store"):
        assert weights_hash(search.model_of(copied, trial)) == trial.user_attrs["weights"]
        (search.journal.checkpoints / trial.user_attrs["checkpoint"]).unlink(missing_ok=True)


def test_a_cascade_of_the_same_weights_and_ratios_is_not_the_trials_model(
    make: Make, memory: InMemoryStorage, tmp_path: Path
) -> None:
    """Without training all cascades have the dense model's weights."""
    options = {"strategy": "cascade", "budget": 0.9, "recipe": Recipe(epochs=0)}
    search = make(**options)
    study = new_study(search, memory)
    run(study, search)
    (trial,) = study.trials
    fewer = [[queries - 1, keys, ffn] for queries, keys, ffn in trial.user_attrs["tokens"]]
    trial.user_attrs["tokens"] = fewer  # of another rule
    with pytest.raises(InputError, match="its tokens is"):
        search.model_of(study, trial)


def test_a_file_that_was_overwritten_in_place_is_refused_by_its_name(make: Make, url: str) -> None:
    """It is a second name of the artifact, so both hold the wrong model then."""
    search = make()
    study = new_study(search, url)
    run(study, search, 2)
    first, second = (search.journal.checkpoints / t.user_attrs["checkpoint"] for t in study.trials)
    content = bytearray(first.read_bytes())
    for damage in (second.read_bytes(), content[:-1] + bytes([content[-1] ^ 1])):
        first.write_bytes(damage)
        with pytest.raises(InputError) as refused:
            search.model_of(study, study.trials[0])
        assert str(first) in str(refused.value)
        assert f"artifact {first.name}" in str(refused.value)
        assert "/tmp" not in str(refused.value).replace(str(first), "")
    assert weights_hash(search.model_of(study, study.trials[1]))


def test_a_file_that_was_replaced_leaves_the_artifact_as_it_was(
    make: Make, memory: InMemoryStorage
) -> None:
    search = make()
    study = new_study(search, memory)
    run(study, search)
    (trial,) = study.trials
    path = search.journal.checkpoints / trial.user_attrs["checkpoint"]
    pair = RatioPair(0.5, 0.5)
    finish(
        search.objective,
        pair,
        search.pruner.prune(pair),
        path,
        trainer=search.trainer_for(Recipe(epochs=0)),
    )
    assert weights_hash(load_pruned(path)[0]) != trial.user_attrs["weights"]
    assert weights_hash(search.model_of(study, trial)) == trial.user_attrs["weights"]


def test_models_of_version_0_1_0_are_read(make: Make, memory: InMemoryStorage) -> None:
    """They had no hash in the trial, and the same name in every study."""
    search = make()
    study = new_study(search, memory)
    run(study, search)
    (trial,) = study.trials
    del trial.user_attrs["weights"]
    assert trial.user_attrs["checkpoint"] == "trial-0000.safetensors"
    assert search.model_of(study, trial)
    search.journal.store = None
    other = make(seed=1)
    other_study = new_study(other, memory, "other")
    run(other_study, other)
    shutil.copy(
        other.journal.checkpoints / other_study.trials[0].user_attrs["checkpoint"],
        search.journal.checkpoints / "trial-0000.safetensors",
    )
    with pytest.raises(InputError, match="its study is 'other', not 's'"):
        search.model_of(study, trial)


def test_a_trial_without_a_model_says_why(
    make: Make, memory: InMemoryStorage, tmp_path: Path
) -> None:
    search = make()
    study = new_study(search, memory)
    study.enqueue_trial({"mhsa_ratio": 0.0, "ffn_ratio": 0.0})
    study.optimize(search.objective, n_trials=1)
    study.ask()
    study.tell(study.ask(), state=TrialState.FAIL)
    study.enqueue_trial({"mhsa_ratio": 0.5, "ffn_ratio": 0.5})
    bare = make(checkpoints=None)
    study.enqueue_trial(dict(zip(("mhsa_ratio", "ffn_ratio"), search.curve[0], strict=True)))
    reasons = {0: "not trained to its end", 1: "not ended", 2: "failed", 3: "not ended"}
    for number, why in reasons.items():
        with pytest.raises(
            InputError, match=f"Trial {number} of study 's' kept no model: .*{why}"
        ):
            search.model_of(study, study.trials[number])
        with pytest.raises(InputError, match=f"Trial {number} of study 's' was not trained"):
            trained_trial(study, number)
    study.optimize(bare.objective, n_trials=2)
    with pytest.raises(InputError, match="its worker kept none: `checkpoints` names"):
        search.model_of(study, study.trials[-1])
    for number in (-1, 99):
        with pytest.raises(InputError, match=f"Trial {number} of study 's' was not trained"):
            trained_trial(study, number)


def test_a_trial_that_failed_after_its_training_has_no_model(
    make: Make, memory: InMemoryStorage
) -> None:
    search = make()
    study = new_study(search, memory)
    trial = study.ask()
    search.objective(trial)
    study.tell(trial, state=TrialState.FAIL)
    for refuse in (
        lambda: search.model_of(study, study.trials[0]),
        lambda: trained_trial(study, 0),
    ):
        with pytest.raises(InputError, match="Trial 0 of study 's'"):
            refuse()


def test_the_test_split_is_read_once(
    make: Make, memory: InMemoryStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = make()
    study = new_study(search, memory)
    run(study, search, 2)
    accuracy = search.test(study)
    read: list[object] = []
    monkeypatch.setattr(ImageTrainer, "test", lambda *a, **k: read.append(a))
    assert make().test(study) == accuracy
    assert read == []


# What cannot be written


@pytest.mark.parametrize("place", ["a file", "in a file"])
@pytest.mark.parametrize("option", ["checkpoints", "artifacts"])
def test_a_folder_that_cannot_be_is_refused_by_the_objective(
    make: Make, tmp_path: Path, option: str, place: str
) -> None:
    (tmp_path / "file").touch()
    folder = tmp_path / "file" if place == "a file" else tmp_path / "file" / "models"
    with pytest.raises(InputError, match=r"is no folder: .*file is a file"):
        make(**{option: folder})


@pytest.mark.parametrize("begin", ["create_study", "run_study", "optimize"])
@pytest.mark.parametrize("name", ["models", "models/artifacts"])
def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_trained(
    make: Make,
    memory: InMemoryStorage,
    monkeypatch: pytest.MonkeyPatch,
    begin: str,
    name: str,
    tmp_path: Path,
) -> None:
    search = make()
    study = None if begin == "create_study" else new_study(search, memory)
    shutil.rmtree(tmp_path / "models", ignore_errors=True)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    monkeypatch.setattr("vit_ratio_opt.training.trainer.finetune", None)
    monkeypatch.setattr(ModelPruner, "prune", None)
    start = {
        "create_study": lambda: new_study(search, memory),
        "run_study": lambda: run(study, search),
        "optimize": lambda: study.optimize(search.objective, n_trials=1),
    }
    with pytest.raises(CannotWriteError, match=f"The folder .*{name} cannot be created: "):
        start[begin]()
    if study is not None:
        assert len(study.trials) == (begin == "optimize")


class FullStore(FileSystemArtifactStore):
    """A store that takes nothing more from some time on, as a full disk or a bucket."""

    error: Exception | None = None

    def write(self, artifact_id: str, content_body: Any) -> None:
        if self.error is not None:
            raise self.error
        super().write(artifact_id, content_body)


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), RuntimeError("SlowDown: reduce your rate")]
)
def test_a_store_that_cannot_be_written_is_no_failure_of_the_pair(
    make: Make, memory: InMemoryStorage, tmp_path: Path, error: Exception
) -> None:
    (tmp_path / "store").mkdir()
    store = FullStore(tmp_path / "store")
    search = make(artifacts=store)
    study = new_study(search, memory)
    store.error = error
    for _ in range(4):  # more often than a pair may fail
        with pytest.raises(CannotWriteError, match="so its pair is requeued: ") as raised:
            run(study, search)
        assert str(error.args[-1]) in str(raised.value)
        assert len(str(raised.value).splitlines()) == 1
    assert [trial.state for trial in study.trials] == [TrialState.FAIL] * 4  # one for each run
    assert list((tmp_path / "models").glob("*.safetensors")) == []
    store.error = None
    run(study, search)
    assert len({tuple(trial.params.values()) for trial in study.trials}) == 1
    assert study.trials[-1].state == TrialState.COMPLETE


@pytest.mark.parametrize("begin", ["create_study", "run_study"])
def test_a_store_that_cannot_be_written_is_refused_before_anything_is_trained(
    make: Make, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begin: str
) -> None:
    (tmp_path / "store").mkdir()
    if begin == "run_study":
        new_study(make(), url)
    store = FullStore(tmp_path / "store")
    store.error = RuntimeError("AccessDenied: not yours")
    monkeypatch.setattr(ModelPruner, "prune", None)
    search = make(artifacts=store)
    with pytest.raises(CannotWriteError, match=r"artifact store cannot be written: .*not yours"):
        run(new_study(search, url), search)
    storage = optuna.storages.get_storage(url)
    left = [study for study in storage.get_all_studies() if storage.get_n_trials(study._study_id)]
    assert left == []
    store.error = None
    make(artifacts=store).check()
    assert os.listdir(tmp_path / "store") == []


def test_a_full_disk_of_models_is_no_failure_of_the_pair(
    make: Make, memory: InMemoryStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vit_ratio_opt.model_files import save

    search = make()
    study = new_study(search, memory)

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(save, "save_file", full)
        for _ in range(4):
            with pytest.raises(CannotWriteError, match="no space is left there"):
                run(study, search)
    run(study, search)
    assert len({tuple(trial.params.values()) for trial in study.trials}) == 1
    assert [trial.state.name for trial in study.trials] == ["FAIL"] * 4 + ["COMPLETE"]


def test_any_error_of_the_disk_is_no_failure_of_the_pair(
    make: Make, memory: InMemoryStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = make()
    study = new_study(search, memory)

    def broken(*arguments: object, **options: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("vit_ratio_opt.runs.objective.TemporaryDirectory", broken)
        for _ in range(4):
            with pytest.raises(InputError, match=r"cannot continue here, .*Input/output error"):
                run(study, search)
    run(study, search)
    assert [trial.state.name for trial in study.trials] == ["FAIL"] * 4 + ["COMPLETE"]


def test_enqueued_pairs_that_cannot_be_are_skipped(make: Make, memory: InMemoryStorage) -> None:
    search = make()
    study = new_study(search, memory)
    for ratio in (1.5, -0.25, 7.0, float("nan"), float("inf"), "x", None, [0.5]):
        study.enqueue_trial({"mhsa_ratio": ratio, "ffn_ratio": 0.5})
    with pytest.warns(UserWarning, match="out of range"):
        run(study, search, 3)
    assert [t.state.name for t in study.trials] == ["PRUNED"] * 8 + ["COMPLETE"] * 3
