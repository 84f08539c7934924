from __future__ import annotations

import os

import optuna
import pytest
from optuna.artifacts import download_artifact, upload_artifact

from vit_ratio_opt.runs.artifacts import ArtifactFolder


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"model.safetensors")
    return path


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "models" / "artifacts"


@pytest.fixture
def upload(folder, checkpoint):
    """Uploads the checkpoint as an artifact of a study and returns its id."""
    study, store = optuna.create_study(), ArtifactFolder(folder)
    return lambda: upload_artifact(
        artifact_store=store, file_path=str(checkpoint), study_or_trial=study
    )


def test_an_artifact_is_a_second_name_of_its_file(tmp_path, upload, folder, checkpoint):
    artifact_id, copy = upload(), tmp_path / "copy"
    assert os.path.samefile(checkpoint, folder / artifact_id)
    download_artifact(
        artifact_store=ArtifactFolder(folder), artifact_id=artifact_id, file_path=str(copy)
    )
    checkpoint.unlink()
    assert copy.read_bytes() == b"model.safetensors"


def test_an_artifact_is_copied_where_links_do_not_work(upload, folder, checkpoint, monkeypatch):
    def no_links(*arguments):
        raise OSError("not supported")

    monkeypatch.setattr("os.link", no_links)
    artifact_id = upload()
    checkpoint.write_bytes(b"other")
    assert (folder / artifact_id).read_bytes() == b"model.safetensors"
