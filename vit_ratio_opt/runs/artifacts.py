"""Open and check the stores of artifacts: a folder, an S3 bucket, or any store of Optuna's."""

from __future__ import annotations

import contextlib
import io
import os
import re
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from optuna.artifacts import Boto3ArtifactStore, FileSystemArtifactStore
from optuna.artifacts.exceptions import ArtifactNotFound

from vit_ratio_opt._compat import behind_backoff
from vit_ratio_opt.errors import CannotWriteError, InputError
from vit_ratio_opt.utils.failures import reason
from vit_ratio_opt.utils.redact import redact
from vit_ratio_opt.utils.untrusted import check_artifact_id

if TYPE_CHECKING:
    from vit_ratio_opt._compat import ArtifactStore

__all__ = ["ArtifactFolder", "artifact_location", "check_store", "open_artifacts"]

_BUCKET = re.compile(r"(arn:[\w.:-]+|[\w.-]+)", re.ASCII)


def artifact_location(location: str | Path) -> str:
    """Return the absolute path of a folder, or ``s3://bucket``, as a study stores it.

    Raises:
        InputError: The location is neither.
    """
    scheme, _, bucket = str(location).partition("://")
    if not bucket:
        return str(Path(location).resolve())
    # A study stores the location, so it must hold no keys.
    if scheme != "s3" or not _BUCKET.fullmatch(bucket.rstrip("/")):
        raise InputError(
            f"Artifacts are kept in a folder or in s3://bucket, not in {redact(str(location))!r}."
        )
    return str(location).rstrip("/")


def open_artifacts(location: str) -> ArtifactStore:
    """Return the store at a location, without connecting to it.

    boto3 reads credentials, region and ``AWS_ENDPOINT_URL`` as it always does.

    Args:
        location: What :func:`artifact_location` returned.

    Raises:
        InputError: boto3 is not installed, or has no region.
    """
    if not location.startswith("s3://"):
        return ArtifactFolder(Path(location))
    try:
        import boto3
        from botocore.config import Config
    except ImportError:
        raise InputError("s3:// needs boto3: pip install 'vit_ratio_opt[s3]'.") from None
    try:
        patient = Config(retries={"mode": "standard", "max_attempts": 10})
        client = boto3.client("s3", config=patient)
        return Boto3ArtifactStore(location.removeprefix("s3://"), client)
    except Exception as error:  # of botocore, which may not be there
        raise InputError(f"{location} cannot be used: {reason(error)}") from None


def check_store(store: ArtifactStore) -> None:
    """Write an artifact and remove it again, to prove that a store can be written.

    Raises:
        CannotWriteError: The store cannot be written.
    """
    artifact = str(uuid.uuid4())
    try:
        store.write(artifact, io.BytesIO(b"probe"))
    except Exception as error:  # a store raises whatever its client does
        raise CannotWriteError(
            f"The artifact store cannot be written: {type(error).__name__}: {reason(error)}"
        ) from None
    with contextlib.suppress(Exception):
        behind_backoff(store).remove(artifact)


class ArtifactFolder(FileSystemArtifactStore):
    """A folder that stores artifacts as hard links to the uploaded files where that is possible.

    A checkpoint that is also an artifact thus takes its space once. Ids come from a database, so
    only generated names are opened or removed, and symbolic links are not followed.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._folder = folder

    def open_reader(self, artifact_id: str) -> BinaryIO:
        """Open the file of an artifact.

        Raises:
            ArtifactNotFound: There is no such file.
        """
        path = self._folder / check_artifact_id(artifact_id)
        if path.is_symlink() or not path.is_file():
            raise ArtifactNotFound(f"There is no artifact {artifact_id}.")
        return super().open_reader(artifact_id)

    def remove(self, artifact_id: str) -> None:
        """Remove the file of an artifact."""
        super().remove(check_artifact_id(artifact_id))

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        """Store a file as a link or copy, or a stream as a file, under the id of an artifact."""
        check_artifact_id(artifact_id)
        self._folder.mkdir(parents=True, exist_ok=True)
        file = getattr(content_body, "name", None)  # what comes over the network has none
        try:
            if file is not None:
                os.link(file, self._folder / artifact_id)
                return
        except OSError:  # not every file system has links
            pass
        super().write(artifact_id, content_body)
