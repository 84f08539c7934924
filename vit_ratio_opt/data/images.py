"""Conversion of images of any mode and depth to 8 bits a channel, as a viewer shows them.

Images without such a form, such as floating point without a defined range, are refused. Colour
profiles are not applied, as torchvision and timm do not apply them either.
"""

from __future__ import annotations

import os
import warnings
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torchvision.transforms import v2

from vit_ratio_opt.data.preprocessing import Preprocessing
from vit_ratio_opt.errors import InputError

__all__ = ["read_image", "resize", "to_8_bits", "to_uint8"]

# Largest number of pixels after resizing; Pillow limits the pixels of an image that is read.
_LARGEST = 90_000_000
# Formats that Pillow passes to another program, or to the operating system.
_NOT_READ = {"EPS", "WMF", "EMF"}
# Formats in which Pillow's mode I holds 16 bits; elsewhere its range is unknown.
_16_BITS_IN_I = {"PNG", "PPM"}
_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # TIFF tags
_TENSOR_MODES = {
    "nearest": v2.InterpolationMode.NEAREST_EXACT,  # Pillow's
    "bilinear": v2.InterpolationMode.BILINEAR,
    "bicubic": v2.InterpolationMode.BICUBIC,
}


def read_image(
    path: str | os.PathLike[str], *, exif_rotation: bool = False, fast: bool = False
) -> Image.Image:
    """Return the image of a file in 8-bit RGB, as a viewer shows it.

    Of an animation, or of several pages, the first image is returned.

    Args:
        path: The file. Its content decides its format, not its suffix.
        exif_rotation: Whether a photograph is rotated by its EXIF orientation. torchvision and
            timm do not rotate it, so models were usually trained without the rotation.
        fast: Whether a JPEG may be returned at an eighth of its size, to test if it is readable.

    Raises:
        InputError: The file cannot be read, is damaged, has more pixels than
            ``PIL.Image.MAX_IMAGE_PIXELS``, or has pixels that :func:`to_8_bits` refuses.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                if image.format in _NOT_READ:
                    raise InputError(f"{image.format} is not read.")
                if fast:
                    image.draft(image.mode, (1, 1))
                image.load()
                turned = ImageOps.exif_transpose(image) if exif_rotation else image
                return to_8_bits(turned, image).convert("RGB")
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise InputError(
            f"{path} has more than the {Image.MAX_IMAGE_PIXELS:,} pixels that Pillow considers "
            "harmless: make it smaller, or raise `PIL.Image.MAX_IMAGE_PIXELS`."
        ) from None
    except InputError as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    except Exception as error:  # Pillow's readers raise many kinds for a damaged file
        raise InputError(f"{path} cannot be read: {_reason(error)}") from None


def to_8_bits(image: Image.Image, opened: Image.Image | None = None) -> Image.Image:
    """Return an image of any of Pillow's modes as a viewer shows it, in mode L or RGB.

    Sixteen bits become eight by rounding ``value / 257``; Pillow itself cuts 16-bit colours to
    their upper eight bits. Transparent pixels show a white background.

    Args:
        image: The image.
        opened: The opened image from which ``image`` was made, which knows the file's format.

    Raises:
        InputError: It has 32-bit integers or floating-point values, whose range is not defined.
    """
    mode, opened = image.mode, opened or image
    if mode == "RGB" and "transparency" not in image.info:
        return image
    if mode.startswith("I;16") or (mode == "I" and opened.format in _16_BITS_IN_I):
        return _from_16_bits(image, opened)
    if mode in ("I", "F"):
        kind = "32-bit integers" if mode == "I" else "floating point"
        raise InputError(
            f"it is of {kind}, whose range is not defined. Save it with 8 or 16 bits a channel."
        )
    if mode == "La":  # the only conversion there is
        image = image.convert("LA")
    if mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    is_grey = mode in ("1", "L", "LA", "La")
    return image.convert("L" if is_grey else "RGB")


def _from_16_bits(image: Image.Image, opened: Image.Image) -> Image.Image:
    pixels = np.asarray(image).astype(np.uint32)
    tags = getattr(opened, "tag_v2", {})
    bits = tags.get(_BITS_PER_SAMPLE, (16,))
    largest = 2 ** (bits[0] if isinstance(bits, tuple) else bits) - 1
    eight = (pixels * 255 + largest // 2) // largest
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:  # Pillow inverts no 16-bit image
        eight = 255 - eight
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        eight[pixels == transparent] = 255
    return Image.fromarray(eight.astype(np.uint8))


def to_uint8(image: Any) -> torch.Tensor:
    """Return one image of a data set as a uint8 tensor, ``(channels, height, width)``.

    Args:
        image: A PIL image; or a NumPy array or a tensor of uint8, bool (black and white) or
            uint16 (0 to 65,535), ``(height, width)``, ``(height, width, channels)`` or
            ``(channels, height, width)``. Where both orders are possible, arrays have the
            channels last and tensors first, as usual.

    Raises:
        InputError: It is something else.
    """
    if isinstance(image, Image.Image):
        plain: torch.Tensor = v2.functional.pil_to_tensor(to_8_bits(image))
        return plain
    if isinstance(image, np.ndarray):
        if not image.dtype.isnative:
            image = image.astype(image.dtype.newbyteorder("="))
        try:
            tensor = torch.from_numpy(np.require(image, requirements=["C", "W"]))
        except TypeError:
            raise InputError(f"it is an array of {image.dtype}, not an image.") from None
    elif isinstance(image, torch.Tensor):
        tensor = image.detach().as_subclass(torch.Tensor)
    else:
        if isinstance(image, bytes):
            raise InputError(
                "it is bytes of a file: decode the images, with WebDataset by `.decode('pil')`."
            )
        raise InputError(
            f"it is a {type(image).__name__}, but must be a PIL image, an array or a tensor."
        )
    if tensor.ndim == 2:
        tensor = tensor[None]
    elif tensor.ndim == 3:
        first, last = tensor.shape[0] in (1, 3), tensor.shape[2] in (1, 3)
        if isinstance(image, np.ndarray) if first == last else last:
            tensor = tensor.permute(2, 0, 1)
    if tensor.ndim != 3 or not tensor.numel():
        raise InputError(f"it has the shape {tuple(tensor.shape)}, which is not of an image.")
    if tensor.dtype == torch.bool:
        return tensor.to(torch.uint8) * 255
    if tensor.dtype == torch.uint16:
        return ((tensor.to(torch.int64) * 255 + 32767) // 65535).to(torch.uint8)
    if tensor.dtype != torch.uint8:
        raise InputError(
            f"it has values of {str(tensor.dtype).removeprefix('torch.')}, but images must be 8 "
            "bits a channel. Leave ToTensor and Normalize out of the data set's transform: this "
            "package normalises by itself; or convert the values to uint8, 0 to 255."
        )
    return tensor


def resize(image: torch.Tensor, to: Preprocessing) -> torch.Tensor:
    """Return the image resized, with antialiasing, and cropped to the size of a model's input.

    As timm's ``create_transform`` does it for evaluation: the shorter side (each side, if
    ``to.squash``) becomes the input's, divided by ``to.crop`` and rounded down, and the centre is
    cut out. torch computes bilinear and bicubic means, which differ from Pillow's by at most a
    grey level here and there.

    Args:
        image: uint8, ``(channels, height, width)``.
        to: Size, crop and interpolation of the model's input.

    Raises:
        InputError: The image is so narrow that it would not fit in memory.
    """
    height, width = to.image_size
    ratio = min(image.shape[1] / height, image.shape[2] / width) * to.crop
    pixels = image.shape[1] * image.shape[2] / ratio**2
    if not to.squash and pixels > max(_LARGEST, 4 * height * width / to.crop**2):
        raise InputError(
            f"it has {image.shape[1]} x {image.shape[2]} pixels: too narrow to be resized to "
            f"{height} x {width}."
        )
    scaled = [int(height / to.crop), int(width / to.crop)]
    if not to.squash and height == width:
        scaled = scaled[:1]
    elif not to.squash:
        ratio = min(image.shape[1] / scaled[0], image.shape[2] / scaled[1])
        scaled = [round(side / ratio) for side in image.shape[1:]]
    if list(image.shape[1:]) != [height, width] or scaled not in ([height], [height, width]):
        image = _interpolated(image, scaled, to.interpolation)
        image = v2.functional.center_crop(image, [height, width])
    return image


def _interpolated(image: torch.Tensor, size: list[int], interpolation: str) -> torch.Tensor:
    if interpolation in _TENSOR_MODES:
        mode = _TENSOR_MODES[interpolation]
        resized: torch.Tensor = v2.functional.resize(image, size, mode, antialias=True)
        return resized
    # Only Pillow has the other interpolations; it resizes each channel like a grey image.
    mode = v2.InterpolationMode(interpolation)
    channels = [
        v2.functional.pil_to_tensor(
            v2.functional.resize(Image.fromarray(channel.numpy()), size, mode)
        )
        for channel in image
    ]
    return torch.cat(channels)


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "it is in no format that Pillow reads."
    text = " ".join(str(getattr(error, "strerror", None) or error).split())
    return f"{text[:200] or type(error).__name__}."
