"""Random changes of training images."""

from __future__ import annotations

import pytest
import torch

from vit_ratio_opt.data.augmentation import augment_images, crop, erase, mix_or_cut
from vit_ratio_opt.errors import InputError

MEAN = (0.5, 0.5, 0.5)


def images_of(count: int = 64, size: int = 72, channels: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = (count, channels, size // 8, size // 8)
    coarse = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return coarse.repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("how", [True, "crop", "strong"])
def test_a_seed_gives_the_same_images_and_leaves_the_global_random_state(how):
    images, before = images_of(), torch.get_rng_state()
    first = augment_images(images, seeded(), how, flip=True, mean=MEAN)
    torch.rand(1)
    state = torch.get_rng_state()
    again = augment_images(images, seeded(), how, flip=True, mean=MEAN)
    other = augment_images(images, seeded(1), how, flip=True, mean=MEAN)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)
    assert first.dtype == torch.uint8
    assert first.shape == images.shape
    assert not torch.equal(before, state)
    assert torch.equal(images, images_of())  # those in memory stay


def test_small_images_are_shifted_and_no_augmentation_changes_nothing():
    images = images_of(size=64)
    shifted = augment_images(images, seeded(), True, flip=True, mean=MEAN)
    assert torch.equal(augment_images(images, seeded(), "crop", flip=True, mean=MEAN), shifted)
    assert augment_images(images, seeded(), False, flip=True, mean=MEAN) is images


def test_a_crop_shows_a_part_enlarged_and_mirrored_only_if_allowed():
    ramp = torch.arange(72).mul(3).to(torch.uint8).expand(256, 1, 72, 72).contiguous()
    rises = crop(ramp, seeded(), flip=False).int().diff(dim=3)
    assert (rises >= 0).all()
    widths = rises.sum(dim=3)[:, 0, 0].float() / (3 * 71)
    assert 0.2 < float(widths.min()) < 0.4
    assert float(widths.max()) == 1
    falls = (crop(ramp, seeded(), flip=True).int().diff(dim=3) < 0).any(dim=3)[:, 0, 0]
    assert 100 < int(falls.sum()) < 156


def test_whole_images_are_cropped_to_themselves(monkeypatch):
    monkeypatch.setattr("vit_ratio_opt.data.augmentation._AREA", (1.0, 1.0))
    monkeypatch.setattr("vit_ratio_opt.data.augmentation._RATIO", (1.0, 1.0))
    assert torch.equal(crop(images_of(), seeded(), flip=False), images_of())


def test_a_quarter_of_the_images_loses_a_box_of_up_to_a_third():
    images = torch.zeros(1000, 3, 32, 32, dtype=torch.uint8)
    share = (erase(images, seeded(), [1, 2, 3]) != 0).float().mean(dim=(1, 2, 3))
    assert 200 < int((share > 0).sum()) < 300
    assert 0.3 < float(share.max()) < 0.4
    erased = erase(images, seeded(), [1, 2, 3])[share > 0].amax(dim=(2, 3))
    assert (erased == torch.tensor([1, 2, 3])).all()


def test_strong_augmentation_changes_images_differently():
    images = images_of(1).expand(64, -1, -1, -1).contiguous()
    changed = augment_images(images, seeded(), "strong", flip=True, mean=MEAN)
    assert len(changed.flatten(1).unique(dim=0)) > 50


def test_strong_augmentation_of_other_channels_than_1_or_3_is_refused():
    grey = augment_images(images_of(channels=1), seeded(), "strong", flip=True, mean=(0.5,))
    assert grey.shape[1] == 1
    with pytest.raises(InputError, match="2 channels: use 'crop'"):
        augment_images(images_of(channels=2), seeded(), "strong", flip=True, mean=(0.5, 0.5))


@pytest.mark.parametrize("several", [False, True])
def test_labels_are_mixed_as_the_images_are(several):
    labels = torch.arange(8) % 4
    targets = torch.eye(4)[labels] if several else labels
    images = torch.eye(4)[labels][:, :, None, None].expand(8, 4, 16, 16).contiguous()
    generator, state = seeded(), torch.get_rng_state()
    for _ in range(4):  # MixUp or CutMix
        mixed, probabilities = mix_or_cut(4, generator)(images, targets)
        torch.testing.assert_close(mixed.mean(dim=(2, 3)), probabilities, atol=1e-5, rtol=0)
        assert not torch.equal(mixed, images)
    assert torch.equal(torch.get_rng_state(), state)
