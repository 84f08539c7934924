"""What the tests of this room share: few images, and a storage that needs no file."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from optuna.storages import InMemoryStorage

from vit_ratio_opt.data.image_data import ImageData


@pytest.fixture(scope="module")
def few_digits(digits: ImageData) -> ImageData:
    """Digits that are trained and evaluated in milliseconds, in a search that no worker joins."""
    sizes = {"train": 256, "val": 128, "test": 128}
    splits = {name: getattr(digits, name).subset(torch.arange(n)) for name, n in sizes.items()}
    return replace(digits, **splits)


@pytest.fixture
def memory() -> InMemoryStorage:
    """A storage for studies whose claim is not about a database."""
    return InMemoryStorage()
