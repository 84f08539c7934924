"""The pages that people look at, in a real browser.

The tests are skipped where there is no Chromium. With ``SCREENSHOTS=docs`` they leave the
photographs of the documentation in that folder.
"""

from __future__ import annotations

import json
import os
import shutil
import time
import urllib.request
from dataclasses import replace
from functools import cache
from pathlib import Path

import optuna
import pytest
import torch
from optuna.trial import TrialState
from processes import run_alone, run_command_line
from support import make_search
from typer.testing import CliRunner

from vit_ratio_opt import (
    Budget,
    CalibrationOptions,
    Measure,
    Metric,
    RunOptions,
    Search,
    SearchOptions,
    Tolerance,
)
from vit_ratio_opt.cli import main as cli
from vit_ratio_opt.data.digits import load_digits
from vit_ratio_opt.model_files.load import load_dense
from vit_ratio_opt.model_files.save import save_dense
from vit_ratio_opt.models.create import create_model
from vit_ratio_opt.records.answer import answer_of, answer_trial
from vit_ratio_opt.records.loading import load_studies
from vit_ratio_opt.report.explainer import Explainer
from vit_ratio_opt.report.html import html_page
from vit_ratio_opt.runs.final import finish
from vit_ratio_opt.runs.storage import open_storage
from vit_ratio_opt.space.pairs import RatioPair
from vit_ratio_opt.training.context import TrialContext
from vit_ratio_opt.training.finetune import finetune
from vit_ratio_opt.training.metrics import MEASURES
from vit_ratio_opt.training.recipe import Recipe

RESULTS = Path(__file__).parents[2] / "studies" / "results"

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
HOSTILE = '<img src=x onerror="window.owned=1">"\'`|&amp;😀'


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    arguments = "no-sandbox disable-gpu disable-quic no-first-run disable-background-networking"
    arguments += " disable-component-update disable-sync"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=[f"--{argument}" for argument in arguments.split()]
        )
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser):
    """Opens pages and collects what goes wrong in them; a page of its own network if offline."""
    contexts, errors = [], []

    def page(address, *, offline=False, width=1400, **options):
        options["viewport"] = {"width": width, "height": 900}
        context = browser.new_context(offline=offline, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda m: m.type == "error" and errors.append(m.text))
        page.goto(address)
        return page

    yield page
    for context in contexts:
        context.close()
    assert errors == []


def photograph(page, name, **options):
    if "SCREENSHOTS" in os.environ:
        page.screenshot(path=Path(os.environ["SCREENSHOTS"]) / f"{name}.png", **options)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A study that was really searched, or the one to photograph, with its fixed ratio."""
    if "STORAGE" in os.environ:
        return os.environ["STORAGE"]
    folder = tmp_path_factory.mktemp("quickstart")
    torch.manual_seed(0)
    dense = create_model(
        "vit_tiny_patch16_224", img_size=8, patch_size=2, in_chans=1, num_classes=10, embed_dim=64,
        depth=4, num_heads=8, mlp_ratio=2.0,
    )  # fmt: skip
    recipe = Recipe(epochs=2, batch_size=64, lr=3e-3, distillation=0)  # few of its own
    finetune(dense, load_digits(), recipe, TrialContext(progress=False))
    save_dense(dense, folder / "dense.safetensors")
    search = make_search(
        load_dense(folder / "dense.safetensors"), load_digits(), budget=0.2,
        recipe=Recipe(epochs=1, batch_size=64), checkpoints=folder / "checkpoints",
    )  # fmt: skip
    url = f"sqlite:///{folder / 'study.db'}"
    study = search.create_study("quickstart", storage=open_storage(url))
    search.run(study, n_trials=2)
    search.test(study)
    return url


@pytest.fixture(scope="module")
def report_file(trained, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    result = CliRunner().invoke(cli.app, ["report", "--storage", trained, "--html", str(path)])
    assert result.exit_code == 0, result.output
    return path


@pytest.fixture(scope="module")
def untrained_url(tmp_path_factory):
    """Of a database for studies that are only looked at."""
    return f"sqlite:///{tmp_path_factory.mktemp('studies') / 'study.db'}"


@pytest.fixture(scope="module")
def serve(free_port, forkserver):
    """Starts ``vit-ratio-opt dashboard``, once for each database; gives its address."""
    processes = []

    @cache
    def address_of(url):
        port = free_port()
        command = ("dashboard", "--storage", url, "--port", port)
        arguments = (dict(os.environ), os.devnull, run_command_line, command)
        process = forkserver.Process(target=run_alone, args=arguments)
        process.start()
        processes.append(process)
        address = f"http://127.0.0.1:{port}/dashboard"
        for _ in range(300):
            try:
                urllib.request.urlopen(address, timeout=1)
                return address
            except OSError:
                time.sleep(0.2)
        raise AssertionError("the dashboard did not start")

    yield address_of
    for process in processes:
        process.terminate()
        process.join()


@needs_chromium
def test_the_dashboard_shows_figures_note_best_trial_and_artifacts(trained, serve, open_page):
    study = optuna.load_study(study_name="quickstart", storage=trained)
    best = answer_trial(study)
    address = f"{serve(trained)}/studies/{study._study_id}"
    page = open_page(address, width=1300)
    page.wait_for_selector("text=Path of the search", timeout=90_000)
    page.wait_for_selector("text=Blocks of the answer's model")
    text = page.inner_text("body")
    assert f"number={study.best_trial.number}" in text.replace(" ", "")
    page.wait_for_timeout(1_000)
    photograph(page, "dashboard-study", clip={"x": 0, "y": 0, "width": 1300, "height": 2150},
               full_page=True)  # fmt: skip
    page.click("a[href$='/note']")
    page.wait_for_selector("text=Progress", timeout=30_000)
    answer = answer_of(study)
    assert f"{answer.accuracy:.2f} ± {answer.error:.2f} %" in page.inner_text("body")
    page.goto(f"{address}/trials?numbers={best.number}")
    page.wait_for_selector("text=training-curve.png", timeout=30_000)
    text = page.inner_text("body")
    for part in ("Pruned from the dense model", "blocks.csv", "macs_ratio"):
        assert part in text
    assert text.index("macs_ratio") < text.index("accuracy_drop") < text.index("worker")
    photograph(page, "dashboard-trial")


@needs_chromium
def test_a_better_trial_over_budget_is_not_shown_as_best(
    untrained_url, make_study, serve, open_page
):
    study = make_study(untrained_url, trials=4)
    trial = study.ask()
    trial.suggest_float("mhsa_ratio", 0.0, 1.0)
    trial.set_constraint("flops", 0.3)
    trial.report(99.25, 1)
    study.tell(trial, state=TrialState.PRUNED)
    page = open_page(f"{serve(untrained_url)}/studies/{study._study_id}")
    title = page.get_by_text("Best Trial (").first  # "Best Trials" until they are loaded
    title.wait_for(timeout=90_000)
    card = title.locator("xpath=ancestor::*[3]").inner_text()
    assert f"{study.best_value:.3f}"[:5] in card
    assert "99.25" not in card


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_report_works_without_a_network(trained, report_file, open_page, scheme):
    study = optuna.load_study(study_name="quickstart", storage=trained)
    best = answer_trial(study)
    page = open_page(report_file.as_uri(), offline=True, width=1000, color_scheme=scheme)
    page.wait_for_function("document.querySelectorAll('.figure.drawn').length == 3")
    text = page.inner_text("body")
    assert f"The answer is trial {best.number}, " in text
    assert f"{best.user_attrs['macs_ratio']:.4f}" in text
    colours = [
        page.evaluate("getComputedStyle(document.body).backgroundColor"),
        page.evaluate("getComputedStyle(document.querySelector('.figure .xtick text')).fill"),
    ]
    assert (colours[0] == "rgb(255, 255, 255)") == (scheme == "light")
    assert sum(map(int, colours[1][4:-1].split(", "))) < 200 * 3 or scheme == "dark"
    assert colours[0] != colours[1]
    photograph(page, f"report-{scheme}", full_page=True,
               clip={"x": 0, "y": 0, "width": 1000, "height": 1500})  # fmt: skip
    page.click("text=Environment, settings")
    assert "vit-ratio-opt worker" in page.inner_text("body")
    page.emulate_media(media="print", color_scheme=scheme)
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_committed_frontier_is_drawn_with_its_split(open_page, tmp_path, scheme):
    file = tmp_path / "study.db"
    shutil.copy(RESULTS / "frontier-cifar10-d256.db", file)
    storage = open_storage(f"sqlite:///{file}", must_exist=True)
    path = tmp_path / "report.html"
    path.write_text(html_page(load_studies(storage, ["two-0", "one-0"])))
    page = open_page(path.as_uri(), offline=True, width=1000, color_scheme=scheme)
    page.wait_for_function("document.querySelectorAll('.figure.drawn').length == 3")
    figure = page.locator(".figure").first
    for part in ("± 1 standard error", "MHSA ratio", "FFN ratio", "dense", "one fixed ratio"):
        assert part in figure.inner_text()
    photograph(figure, f"frontier-{scheme}")


@needs_chromium
def test_on_a_phone_only_tables_are_wider_than_the_screen(make_study, open_page, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(html_page([make_study(name="x" * 500), make_study(name="b", fixed=True)]))
    page = open_page(path.as_uri(), width=360)
    page.wait_for_function("document.querySelectorAll('.figure.drawn').length == 3")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


@pytest.fixture(scope="module")
def other_tasks(untrained_url, tmp_path_factory):
    """Files of studies of several labels, a regression in millimetres and no labels, by name."""
    folder, digits, files = tmp_path_factory.mktemp("tasks"), load_digits(), {}

    def relabelled(task, classes, labels_of):
        splits = {
            name: replace(split, labels=labels_of(split.labels))
            for name, split in (
                ("train", digits.train),
                ("val", digits.val),
                ("test", digits.test),
            )
        }
        return replace(digits, **splits, task=task, classes=classes, source={}, name=task)

    millimetres = Measure(
        Metric("mean absolute error", "mm", larger_is_better=False),
        per_image=MEASURES["mae"].per_image,
    )
    several = relabelled(
        "multi-label",
        ("even", "large"),
        lambda labels: torch.stack([labels % 2 == 0, labels > 4], dim=1).float(),
    )
    number = relabelled("regression", ("height",), lambda labels: labels[:, None].float())
    for data, limit, metric in (
        (several, Budget(0.6), None),
        (number, Tolerance(2), millimetres),
        (relabelled("features", (), lambda labels: labels * 0 - 1), Tolerance(0.02), None),
    ):
        torch.manual_seed(0)
        dense = create_model(
            "vit_tiny_patch16_224", img_size=8, patch_size=4, in_chans=1, embed_dim=32, depth=1,
            num_heads=4, mlp_ratio=2.0, num_classes=len(data.classes),
        )  # fmt: skip
        search = Search(
            dense,
            data,
            limit,
            training=Recipe(epochs=0, metric=metric),
            options=SearchOptions(screen=False, calibration=CalibrationOptions(images=32)),
            run=RunOptions(progress=False),
        )
        study = search.create_study(data.task, storage=open_storage(untrained_url))
        search.run(study, 2, say=lambda line: None)
        best = study.trials[0]
        pair = RatioPair(*(best.params[name] for name in RatioPair._fields))
        path = folder / f"{data.task}.safetensors"
        lineage = {"study": data.task, "trial": best.number, "search_accuracy": 1.0}
        finish(
            search.objective, pair, search.pruner.prune(pair), path, trainer=search.trainer,
            lineage=lineage,
        )  # fmt: skip
        command = ["export", str(path), "--to", "torchscript"]
        result = CliRunner().invoke(cli.app, command)
        assert result.exit_code == 0, result.output
        files[data.task] = path
    return files


@needs_chromium
@pytest.mark.filterwarnings("ignore:`torch.jit.load` is deprecated")
@pytest.mark.parametrize(
    ("task", "name", "unit", "limit"),
    [
        ("multi-label", "mean average precision", "%", "at most 60 % of the FLOPs"),
        (
            "regression",
            "mean absolute error",
            "mm",
            "mean absolute error at most 2 mm higher than the dense model's",
        ),
        (
            "features",
            "cosine similarity",
            "",
            "cosine similarity at most 0.02 lower than the dense model's",
        ),
    ],
)
def test_studies_of_other_tasks_show_their_metric(
    untrained_url, other_tasks, serve, open_page, tmp_path, task, name, unit, limit
):
    study = optuna.load_study(study_name=task, storage=untrained_url)
    metric = Metric(name, unit, larger_is_better=unit != "mm")
    named = f"{name} {unit}".rstrip()
    dense = f"has {metric.text(study.user_attrs['dense']['val_accuracy'])} on validation images"
    if task == "features":  # compared with itself the dense model has 1
        dense = "needs 44,608 FLOPs an image"

    page = open_page(f"{serve(untrained_url)}/studies/{study._study_id}/note")
    page.wait_for_selector("text=Progress", timeout=90_000)
    report = tmp_path / "report.html"
    report.write_text(html_page([study]))
    texts = [page.inner_text("body")]
    page = open_page(report.as_uri(), offline=True, width=1300)
    page.wait_for_function("document.querySelectorAll('.figure.drawn').length == 3")
    too_wide = "[...document.querySelectorAll('.wide')].filter(e => e.scrollWidth > e.clientWidth)"
    assert page.evaluate(f"{too_wide}.length") == 0
    texts.append(page.inner_text("body"))
    for text in texts:
        assert f"with {limit}; the dense model {dense}" in text
        assert named in text  # the heading of a column
        assert "accuracy" not in text
    card = other_tasks[task].with_suffix(".md").read_text()
    assert f"| validation {named} | test {named} |" in card
    assert limit in card or unit == "%"
    assert "accuracy" not in card
    assert ("for the 1 target of" in card) == (task == "regression")

    extra = {"metric": "", "task": ""}
    torch.jit.load(other_tasks[task].with_suffix(".torchscript"), _extra_files=extra)
    assert (json.loads(extra["metric"]), extra["task"].decode()) == (metric.to_json(), task)


def assert_harmless(page):
    assert not page.evaluate("window.owned")
    assert not page.query_selector("img[src=x]")


@needs_chromium
def test_hostile_names_are_shown_as_text(untrained_url, make_study, serve, open_page, tmp_path):
    name = HOSTILE * 20 + "😀" * 300 + "x" * 10_000
    study = make_study(untrained_url, name, model=name, dataset=name)
    failed = optuna.trial.create_trial(state=TrialState.FAIL, user_attrs={"failure": name})
    study.add_trial(failed)
    explain = Explainer()
    for trial in study.trials:
        explain(study, trial)
    explain.refresh(study)
    path = tmp_path / "report.html"
    path.write_text(html_page([study], untrained_url))
    page = open_page(path.as_uri())
    page.wait_for_function("document.querySelectorAll('.figure.drawn').length == 3")
    assert name[:30] in page.inner_text("body")
    assert_harmless(page)
    address = f"{serve(untrained_url)}/studies/{study._study_id}"
    for part in ("", "/note", "/trials?numbers=6"):
        page = open_page(f"{address}{part}")
        page.wait_for_selector("text=Failed" if "trials" in part else "text=/FLOPs|Best/")
        page.wait_for_timeout(500)
        assert name[:30] in page.inner_text("body")
        assert_harmless(page)
