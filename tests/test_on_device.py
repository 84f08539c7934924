"""What runs on a device, in pairs: strategies, families, costs, tasks and ways to resume.

Without a GPU, under the rules of one: see ``fake_device.py``. With one, on it:

    python -m pytest tests/test_on_device.py --device cuda
"""

from __future__ import annotations

import contextlib
import copy
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fake_device import fake_device, fake_seconds
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState
from packaging.version import Version
from support import make_search
from torch import nn
from torch.utils.data import DataLoader, Dataset

import vit_ratio_opt as vro
from vit_ratio_opt.data import feed
from vit_ratio_opt.data.image_data import ImageData
from vit_ratio_opt.latency import curves, deployed, table
from vit_ratio_opt.latency.timing import TimingEffort, time_models
from vit_ratio_opt.models.device import Precision, autocast, model_device
from vit_ratio_opt.models.separate import separate
from vit_ratio_opt.runs import devices
from vit_ratio_opt.training.context import TrainingStopped, TrialContext

SMALL = {
    "img_size": 8, "patch_size": 4, "in_chans": 1, "embed_dim": 32, "depth": 2, "num_heads": 4,
}  # fmt: skip


@dataclass(frozen=True)
class Rules:
    """The fake device whose rules hold, and the precision of matrix products on it."""

    kind: str
    precision: Precision

    def __str__(self) -> str:
        return f"{self.kind} {self.precision}"


BF16, FP16 = Rules("cuda", "bfloat16"), Rules("cuda", "float16")
MPS = Rules("mps", "float32")
# Older versions of PyTorch do not train in float16 there.
MPS_FP16 = Rules("mps", "float16" if Version(torch.__version__) >= Version("2.8") else "bfloat16")


Begin = Callable[..., AbstractContextManager[torch.device]]
"""Give a device with some rules inside a block."""


@pytest.fixture
def real(request: pytest.FixtureRequest) -> str | None:
    """The real device that the command line names."""
    name: str | None = request.config.getoption("--device", None)
    return name


@pytest.fixture
def on_device(real: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Begin:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # nobody else's GPU is claimed
    monkeypatch.setattr(devices, "_own", (0, {}))

    @contextlib.contextmanager
    def begin(rules: Rules, **options: Any) -> Iterator[torch.device]:
        if real is not None:
            yield torch.zeros(0, device=real).device
            return
        with fake_device(rules.kind, bfloat16=rules.precision == "bfloat16", **options) as device:
            yield device

    return begin


def model_of(name: str, classes: int, **changes: Any) -> nn.Module:
    """Return a small untrained model whose outputs differ from image to image."""
    torch.manual_seed(0)
    model = vro.create_model(name, num_classes=classes, **SMALL | changes)
    separate(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def few(digits: ImageData) -> ImageData:
    sizes = {"train": 48, "val": 32, "test": 32}
    splits = {name: getattr(digits, name).subset(torch.arange(n)) for name, n in sizes.items()}
    return replace(digits, **splits)


# Families


FAMILIES = {
    "vit_tiny_patch16_224": BF16,
    "deit_tiny_distilled_patch16_224": FP16,
    "vit_base_patch16_siglip_224": MPS,  # attention pooling
    "vit_giant_patch14_dinov2": BF16,  # packed SwiGLU, LayerScale
    "aimv2_large_patch14_224": FP16,  # SwiGLU
    "vit_base_patch16_rpn_224": MPS_FP16,  # norms after the branches
    "vit_base_patch16_18x2_224": BF16,  # two attentions and two FFNs in parallel
    "vit_base_patch16_xp_224": MPS,  # attention and FFN in parallel, norms on queries and keys
    "beit_base_patch16_224": FP16,  # position biases
    "vit_small_patch16_dinov3": MPS_FP16,  # rotary embeddings
    "eva02_enormous_patch14_clip_224": BF16,  # norms after the branches, in EVA's class
    "cait_xxs24_224": MPS,  # talking heads
}


@pytest.mark.parametrize(("name", "rules"), FAMILIES.items())
def test_a_family_is_measured_pruned_repaired_and_trained_as_on_the_cpu(
    name: str, rules: Rules, on_device: Begin
) -> None:
    images = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(16) % 5

    def pruned(model: nn.Module, batches: list[torch.Tensor]) -> nn.Module:
        known = vro.calibrate(model, batches)
        small = vro.prune(model, (0.5, 0.5), known)
        vro.repair(small, batches, known)
        return small

    dense = model_of(name, 5).eval()
    expected = pruned(dense, list(images.split(8)))
    with on_device(rules) as device:
        model, images, labels = (
            copy.deepcopy(dense).to(device),
            images.to(device),
            labels.to(device),
        )
        small = pruned(model, list(images.split(8)))
        with torch.no_grad():
            torch.testing.assert_close(small(images).cpu(), expected(images.cpu()), **CLOSE)
        scores = vro.taylor_importance(model, [(images, labels)])
        if name != CAIT:  # its heads are mixed
            vro.prune(model, (0.5, 0.5), scores)
        with autocast(device, rules.precision):
            loss = F.cross_entropy(small(images), labels)
        loss.backward()
        assert all(p.grad is None or p.grad.device == device for p in small.parameters())
        assert all(p.grad.isfinite().all() for p in small.parameters() if p.grad is not None)


CLOSE = {"rtol": 1e-3, "atol": 1e-3}


@pytest.mark.parametrize(("name", "rules"), FAMILIES.items())
def test_the_levels_of_an_elastic_family_are_those_of_the_cpu(
    name: str, rules: Rules, on_device: Begin
) -> None:
    images = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    pairs = [(0.0, 0.0), (0.5, 0.5)]

    def built(model: nn.Module, batches: list[torch.Tensor]) -> vro.ElasticViT:
        return vro.build_elastic(model, pairs, vro.calibrate(model, batches), batches)

    dense = model_of(name, 5).eval()
    expected = built(dense, list(images.split(8)))
    with on_device(rules) as device:
        images = images.to(device)
        elastic = built(copy.deepcopy(dense).to(device), list(images.split(8)))
        for level in range(2):
            with torch.no_grad():
                outputs = elastic(images, level).cpu()
                torch.testing.assert_close(outputs, expected(images.cpu(), level), **CLOSE)
                torch.testing.assert_close(outputs, elastic.extract(level)(images).cpu(), **CLOSE)
        with autocast(device, rules.precision):
            loss = elastic(images, 1).square().mean()
        loss.backward()
        assert elastic.largest.head.weight.grad is None or elastic.largest.head.weight.grad.any()


# Searches


TASKS = {
    "classes": lambda data: data,
    "labels": lambda data: with_labels(
        data, "multi-label", lambda labels: torch.stack([labels % 2 == 0, labels > 4], dim=1)
    ),
    "regression": lambda data: with_labels(data, "regression", lambda labels: labels[:, None]),
    "features": lambda data: replace(data, task="features"),
}


def with_labels(data: ImageData, task: Any, labels_of: Callable) -> ImageData:
    splits = {
        name: replace(split, labels=labels_of(split.labels).float())
        for name in ("train", "val", "test")
        if (split := getattr(data, name))
    }
    classes = tuple(f"target {i}" for i in range(splits["train"].labels.shape[1]))
    return replace(data, **splits, classes=classes, task=task, source={})


STRUCTURAL = (
    "vit_tiny_patch16_224",
    "deit_tiny_distilled_patch16_224",
    "beit_base_patch16_224",
    "vit_small_patch16_dinov3",
    "cait_xxs24_224",
)
VIT, DEIT, BEIT, EVA, CAIT = STRUCTURAL
RANK, HEAD = {}, {"mhsa_unit": "head"}
UNLABELLED = HEAD | {"criterion": vro.magnitude_importance}
COARSE = {"round_to": 8}  # few sizes to time
TOKENS, BOTH = {"strategy": "cascade"}, {"strategy": "both"}
SEARCHES = [
    (BF16, RANK, VIT, "macs", "classes", "parents"),
    (BF16, HEAD, DEIT, "params", "labels", "study"),
    (BF16, TOKENS, VIT, "macs", "features", "study"),
    (BF16, BOTH, VIT, "macs", "regression", "training"),
    (FP16, RANK | COARSE, BEIT, "latency", "labels", "study"),
    (FP16, UNLABELLED, EVA, "macs", "features", "parents"),
    (FP16, TOKENS, VIT, "macs", "regression", "training"),
    (FP16, BOTH, VIT, "macs", "classes", "study"),
    (MPS, RANK, CAIT, "params", "regression", "parents"),
    (MPS_FP16, HEAD | COARSE, VIT, "latency", "classes", "study"),
    (MPS, TOKENS, VIT, "macs", "labels", "study"),
    (MPS_FP16, BOTH, VIT, "macs", "features", "training"),
]


@pytest.fixture
def brief_timing(real: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if real is None:  # events tell the time of CUDA, a clock that of MPS
        monkeypatch.setattr(deployed, "time", SimpleNamespace(perf_counter=fake_seconds))
    effort = TimingEffort(turns=1, least_turns=1, turn_seconds=0)
    for module in (table, curves):
        monkeypatch.setattr(module, "time_models", partial(time_models, effort=effort))


@pytest.mark.usefixtures("brief_timing")
@pytest.mark.parametrize(("rules", "strategy", "family", "cost", "task", "resumed"), SEARCHES)
def test_a_search_runs_resumes_and_answers_on_a_device(
    rules: Rules, strategy: dict[str, Any], family: str, cost: str, task: str, resumed: str,
    few: ImageData, on_device: Begin, real: str | None, tmp_path: Path,
) -> None:  # fmt: skip
    data = TASKS[task](few)
    depth = 1 if cost == "latency" else 2  # few sizes to time
    dense = model_of(family, 0 if task == "features" else len(data.classes), depth=depth)

    def compose() -> vro.Search:
        # Overhead alone decides how long a model of this size takes: no budget is sure to be met.
        limit = {"tolerance": 50.0} if cost == "latency" else {"budget": 0.9}
        # The automatic rate may find that no training helps: there is no step to stop at then.
        lr = "auto" if resumed == "study" else 1e-3
        search = make_search(
            dense, data, cost=cost, calibration_images=32,
            noise=None if task == "classes" else 0.01,  # else it is estimated, which takes a while
            recipe=vro.Recipe(batch_size=16, lr=lr, ema=0.9, augment=not strategy),
            precision=rules.precision, device=real, progress=False,
            iterative=resumed == "parents", checkpoints=None if resumed == "study" else tmp_path,
            screen=resumed == "study" and cost != "latency", **limit, **strategy,
        )  # fmt: skip
        search.journal.attach = lambda study, trial: {}  # figures are drawn on no device
        return search

    def run(search: vro.Search, trials: int) -> Any:
        study = search.create_study("s", storage=storage)
        search.run(study, trials, say=lambda line: None, explain=False)
        return study

    with on_device(rules) as device:
        storage, search = InMemoryStorage(), compose()
        assert model_device(search.dense) == device
        if resumed == "training":
            steps = iter([False, False, True])
            search.objective.should_stop = steps.__next__
            with pytest.raises(KeyboardInterrupt):
                search.create_study("s", storage=storage).optimize(search.objective, n_trials=1)
        else:
            run(search, 1)
        search = compose()
        study = run(search, 2)
        states = [trial.state for trial in study.trials]
        assert states == [TrialState.FAIL] * (resumed == "training") + [TrialState.COMPLETE] * 2
        if resumed == "training":
            assert study.trials[1].user_attrs["resumed_from"]["trial"] == 0
        if resumed != "study":
            assert search.test(study) is not None
            answer = search.answer(study)
            assert model_device(search.model_of(study, answer.found.trial)) == device


# Trainings


@pytest.mark.parametrize("rules", [BF16, FP16, MPS, MPS_FP16], ids=str)
def test_a_training_resumes_exactly_on_a_device_and_on_the_cpu(
    rules: Rules, few: ImageData, on_device: Begin, tmp_path: Path
) -> None:
    recipe = vro.Recipe(epochs=2, batch_size=16, lr=1e-3, augment=True, ema=0.9)
    dense = model_of(VIT, 10, drop_path_rate=0.5)  # by the random numbers of the device

    def train(device: torch.device, state: str, stops: int | None = None) -> torch.Tensor:
        steps = iter([False] * (stops or 0) + [True])
        model = copy.deepcopy(dense).to(device)
        context = TrialContext(
            state=tmp_path / state, progress=False, teacher=copy.deepcopy(dense).to(device),
            should_stop=steps.__next__ if stops else lambda: False,
        )  # fmt: skip
        precision = rules.precision if device.type != "cpu" else "float32"
        with pytest.raises(TrainingStopped) if stops else contextlib.nullcontext():
            vro.finetune(model, few, recipe, context, precision=precision)
        return nn.utils.parameters_to_vector(model.parameters()).detach().cpu()

    cpu = torch.device("cpu")
    train(cpu, "begun on the CPU", stops=4)
    with on_device(rules) as device:
        straight = train(device, "never stopped")
        train(device, "stopped", stops=4)
        torch.rand(3, device=device)  # another random state than at the stop
        resumed = train(device, "stopped")
        torch.testing.assert_close(resumed, straight, rtol=1e-4, atol=1e-5)
        train(device, "begun on the device", stops=4)
        assert train(device, "begun on the CPU").isfinite().all()
    assert train(cpu, "begun on the device").isfinite().all()


def test_a_training_in_float16_is_refused_where_pytorch_cannot_scale_its_gradients(
    few: ImageData, on_device: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vit_ratio_opt.models.device._scales_on_mps", lambda: False)
    with on_device(MPS) as device:
        if device.type != "mps":
            pytest.skip("for GPUs of Apple")
        with pytest.raises(vro.InputError, match=r"needs PyTorch 2\.8 or newer, but this is"):
            vro.ImageTrainer(few, device=device, precision="float16")
        model = model_of(VIT, 10).to(device)
        with pytest.raises(vro.InputError, match="give precision='float32'"):
            vro.finetune(model, few, vro.Recipe(), precision="float16")
        vro.ImageTrainer(few, vro.Recipe(epochs=0), device=device, precision="float16")


class Read(Dataset[Any]):
    """Images that are read one by one, as from files."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, index: int) -> Any:
        return self.inner[index]


@pytest.mark.parametrize("rules", [BF16, MPS], ids=str)
@pytest.mark.parametrize("in_memory", [True, False])
def test_images_that_do_not_fit_on_a_device_are_copied_batch_by_batch(
    rules: Rules, in_memory: bool, few: ImageData, on_device: Begin, monkeypatch: Any
) -> None:
    # Processes and threads of a loader do not know of a fake device.
    alone = {"num_workers": 0, "persistent_workers": False}
    monkeypatch.setattr(feed, "DataLoader", lambda *a, **more: DataLoader(*a, **more | alone))
    if not in_memory:
        splits = {name: getattr(few, name) for name in ("train", "val")}
        few = replace(few, **{n: replace(s, dataset=Read(s.dataset)) for n, s in splits.items()})
    with on_device(rules, free_bytes=0) as device:
        recipe = vro.Recipe(batch_size=16, lr=1e-3)
        trainer = vro.ImageTrainer(few, recipe, device=device, precision=rules.precision)
        model = model_of(VIT, 10)
        value = trainer.train(model, TrialContext(progress=False))
        assert trainer.evaluate(model) == value
