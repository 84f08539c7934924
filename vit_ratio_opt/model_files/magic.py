"""Detect the format of a file by its first bytes, and suggest a remedy if it has no weights."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Literal

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.utils.text import shorten

__all__ = ["detect_container"]

_HEAD = 512
_MAGIC = {
    b"\x1f\x8b": "a gzip archive: unpack it first",
    b"BZh": "a bzip2 archive: unpack it first",
    b"\xfd7zXZ": "an xz archive: unpack it first",
    b"\x28\xb5\x2f\xfd": "a zstd archive: unpack it first",
    b"7z\xbc\xaf": "a 7z archive: unpack it first",
    b"\x89HDF": "an HDF5 file (Keras): load the model where it was made and save PyTorch weights",
    b"GGUF": "a GGUF file: give the PyTorch weights that it was made from",
    b"\x93NUMPY": "a single NumPy array: give a file of all the model's tensors",
    b"PAR1": "a Parquet file, which holds data and no weights",
    b"SQLite format 3": "a SQLite database, perhaps of studies: name it with --storage",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"%PDF": "a PDF document",
}
_NPZ = (
    "an archive of NumPy arrays, as JAX weights are: convert it with timm, "
    "`m = timm.create_model(NAME); m.load_pretrained(FILE); torch.save(m.state_dict(), 'x.pth')`"
)
# Zip archives of torch.save are not compressed; this is room for their headers, in bytes.
_ZIP_OVERHEAD = 1 << 20


def detect_container(path: Path) -> Literal["safetensors", "torch"]:
    """Return how a file holds its tensors.

    Raises:
        InputError: The file is missing, empty, or of another kind, which the message names.
    """
    if not path.is_file():
        raise InputError(f"There is no checkpoint {path}.")
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(_HEAD)
        if head.startswith(b"PK\x03\x04"):
            _refuse(path, _zip_kind(path, size))
            return "torch"
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from None
    _refuse(path, _kind(head))
    return "safetensors" if head[8:9] == b"{" else "torch"


def _refuse(path: Path, kind: str | None) -> None:
    if kind is not None:
        raise InputError(f"{path} is no readable checkpoint, but {kind}.")


def _kind(head: bytes) -> str | None:
    """Return what a file with these first bytes is; None for safetensors and pickles."""
    if not head:
        return "empty: the download or copy failed"
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer: run `git lfs pull` to fetch the weights"
    text = head.decode("utf-8", "replace").lstrip("\ufeff \t\r\n")
    if re.match(r"<(!doctype|html|\?xml)", text, re.IGNORECASE):
        return "a web page, such as a login or error page: download the file itself again"
    if (
        len(text) > 1
        and "\ufffd" not in text[:-3]
        and re.fullmatch(r"[^\x00-\x08\x0e-\x1f]+", text)
    ):
        return f"a text file, which begins with {shorten(text, 60)!r}"
    for magic, kind in _MAGIC.items():
        if head.startswith(magic):
            return kind
    if head[257:262] == b"ustar":
        return (
            "a tar archive: unpack it and name the checkpoint inside (PyTorch before 0.4 also "
            "wrote such files: load and save it there again)"
        )
    if head[8:9] == b"{" or head[0] == 0x80:
        return None
    if head[0] == 0x08 and head[2:3] in (b"\x12", b"\x1a", b"\x3a", b"\x42"):
        return "an ONNX model: give the PyTorch weights that it was exported from"
    return f"of a format that is not known; it begins with {head[:8]!r}"


def _zip_kind(path: Path, size: int) -> str | None:
    """Return what a zip archive is; None for a file of torch.save."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError):
        return "a truncated or damaged archive of torch.save: copy or download it again"
    names = [entry.filename for entry in entries]
    if any(name.endswith("constants.pkl") or "/code/" in name for name in names):
        return (
            "a TorchScript model, whose code would have to be run: save the `state_dict()` of the "
            "model that it was made from"
        )
    if names and all(name.endswith(".npy") for name in names):
        return _NPZ
    if any(name.endswith("archive_format") for name in names):
        return "a program of torch.export: save the `state_dict()` of the model instead"
    if not any(name.endswith("data.pkl") for name in names):
        return "a zip archive without weights of torch.save: unpack it first"
    if sum(entry.file_size for entry in entries) > size + _ZIP_OVERHEAD:
        return "a compressed archive, which torch.save never writes"
    return None
