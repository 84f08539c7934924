from __future__ import annotations

import io
import uuid

import optuna
import pytest
from optuna_dashboard._serializer import serialize_frozen_trial

from vit_ratio_opt.report import dashboard
from vit_ratio_opt.report.dashboard import AllArtifacts, serve_dashboard, shown_trial
from vit_ratio_opt.runs.artifacts import open_artifacts
from vit_ratio_opt.runs.storage import open_storage
from vit_ratio_opt.utils.untrusted import mark_folder


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
