"""Notes, figures and artifacts, and the pages that people look at, in a real browser.

The browser's tests are skipped where there is no Chromium. With ``SCREENSHOTS=docs`` they leave
the README's photographs in that folder.
"""

from __future__ import annotations

import csv
import io
import os
import shutil
import subprocess
import sys
import time
import urllib.request
import uuid
from functools import cache
from pathlib import Path

import optuna
import pytest
import torch
from optuna.artifacts import FileSystemArtifactStore, get_all_artifact_meta
from optuna.trial import TrialState
from optuna_dashboard import get_note, save_note
from optuna_dashboard._custom_plot_data import get_plotly_graph_objects
from optuna_dashboard._note import get_note_from_system_attrs
from optuna_dashboard._serializer import serialize_frozen_trial
from PIL import Image
from support import make_search
from typer.testing import CliRunner

from vit_ratio_opt.cli import main as cli
from vit_ratio_opt.data.digits import load_digits
from vit_ratio_opt.model_files.load import load_dense
from vit_ratio_opt.model_files.save import save_dense
from vit_ratio_opt.models.create import create_model
from vit_ratio_opt.records.answer import answer_of, answer_trial
from vit_ratio_opt.report import dashboard, explainer
from vit_ratio_opt.report.dashboard import AllArtifacts, serve_dashboard, shown_trial
from vit_ratio_opt.report.explainer import Explainer
from vit_ratio_opt.report.html import html_page
from vit_ratio_opt.report.notes import study_note, trial_note
from vit_ratio_opt.runs.artifacts import open_artifacts
from vit_ratio_opt.runs.storage import open_storage
from vit_ratio_opt.training.context import TrialContext
from vit_ratio_opt.training.finetune import finetune
from vit_ratio_opt.training.recipe import Recipe
from vit_ratio_opt.utils.untrusted import mark_folder

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
HOSTILE = '<img src=x onerror="window.owned=1">"\'`|&amp;😀'


def note_of(study, trial):
    attributes = study._storage.get_study_system_attrs(study._study_id)
    return get_note_from_system_attrs(attributes, trial._trial_id)["body"]


def test_after_each_trial_note_and_figures_are_there(make_study):
    study = make_study(trials=3)
    make_study(study._storage, "one", fixed=True)
    explain = Explainer(n_trials=8)
    explain(study, study.trials[0])
    note = get_note(study)
    assert "3 of 8 trials are trained, 0 running, 0 failed" in note
    assert "one fixed ratio of" in note
    assert "MHSA ratio" in note.split("**Next**")[1]
    assert "vit-ratio-opt worker" in note
    figures = get_plotly_graph_objects(study._storage.get_study_system_attrs(study._study_id))
    assert set(figures) == {
        "accuracy-against-flops", "path-of-the-search", "blocks-of-the-best-model",
    }  # fmt: skip
    assert note_of(study, study.trials[0]) == trial_note(study, study.trials[0])


def test_notes_and_figures_are_written_in_one_piece(make_study):
    """Two workers that write at the same time would mix the pieces of two figures."""
    study = make_study(budget=None, trials=400)
    Explainer()(study, study.trials[0])
    attributes = study._storage.get_study_system_attrs(study._study_id)
    texts = [key for key in attributes if "plot_data" in key or "note_str" in key]
    assert len(texts) == 3 + 1 + 1
    assert all(key.endswith(":0") for key in texts)


def test_a_long_text_comes_back_from_its_parts_and_so_does_a_shorter_one(make_study):
    study = make_study()
    for text in ("0123456789" * 9_000, "short", ""):
        known = study._storage.get_study_system_attrs(study._study_id)
        explainer.write_text(study, "dashboard:plot_data:x:", text, known)
        attributes = study._storage.get_study_system_attrs(study._study_id)
        assert get_plotly_graph_objects(attributes) == {"x": text}


def test_what_people_write_into_the_note_is_kept(make_study):
    study = make_study()
    save_note(study, "mine")
    explain = Explainer(n_trials=8)
    explain.refresh(study)
    first = get_note(study)
    assert first.endswith("is kept.*\n\nmine\n")
    explain.refresh(study)
    assert get_note(study) == first
    save_note(study, first + "more" * 600)
    study.add_trial(study.trials[0])
    explain.refresh(study)
    assert get_note(study).endswith("mine\n" + "more" * 600 + "\n")
    assert "7 of 8 trials" in get_note(study)
    assert get_note(study).count("is kept") == 1


def test_what_grows_is_made_again_only_after_two_hundred_times_its_time(make_study, monkeypatch):
    now = [1_000.0]
    made = []

    def slow_note(*arguments, **options):
        made.append(now[0])
        now[0] += 2.0
        return "note"

    monkeypatch.setattr(explainer, "study_note", slow_note)
    study = make_study(trials=2)
    explain = Explainer(clock=lambda: now[0])
    for _ in range(60):
        explain(study, study.trials[0])
        now[0] += 10.0
    assert made == [1_000.0, 1_402.0]


def test_the_note_of_a_trial_tells_its_training_and_its_blocks(make_study):
    study = make_study(budget=None)
    kept, over = study.trials[0], study.trials[-1]
    assert over.state == TrialState.PRUNED
    note = trial_note(study, kept)
    for part in (
        f"{100 * kept.user_attrs['macs_ratio']:.2f} % of the FLOPs",
        f"80.00 % dense, {kept.user_attrs['accuracy_pruned']:.2f} % pruned",
        f"{kept.user_attrs['accuracy']:.2f} % after 2 epochs ▁",
        "loss 1.500 → 0.750 █▁",
        "Pruned from the dense model, seed 0.",
        "| 2 | 3 x 4, before 4 x 8 | 8 of 64 |",
    ):
        assert part in note
    assert "Over the limit" not in note
    assert "cannot be the best" in trial_note(study, over)


def test_the_note_of_a_failed_trial_says_why(make_study):
    study = make_study(trials=0)
    attributes = {"failure": f"ValueError: {HOSTILE}"}
    study.add_trial(optuna.trial.create_trial(state=TrialState.FAIL, user_attrs=attributes))
    assert "Failed: ``" in trial_note(study, study.trials[0])


def test_a_study_without_a_sampler_of_ours_has_a_note(make_study):
    study = make_study()
    study.sampler = optuna.samplers.RandomSampler()
    assert "what its sampler proposes" in study_note(study)


def test_a_password_is_in_no_note(make_study, tmp_path):
    study = make_study(f"sqlite:///{tmp_path / 'study.db'}")
    study._storage._backend.url = "postgresql://user:geheim@host/db"
    assert "user:***@host" in study_note(study)
    assert "geheim" not in study_note(study)


def test_what_goes_wrong_does_not_disturb_the_search(make_study, monkeypatch, caplog):
    study = make_study()
    optuna.logging.enable_propagation()

    def fail(*arguments, **options):
        raise ValueError("of this kind")

    monkeypatch.setattr(explainer, "study_note", fail)
    monkeypatch.setattr(explainer, "trial_note", fail)
    Explainer()(study, study.trials[0])
    optuna.logging.disable_propagation()
    assert "were not written: of this kind" in caplog.text


def test_a_trained_trial_has_curve_table_and_checkpoint(dense, digits, tmp_path):
    search = make_search(
        dense, digits, budget=0.6, recipe=Recipe(epochs=2, batch_size=256),
        checkpoints=tmp_path / "models", calibration_images=64,
    )  # fmt: skip
    study = search.create_study("s", storage=f"sqlite:///{tmp_path / 's.db'}")
    search.run(study, n_trials=1, say=lambda line: None)
    (trial,) = study.trials
    store = FileSystemArtifactStore(search.journal.artifacts)
    files = {}
    for meta in get_all_artifact_meta(trial, storage=study._storage):
        with store.open_reader(meta.artifact_id) as content:
            files[meta.filename] = meta.mimetype, content.read()
    assert set(files) == {"trial-0000.safetensors", "training-curve.png", "blocks.csv"}
    assert files["training-curve.png"][0] == "image/png"
    with Image.open(io.BytesIO(files["training-curve.png"][1])) as image:
        assert image.width == 500
    rows = list(csv.DictReader(io.StringIO(files["blocks.csv"][1].decode())))
    blocks = [[int(row[name]) for name in ("heads", "head_dim", "neurons")] for row in rows]
    assert blocks == trial.user_attrs["blocks"]
    assert "1 of 1 trials are trained" in get_note(study)
    search.test(study)
    assert f"{study.user_attrs['tested']['accuracy']:.2f}" in get_note(study)


def test_the_dashboard_sees_attributes_in_order_and_infeasible_trials(make_study):
    study = make_study(budget=None)
    over = study.trials[-1]
    over.user_attrs = dict(sorted(over.user_attrs.items()))
    shown = shown_trial(over)
    assert list(shown.user_attrs)[:3] == ["macs_ratio", "macs", "params"]
    assert shown.user_attrs == over.user_attrs
    (value,) = serialize_frozen_trial(0, shown, {})["constraints"]
    assert value == over.constraints["accuracy_drop"] > 0
    assert "constraints" not in over.system_attrs


def test_a_dashboard_that_reads_the_keys_of_optuna_5_sees_each_constraint_once(make_study):
    over = make_study(budget=None).trials[-1]
    shown = shown_trial(over)
    assert list(shown.constraints.values()) == list(over.constraints.values())


def test_artifacts_of_all_studies_are_served(make_study, tmp_path, url):
    ids = {name: str(uuid.uuid4()) for name in ("a", "b", "c")}
    for name in ("a", "b"):
        mark_folder(tmp_path / name)
        (tmp_path / name / ids[name]).write_text(name)
        study = make_study(url, name)
        study.set_user_attr("origin", {"artifacts": str(tmp_path / name)})
    store = AllArtifacts(study._storage, open_artifacts)
    for name in ("a", "b"):
        with store.open_reader(ids[name]) as content:
            assert content.read() == name.encode()
    with pytest.raises(optuna.artifacts.exceptions.ArtifactNotFound):
        store.open_reader(ids["c"])
    store.write(ids["c"], io.BytesIO(b"new"))
    with store.open_reader(ids["c"]) as content:
        assert content.read() == b"new"
    store.remove(ids["c"])
    assert not (tmp_path / "a" / ids["c"]).exists()


def test_a_browser_is_opened_only_where_there_are_windows(make_study, url, monkeypatch, capsys):
    opened = []
    study = make_study(url)
    monkeypatch.setattr("optuna_dashboard.run_server", lambda *a, **options: None)
    monkeypatch.setattr(dashboard, "Timer", lambda s, f, a: opened.append(a) or FakeTimer())
    for name, display in (("searched", ""), ("searched", ":0"), (None, ":0")):
        monkeypatch.setenv("DISPLAY", display)
        monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
        serve_dashboard(
            open_storage(url), "127.0.0.1", 1, open_artifacts=open_artifacts, study_name=name,
            browse=True,
        )  # fmt: skip
    address = "http://127.0.0.1:1/dashboard"
    assert opened == [[f"{address}/studies/{study._study_id}"], [address]]
    assert capsys.readouterr().out.count(address) == 3


class FakeTimer:
    def start(self):
        pass


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
def serve(free_port):
    """Starts ``vit-ratio-opt dashboard``, once for each database; gives its address."""
    processes = []

    @cache
    def address_of(url):
        port = free_port()
        command = [sys.executable, "-m", "vit_ratio_opt", "dashboard", "--storage", url]
        processes.append(
            subprocess.Popen([*command, "--port", str(port)], stderr=subprocess.DEVNULL)
        )
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
        process.wait()


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
def test_on_a_phone_only_tables_are_wider_than_the_screen(make_study, open_page, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(html_page([make_study(name="x" * 500), make_study(name="b", fixed=True)]))
    page = open_page(path.as_uri(), width=360)
    page.wait_for_function("document.querySelectorAll('.figure.drawn').length == 3")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def assert_harmless(page):
    assert not page.evaluate("window.owned")
    assert not page.query_selector("img[src=x]")


@needs_chromium
def test_hostile_names_are_shown_as_text(untrained_url, make_study, serve, open_page, tmp_path):
    name = HOSTILE * 200 + "😀" * 300 + "x" * 10_000
    study = make_study(untrained_url, name, model=name, dataset=name)
    failed = optuna.trial.create_trial(state=TrialState.FAIL, user_attrs={"failure": name})
    study.add_trial(failed)
    for trial in study.trials:
        Explainer()(study, trial)
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
