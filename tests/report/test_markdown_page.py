from __future__ import annotations

import re

import pytest

from vit_ratio_opt.report.markdown import code, markdown_page
from vit_ratio_opt.utils.text import escape_markdown

HOSTILE = "</script><img src=x onerror=\"document.title='owned'\">'`|😀"


def test_markdown_has_sentences_results_and_trials(make_study):
    text = markdown_page([make_study(), make_study(name="one", fixed=True)])
    assert "| searched | searched |" in text
    assert text.count("### Trials of") == 2
    widths = {line.replace("\\|", "").count("|") for line in text.split("### ")[1].splitlines()}
    assert len(widths - {0}) == 1
    assert "### Trials" not in markdown_page([make_study()], trials=False)


@pytest.mark.parametrize("name", ["a`b", "``", "x\ny", "a|b", HOSTILE])
def test_a_name_stays_in_its_code_span(name):
    text = code(name)
    fence = re.match("`+", text)[0]
    assert fence not in text[len(fence) : -len(fence)]
    assert "\n" not in text
    assert "|" not in text.replace("\\|", "")


def test_escaped_text_has_no_markup():
    assert escape_markdown("<b>*a_b*|`") == "\\<b\\>\\*a\\_b\\*\\|\\`"
