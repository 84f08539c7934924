"""Check names of files and folders that come from a database. Never imports torch.

Every writer of a storage can change the attributes of its studies. So files that a study names
must have generated names in marked folders, and a folder that a study names is used only if this
package has marked it on this machine. The user has to name any other folder.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.utils.text import shorten

__all__ = [
    "check_artifact_id",
    "check_checkpoint_name",
    "check_marked",
    "is_artifact_id",
    "is_marked",
    "is_state_id",
    "mark_folder",
]

_MARK = ".vit_ratio_opt"
_STATE = "training-state-"
_ARTIFACT = re.compile(rf"({_STATE})?[0-9a-f]{{8}}(-[0-9a-f]{{4}}){{3}}-[0-9a-f]{{12}}")
_CHECKPOINT = re.compile(r"trial-\d{4,12}[\w.-]{0,150}", re.ASCII)


def is_state_id(text: object) -> bool:
    """Return whether a text is a name that this package generates for a training state."""
    return is_artifact_id(text) and str(text).startswith(_STATE)


def is_artifact_id(text: object) -> bool:
    """Return whether a text is a name that Optuna or this package generates for an artifact."""
    return isinstance(text, str) and _ARTIFACT.fullmatch(text) is not None


def check_artifact_id(text: object) -> str:
    """Return the id of an artifact.

    Raises:
        InputError: The text is no generated name, but a path, for example.
    """
    if not is_artifact_id(text):
        raise InputError(f"{shorten(repr(text))} is no id of an artifact: one is a UUID.")
    return str(text)


def check_checkpoint_name(text: object) -> str:
    """Return the file name of a trial's model.

    Raises:
        InputError: The text is no name of this package, but a path, for example.
    """
    if not isinstance(text, str) or not _CHECKPOINT.fullmatch(text):
        raise InputError(
            f"{shorten(repr(text))} is no name of a trial's model, such as trial-0000.safetensors."
        )
    return text


def mark_folder(folder: str | Path) -> None:
    """Mark a folder as used by this package on this machine; create it if it is missing.

    Raises:
        InputError: The folder cannot be created or written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _MARK).touch()
    except OSError as error:
        raise InputError(f"The folder {folder} cannot be written: {error.strerror}.") from None


def is_marked(folder: str | Path) -> bool:
    """Return whether this package has marked the folder on this machine."""
    try:
        return (Path(folder) / _MARK).is_file()
    except (OSError, ValueError):  # a name too long, or with NUL
        return False


def check_marked(location: str | None, study_name: str, option: str) -> str | None:
    """Return a folder that a study names, if it is marked.

    Args:
        location: Folder, or ``s3://bucket``; None for none.
        study_name: Name of the study.
        option: Option with which the user can name another folder.

    Raises:
        InputError: The folder is missing or not marked, or the location is a bucket.
    """
    if location is None or is_marked(location):
        return location
    if "://" not in location and not os.path.isdir(location):
        raise InputError(
            f"Study {shorten(study_name)!r} names the folder {shorten(location)!r}, which is not "
            f"on this machine: if you have moved it, or want another one, give it with {option}."
        )
    raise InputError(
        f"Study {shorten(study_name)!r} names {shorten(location)!r}, which vit_ratio_opt has not "
        f"used on this machine: if you trust it, give it with {option}."
    )
