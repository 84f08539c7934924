"""Tests for the precision in which a study calibrates."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import vit_ratio_opt as vro
from vit_ratio_opt.errors import InputError


@pytest.fixture
def search(dense: Any, digits: Any, tmp_path: Path) -> Callable[..., vro.Search]:
    def make(evaluation: str | None = None, **calibration: Any) -> vro.Search:
        known = vro.CalibrationOptions(images=64, cache=tmp_path / "cache", **calibration)
        return vro.Search(
            dense,
            digits,
            limit=vro.Budget(0.6),
            training=vro.Recipe(epochs=0),
            options=vro.SearchOptions(screen=False, calibration=known),
            run=vro.RunOptions(precision=evaluation, progress=False),  # type: ignore[arg-type]
        )

    return make


def settings(study: Any) -> dict[str, Any]:
    stored: dict[str, Any] = study.user_attrs["settings"]
    return stored


def test_a_study_in_float32_stores_what_earlier_versions_did(search: Any, url: str) -> None:
    study = search().create_study("full", storage=url)
    assert "calibration_precision" not in settings(study)
    half = search("float16")  # never that: gradients and sums of squares leave its range
    assert half.pruner.precision == "float32"


def test_calibration_follows_the_precision_of_evaluation_and_then_the_study(
    search: Any, url: str
) -> None:
    first = search("bfloat16")
    study = first.create_study("half", storage=url)
    assert settings(study)["calibration_precision"] == "bfloat16"
    assert first.pruner.calibration.precision == "bfloat16"
    again = search()
    assert again.pruner.precision == "float32"
    again.create_study("half", storage=url)
    assert again.pruner.precision == again.pruner.calibration.precision == "bfloat16"
    with pytest.raises(InputError, match="calibration_precision is"):
        search("bfloat16", precision="float32").create_study("half", storage=url)


def test_a_given_precision_is_kept(search: Any, url: str) -> None:
    given = search(precision="bfloat16")
    study = given.create_study("given", storage=url)
    assert settings(study)["precision"] == "float32"
    assert settings(study)["calibration_precision"] == given.pruner.precision == "bfloat16"


def test_a_pruner_of_ones_own_loop_calibrates_in_float32_unless_told(
    dense: Any, tmp_path: Path
) -> None:
    images = [torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))]
    options = {"images": 8, "cache": tmp_path}
    own = vro.Pruner(dense, images, calibration=vro.CalibrationOptions(**options))
    assert own.calibration.precision == "float32"
    known = vro.CalibrationOptions(**options, precision="bfloat16")
    assert vro.Pruner(dense, images, calibration=known).calibration.precision == "bfloat16"
