"""Two real processes under torchrun, against one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vit_ratio_opt.training import Recipe, finetune, load_digits

SCRIPT = """
import json, sys
import timm, torch
from vit_ratio_opt.training import Ranks, Recipe, TrainingStopped, finetune, load_digits

torch.set_num_threads(1)
ranks = Ranks.from_environment()
told = json.loads(sys.argv[1])
torch.manual_seed(0 if ranks is None else ranks.rank)  # rank 0's weights are what counts
model = timm.create_model(
    "vit_tiny_patch16_224", img_size=8, patch_size=4, in_chans=1, embed_dim=32, depth=2,
    num_heads=4, mlp_ratio=2.0, num_classes=10,
)
reports, steps = [], 0


def stop():
    global steps
    steps += 1
    return ranks.rank == told["stopping_rank"] and steps > told["stop_after"]


def on_epoch(*epoch):
    reports.append(epoch)
    if len(reports) == told["raise_after"]:
        raise RuntimeError("rank 0 has had enough")


ended = None
try:
    finetune(
        model, load_digits(), Recipe(**told["recipe"]), ranks=ranks, on_epoch=on_epoch,
        state=told["state"] and __import__("pathlib").Path(told["state"]),
        stop=stop if told["stop_after"] else None,
    )
except BaseException as error:
    ended = type(error).__name__
message = ranks.tell({"floats": [0.1, 1 / 3]} if ranks.rank == 0 else None)
assert message == {"floats": [0.1, 1 / 3]}
weights = torch.cat([p.detach().flatten() for p in model.parameters()]).double()
mine = [float(weights.sum()), float((weights**2).sum())]
result = {"ended": ended, "reports": reports, "weights": mine}
open(f"{told['out']}.{ranks.rank}", "w").write(json.dumps(result))
"""


def run(tmp_path, processes=2, **told):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    told = {
        "recipe": {"epochs": 2, "batch_size": 64}, "state": None, "stop_after": 0,
        "stopping_rank": 0, "raise_after": 0, "out": str(tmp_path / "out"), **told,
    }  # fmt: skip
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*torchrun, f"--nproc-per-node={processes}", str(script), json.dumps(told)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(Path(f"{told['out']}.{rank}").read_text()) for rank in range(processes)]


@pytest.fixture
def model():
    import timm

    torch.manual_seed(0)
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=8, patch_size=4, in_chans=1, embed_dim=32, depth=2,
        num_heads=4, mlp_ratio=2.0, num_classes=10,
    )  # fmt: skip


# 1,149 images: the last batch is of 61, or of a single one that one process has nothing of.
@pytest.mark.parametrize("batch_size", [64, 287])
def test_two_processes_have_the_loss_curve_of_one_with_the_whole_batch(
    tmp_path, model, batch_size
):
    recipe = {"epochs": 2, "batch_size": batch_size, "lr": 3e-3}
    expected = []
    finetune(model, load_digits(), Recipe(**recipe), on_epoch=lambda *e: expected.append(e))
    first, second = run(tmp_path, recipe=recipe)
    assert [epoch for epoch, _, _ in first["reports"]] == [1, 2]
    for (_, accuracy, loss), (_, expected_accuracy, expected_loss) in zip(
        first["reports"], expected, strict=True
    ):
        assert loss == pytest.approx(expected_loss, abs=1e-4)
        assert accuracy == pytest.approx(expected_accuracy, abs=0.7)
    assert second["reports"] == []
    assert first["weights"] == second["weights"]
    weights = torch.cat([p.detach().flatten() for p in model.parameters()]).double()
    assert first["weights"][1] == pytest.approx(float((weights**2).sum()), rel=1e-4)


def test_a_stop_in_one_process_stops_both_and_they_go_on_together(tmp_path, model):
    expected = run(tmp_path)
    state = str(tmp_path / "state")
    stopped = run(tmp_path, state=state, stop_after=5, stopping_rank=1)
    assert [one["ended"] for one in stopped] == ["TrainingStopped"] * 2
    assert [one["reports"] for one in stopped] == [[], []]
    resumed = run(tmp_path, state=state)
    assert [one["weights"] for one in resumed] == [one["weights"] for one in expected]
    for (*epoch, loss), (*expected_epoch, expected_loss) in zip(
        resumed[0]["reports"], expected[0]["reports"], strict=True
    ):
        assert epoch == expected_epoch
        assert loss == pytest.approx(expected_loss, abs=1e-6)


def test_what_rank_0_raises_after_an_epoch_ends_both_and_they_still_hear_each_other(tmp_path):
    first, second = run(tmp_path, raise_after=1)
    assert first["ended"] == "RuntimeError"
    assert second["ended"] == "TrainingStopped"
    assert first["weights"] == second["weights"]
