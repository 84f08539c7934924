import json

import pytest

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.report.trackers import JsonLog, TensorBoardLog


def test_the_log_has_a_line_of_json_for_each_trial(make_study, tmp_path):
    study, path = make_study(name='"\n'), tmp_path / "log.jsonl"
    log = JsonLog(path)
    for trial in study.trials:
        log(study, trial)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["trial"] for line in lines] == list(range(6))
    assert lines[2]["params"] == study.trials[2].params
    assert lines[2]["user_attrs"] == study.trials[2].user_attrs
    assert lines[2]["state"] == "COMPLETE"
    with pytest.raises(InputError, match="cannot be written"):
        JsonLog(tmp_path)(study, study.trials[0])


@pytest.mark.parametrize("budget", [0.5, None])
def test_tensorboard_reads_the_curves_and_the_ratios(make_study, tmp_path, budget):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    study = make_study(budget=budget)
    trial = study.trials[1]
    TensorBoardLog(tmp_path)(study, trial)
    events = EventAccumulator(str(tmp_path / "searched" / "trial-0001")).Reload()
    accuracy = trial.user_attrs["accuracy"]
    assert [e.value for e in events.Scalars("accuracy")] == pytest.approx([accuracy - 1, accuracy])
    assert [e.value for e in events.Scalars("loss")] == [1.5, 0.75]
    assert events.Scalars("result/macs_ratio")[0].value == pytest.approx(
        trial.user_attrs["macs_ratio"]
    )
    assert "_hparams_/session_start_info" in events.PluginTagToContent("hparams")
