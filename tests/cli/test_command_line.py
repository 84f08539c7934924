from __future__ import annotations

import subprocess
import sys
from dataclasses import fields
from typing import get_type_hints

import pytest

import vit_ratio_opt
from vit_ratio_opt.cli import main as cli
from vit_ratio_opt.cli.command import Panel
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.utils.files import check_writable

COMMANDS = {run.__name__: run for runs in cli.COMMANDS.values() for run in runs}


def options_of(name):
    return get_type_hints(get_type_hints(COMMANDS[name])["options"], include_extras=True)


def test_the_command_line_does_not_wait_for_torch():
    code = "import vit_ratio_opt.cli.main, sys; assert not {'torch', 'plotly'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_names_every_option_in_a_group_and_a_sentence(command, name, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    ended = command(name, "--help")
    assert ended.code == 0
    for field, hint in options_of(name).items():
        (info,) = hint.__metadata__
        assert info.help[0].isupper() or info.help[0] == "'", field
        assert info.help.rstrip().endswith("."), field
        if "Option" in type(info).__name__:
            assert f"--{field.replace('_', '-')}" in ended.out
            assert info.rich_help_panel in {panel.value for panel in Panel}, field
            assert f" {info.rich_help_panel} ─" in ended.out


def test_every_command_is_in_the_help_and_completion_can_be_installed(command):
    shown = command("--help").out
    for name in COMMANDS:
        assert f" {name} " in shown
    assert "--install-completion" in shown


def test_an_output_that_is_a_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="it is a folder"):
        check_writable(tmp_path)


def test_options_are_frozen_dataclasses():
    for name in COMMANDS:
        kind = get_type_hints(COMMANDS[name])["options"]
        assert kind.__dataclass_params__.frozen
        assert {field.name for field in fields(kind)} == set(options_of(name))


def test_public_names_are_there():
    assert set(vit_ratio_opt.__all__) <= set(dir(vit_ratio_opt))
    for name in vit_ratio_opt.__all__:
        assert getattr(vit_ratio_opt, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        _ = vit_ratio_opt.nonsense
