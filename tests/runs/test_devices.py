"""Each worker of a machine takes a GPU of its own; the GPUs are fakes."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
import torch

from vit_ratio_opt.composer import Search
from vit_ratio_opt.runs import devices
from vit_ratio_opt.runs.devices import claim_device
from vit_ratio_opt.runs.lines import describe_device
from vit_ratio_opt.runs.options import RunOptions
from vit_ratio_opt.search.limits import Budget
from vit_ratio_opt.training.distributed import Ranks
from vit_ratio_opt.training.recipe import Recipe
from vit_ratio_opt.training.trainer import ImageTrainer
from vit_ratio_opt.utils.locks import unlock


class Machine:
    """A machine with GPUs, of which a process sees some in an order of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.patch, self.current, self.shown = monkeypatch, 0, [0]
        self.kind, self.has_uuid = "cuda", True
        monkeypatch.setattr(
            torch.accelerator, "current_accelerator", lambda check_available: self.device
        )
        monkeypatch.setattr(torch.accelerator, "device_count", lambda: len(self.shown))
        monkeypatch.setattr(torch, "get_device_module", lambda device: self)
        monkeypatch.setattr(devices, "resolve_device", self.resolve)
        self.workers: list[tuple[int, dict[torch.device, int]]] = []

    @property
    def device(self) -> torch.device:
        return torch.device(self.kind)

    def resolve(self, device: torch.device | str | None) -> torch.device:
        return self.device if device is None else torch.device(device)

    def current_device(self) -> int:
        return self.current

    def set_device(self, index: int) -> None:
        self.current = index

    def get_device_properties(self, device: torch.device) -> SimpleNamespace:
        uuid = {"uuid": f"GPU/{self.shown[device.index]}"} if self.has_uuid else {}
        return SimpleNamespace(**uuid)

    def worker(self, *gpus: int, device: str | None = None, current: int = 0) -> torch.device:
        """The device of a new process that sees these GPUs."""
        self.shown, self.current = list(gpus), current
        self.patch.setenv("CUDA_VISIBLE_DEVICES", ",".join(map(str, gpus)))
        self.patch.setattr(devices, "_own", (os.getpid(), {}))
        chosen = claim_device(device)
        self.workers.append(devices._own)
        return chosen

    def end(self, number: int) -> None:
        for lock in self.workers[number][1].values():
            unlock(lock)


@pytest.fixture
def machine(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    machine = Machine(monkeypatch)
    yield machine
    for number in range(len(machine.workers)):
        machine.end(number)


def index(device: torch.device) -> int | None:
    return device.index


def test_workers_take_different_gpus_and_one_that_has_ended_leaves_its_own(machine, caplog):
    assert [index(machine.worker(0, 1, 2)) for _ in range(3)] == [0, 1, 2]
    machine.end(1)
    assert machine.worker(0, 1, 2) == torch.device("cuda", 1)
    assert machine.current == 1  # "cuda" without a number is this one too
    assert not caplog.text


def test_a_worker_too_many_shares_the_gpu_with_the_fewest_and_is_warned(machine, caplog):
    assert [index(machine.worker(0, 1)) for _ in range(2)] == [0, 1]
    assert machine.worker(0, 1) == torch.device("cuda", 0)
    assert "All 2 GPUs that this worker sees are used" in caplog.text
    assert "shares cuda:0 with 1 of them" in caplog.text
    machine.end(0)  # the second file of this GPU is still locked
    assert machine.worker(0, 1) == torch.device("cuda", 0)
    assert "shares cuda:0 with 1 of them" in caplog.text
    machine.end(1)
    assert machine.worker(0, 1) == torch.device("cuda", 1)


def test_what_counts_is_the_gpu_and_not_the_number_that_a_process_has_for_it(machine, caplog):
    assert [index(machine.worker(2)), index(machine.worker(3))] == [0, 0]
    assert not caplog.text
    assert machine.worker(3, 2, 0) == torch.device("cuda", 2)
    machine.worker(3)
    assert "shares cuda:0 with 1 of them" in caplog.text


@pytest.mark.parametrize("has_uuid", [True, False])
def test_parts_of_a_gpu_and_gpus_without_a_uuid_are_told_apart(machine, caplog, has_uuid):
    machine.has_uuid = has_uuid
    machine.worker(4)
    machine.patch.setattr(Machine, "get_device_properties", lambda *_: SimpleNamespace(uuid=7))
    if not has_uuid:
        machine.patch.setattr(Machine, "get_device_properties", lambda *_: SimpleNamespace())
    names = []
    for shown in ("MIG-1", "MIG-2"):
        machine.patch.setenv("CUDA_VISIBLE_DEVICES", shown)
        names.append(devices._name(torch.device("cuda", 0)))
    assert len(set(names)) == 2
    assert not caplog.text


def test_a_given_device_is_taken_even_if_it_is_used_and_others_keep_away_from_it(machine, caplog):
    assert machine.worker(0, 1, device="cuda:0") == torch.device("cuda", 0)
    assert machine.worker(0, 1, device="cuda:0") == torch.device("cuda", 0)
    assert machine.worker(0, 1) == torch.device("cuda", 1)
    assert machine.worker(0, 1, current=1) == torch.device("cuda", 1)  # torch.cuda.set_device(1)
    assert not caplog.text


def test_a_process_that_asks_again_gets_the_same_gpu(machine):
    assert machine.worker(0, 1) == claim_device() == torch.device("cuda", 0)
    assert machine.worker(0, 1) == claim_device() == torch.device("cuda", 1)
    assert claim_device("cuda:0") == torch.device("cuda", 0)


@pytest.mark.parametrize("kind", ["cpu", "mps"])
def test_a_cpu_and_an_apple_gpu_are_not_claimed(machine, kind, tmp_path):
    machine.kind = kind
    assert machine.worker(0) == torch.device(kind)
    assert not list(tmp_path.iterdir())


def test_without_a_place_for_locks_a_worker_runs_all_the_same(machine, tmp_path, caplog):
    (tmp_path / f"vit_ratio_opt-devices-{os.getuid()}").touch()
    assert machine.worker(0, 1) == torch.device("cuda", 0)
    assert "each of them takes cuda:0: give each its --device" in caplog.text


def test_a_folder_of_somebody_else_is_not_used(machine, tmp_path, caplog, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / f"vit_ratio_opt-devices-{os.getuid()}").symlink_to(tmp_path / "elsewhere")
    machine.worker(0, 1)
    assert "belongs to another user" in caplog.text
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_search_claims_its_device_and_a_trainer_alone_does_not(dense, digits, monkeypatch):
    asked = []

    def claim(device: torch.device | str | None) -> torch.device:
        asked.append(device)
        return torch.device("cpu")

    monkeypatch.setattr("vit_ratio_opt.runs.parts.claim_device", claim)
    ranks = Ranks(0, 1, torch.device("cpu", 0))
    for run in (RunOptions(), RunOptions(device="cpu"), RunOptions(ranks=ranks)):
        Search(dense, digits, Budget(0.6), training=Recipe(epochs=0), run=run)
    assert asked == [None, "cpu", ranks.device]
    ImageTrainer(digits, Recipe(epochs=0))
    assert len(asked) == 3


def test_a_search_says_on_which_gpu_it_trains():
    gpu = SimpleNamespace(device=torch.device("cuda", 1), device_name="NVIDIA H100")
    assert list(describe_device(gpu)) == ["this worker trains on cuda:1, NVIDIA H100"]
    assert not list(describe_device(SimpleNamespace(device=torch.device("cpu"))))
    assert not list(describe_device(object()))
