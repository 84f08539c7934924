"""A writer of the database must not reach files of a worker by it."""

from __future__ import annotations

import io
import shutil
import uuid
from pathlib import Path

import optuna
import pytest
from optuna.artifacts.exceptions import ArtifactNotFound
from optuna.trial import TrialState, create_trial

from vit_ratio_opt.composer import Search
from vit_ratio_opt.data.digits import load_digits
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.model_files.load import load_dense
from vit_ratio_opt.model_files.save import save_dense
from vit_ratio_opt.models.create import create_model
from vit_ratio_opt.pruning.options import CalibrationOptions
from vit_ratio_opt.report.dashboard import AllArtifacts
from vit_ratio_opt.restore import load_search
from vit_ratio_opt.runs.artifacts import ArtifactFolder, artifact_location, open_artifacts
from vit_ratio_opt.runs.lineage import interrupted_trials, remove_states, state_artifact
from vit_ratio_opt.runs.options import Places, RunOptions, SearchOptions
from vit_ratio_opt.runs.storage import open_storage
from vit_ratio_opt.search.limits import Budget
from vit_ratio_opt.training.recipe import Recipe
from vit_ratio_opt.utils.untrusted import (
    check_checkpoint_name,
    check_marked,
    is_marked,
    mark_folder,
)

MODEL = "vit_tiny_patch16_224"
ARGUMENTS = {
    "img_size": 8, "patch_size": 4, "in_chans": 1, "embed_dim": 32, "depth": 2, "num_heads": 4,
    "mlp_ratio": 2.0, "num_classes": 10,
}  # fmt: skip
OUTSIDE = ("/etc/passwd", "../victim", "..", ".", "", "a/b", "a\0", "victim", None, 5, "x" * 300)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a dense model, a study of it and the study's folder of models."""
    folder = tmp_path_factory.mktemp("made")
    path = folder / "dense.safetensors"
    save_dense(create_model(MODEL, **ARGUMENTS), path, name=MODEL, arguments=ARGUMENTS)
    search = Search(
        load_dense(path),
        load_digits(),
        Budget(0.6),
        training=Recipe(epochs=0),
        options=SearchOptions(screen=False, calibration=CalibrationOptions(images=64)),
        run=RunOptions(checkpoints=folder / "models"),
    )
    search.create_study("s", storage=f"sqlite:///{folder / 'study.db'}")
    return folder


@pytest.fixture
def study(made, tmp_path):
    """The study, in a database of its own."""
    shutil.copy(made / "study.db", tmp_path / "study.db")
    return optuna.load_study(study_name="s", storage=f"sqlite:///{tmp_path / 'study.db'}")


def renamed(study, **changes):
    study.set_user_attr("origin", {**study.user_attrs["origin"], **changes})


def test_a_worker_on_the_creators_machine_needs_no_option(study, made):
    journal = load_search("s", study._storage).journal
    assert journal.checkpoints == made / "models"
    assert is_marked(journal.artifacts)


@pytest.mark.parametrize("option", ["--checkpoints", "--artifacts"])
def test_a_folder_that_was_moved_is_called_missing_and_not_foreign(tmp_path, option):
    with pytest.raises(InputError, match=f"is not on this machine: .*give it with {option}"):
        check_marked(str(tmp_path / "moved-away"), "s", option)
    with pytest.raises(InputError, match=f"has not used on this machine: .*{option}"):
        check_marked(str(tmp_path), "s", option)


@pytest.mark.parametrize("name", ["checkpoints", "artifacts"])
@pytest.mark.parametrize("place", ["victim", "new", "/", "s3://bucket", "\0", "x" * 5000])
def test_a_foreign_folder_of_a_study_has_to_be_given(study, tmp_path, name, place):
    (tmp_path / "victim").mkdir()
    location = str(tmp_path / place) if place in ("victim", "new") else place
    renamed(study, **{name: location})
    with pytest.raises(InputError, match=f"give it with --{name}"):
        load_search("s", study._storage)
    assert not (tmp_path / "new").exists()
    assert list((tmp_path / "victim").iterdir()) == []
    given = load_search("s", study._storage, Places(**{name: tmp_path / "victim"}))
    given.create_study("s", storage=study._storage)
    assert is_marked(tmp_path / "victim")


@pytest.mark.parametrize("root", ["/no/such", "", 5, "\0"])
def test_images_are_not_fetched_into_a_folder_that_a_study_names(study, root):
    renamed(study, data={"loader": "cifar10", "root": root, "seed": 0})
    with pytest.raises(InputError, match="is no folder here: give --data"):
        load_search("s", study._storage)


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_artifact_is_read_written_or_removed_but_by_a_generated_name(tmp_path, name):
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "victim").write_text("precious")
    store = ArtifactFolder(tmp_path / "store")
    for use in (store.open_reader, store.remove, lambda n: store.write(n, io.BytesIO(b"new"))):
        with pytest.raises(InputError, match="no id of an artifact"):
            use(name)
    remove_states([name], store)
    trial = create_trial(
        state=TrialState.FAIL, user_attrs={"training_state": {"artifact": name, "epoch": 1}}
    )
    assert state_artifact(trial) is None
    assert (tmp_path / "victim").read_text() == "precious"
    assert (tmp_path / "store" / "victim").read_text() == "precious"


def test_a_models_artifact_is_no_state_that_may_be_removed(tmp_path):
    artifact = str(uuid.uuid4())
    (tmp_path / artifact).write_text("a model")
    remove_states([artifact], ArtifactFolder(tmp_path))
    assert (tmp_path / artifact).exists()


@pytest.mark.parametrize("state", [5, [], "x", {}, {"artifact": {}}, {"epoch": "x"}, None])
def test_a_damaged_state_of_a_training_is_none(state):
    attributes = {"training_state": state, "seed": 0, "blocks": [["a"]]}
    trial = create_trial(state=TrialState.FAIL, user_attrs=attributes)
    assert interrupted_trials([trial], (0.5, 0.5), 0) == []


def test_a_link_in_the_folder_of_artifacts_is_not_followed(tmp_path):
    (tmp_path / "secret").write_text("precious")
    artifact = str(uuid.uuid4())
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / artifact).symlink_to(tmp_path / "secret")
    store = ArtifactFolder(tmp_path / "store")
    with pytest.raises(ArtifactNotFound):
        store.open_reader(artifact)
    store.remove(artifact)
    assert (tmp_path / "secret").read_text() == "precious"


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_trials_model_has_a_name_of_ours(study, tmp_path, name):
    search = load_search("s", study._storage)
    if name is None:
        return
    attributes = {"checkpoint": name, "accuracy": 50.0}
    study.add_trial(create_trial(value=50.0, user_attrs=attributes))
    with pytest.raises(InputError, match="no name of a trial's model"):
        search.model_of(study, study.trials[-1])
    assert check_checkpoint_name("trial-0000.safetensors")


@pytest.mark.parametrize("pickled", [True, False])
def test_a_study_cannot_have_a_pickle_loaded(study, tmp_path, pickled):
    import pickle

    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "owned",))

    path = tmp_path / ("evil.pth" if pickled else "evil.safetensors")
    path.write_bytes(pickle.dumps({"model": Evil()}))
    source = {"checkpoint": str(path), "name": None, "arguments": {}}
    renamed(study, model=source)
    with pytest.raises(InputError):
        load_search("s", study._storage)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    "location",
    ["s3://KEY:geheim@bucket", "s3://KEY@bucket", "http://u:geheim@h/x", "s3://b?secret=geheim"],
)
def test_keys_do_not_belong_into_the_location_of_artifacts(location):
    with pytest.raises(InputError) as error:
        artifact_location(location)
    assert "geheim" not in str(error.value)
    assert "KEY" not in str(error.value)


def test_the_dashboard_writes_into_folders_of_ours_only(make_study, tmp_path):
    study = make_study(f"sqlite:///{tmp_path / 'study.db'}")
    study.set_user_attr("origin", {"artifacts": str(tmp_path / "foreign")})
    (tmp_path / "foreign").mkdir()
    artifact = str(uuid.uuid4())
    (tmp_path / "foreign" / artifact).write_text("precious")
    storage = open_storage(f"sqlite:///{tmp_path / 'study.db'}")
    store = AllArtifacts(storage, open_artifacts)
    store.remove(artifact)
    with pytest.raises(InputError, match="folder of artifacts made here"):
        store.write(str(uuid.uuid4()), io.BytesIO(b"new"))
    assert [path.name for path in (tmp_path / "foreign").iterdir()] == [artifact]
    mark_folder(tmp_path / "foreign")
    store.write(str(uuid.uuid4()), io.BytesIO(b"new"))
    assert len(list((tmp_path / "foreign").iterdir())) == 3
    assert isinstance(study, optuna.Study)
