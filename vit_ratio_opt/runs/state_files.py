"""Turn a saved training state, a file or a folder, into one file and back. Never imports torch."""

from __future__ import annotations

import contextlib
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

__all__ = ["is_saved", "pack", "remove", "unpack"]

# Distinguishes a packed folder from a trainer's file that is a zip archive, as torch.save's are.
_FOLDER = b"vit_ratio_opt: folder of a training state"


def is_saved(path: Path) -> bool:
    """Return whether a trainer has saved a state: a file, or a folder that is not empty."""
    return any(path.iterdir()) if path.is_dir() else path.exists()


@contextlib.contextmanager
def pack(path: Path) -> Iterator[Path]:
    """Copy a state into one file, which the context removes.

    An artifact store may link a file instead of copying it. So it is given a copy, which the
    trainer cannot overwrite when it saves the next epoch.

    Args:
        path: File or folder of the state.
    """
    with TemporaryDirectory(dir=path.parent) as folder:
        packed = Path(folder, "packed")
        if path.is_dir():
            with zipfile.ZipFile(packed, "w") as archive:  # weights do not get smaller
                archive.comment = _FOLDER
                for file in sorted(path.rglob("*")):
                    archive.write(file, file.relative_to(path))
        else:
            shutil.copyfile(path, packed)
        yield packed


def unpack(path: Path) -> None:
    """Replace a packed folder by the folder; leave any other file as it is."""
    if not zipfile.is_zipfile(path):
        return
    with TemporaryDirectory(dir=path.parent) as folder:
        with zipfile.ZipFile(path) as archive:
            if archive.comment != _FOLDER:
                return
            archive.extractall(Path(folder, "state"))  # writes nothing outside of the folder
        path.unlink()
        Path(folder, "state").rename(path)


def remove(path: Path) -> None:
    """Remove a file or a folder, if there is one."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
