"""Check names and folders that a database gives. Never imports torch.

A writer of a study's storage chooses its attributes. So a file that a study names is a
generated name in a folder of ours, and a folder that a study names is used only where this package
has marked it on this machine; any other has to be given by the user.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.utils.text import short

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
    """Whether a text is a name that this package generates for the state of a training."""
    return is_artifact_id(text) and str(text).startswith(_STATE)


def is_artifact_id(text: object) -> bool:
    """Whether a text is a name that Optuna or this package generates for an artifact."""
    return isinstance(text, str) and _ARTIFACT.fullmatch(text) is not None


def check_artifact_id(text: object) -> str:
    """Return the id of an artifact.

    Raises:
        InputError: It is no generated name, such as a path.
    """
    if not is_artifact_id(text):
        raise InputError(f"{short(repr(text))} is no id of an artifact: one is a UUID.")
    return str(text)


def check_checkpoint_name(text: object) -> str:
    """Return the file name of a trial's model.

    Raises:
        InputError: It is no name of ours, such as a path.
    """
    if not isinstance(text, str) or not _CHECKPOINT.fullmatch(text):
        raise InputError(
            f"{short(repr(text))} is no name of a trial's model, such as trial-0000.safetensors."
        )
    return text


def mark_folder(folder: str | Path) -> None:
    """Create a folder of ours, or mark one that the user has given as ours.

    Raises:
        InputError: It cannot be created or written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _MARK).touch()
    except OSError as error:
        raise InputError(f"The folder {folder} cannot be written: {error.strerror}.") from None


def is_marked(folder: str | Path) -> bool:
    """Whether this package has marked the folder on this machine."""
    try:
        return (Path(folder) / _MARK).is_file()
    except (OSError, ValueError):  # a name too long, or with NUL
        return False


def check_marked(location: str | None, study_name: str, option: str) -> str | None:
    """Return a folder that a study names, where it is ours.

    Args:
        location: The folder, or ``s3://bucket``; None for none.
        study_name: The study that names it.
        option: The option by which the user can name one.

    Raises:
        InputError: The folder is not here or not marked, or it is a bucket.
    """
    if location is None or is_marked(location):
        return location
    if "://" not in location and not os.path.isdir(location):
        raise InputError(
            f"Study {short(study_name)!r} names the folder {short(location)!r}, which is not on "
            f"this machine: if you have moved it, or want another one, give it with {option}."
        )
    raise InputError(
        f"Study {short(study_name)!r} names {short(location)!r}, which vit_ratio_opt has not "
        f"used on this machine: if you trust it, give it with {option}."
    )
