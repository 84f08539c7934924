from __future__ import annotations

import html
import json
import re

from vit_ratio_opt.records.answer import answer_trial
from vit_ratio_opt.report.commands import resume_command
from vit_ratio_opt.report.html import html_page

HOSTILE = "</script><img src=x onerror=\"document.title='owned'\">'`|😀"


def test_the_page_has_the_numbers_of_the_study(make_study):
    study, fixed = make_study(), make_study(name="one", fixed=True)
    page = html_page([study, fixed])
    best = answer_trial(study)
    for number in (
        f"{best.user_attrs['accuracy']:.2f}",
        f"{best.user_attrs['macs_ratio']:.4f}",
        f"{best.user_attrs['params']:,}",
        f"{best.params['mhsa_ratio']:.3f}",
    ):
        assert number in page
    assert page.count('class="best"') == 2
    figures = re.findall(r'<script type="application/json">(.*?)</script>', page)
    assert len(figures) == 3
    assert all(json.loads(figure)["data"] for figure in figures)


def test_the_page_loads_nothing_and_names_its_scripts(make_study):
    page = html_page([make_study()])
    assert not re.search(r'(src|href)="', page)
    policy = html.unescape(re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1])
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-inline" not in policy.split(";")[1]
    assert len(page) < 5e6


def test_what_a_study_says_is_text_in_the_page(make_study):
    study = make_study(name=HOSTILE * 200, model=HOSTILE, dataset=HOSTILE)
    study.set_user_attr("device", HOSTILE)
    page = html_page([study])
    assert "<img" not in page
    assert "&lt;img src=x" in page


def test_models_that_differ_have_sections_of_their_own(make_study):
    page = html_page([make_study(), make_study(name="b", weights="x", model="other")])
    assert re.findall("<h1>(.*)</h1>", page) == ["vit_tiny on digits", "other on digits"]


def test_a_password_is_in_no_page(make_study):
    url = "postgresql://user:geheim@host/db"
    assert "geheim" not in html_page([make_study()], url)
    command = resume_command(make_study(name="it's"), url)
    assert command == (
        "vit-ratio-opt worker --storage 'postgresql://user:***@host/db' --study-name 'it'\"'\"'s'"
    )
