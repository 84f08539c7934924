"""Load the images of a pruned model's study again, from the manifest in the model's file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vit_ratio_opt.data.image_data import ImageData
from vit_ratio_opt.data.load import load_again as load_images_again
from vit_ratio_opt.data.load import load_images
from vit_ratio_opt.data.options import LoadOptions
from vit_ratio_opt.data.preprocessing import Preprocessing
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.utils.failures import reason

__all__ = ["study_images"]


def study_images(
    manifest: Mapping[str, Any],
    root: str | Path | None = None,
    *,
    image_size: int | None = None,
    preprocess: Preprocessing | None = None,
) -> ImageData:
    """Return the images of the study of a pruned model, in its splits.

    The test split is what the study reported on. For the manifest of a dense model it is all test
    images.

    Args:
        manifest: Manifest that ``load_pruned`` returns; empty for a dense model.
        root: Folder of the images, see :func:`vit_ratio_opt.load_images`; None for the digits.
        image_size: Pixels of a side, used if the manifest does not say how images were loaded.
        preprocess: Preprocessing of the model, used if the manifest does not say how images were
            loaded.

    Raises:
        InputError: There is no ``root`` but the study was not about the digits, the folder cannot
            be read, or it gives another validation split or other classes than the study had.
    """
    source, fingerprint = manifest.get("images"), manifest.get("validation")
    try:
        is_digits = (source["loader"] if source else manifest.get("dataset")) == "digits"
        if root is None and not is_digits:
            raise InputError("Accuracy is measured, not assumed: give --data, the images' folder.")
        for load in _loads(manifest, root, image_size, preprocess):
            data = load()
            if fingerprint is None or data.has_fingerprint(fingerprint):
                break
    except InputError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"The model has a damaged manifest: {reason(error)}.") from None
    if fingerprint is not None and not data.has_fingerprint(fingerprint):
        raise InputError(
            f"The images here give another validation split ({data.fingerprint}) than the model's "
            f"study had ({fingerprint}), so its test images are not known: give its own images."
        )
    if manifest.get("classes") not in (None, list(data.classes)):
        raise InputError(f"The classes of {data.name} are not those that the model was made for.")
    return data


def _loads(
    manifest: Mapping[str, Any],
    root: str | Path | None,
    image_size: int | None,
    preprocess: Preprocessing | None,
) -> list[Callable[[], ImageData]]:
    """Return ways to load the images of a manifest, one of which is right."""
    source, seed = manifest.get("images"), manifest.get("seed", 0)
    if source:
        return [lambda: load_images_again(source, root=root)]
    if root is None:
        return [lambda: load_images_again({"loader": "digits", "seed": seed})]
    options: dict[str, Any] = {"seed": seed, "preprocess": preprocess}
    if not (Path(root) / "cifar-10-batches-py").is_dir():  # which has its own
        options["image_size"] = image_size
        options["options"] = LoadOptions(mean=manifest.get("mean"), std=manifest.get("std"))
    loads = [lambda: load_images(root, validation="train", **options)]
    if "validation" in manifest:  # the hash of a split, by an earlier version
        loads.append(lambda: load_images(root, validation="test", **options))
    return loads
