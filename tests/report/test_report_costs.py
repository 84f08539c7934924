from __future__ import annotations

import optuna
import pytest

from vit_ratio_opt.records.answer import answer_trial
from vit_ratio_opt.report.figures.accuracy import accuracy_figure
from vit_ratio_opt.report.figures.path import path_figure
from vit_ratio_opt.report.html import html_page
from vit_ratio_opt.report.markdown import markdown_page
from vit_ratio_opt.report.rows import build_report
from vit_ratio_opt.report.sentences import summary

LATENCY = {
    "rest": 1_000,
    "mhsa": [[0, 900], [10, 500], [21, 100]],
    "ffn": [[0, 2_000], [100, 1_500], [168, 400]],
}


@pytest.mark.parametrize("budget", [0.6, None])
def test_reports_say_what_the_limit_is_a_share_of(make_study, budget):
    study = make_study(name="l", budget=budget, cost="latency", latency_batch=4)
    known = {"device": "cpu", "threads": 2, "batch": 4, "error": 0.034, **LATENCY}
    study.set_user_attr("latency", known)
    for trial in study.get_trials(deepcopy=False):
        # Those in memory; a storage would not let finished trials change.
        trial.user_attrs["cost_ratio"] = 0.9 * trial.user_attrs["macs_ratio"]
    best = answer_trial(study)
    study.set_user_attr(
        "tested",
        {"trial": best.number, "accuracy": 79.0, "dense": 80.0, "dense_ms": 4.0,
         "pruned_ms": 2.5, "device": "cpu"},
    )  # fmt: skip
    text = " ".join(summary(study))
    if budget is not None:
        assert "at most 60 % of the latency" in text
    assert "0.00 ms for a batch of 4 on cpu with 2 thread(s)" in text
    assert "median error is 3.4 %" in text
    assert f"It has {100 * best.user_attrs['cost_ratio']:.1f} % of the latency" in text
    assert "Its latency is predicted to be 0.00 ms" in text
    assert "takes 2.50 ms and the dense model 4.00 ms, 62.5 %" in text
    dense, row = build_report([study])["rows"]
    assert dense["cost_ratio"] == 1.0
    assert row["cost_ratio"] == best.user_attrs["cost_ratio"]
    assert row["measured_ms"] == 2.5
    assert "latency" in accuracy_figure([study]).layout.title.text
    assert "equal latency" in [trace.name for trace in path_figure(study).data]
    for page in (markdown_page([study]), html_page([study])):
        assert "measured ms" in page


def test_studies_of_different_costs_are_drawn_over_flops(make_study):
    storage = optuna.storages.InMemoryStorage()
    studies = [make_study(storage, "a"), make_study(storage, "b", cost="params")]
    assert "FLOPs" in accuracy_figure(studies).layout.title.text


def test_a_study_of_a_foreign_cost_is_reported_by_its_name(make_study):
    study = make_study(name="e", budget=0.6, cost="energy")
    for trial in study.get_trials(deepcopy=False):
        trial.user_attrs["cost_ratio"] = 0.9 * trial.user_attrs["macs_ratio"]
    assert "at most 60 % of the energy" in " ".join(summary(study))
    assert "energy" in accuracy_figure([study]).layout.title.text
    assert "equal energy" in [trace.name for trace in path_figure(study).data]
    for page in (markdown_page([study]), html_page([study])):
        assert "energy" in page
