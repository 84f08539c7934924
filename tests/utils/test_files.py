import json
from pathlib import Path

import pytest

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.utils.files import file_name, replacing, write_json, write_text


def test_a_write_that_fails_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as partial:  # noqa: PT012
        partial.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_json_replaces_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_text("old")
    write_json({"a": [1, "ü"]}, path)
    assert json.loads(path.read_text()) == {"a": [1, "ü"]}
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_cannot_be_written_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        write_text("text", tmp_path / "missing" / "file")


def test_different_texts_have_different_file_names() -> None:
    texts = ["study-1", "a/b", "a%2fb", "..", "é" * 200, "é" * 201, "x" * 300]
    names = [file_name(text) for text in texts]
    assert len(set(names)) == len(texts)
    assert names[0] == "study-1"
    assert not any(set(name) & set("/.") for name in names)
    assert max(len(name.encode()) for name in names) < 200
