import math
import multiprocessing
import os
import socket
import sqlite3
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import optuna
import pytest
import timm
import torch
from alembic.config import Config
from alembic.script import ScriptDirectory
from optuna.trial import TrialState
from processes import load_all, run_alone, run_command_line
from safetensors.torch import save_file
from sqlalchemy import event
from sqlalchemy.engine import Engine
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from vit_ratio_opt.data.digits import load_digits
from vit_ratio_opt.data.image_data import ImageData
from vit_ratio_opt.model_files.save import save_pruned
from vit_ratio_opt.models.blocks import branches
from vit_ratio_opt.models.separate import separate
from vit_ratio_opt.pruning.calibration import Calibration, calibrate
from vit_ratio_opt.search.budget import BudgetSearch
from vit_ratio_opt.search.noise import Noise
from vit_ratio_opt.search.sampler import PlanSampler
from vit_ratio_opt.search.space import ratio_distributions
from vit_ratio_opt.search.tolerance import ToleranceSearch
from vit_ratio_opt.space.costs import PARAMS
from vit_ratio_opt.space.curve import budget_curve, cost_saved, curve_and_baseline, pair_columns
from vit_ratio_opt.space.pairs import RatioPair
from vit_ratio_opt.space.shape import BlockShape, ViTShape
from vit_ratio_opt.space.structural import StructuralSpace

optuna.logging.set_verbosity(optuna.logging.WARNING)
# Models this small lose more to waiting for a second thread than they gain from it, also in the
# processes that tests start.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"

TINY = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 32,
    "depth": 2,
    "num_heads": 4,
    "mlp_ratio": 2.0,
    "num_classes": 4,
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", help="device of test_on_device.py; a fake one by default")


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests measure for themselves, and leave nothing in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True, scope="session")
def quick_databases() -> Iterator[None]:
    """A SQLite file does not wait for the disk, and migrations are read once in a process.

    The files need to survive killed processes, which they do, but no loss of power.
    """
    from_config = ScriptDirectory.from_config
    scripts: dict[str | None, ScriptDirectory] = {}

    def once(config: Config) -> ScriptDirectory:
        location = config.get_main_option("script_location")
        if location not in scripts:
            scripts[location] = from_config(config)
        return scripts[location]

    def do_not_wait(connection: Any, _: object) -> None:
        if isinstance(connection, sqlite3.Connection):
            connection.execute("PRAGMA synchronous = OFF")

    event.listen(Engine, "connect", do_not_wait)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ScriptDirectory, "from_config", once)
        yield
    event.remove(Engine, "connect", do_not_wait)


@pytest.fixture(scope="session")
def forkserver() -> ForkServerContext:
    """Starts processes in a fraction of a second: what they import is loaded once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            *(
                "vit_ratio_opt.cli.main",
                "vit_ratio_opt.restore",
                "vit_ratio_opt.report.dashboard",
            ),
            *("sklearn.datasets", "sklearn.model_selection", "matplotlib.pyplot"),
            *("plotly.graph_objects", "alembic.command", "psycopg"),
        ]
    )
    return context


@pytest.fixture
def start(forkserver: ForkServerContext, tmp_path: Path) -> Iterator[Callable[..., BaseProcess]]:
    """Starts a function in a process of its own; what it says is in ``log``. None is left."""
    started: list[BaseProcess] = []

    def start_one(
        function: Callable[..., None], *arguments: Any, **environment: str
    ) -> BaseProcess:
        process = forkserver.Process(
            target=run_alone,
            args=(os.environ | environment, str(tmp_path / "log"), function, arguments),
        )
        process.start()
        started.append(process)
        return process

    yield start_one
    for process in started:
        process.kill()
        process.join()


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    def find() -> int:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port: int = free.getsockname()[1]
            return port

    return find


@pytest.fixture
def start_pair(
    start: Callable[..., BaseProcess], free_port: Callable[[], int]
) -> Callable[..., list[BaseProcess]]:
    """Starts a function in two processes, in the environment that ``torchrun`` makes."""

    def start_both(function: Callable[..., None], *arguments: Any) -> list[BaseProcess]:
        port = str(free_port())
        group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        return [start(function, *arguments, **group, RANK=r, LOCAL_RANK=r) for r in ("0", "1")]

    return start_both


@pytest.fixture(scope="session")
def command_line() -> Callable[..., None]:
    """``vit-ratio-opt`` with some arguments, for ``start`` and ``start_pair``."""
    return run_command_line


@pytest.fixture
def start_command(
    start: Callable[..., BaseProcess], command_line: Callable[..., None]
) -> Callable[..., BaseProcess]:
    """Starts ``vit-ratio-opt`` with some arguments in a process of its own, as ``start`` does."""
    return partial(start, command_line)


@pytest.fixture
def assert_comes_back(start: Callable[..., BaseProcess], tmp_path: Path) -> Callable[..., None]:
    """Another process has to give the same logits bit for bit, with nothing but a model's file."""

    def check(models: dict[str, nn.Module], images: dict[str, torch.Tensor]) -> None:
        for name, model in models.items():
            save_pruned(model, tmp_path / f"{name}.safetensors", {"name": name})
            with torch.no_grad():
                expected = {"images": images[name], "logits": model(images[name])}
            save_file(expected, tmp_path / f"{name}.expected")
        process = start(load_all, tmp_path)
        process.join(120)
        said = (tmp_path / "log").read_text()
        assert process.exitcode == 0, said[-2000:]
        assert said.split() == sorted(models)

    return check


@pytest.fixture(scope="session")
def make_vit() -> Callable[..., VisionTransformer]:
    """Builds a tiny timm ViT; the same arguments always give the same weights."""

    def make(name: str = "vit_tiny_patch16_224", **changes: object) -> VisionTransformer:
        torch.manual_seed(0)
        model = timm.create_model(name, **(TINY | changes)).eval()
        separate(model)  # as `create_model` does
        with torch.no_grad():  # timm's biases, class tokens and LayerScales start at (nearly) zero
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        return model

    return make


@pytest.fixture
def tiny_vit(make_vit: Callable[..., VisionTransformer]) -> VisionTransformer:
    return make_vit()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def calibration(make_vit: Callable[..., VisionTransformer]) -> Calibration:
    """The calibration of ``tiny_vit`` on ``images``, computed once."""
    batch = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return calibrate(make_vit(), [batch])


@pytest.fixture
def labels() -> torch.Tensor:
    return torch.tensor([0, 1, 2, 3, 0, 1, 2, 3])


@pytest.fixture(scope="session")
def masked_outputs() -> Callable[..., torch.Tensor]:
    """What a model gives with all other heads and neurons zero, nothing being removed."""

    def mask(layer: nn.Linear, columns: list[int]) -> torch.utils.hooks.RemovableHandle:
        kept = torch.zeros(layer.in_features)
        kept[columns] = 1
        return layer.register_forward_pre_hook(lambda _, args: (args[0] * kept,))

    def outputs_of(
        model: VisionTransformer,
        images: torch.Tensor,
        heads: Sequence[Sequence[int]],
        neurons: Sequence[Sequence[int]],
    ) -> torch.Tensor:
        handles = []
        for (attention, ffn), head_indices, neuron_indices in zip(
            branches(model), heads, neurons, strict=True
        ):
            d = attention.module.head_dim
            dims = [head * d + i for head in head_indices for i in range(d)]
            handles += [mask(attention.last, dims), mask(ffn.last, list(neuron_indices))]
        outputs: torch.Tensor = model(images)
        for handle in handles:
            handle.remove()
        return outputs

    return outputs_of


@pytest.fixture(scope="module")
def benchmarks() -> Iterator[Path]:
    """The folder of the benchmarks, whose scripts can be imported meanwhile."""
    folder = Path(__file__).resolve().parents[1] / "benchmarks"
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_digits()


@pytest.fixture(scope="module")
def dense() -> VisionTransformer:
    """Untrained, for the digits."""
    torch.manual_seed(0)
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=8, patch_size=4, in_chans=1, embed_dim=32, depth=2,
        num_heads=4, mlp_ratio=2.0, num_classes=10,
    )  # fmt: skip


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'study.db'}"


@pytest.fixture(scope="session")
def make_study() -> Callable[..., optuna.Study]:
    """A study as ``create_study`` and its trials leave it, in milliseconds: nothing is trained."""
    blocks = (BlockShape(4, 8, 64),) * 3
    shape = ViTShape(
        patches=16, prefix_tokens=1, patch_dim=48, embed_dim=32, num_classes=10, blocks=blocks,
        fixed_params=1_000,
    )  # fmt: skip
    space = StructuralSpace(shape)

    def make(
        storage: Any = None,
        name: str = "searched",
        *,
        trials: int = 6,
        budget: float | None = 0.5,
        fixed: bool = False,
        planned: bool = False,
        accuracies: Sequence[float] = (),
        **settings: Any,
    ) -> optuna.Study:
        """``planned`` stores the plan, with the fixed ratio as the first trial in a budget;
        without it the study is one of version 0.1.0. ``accuracies`` are those of the trials.
        """
        tolerance = None if budget is not None else 2.0
        study = optuna.create_study(
            study_name=name,
            storage=storage,
            direction="maximize" if tolerance is None else "minimize",
        )
        study.set_metric_names(["accuracy" if tolerance is None else "FLOPs of dense"])
        stored = {
            "strategy": "fixed" if fixed else "searched", "budget": budget,
            "tolerance": tolerance, "model": "vit_tiny", "weights": "abc", "dataset": "digits",
            "validation": "def", "recipe": {"epochs": 2}, "seed": 0, "iterative": False,
            "mhsa_unit": "rank", "repair": True, "allocation": "global", "round_to": 1,
            "calibration_images": 64,
        }  # fmt: skip
        sizes = [[b.num_heads, b.head_dim, b.hidden_dim] for b in blocks]
        curve, baseline = curve_and_baseline(space, budget or 0.5)
        if not planned:
            curve = budget_curve(space, budget or 0.5)
        for key, value in {
            "settings": {**stored, **settings},
            "versions": {"torch": "2"},
            "device": "cpu",
            "dense": {
                "macs": shape.macs, "params": shape.params, "val_accuracy": 80.0,
                "blocks": sizes, "tokens": shape.tokens,
            },
            "saved": cost_saved(space),
            "origin": {"artifacts": None},
        }.items():  # fmt: skip
            study.set_user_attr(key, value)
        noise = Noise(0.3) if planned else Noise(0.0 if tolerance is not None else 0.1)
        if tolerance is None and fixed and planned:
            curve = (baseline,)
        plan: Any
        if tolerance is not None:
            plan = ToleranceSearch(pair_columns(space), space.macs_ratio, 2.0, noise=noise)
        else:
            first = baseline if planned and not fixed else None
            plan = BudgetSearch(curve, baseline=first, noise=noise, dense=80.0)
        if planned:
            study.set_user_attr("plan", plan.to_json())
        elif tolerance is None:
            study.set_user_attr("plan", {"curve": curve, "noise": 0.1})
        study.sampler = PlanSampler(ratio_distributions(space), plan)
        pairs = [curve[(7 * number) % len(curve)] for number in range(trials)]
        if planned and tolerance is None and baseline is not None:
            pairs = [baseline, *(pair for pair in pairs * 2 if pair != baseline)][:trials]
        for number in range(trials):
            given = accuracies[number] if accuracies else None
            study.add_trial(_trained(space, pairs[number], number, trials, tolerance, given))
        return study

    return make


def _trained(
    space: StructuralSpace,
    pair: RatioPair,
    number: int,
    trials: int,
    tolerance: float | None,
    accuracy: float | None = None,
) -> optuna.trial.FrozenTrial:
    if tolerance is not None:
        share = (number + 1) / (trials + 1)
        pair = RatioPair(share * space.max_pair[0], share * space.max_pair[1])
    macs_ratio = space.macs_ratio(*pair)
    if accuracy is None:
        loss = 4 * (1 - macs_ratio) + 8 * (pair.mhsa_ratio - 0.4) ** 2
        accuracy = 80 - loss + 0.1 * math.sin(number)
    drop = 80 - accuracy
    over = tolerance is not None and drop > tolerance
    value = accuracy if tolerance is None else macs_ratio
    limit = (
        {"flops": macs_ratio - 0.5} if tolerance is None else {"accuracy_drop": drop - tolerance}
    )
    reported = [accuracy - 1, accuracy] if tolerance is None else [drop + 1, drop]
    return optuna.trial.create_trial(
        state=TrialState.PRUNED if over else TrialState.COMPLETE,
        value=None if over else value,
        params=pair._asdict(),
        distributions=ratio_distributions(space),
        user_attrs={
            "macs_ratio": macs_ratio,
            "macs": space.pruned_macs(pair),
            "params": replace(space, cost=PARAMS).pruned_cost(pair),
            "accuracy_pruned": accuracy - 3,
            "accuracy": accuracy,
            "accuracy_drop": drop,
            "parent_trial": "dense",
            "epochs": 2,
            "seconds": 1.5,
            "seed": 0,
            "device": "cpu",
            "checkpoint": f"trial-{number:04d}",
            "blocks": [[4, 4, 32], [4, 2, 16], [3, 4, 8]],
            "losses": [1.5, 0.75],
            "timing": {"train": 1.0, "evaluate": 0.1, "data": 0.1},
        },
        intermediate_values=dict(enumerate(reported, start=1)),
        constraints=limit,
    )
