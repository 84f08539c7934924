import io

import pytest

from vit_ratio_opt.training import progress
from vit_ratio_opt.training.progress import SearchProgress, TrainingProgress, show_waiting


@pytest.fixture
def terminal(monkeypatch):
    """Standard error as a terminal; gives what is written to it."""
    written = io.StringIO()
    console = progress.Console

    def make(**options):
        return console(
            file=written, force_terminal=True, width=120, **{**options, "stderr": False}
        )

    monkeypatch.setattr(progress, "Console", make)
    return written


def test_search_trial_and_epoch_have_bars(terminal):
    with SearchProgress(4) as search:
        search.show_trained(1)
        with TrainingProgress("trial 1", 20, 10, shown=search) as training:
            training.count(32)
            training.advance(15, 0.5, 87.5)
            search.bars.refresh()
            tasks = {task.description: (task.completed, task.total) for task in search.bars.tasks}
        left = [task.description for task in search.bars.tasks]
    assert tasks == {"search": (1.75, 4), "trial 1": (15, 20), "epoch 2": (5, 10)}
    assert left == ["search"]
    assert "loss 0.500  acc  87.5 %" in terminal.getvalue()


def test_the_last_step_of_an_epoch_belongs_to_it():
    with TrainingProgress("t", 20, 10, shown=True) as training:
        training.advance(10, 0.0, 0.0)
        assert training.bars.tasks[1].completed == 10
        assert training.bars.tasks[1].description == "epoch 1"
        training.skip(11)
        assert training.bars.tasks[1].description == "epoch 2"


def test_a_loss_is_read_five_times_a_second_and_at_the_end_of_an_epoch(
    monkeypatch,
):
    now, due = [100.0], []
    with TrainingProgress("t", 20, 10, shown=True) as training, monkeypatch.context() as patch:
        patch.setattr(progress.time, "monotonic", lambda: now[0])
        for step in range(1, 21):
            now[0] += 0.0625
            training.count(8)
            if training.is_due(step):
                training.advance(step, 0.0, None)
                due.append(step)
    assert due == [1, 5, 9, 10, 14, 18, 20]
    with TrainingProgress("t", 20, 10, shown=False) as training:
        assert not training.is_due(10)


def test_where_nobody_watches_nothing_is_written(capsys):
    with SearchProgress(None) as search, show_waiting("for what"):
        search.show_trained(3)
        with TrainingProgress("t", 2, 1, shown=search) as training:
            assert not training.enabled
            training.skip(1)
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""
