"""Two real processes, in the environment that torchrun makes, against one."""

import itertools
import json

import pytest
import timm
import torch

from vit_ratio_opt.data.digits import load_digits
from vit_ratio_opt.training.context import TrainingStopped, TrialContext
from vit_ratio_opt.training.distributed import Ranks
from vit_ratio_opt.training.finetune import finetune
from vit_ratio_opt.training.recipe import Recipe
from vit_ratio_opt.training.save_clock import SaveClock


def build():
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=8, patch_size=4, in_chans=1, embed_dim=32, depth=2,
        num_heads=4, mlp_ratio=2.0, num_classes=10,
    )  # fmt: skip


def train(told):
    """What one of the processes does."""
    ranks = Ranks.from_environment()
    torch.manual_seed(ranks.rank)  # rank 0's weights are what counts
    model = build()
    reports, steps = [], itertools.count(1)

    def should_stop():
        return next(steps) > told["stop_after"] and ranks.rank == told["stopping_rank"]

    def report(*epoch):
        reports.append(epoch)
        if len(reports) == told["raise_after"]:
            raise RuntimeError("rank 0 has had enough")

    ended = None
    try:
        clock = SaveClock(told["state_every"])
        context = TrialContext(report=report, state=told["state"], should_save=clock)
        if told["stop_after"]:
            context.should_stop = should_stop
        finetune(model, load_digits(), Recipe(**told["recipe"]), context, ranks=ranks)
    except (RuntimeError, TrainingStopped) as error:
        ended = type(error).__name__
    message = ranks.broadcast({"floats": [0.1, 1 / 3]} if ranks.rank == 0 else None)
    assert message == {"floats": [0.1, 1 / 3]}
    result = {"ended": ended, "reports": reports, "weights": sums(model)}
    (told["out"] / f"{ranks.rank}").write_text(json.dumps(result))
    ranks.leave()


def sums(model):
    weights = torch.cat([p.detach().flatten() for p in model.parameters()]).double()
    return [float(weights.sum()), float((weights**2).sum())]


@pytest.fixture
def run(start_pair, tmp_path):
    """Trains in two processes; gives what each of them has to say."""

    def run_both(**told):
        told = {
            "recipe": {"epochs": 2, "batch_size": 64}, "state": None, "stop_after": 0,
            "state_every": 300, "stopping_rank": 0, "raise_after": 0, "out": tmp_path, **told,
        }  # fmt: skip
        processes = start_pair(train, told)
        for process in processes:
            process.join(120)
            assert process.exitcode == 0, (tmp_path / "log").read_text()[-3000:]
        return [json.loads((tmp_path / f"{rank}").read_text()) for rank in (0, 1)]

    return run_both


@pytest.fixture
def model():
    torch.manual_seed(0)
    return build()


# 1,149 images: the last batch is of 61, or of a single one that one process has nothing of.
@pytest.mark.parametrize("batch_size", [64, 287])
def test_two_processes_have_the_loss_curve_of_one_with_the_whole_batch(run, model, batch_size):
    recipe = {"epochs": 2, "batch_size": batch_size, "lr": 3e-3}
    expected = []
    context = TrialContext(report=lambda *epoch: expected.append(epoch))
    finetune(model, load_digits(), Recipe(**recipe), context)
    first, second = run(recipe=recipe)
    assert [epoch for epoch, _, _ in first["reports"]] == [1, 2]
    for (_, accuracy, loss), (_, expected_accuracy, expected_loss) in zip(
        first["reports"], expected, strict=True
    ):
        assert loss == pytest.approx(expected_loss, abs=1e-4)
        assert accuracy == pytest.approx(expected_accuracy, abs=0.7)
    assert second["reports"] == []
    assert first["weights"] == second["weights"]
    assert first["weights"][1] == pytest.approx(sums(model)[1], rel=1e-4)


def test_a_stop_in_one_process_stops_both_and_they_go_on_together(run, tmp_path):
    expected = run()
    state = tmp_path / "state"
    stopped = run(state=state, stop_after=5, stopping_rank=1)
    assert [one["ended"] for one in stopped] == ["TrainingStopped"] * 2
    assert [one["reports"] for one in stopped] == [[], []]
    resumed = run(state=state, state_every=0)  # rank 0 says before each step that it is due
    assert [one["weights"] for one in resumed] == [one["weights"] for one in expected]
    for (*epoch, loss), (*expected_epoch, expected_loss) in zip(
        resumed[0]["reports"], expected[0]["reports"], strict=True
    ):
        assert epoch == expected_epoch
        assert loss == pytest.approx(expected_loss, abs=1e-6)


def test_what_rank_0_raises_after_an_epoch_ends_both_and_they_still_hear_each_other(run):
    first, second = run(raise_after=1)
    assert first["ended"] == "RuntimeError"
    assert second["ended"] == "TrainingStopped"
    assert first["weights"] == second["weights"]
