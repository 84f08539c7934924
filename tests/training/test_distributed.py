"""Two real processes, in the environment that torchrun makes, against one."""

import itertools
import json
import os
import time
from datetime import timedelta

import pytest
import timm
import torch
import torch.distributed as dist

from vit_ratio_opt.data.digits import load_digits
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.training import distributed
from vit_ratio_opt.training.context import TrainingStopped, TrialContext
from vit_ratio_opt.training.distributed import Polls, Ranks
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
    distributed._POLL_SECONDS = told["poll_seconds"]
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
            "state_every": 300, "poll_seconds": 1.0, "stopping_rank": 0, "raise_after": 0,
            "out": tmp_path, **told,
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
    stopped = run(state=state, stop_after=5, stopping_rank=1, poll_seconds=0)
    assert [one["ended"] for one in stopped] == ["TrainingStopped"] * 2
    assert [one["reports"] for one in stopped] == [[], []]
    resumed = run(state=state, state_every=0, poll_seconds=0)  # rank 0 saves before each step
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


def wait_for_rank_0(out):
    """Rank 0 is silent for longer than its group may be, says something, and dies."""
    dist.init_process_group("gloo", timeout=timedelta(seconds=1))
    ranks = Ranks.from_environment()
    if ranks.rank == 0:
        time.sleep(3)
        ranks.broadcast("still there")
        (out / "died").write_text(str(time.time()))
        os._exit(9)
    assert ranks.broadcast() == "still there"
    try:
        ranks.broadcast()
    finally:
        (out / "ended").write_text(str(time.time()))


def test_other_ranks_wait_for_rank_0_until_it_is_dead(start_pair, tmp_path):
    first, second = start_pair(wait_for_rank_0, tmp_path)
    for process in (first, second):
        process.join(120)
    log = (tmp_path / "log").read_text()
    assert (first.exitcode, second.exitcode) == (9, 1), log
    died, ended = (float((tmp_path / name).read_text()) for name in ("died", "ended"))
    assert ended - died < 20
    assert "Rank 1 has lost the connection to rank 0" in log


class Group:
    """Processes that take the same time for everything; what one of them says, all say."""

    def __init__(self, size):
        self.size, self.asked = size, []

    def sum(self, *values):
        self.asked.append(values[:-1])
        return [self.size * value for value in values]


def polled(group, seconds, steps, first=0):
    """The steps before which the processes ask each other."""
    now = [0.0]
    polls, asked = Polls(group, lambda: now[0]), []
    for step in range(first, first + steps):
        if polls.is_due(step):
            assert polls.sum(step, step == 3) == [group.size * (step == 3)]
            asked.append(step)
        now[0] += seconds(step)
    return asked


def test_processes_ask_each_other_about_once_a_second():
    assert polled(Group(2), lambda step: 0.125, 40) == [0, 1, 3, 7, 15, 23, 31, 39]
    assert polled(Group(4), lambda step: 3.0, 4) == [0, 1, 2, 3]  # slower than that
    assert polled(Group(2), lambda step: 0.0, 40) == [0, 1, 3, 7, 15, 31]
    # After a resumed start, and where an evaluation took long in between.
    assert polled(Group(2), lambda step: 0.25, 16, first=500) == [500, 501, 503, 507, 511, 515]
    slow = polled(Group(2), lambda step: 60.0 if step == 20 else 0.125, 36)
    assert slow == [0, 1, 3, 7, 15, 23, 24, 26, 30]


def test_one_process_asks_nobody_and_looks_before_each_step():
    group = Group(1)
    assert polled(group, lambda step: 0.1, 5) == [0, 1, 2, 3, 4]
    assert group.asked == []


@pytest.fixture
def joined(monkeypatch):
    """Joins as rank 3, the second of a machine with two GPUs; gives what PyTorch is told."""

    def join(kind, gpus=2, backends=("gloo", "nccl", "xccl")):
        told = {}
        names = {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "1", "RANK": "3"}
        for name, value in names.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(distributed, "best_device", lambda: torch.device(kind))
        monkeypatch.setattr(torch.accelerator, "device_count", lambda: gpus)
        monkeypatch.setattr(
            torch.accelerator, "set_device_index", lambda index: told.update(index=index)
        )
        monkeypatch.setattr(dist, "is_backend_available", lambda name: name in backends)
        monkeypatch.setattr(dist, "is_initialized", lambda: False)
        monkeypatch.setattr(dist, "init_process_group", lambda name: told.update(tensors=name))
        monkeypatch.setattr(dist, "new_group", lambda **options: options)
        monkeypatch.setattr(dist, "get_rank", lambda: 3)
        monkeypatch.setattr(dist, "get_world_size", lambda: 4)
        ranks = Ranks.from_environment()
        assert (ranks.rank, ranks.size) == (3, 4)
        assert ranks.control["backend"] == "gloo"
        assert ranks.control["timeout"] > timedelta(days=100)
        return ranks.device, told

    return join


def test_gpus_exchange_gradients_and_processors_everything_else(joined):
    assert joined("cuda") == (torch.device("cuda", 1), {"tensors": "nccl", "index": 1})
    assert joined("xpu") == (torch.device("xpu", 1), {"tensors": "xccl", "index": 1})
    for kind in ("cpu", "mps"):  # a Mac has one GPU for all processes
        assert joined(kind, gpus=1) == (torch.device("cpu"), {"tensors": "gloo"})


def test_processes_without_a_gpu_each_or_a_way_between_them_are_refused(joined):
    with pytest.raises(InputError, match="there are 1 for 2 processes: lower --nproc-per-node"):
        joined("cuda", gpus=1)
    with pytest.raises(InputError, match="lacks xccl, which connects GPUs of type xpu"):
        joined("xpu", backends=("gloo",))
