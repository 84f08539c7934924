"""The page that people look at, in a real browser. Skipped where there is no Chromium.

With ``SCREENSHOT=docs/dashboard.png`` and ``STORAGE=sqlite:///...`` it photographs that study.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import optuna
import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


@pytest.fixture
def study_url(tmp_path):
    """A study with a pruned over-budget trial that looks better than the best feasible one."""
    if "STORAGE" in os.environ:
        return os.environ["STORAGE"]
    url = f"sqlite:///{tmp_path / 'study.db'}"
    study = optuna.create_study(study_name="looked-at", storage=url, direction="maximize")
    study.set_metric_names(["accuracy"])
    for ffn_ratio in (0.5, 0.1, 0.7):
        trial = study.ask()
        trial.suggest_float("mhsa_ratio", 0.25, 0.25)
        trial.suggest_float("ffn_ratio", ffn_ratio, ffn_ratio)
        trial.set_user_attr("macs_ratio", 1 - ffn_ratio)
        trial.set_constraint("flops", (1 - ffn_ratio) - 0.6)
        if 1 - ffn_ratio > 0.6:
            trial.report(99.25, 1)
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            study.tell(trial, 70 + ffn_ratio)
    return url


@pytest.fixture
def server(study_url):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-c", "from vit_ratio_opt.cli import main; main()", "dashboard"]
    process = subprocess.Popen([*command, "--storage", study_url, "--port", str(port)])
    address = f"http://127.0.0.1:{port}/dashboard"
    for _ in range(100):
        try:
            urllib.request.urlopen(address, timeout=1)
            break
        except OSError:
            time.sleep(0.2)
    yield address
    process.terminate()
    process.wait()


def test_dashboard_shows_ratios_attributes_and_no_infeasible_best(server, study_url):
    from playwright.sync_api import sync_playwright

    names = [s.study_name for s in optuna.get_all_study_summaries(study_url)]
    name = min(names, key=len)
    study = optuna.load_study(study_name=name, storage=study_url)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-quic"]
        )
        page = browser.new_page(viewport={"width": 1400, "height": 1300})
        page.goto(f"{server}/studies/{study._study_id}")
        page.wait_for_selector("text=Best Trial", timeout=90_000)
        page.wait_for_timeout(3_000)
        text = page.inner_text("body")
        if "SCREENSHOT" in os.environ:
            page.screenshot(path=os.environ["SCREENSHOT"])
        page.goto(f"{server}/studies/{study._study_id}/trials")
        page.wait_for_selector("text=macs_ratio", timeout=90_000)
        table = page.inner_text("body")
        browser.close()
    best = study.best_trial
    assert f"number={best.number}" in text.replace(" ", "") or f"Trial {best.number}" in text
    assert "99.25" not in text
    for word in ("mhsa_ratio", "ffn_ratio", "macs_ratio"):
        assert word in table
