"""Options are checked by type and range, in a sentence that names the option."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.utils.checks import check_count, check_flags, check_path


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (-1, "`n` must be at least 0 and at most 9, but got -1."),
        (10, "`n` must be at least 0 and at most 9, but got 10."),
        (1.5, "`n` must be at least 0 and at most 9, but got 1.5: give an integer."),
        (True, "`n` must be at least 0 and at most 9, but got True: give an integer."),
        ("2", "`n` must be at least 0 and at most 9, but got '2': give an integer."),
    ],
)
def test_a_count_is_an_integer_within_its_range(value, message):
    with pytest.raises(InputError) as error:
        check_count("n", value, least=0, most=9)
    assert str(error.value) == message


def test_numpys_integers_become_pythons():
    assert type(check_count("n", np.int64(3))) is int


def test_a_flag_is_a_boolean_and_a_path_is_a_path():
    check_flags(SimpleNamespace(wait=True), "wait")
    with pytest.raises(InputError, match="`wait` must be True or False, but got 'no'"):
        check_flags(SimpleNamespace(wait="no"), "wait")
    for place in (None, "a", Path("a")):
        check_path("data", place)
    with pytest.raises(InputError, match="`data` must be a path, but got 3"):
        check_path("data", 3)
