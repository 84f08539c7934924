import re

import pytest

from vit_ratio_opt.utils.text import csv_text, escape_markdown, shorten, strip_escapes


def test_csv_has_a_header_and_quotes_cells() -> None:
    assert csv_text([{"a": 1, "b": "x,y"}, {"a": None, "b": 2}]) == 'a,b\n1,"x,y"\n,2\n'
    assert csv_text([]) == ""


def test_a_long_text_is_cut_to_one_line() -> None:
    assert shorten("a\n  b") == "a b"
    assert shorten("x" * 80) == "x" * 80
    assert shorten("x" * 81) == "x" * 79 + "…"


@pytest.mark.parametrize(
    ("cell", "shown"),
    [
        ("=cmd|' /C calc'!A0", "'=cmd|' /C calc'!A0"),
        ("+1+1", "'+1+1"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("-x", "'-x"),
        ("\t=1", "'\t=1"),
        (" =1", "' =1"),
        ("\uff1d1", "'\uff1d1"),
        ("\x07=1", "'=1"),
        ("-1.5e3", "-1.5e3"),
        (-0.5, "-0.5"),
        ("a=b", "a=b"),
    ],
)
def test_a_cell_of_csv_is_no_formula_and_a_number_stays_one(cell, shown):
    assert csv_text([{"a": cell}]) == f"a\n{shown}\n"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]8;;http://x\x07link\x1b]8;;\x1b\\", "link"),
        ("\x9b2Jx\x00\x07", "x"),
        ("\x1bcx", "x"),
        ("\u202egnp.exe", "gnp.exe"),
        ("a\u2066b\u200bc\ufeff", "abc"),
        ("\udcff", ""),
        ("é 😀 \u05d0 a\nb", "é 😀 \u05d0 a\nb"),
    ],
)
def test_plain_text_acts_on_no_terminal(text, shown):
    assert strip_escapes(text) == shown


@pytest.mark.parametrize(
    "text", ["[x](http://x)", "![x](http://x)", "https://x.org", "www.x.org", "<b>", "a|b", "`x`"]
)
def test_escaped_text_is_no_link_and_no_markup(text):
    escaped = escape_markdown(text)
    assert not re.search(r"(?<!\\)[\[\]<>|`]", escaped)
    assert "://" not in escaped.replace("\\:", "")
    assert "www." not in escaped
