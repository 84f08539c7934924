"""Outputs: new files, and pipes, devices, links, full disks and names that cannot be."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from vit_ratio_opt.cli import main as cli
from vit_ratio_opt.errors import CannotWriteError, InputError
from vit_ratio_opt.report.trackers import JsonLog
from vit_ratio_opt.utils.files import (
    check_writable,
    check_writable_folder,
    file_name,
    named_folder,
    replacing,
    write_json,
    write_text,
)


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 kB; only root can make one."""
    folder = tmp_path / "full"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    try:
        is_mounted = subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        is_mounted = False
    if not is_mounted:
        pytest.skip("a file system cannot be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def device(tmp_path: Path) -> Callable[[int], Path]:
    """Makes a device of the numbers 1 and the given one: 3 is ``null``, 7 is ``full``."""

    def make(minor: int) -> Path:
        path = tmp_path / f"device-{minor}"
        try:
            os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, minor))
            path.write_bytes(b"")
        except PermissionError:
            pytest.skip("devices cannot be made here")
        return path

    return make


def read_in_background(path: Path) -> tuple[threading.Thread, list[str]]:
    said: list[str] = []
    reader = threading.Thread(target=lambda: said.append(path.read_text()))
    reader.start()
    return reader, said


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
    texts = ["study-1", "img-0.6", "a/b", "a%2fb", ".", "..", ".a", "a.", "é" * 200, "é" * 201]
    texts += ["x" * 300, "img-0%2e6"]
    names = [file_name(text) for text in texts]
    assert len(set(names)) == len(texts)
    assert names[:2] == ["study-1", "img-0.6"]
    assert not any("/" in name or name.startswith(".") or name.endswith(".") for name in names)
    assert max(len(name.encode()) for name in names) < 200


def test_a_folder_of_an_earlier_version_stays_in_use(tmp_path: Path) -> None:
    assert named_folder(tmp_path, "img-0.6") == tmp_path / "img-0.6"
    (tmp_path / "img-0%2e6").mkdir()
    assert named_folder(tmp_path, "img-0.6") == tmp_path / "img-0%2e6"
    assert named_folder(tmp_path, "img-0%2e6") == tmp_path / "img-0%252e6"


def test_a_pipe_is_written_into_and_stays_a_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "p"
    os.mkfifo(pipe)
    check_writable(pipe)  # without waiting for a reader
    reader, said = read_in_background(pipe)
    write_text("a,b\n", pipe)
    reader.join(10)
    assert said == ["a,b\n"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert list(tmp_path.iterdir()) == [pipe]


def test_a_tensor_file_goes_into_a_pipe_too(tmp_path: Path) -> None:
    """safetensors itself puts a file in the place of whatever it is told to write."""
    pipe, received = tmp_path / "p", tmp_path / "received"
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: received.write_bytes(pipe.read_bytes()))
    reader.start()
    with replacing(pipe) as partial:
        save_file({"a": torch.arange(3)}, partial)
    reader.join(10)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    save_file({"a": torch.arange(3)}, tmp_path / "file")
    assert received.read_bytes() == (tmp_path / "file").read_bytes()


def test_a_device_stays_a_device(device: Callable[[int], Path], tmp_path: Path) -> None:
    null = device(3)
    check_writable(null)
    write_text("text", null)
    with replacing(null) as partial:
        save_file({"a": torch.arange(3)}, partial)
    assert stat.S_ISCHR(null.stat().st_mode)
    assert list(tmp_path.iterdir()) == [null]


def test_a_symbolic_link_stays_and_what_it_points_to_is_written(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    for name, before in (("old", "before"), ("new", None)):
        target, link = tmp_path / "elsewhere" / name, tmp_path / f"to-{name}"
        if before is not None:
            target.write_text(before)
        link.symlink_to(Path("elsewhere") / name)
        check_writable(link)
        write_text("after", link)
        assert link.is_symlink()
        assert target.read_text() == "after"
    dangling = tmp_path / "dangling"
    dangling.symlink_to(tmp_path / "missing" / "file")
    with pytest.raises(InputError, match="missing is missing"):
        check_writable(dangling)
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(InputError, match="symbolic links"):
        check_writable(loop)


def test_a_hard_link_of_a_report_stays_one_file(tmp_path: Path) -> None:
    path, other = tmp_path / "a", tmp_path / "b"
    for before in ("before, and longer", "x"):
        path.write_text(before)
        if not other.exists():
            os.link(path, other)
        write_text("after", other)
        assert path.read_text() == other.read_text() == "after"
        assert path.samefile(other)
    assert sorted(tmp_path.iterdir()) == [path, other]


def test_a_hard_link_of_a_model_becomes_a_file_of_its_own(tmp_path: Path) -> None:
    """The other name may be a trial's artifact."""
    path, artifact = tmp_path / "a", tmp_path / "artifact"
    path.write_text("before")
    os.link(path, artifact)
    with replacing(path) as partial:
        partial.write_text("after")
    assert (path.read_text(), artifact.read_text()) == ("after", "before")


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664])
def test_a_file_keeps_its_mode(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "file"
    path.write_text("before")
    path.chmod(mode)
    write_text("after", path)
    with replacing(path) as partial:
        save_file({"a": torch.arange(3)}, partial)
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_a_new_file_has_the_mode_of_the_umask_whatever_wrote_it(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    with replacing(tmp_path / "model") as partial:
        save_file({"a": torch.arange(3)}, partial)
    assert (tmp_path / "model").stat().st_mode == (tmp_path / "usual").stat().st_mode


@pytest.mark.parametrize("redirected", [True, False])
def test_standard_output_may_be_the_output(tmp_path: Path, redirected: bool) -> None:
    program = (
        "from vit_ratio_opt.utils.files import check_writable, write_text\n"
        "print('before')\ncheck_writable('/dev/stdout')\n"
        "write_text('a,b\\n', '/dev/stdout')\nprint('after')"
    )
    command = [sys.executable, "-c", program]
    if redirected:
        with (tmp_path / "out").open("w") as out:
            subprocess.run(command, stdout=out, check=True)
        said = (tmp_path / "out").read_text()
    else:
        said = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
    assert said == "before\na,b\nafter\n"


@pytest.mark.parametrize("links", [1, 2])
def test_a_full_disk_leaves_the_earlier_file_whole_and_nothing_else(
    full_disk: Path, links: int
) -> None:
    path = full_disk / "file"
    path.write_text("before")
    if links == 2:
        os.link(path, full_disk / "link")
    with pytest.raises(CannotWriteError, match="file cannot be written: no space is left"):
        write_text("x" * 100_000, path)
    assert path.read_text() == "before"
    assert len(list(full_disk.iterdir())) == links


def test_a_full_device_is_one_sentence(device: Callable[[int], Path]) -> None:
    path = device(7)
    with pytest.raises(CannotWriteError, match=r"no space is left there\. Free some"):
        write_text("text", path)
    assert stat.S_ISCHR(path.stat().st_mode)


def test_a_folder_on_a_full_disk_is_refused_before_any_work(full_disk: Path) -> None:
    check_writable_folder(full_disk / "models")
    (full_disk / "much").write_bytes(bytes(65_536))
    with pytest.raises(CannotWriteError, match="models cannot be written: no space is left"):
        check_writable_folder(full_disk / "models")
    assert list((full_disk / "models").iterdir()) == []


@pytest.mark.parametrize(
    "name", ["", ".", "folder", "a\0b", "x" * 256, "é" * 200, "no/file", "f/a"]
)
def test_a_name_that_cannot_be_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "f").touch()
    for refuse in (check_writable, lambda path: write_text("text", path)):
        with pytest.raises(InputError, match="cannot be written: ") as raised:
            refuse(name)
        assert len(str(raised.value)) < 400
    assert sorted(os.listdir()) == ["f", "folder"]


def test_a_name_as_long_as_the_file_system_allows_is_written(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 255)
    check_writable(path)
    assert list(tmp_path.iterdir()) == []
    write_text("text", path)
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_system_that_may_only_be_read_is_refused(full_disk: Path) -> None:
    (full_disk / "file").touch()
    subprocess.run(["mount", "-o", "remount,ro", str(full_disk)], check=True)
    for path in (full_disk / "file", full_disk / "new"):
        with pytest.raises(InputError, match="cannot be written: "):
            check_writable(path)
    with pytest.raises(InputError, match="Read-only file system"):
        check_writable_folder(full_disk / "folder")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everything")
def test_a_file_or_folder_without_permission_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch(0o400)
    with pytest.raises(InputError, match="no permission"):
        check_writable(tmp_path / "file")
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="no permission"):
        check_writable(tmp_path / "new")
    with pytest.raises(InputError, match="no permission"):
        check_writable_folder(tmp_path)


def test_a_folder_that_is_a_file_or_lies_in_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "folder"):
        with pytest.raises(CannotWriteError, match=r"The folder .* cannot be created: "):
            check_writable_folder(folder)


def test_a_log_into_a_pipe_has_all_lines_for_one_reader(
    tmp_path: Path, make_study: Callable[..., object]
) -> None:
    pipe = tmp_path / "p"
    os.mkfifo(pipe)
    reader, said = read_in_background(pipe)
    study = make_study()
    log = JsonLog(pipe)
    for trial in study.trials[:3]:  # type: ignore[attr-defined]
        log(study, trial)  # type: ignore[arg-type]
    del log
    reader.join(10)
    assert [json.loads(line)["trial"] for line in said[0].splitlines()] == [0, 1, 2]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_every_output_of_a_report_goes_through_a_pipe_and_nothing_else_does(
    tmp_path: Path, make_study: Callable[..., object]
) -> None:
    url, pipe = f"sqlite:///{tmp_path / 'study.db'}", tmp_path / "p"
    make_study(url)
    os.mkfifo(pipe)
    for option in ("--csv", "--json", "--markdown", "--html"):
        reader, said = read_in_background(pipe)
        result = CliRunner().invoke(cli.app, ["report", "--storage", url, option, str(pipe)])
        reader.join(10)
        assert result.exit_code == 0, result.output
        assert len(said[0]) > 100
        assert result.output == ""
        assert stat.S_ISFIFO(pipe.stat().st_mode)


@pytest.mark.parametrize("output", ["", "x" * 300, "no/such/folder/model.onnx"])
def test_an_export_to_an_output_that_cannot_be_is_refused_before_the_model_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli.app, ["export", "none.safetensors", "--output", output])
    assert isinstance(result.exception, InputError)
    assert "cannot be written: " in str(result.exception)
    assert os.listdir() == []


@pytest.mark.parametrize("option", ["--html", "--markdown", "--csv", "--json"])
def test_a_report_is_never_written_over_the_database_that_it_reads(
    tmp_path: Path, make_study: Callable[..., object], option: str
) -> None:
    database = tmp_path / "study.db"
    make_study(f"sqlite:///{database}")
    (tmp_path / "link").symlink_to(database)
    (tmp_path / "second-name").hardlink_to(database)
    before = database.read_bytes()
    for name in ("study.db", "link", "second-name", "study.db-journal", "study.db-wal"):
        arguments = ["report", "--storage", f"sqlite:///{database}", option, str(tmp_path / name)]
        result = CliRunner().invoke(cli.app, arguments)
        assert isinstance(result.exception, InputError), name
        assert "is read by this command" in str(result.exception)
        assert database.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["link", "second-name", "study.db"]


def test_two_outputs_into_one_file_are_refused_and_into_one_device_are_not(
    tmp_path: Path, make_study: Callable[..., object]
) -> None:
    url, path = f"sqlite:///{tmp_path / 'study.db'}", tmp_path / "page"
    make_study(url)
    report = ["report", "--storage", url]
    result = CliRunner().invoke(cli.app, [*report, "--html", str(path), "--csv", str(path)])
    assert isinstance(result.exception, InputError)
    assert "two outputs at once" in str(result.exception)
    assert not path.exists()
    result = CliRunner().invoke(cli.app, [*report, "--json", os.devnull, "--csv", os.devnull])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("command", ["prune", "final", "worker", "export"])
def test_no_model_database_or_log_is_written_over_what_the_command_reads(
    tmp_path: Path, make_study: Callable[..., object], command: str
) -> None:
    database, model = tmp_path / "study.safetensors", tmp_path / "model.safetensors"
    url = f"sqlite:///{database}"
    make_study(url)
    save_file({"weight": torch.zeros(1)}, model)
    files = {path: path.read_bytes() for path in (database, model)}
    ratios = ["--data", str(tmp_path), "--mhsa-ratio", "0.5", "--ffn-ratio", "0.5"]
    study = ["--study-name", "searched", "--storage", url, "--checkpoint", str(model)]
    tries = {
        "prune": [["--checkpoint", str(place), *ratios, "--output", str(model)]
                  for place in (model, tmp_path)],
        "final": [[*study, "--output", str(path)] for path in files],
        "worker": [[*study, "--json-log", str(path)] for path in files],
        "export": [[str(model), "--output", str(model)]],
    }[command]  # fmt: skip
    for arguments in tries:
        result = CliRunner().invoke(cli.app, [command, *arguments])
        assert isinstance(result.exception, InputError), arguments
        assert "is read by this command" in str(result.exception)
        assert {path: path.read_bytes() for path in files} == files
    assert len(os.listdir(tmp_path)) == 2
