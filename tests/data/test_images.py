from __future__ import annotations

import io
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from vit_ratio_opt.data.datasets import load_datasets
from vit_ratio_opt.data.image_folder import load_image_folder
from vit_ratio_opt.data.images import read_image, resize, to_8_bits, to_uint8
from vit_ratio_opt.data.options import LoadOptions
from vit_ratio_opt.data.preprocessing import Preprocessing
from vit_ratio_opt.errors import InputError

RAMP = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
WHITE = (255, 255, 255)


def folder_of(root, save, suffix="png"):
    """Two classes, two splits, twenty files each, every one written by ``save(path)``."""
    for split in ("train", "test"):
        for name in ("a", "b"):
            (root / split / name).mkdir(parents=True)
            for index in range(20):
                save(root / split / name / f"{index}.{suffix}")
    return root


def tiff(bits, data, *, white_is_zero=False, sample_format=1, width=2, order="<"):
    """A TIFF file of one grey row, as scanners and microscopes write it."""
    tags = [
        (256, 3, width), (257, 3, 1), (258, 3, bits), (259, 3, 1),
        (262, 3, 0 if white_is_zero else 1), (273, 4, 0), (277, 3, 1), (278, 3, 1),
        (279, 4, len(data)), (339, 3, sample_format),
    ]  # fmt: skip
    start = 8 + 2 + 12 * len(tags) + 4
    file = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HIH", 42, 8, len(tags))
    for tag, kind, value in tags:
        value = start if tag == 273 else value
        file += struct.pack(f"{order}HHI", tag, kind, 1)
        file += struct.pack(f"{order}I" if kind == 4 else f"{order}Hxx", value)
    return file + bytes(4) + data


# Depths


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_a_16_bit_image_looks_as_a_viewer_shows_it(tmp_path, suffix):
    folder_of(tmp_path, lambda path: Image.fromarray(RAMP).save(path), suffix)
    images, _ = next(load_image_folder(tmp_path).train.batches(36))
    assert (images == torch.arange(256, dtype=torch.uint8).view(16, 16)).all()


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", "I;16N"])
def test_16_bits_of_any_order_are_rounded_to_8(mode):
    values = np.array([[0, 127, 128, 129, 385, 386, 65407, 65535]])
    dtype = {"I;16B": ">u2", "I;16N": "=u2"}.get(mode, "<u2")
    image = Image.frombytes(mode, (8, 1), values.astype(dtype).tobytes())
    assert np.asarray(to_8_bits(image)).tolist() == [[0, 0, 0, 1, 1, 2, 255, 255]]


@pytest.mark.parametrize(
    ("file", "pixels"),
    [
        (b"P5\n2 1\n65535\n" + struct.pack(">2H", 257, 65535), [1, 255]),
        (b"P5\n2 1\n4095\n" + struct.pack(">2H", 0, 4095), [0, 255]),
        (b"P5\n2 1\n31\n" + bytes([0, 31]), [0, 255]),
        (b"P2\n2 1\n1000\n0 1000\n", [0, 255]),
        (tiff(16, struct.pack("<2H", 257, 65535)), [1, 255]),
        (tiff(16, struct.pack(">2H", 257, 65535), order=">"), [1, 255]),
        (tiff(16, struct.pack("<2H", 257, 65535), white_is_zero=True), [254, 0]),
        (tiff(8, bytes([1, 255]), white_is_zero=True), [254, 0]),
        (tiff(12, bytes([0xFF, 0xF0, 0x00])), [255, 0]),
    ],
)
def test_the_depth_that_a_file_declares_is_its_range(tmp_path, file, pixels):
    (tmp_path / "x").write_bytes(file)
    image = np.asarray(read_image(tmp_path / "x"))
    assert image.tolist() == [[[value] * 3 for value in pixels]]


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        (tiff(32, struct.pack("<2f", 0, 1), sample_format=3), "floating point"),
        (tiff(32, struct.pack("<2I", 0, 9)), "32-bit integers"),
        (tiff(16, struct.pack("<2h", -5, 9), sample_format=2), "32-bit integers"),
        (b"Pf\n2 1\n-1.0\n" + struct.pack("<2f", 0, 1), "floating point"),
    ],
)
def test_an_image_without_a_defined_range_is_refused_by_name(tmp_path, file, kind):
    folder_of(tmp_path, lambda path: path.write_bytes(file), "tiff")
    with pytest.raises(InputError, match=rf"no training image .*0\.tiff cannot be read.*{kind}"):
        load_image_folder(tmp_path)


# Modes


@pytest.mark.parametrize(
    ("mode", "colour", "shown"),
    [
        ("1", 1, WHITE),
        ("L", 7, (7, 7, 7)),
        ("LA", (7, 255), (7, 7, 7)),
        ("LA", (7, 0), WHITE),
        ("La", (0, 0), WHITE),
        ("RGB", (1, 2, 3), (1, 2, 3)),
        ("RGBX", (1, 2, 3, 0), (1, 2, 3)),
        ("RGBA", (1, 2, 3, 255), (1, 2, 3)),
        ("RGBA", (1, 2, 3, 0), WHITE),
        ("RGBA", (0, 0, 0, 51), (204, 204, 204)),
        ("RGBa", (0, 0, 0, 51), (204, 204, 204)),
        ("CMYK", (255, 0, 0, 0), (0, 255, 255)),
        ("YCbCr", (255, 128, 128), WHITE),
        ("HSV", (0, 255, 255), (255, 0, 0)),
        ("LAB", (255, 128, 128), WHITE),
    ],
)
def test_an_image_of_any_mode_looks_as_a_viewer_shows_it(mode, colour, shown):
    image = to_8_bits(Image.new(mode, (2, 2), colour))
    pixel = np.asarray(image.convert("RGB"))[1, 1].astype(int)
    assert abs(pixel - shown).max() <= 1
    assert image.mode == ("L" if mode in ("1", "L", "LA", "La") else "RGB")


def palette(transparency=None):
    image = Image.new("P", (2, 2), 1)
    image.putpalette([9, 9, 9, 10, 20, 30])
    file = io.BytesIO()
    options = {} if transparency is None else {"transparency": transparency}
    image.save(file, "PNG", **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("transparency", "shown"),
    [(None, (10, 20, 30)), (1, WHITE), (0, (10, 20, 30)), (bytes([255, 0]), WHITE)],
)
def test_a_palette_is_applied_with_its_transparency(tmp_path, transparency, shown):
    (tmp_path / "x").write_bytes(palette(transparency))
    assert read_image(tmp_path / "x").getpixel((0, 0)) == shown


@pytest.mark.parametrize(("mode", "key"), [("L", 5), ("RGB", (5, 5, 5)), ("I;16", 1285)])
def test_a_transparent_colour_shows_the_background(tmp_path, mode, key):
    Image.new(mode, (2, 2), key).save(tmp_path / "x.png", transparency=key)
    assert read_image(tmp_path / "x.png").getpixel((0, 0)) == WHITE


def test_opaque_alpha_changes_no_pixel():
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 4), dtype=np.uint8)
    pixels[..., 3] = 255
    assert (np.asarray(to_8_bits(Image.fromarray(pixels))) == pixels[..., :3]).all()


@pytest.mark.parametrize(("format", "suffix"), [("GIF", "gif"), ("PNG", "apng"), ("TIFF", "tif")])
def test_of_several_images_in_a_file_the_first_counts(tmp_path, format, suffix):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue", "lime")]

    def save(path):
        frames[0].save(path, format, save_all=True, append_images=frames[1:])

    images, _ = next(load_image_folder(folder_of(tmp_path, save, suffix)).train.batches(3))
    assert (images == torch.tensor([255, 0, 0]).view(3, 1, 1)).all()


def test_a_photograph_is_turned_only_if_asked_for(tmp_path):
    exif = Image.Exif()
    exif[274] = 6  # the camera was held upright
    picture = Image.new("RGB", (16, 8), "red")
    folder_of(tmp_path, lambda path: picture.save(path, exif=exif), "jpg")
    path = tmp_path / "train" / "a" / "0.jpg"
    assert read_image(path).size == (16, 8)
    assert read_image(path, exif_rotation=True).size == (8, 16)
    data = load_image_folder(tmp_path, options=LoadOptions(exif_rotation=True))
    assert data.source["exif_rotation"] is True
    assert data.preprocessing == {"exif_rotation": True}


def test_an_image_with_too_many_pixels_is_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for side in (12, 50):  # Pillow warns of the one, and refuses the other
        Image.new("L", (side, side)).save(tmp_path / f"{side}.png")
        with pytest.raises(InputError, match=rf"{side}\.png has more than the 100 pixels"):
            read_image(tmp_path / f"{side}.png")


def test_no_other_program_is_started_for_an_image(tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    with pytest.raises(InputError, match=r"x\.png cannot be read: EPS"):
        read_image(path)


# Items of data sets


@pytest.mark.parametrize(
    ("image", "pixels"),
    [
        (np.full((4, 5), 7, np.uint8), (1, 4, 5)),
        (np.full((4, 5, 1), 7, np.uint8), (1, 4, 5)),
        (np.full((4, 5, 3), 7, np.uint8), (3, 4, 5)),
        (np.full((3, 4, 5), 7, np.uint8), (3, 4, 5)),
        (np.full((1, 4, 5), 7, np.uint8), (1, 4, 5)),
        (np.full((4, 5, 3), 7, np.uint8)[::-1, ::-1], (3, 4, 5)),
        (np.full((4, 5), 7 * 257, np.uint16), (1, 4, 5)),
        (np.full((4, 5), 7 * 257, ">u2"), (1, 4, 5)),
        (np.full((4, 5, 4), 7, np.uint8), (4, 4, 5)),
        (torch.full((4, 5), 7, dtype=torch.uint8), (1, 4, 5)),
        (torch.full((3, 4, 5), 7, dtype=torch.uint8), (3, 4, 5)),
        (torch.full((4, 5, 3), 7, dtype=torch.uint8), (3, 4, 5)),
        (torch.full((4, 5), 7 * 257, dtype=torch.uint16), (1, 4, 5)),
        (Image.new("L", (5, 4), 7), (1, 4, 5)),
        (Image.new("P", (5, 4)), (3, 4, 5)),
        (Image.new("RGBA", (5, 4), (7, 7, 7, 255)), (3, 4, 5)),
    ],
)
def test_arrays_and_images_become_channels_first(image, pixels):
    tensor = to_uint8(image)
    assert tensor.shape == pixels
    assert tensor.dtype == torch.uint8
    if not isinstance(image, Image.Image) or image.mode != "P":
        assert (tensor == 7).all()


def test_black_and_white_is_0_and_255():
    pattern = np.eye(4, dtype=bool)
    for image in (pattern, torch.from_numpy(pattern), Image.fromarray(pattern)):
        assert to_uint8(image).tolist() == [(255 * np.eye(4, dtype=int)).tolist()]


@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        (torch.rand(3, 8, 8), "float32.*Leave ToTensor and Normalize out"),
        (torch.randn(3, 8, 8).half(), "float16"),
        (np.random.default_rng(0).random((8, 8, 3)), "float64.*uint8, 0 to 255"),
        (np.zeros((8, 8, 3), np.float32) + 255, "float32"),
        (np.zeros((8, 8), np.int64), "int64"),
        (np.zeros((8, 8), np.int16), "int16"),
        (np.zeros((2, 8, 8, 3), np.uint8), r"\(2, 8, 8, 3\)"),
        (np.zeros((0, 8), np.uint8), "shape"),
        (np.array(["x"]), "not an image"),
        (Image.new("F", (8, 8)), "floating point"),
        (Image.new("I", (8, 8)), "32-bit integers"),
        ("cat.png", "it is a str"),
        (b"bytes", "it is bytes of a file"),
        (None, "it is a NoneType"),
    ],
)
def test_what_is_no_8_bit_image_is_refused_with_its_index(image, sentence):
    good = [(np.zeros((8, 8, 3), np.uint8), label) for label in (0, 1) * 12]
    bad = [*good[:5], (image, 0), *good]
    for train, test, part in ((bad, good, "training"), (good, bad, "test")):
        with pytest.raises(InputError, match=rf"c, {part} images, item 5: .*{sentence}"):
            load_datasets({"train": train, "test": test}, name="c", classes=["a", "b"])


# Sizes


PICTURE = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
PICTURE = np.asarray(Image.fromarray(PICTURE).resize((75, 93), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos", "box", "nearest"])
@pytest.mark.parametrize(
    ("size", "crop"), [((32, 32), 1.0), ((32, 32), 0.875), ((48, 48), 0.9), ((24, 40), 0.9)]
)
@pytest.mark.parametrize("mode", ["center", "squash"])
@pytest.mark.parametrize("turned", [False, True])
def test_images_come_to_size_as_timm_evaluates_them(interpolation, size, crop, mode, turned):
    from timm.data import create_transform
    from timm.data.transforms import ResizeKeepRatio, str_to_interp_mode

    picture = PICTURE.transpose(1, 0, 2) if turned else PICTURE
    picture = np.ascontiguousarray(picture)
    evaluation = create_transform(
        (3, *size), is_training=False, interpolation=interpolation, crop_pct=crop,
        crop_mode=mode, normalize=False,
    )  # fmt: skip
    for step in evaluation.transforms:
        if isinstance(step, ResizeKeepRatio):  # timm 1.0.28 forgets it: bilinear
            step.interpolation = str_to_interp_mode(interpolation)
    wanted = evaluation(Image.fromarray(picture))
    to = Preprocessing((0.5,) * 3, (0.5,) * 3, size, interpolation, crop, squash=mode == "squash")
    found = resize(to_uint8(picture), to)
    assert found.shape == wanted.shape
    difference = (found.int() - wanted.int()).abs()
    assert difference.max() <= 1


def test_a_narrow_image_is_refused_by_name_before_it_fills_the_memory(tmp_path):
    folder_of(tmp_path, lambda path: Image.fromarray(RAMP).save(path))
    Image.new("L", (20_000, 2)).save(tmp_path / "test" / "b" / "7.png")
    with pytest.raises(InputError, match=r"b/7\.png\): it has 2 x 20000 pixels: too narrow"):
        load_image_folder(tmp_path, image_size=224)
