"""Tests for timing models in ONNX Runtime; CUDA is a fake."""

from __future__ import annotations

import importlib.machinery
import sys
import weakref
from types import ModuleType, SimpleNamespace

import onnxruntime
import pytest
import torch

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.latency import sessions, table, timing
from vit_ratio_opt.latency.curves import predict_latency
from vit_ratio_opt.latency.sessions import find_provider, open_session
from vit_ratio_opt.latency.steps import fastest_step
from vit_ratio_opt.latency.table import LatencyTable, timing_conditions
from vit_ratio_opt.latency.timing import TimingEffort, share_weights, time_models
from vit_ratio_opt.models import onnx_file
from vit_ratio_opt.models.shape import shape_of
from vit_ratio_opt.space.shape import BlockShape
from vit_ratio_opt.space.units import StructuralUnits

CPU, CUDA, TENSORRT = (f"{name}ExecutionProvider" for name in ("CPU", "CUDA", "Tensorrt"))
GPU = torch.device("cuda:1")
IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class Watched:
    """A session that keeps its binding."""

    def __init__(self, session):
        self.session = session

    def __getattr__(self, name):
        return getattr(self.session, name)

    def io_binding(self):
        self.binding = self.session.io_binding()
        return self.binding


def test_a_session_computes_what_the_model_does(make_vit, monkeypatch):
    model = share_weights(make_vit(), [BlockShape(2, 5, 20), BlockShape(3, 8, 64)]).train()
    opened, real = [], sessions._open
    monkeypatch.setattr(
        sessions, "_open", lambda *given: opened.append(Watched(real(*given))) or opened[0]
    )
    images = IMAGES.clone()
    run = open_session(model, images, CPU)
    assert model.training
    for _ in range(2):
        run(images)
        (found,) = opened[0].binding.copy_outputs_to_cpu()
        with torch.no_grad():
            wanted = model.eval()(images)
        torch.testing.assert_close(torch.from_numpy(found), wanted, atol=1e-5, rtol=1e-4)
        images.neg_()  # every run reads this memory


def test_real_models_are_timed_in_turns(tiny_vit):
    models = [tiny_vit, share_weights(tiny_vit, [BlockShape(1, 1, 8)] * 2)]
    effort = TimingEffort(turns=1, turn_seconds=0.0)
    taken = time_models(models, engine="onnxruntime", effort=effort)
    assert len(taken) == 2
    assert all(0 < seconds < 60 for seconds in taken)


# Which provider


@pytest.fixture
def runtime(monkeypatch):
    """An onnxruntime with these providers; sessions of those in ``broken`` fail or fall back."""
    fake = ModuleType("onnxruntime")
    fake.__spec__ = importlib.machinery.ModuleSpec("onnxruntime", None)
    fake.__version__ = "1.30.0"
    fake.built, fake.broken, fake.calls = [TENSORRT, CUDA, CPU], {}, []

    class SessionOptions(dict):
        def add_session_config_entry(self, name, value):
            self[name] = value

    class InferenceSession:
        def __init__(self, model, options, providers, *, enable_fallback):
            assert enable_fallback == 0
            names = [name if isinstance(name, str) else name[0] for name in providers]
            if fake.broken.get(names[0]) == "raises":
                raise RuntimeError("libnvinfer.so: cannot open shared object file\nlong story")
            self.names = [name for name in names if name not in fake.broken]
            fake.calls.append((providers, options))

        def get_providers(self):
            return self.names

        def get_inputs(self):
            return [SimpleNamespace(name="images")]

        def get_outputs(self):
            return [SimpleNamespace(name="logits")]

        def io_binding(self):
            return SimpleNamespace(
                bind_input=lambda *given: fake.calls.append(("input", *given)),
                bind_output=lambda *given: fake.calls.append(("output", *given)),
            )

        def run_with_iobinding(self, binding):
            fake.calls.append("run")

    fake.SessionOptions, fake.InferenceSession = SessionOptions, InferenceSession
    fake.get_available_providers = lambda: fake.built
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)
    monkeypatch.setattr(sessions, "synchronize", lambda device: fake.calls.append("wait"))
    monkeypatch.setattr(sessions, "write_onnx", lambda model, example, path: path.touch())
    return fake


@pytest.mark.parametrize(
    ("broken", "wanted"),
    [
        ({}, TENSORRT),
        ({TENSORRT: "raises"}, CUDA),
        ({TENSORRT: "falls back"}, CUDA),
    ],
)
def test_the_first_provider_that_works_on_cuda_is_used(runtime, broken, wanted):
    runtime.broken = broken
    assert find_provider(GPU) == wanted
    providers, options = runtime.calls[-1]
    assert providers[0] == (wanted, {"device_id": "1"})
    assert providers[-1] == CPU
    assert options.intra_op_num_threads == torch.get_num_threads()


def test_a_cpu_study_runs_on_the_cpu_whatever_is_installed(runtime):
    assert find_provider(torch.device("cpu")) == CPU


@pytest.mark.parametrize(
    ("built", "broken", "message"),
    [
        ([CPU], {}, "onnxruntime-gpu"),
        ([CPU], {}, f"cannot run on cuda:1: it has only {CPU}"),
        ([CUDA, CPU], {CUDA: "falls back"}, f"{CUDA} fails: onnxruntime went on with {CPU}"),
        ([CUDA, CPU], {CUDA: "raises"}, "fails: libnvinfer.so: cannot open shared object file"),
        ([TENSORRT, CUDA, CPU], {TENSORRT: "raises", CUDA: "raises"}, f"{TENSORRT} .* {CUDA}"),
    ],
)
def test_no_cuda_study_is_timed_on_the_cpu_without_a_word(runtime, built, broken, message):
    runtime.built, runtime.broken = built, broken
    with pytest.raises(InputError, match=message):
        find_provider(GPU)


def test_a_device_that_onnxruntime_is_not_timed_on_is_refused():
    with pytest.raises(InputError, match=r"model is on mps: give device='cpu'"):
        find_provider(torch.device("mps"))


def test_a_missing_package_is_told_with_its_extra(tiny_vit, monkeypatch):
    find = onnx_file.find_spec
    monkeypatch.setattr(
        onnx_file, "find_spec", lambda name: None if name == "onnxruntime" else find(name)
    )
    for ask in (time_models, lambda models, **how: timing_conditions(*models, **how)):
        with pytest.raises(InputError, match=r"pip install 'vit_ratio_opt\[onnx\]'"):
            ask([tiny_vit], engine="onnxruntime")


def test_on_cuda_images_and_outputs_stay_on_the_device(runtime, tiny_vit):
    images = SimpleNamespace(shape=(2, 3, 32, 32), device=GPU, data_ptr=lambda: 99)
    run = open_session(tiny_vit, images, TENSORRT)
    run(images)
    (providers, _), (_, *taken), given, *rest = runtime.calls
    assert [name for name, _ in providers[:-1]] == [TENSORRT, CUDA]
    assert taken[:3] == ["images", "cuda", 1]
    assert taken[4:] == [(2, 3, 32, 32), 99]
    assert given == ("output", "logits", "cuda", 1)
    assert rest == ["wait", "run"]


def test_a_model_that_went_to_another_provider_is_refused(runtime, tiny_vit):
    runtime.broken = {CUDA: "falls back"}
    images = SimpleNamespace(shape=(2, 3, 32, 32), device=GPU, data_ptr=lambda: 99)
    with pytest.raises(InputError, match=f"cannot be run by {CUDA}: .*went on with {CPU}"):
        open_session(tiny_vit, images, CUDA)


def test_a_model_that_is_too_large_or_cannot_be_exported_is_refused(tiny_vit, monkeypatch):
    def fail(*given, **options):
        raise RuntimeError("no such operator\nand a long story")

    with monkeypatch.context() as patch:
        patch.setattr(torch.onnx, "export", fail)
        with pytest.raises(InputError, match=r"cannot be run by CPU\w+: no such operator$"):
            open_session(tiny_vit, IMAGES, CPU)
    monkeypatch.setattr(onnx_file, "_LARGEST", 10)
    with pytest.raises(InputError, match="less than 2 GB"):
        open_session(tiny_vit, IMAGES, CPU)


# How models are timed


@pytest.fixture
def opened(monkeypatch):
    """Models of the sessions that were opened; a session's time is its number of neurons."""
    models = []

    def open_one(model, images, provider):
        def run(images):
            """A session."""

        run.seconds = 1e-3 * model.blocks[0].mlp.fc1.out_features
        run.dtype, run.images = next(model.parameters()).dtype, images
        models.append(weakref.ref(run))
        return run

    monkeypatch.setattr(timing, "open_session", open_one)
    monkeypatch.setattr(timing, "clock_runs", lambda run, images, runs: [run.seconds] * runs)
    return models


def test_a_few_sessions_are_open_at_once(opened, tiny_vit, monkeypatch):
    open_now = []

    def take(run, images, runs):
        open_now.append(sum(session() is not None for session in opened))
        factor = 4.0 if len(opened) > 9 else 1.0  # the machine is busy from the second few on
        return [factor * run.seconds] * runs

    monkeypatch.setattr(timing, "clock_runs", take)
    sizes = [64, *range(10, 30)]
    models = [share_weights(tiny_vit, [BlockShape(4, 8, size)] * 2) for size in sizes]
    taken = time_models(models, engine="onnxruntime", effort=TimingEffort(turns=1))
    assert taken == pytest.approx([1e-3 * size for size in sizes])
    assert len(opened) == len(models)
    assert max(open_now) == 9
    assert all(session() is None for session in opened)


def test_a_model_alone_is_timed_too(opened, tiny_vit):
    assert time_models([tiny_vit], engine="onnxruntime") == [0.064]


def test_files_are_in_float32_whatever_the_precision_and_the_record_says_so(tiny_vit, monkeypatch):
    seen = []

    def open_one(model, images, provider):
        seen.append({next(model.parameters()).dtype, images.dtype})
        return lambda images: None

    monkeypatch.setattr(timing, "open_session", open_one)
    how = {"engine": "onnxruntime", "precision": "bfloat16"}
    time_models([tiny_vit], **how, effort=TimingEffort(turns=1, turn_seconds=0.0))
    assert seen == [{torch.float32}]
    known = timing_conditions(tiny_vit, **how)
    assert (known["precision"], known["provider"]) == ("float32", CPU)
    assert known["onnxruntime"] == onnxruntime.__version__
    assert known["run_as"] == ["onnxruntime"]
    assert known.keys() - {"provider", "onnxruntime", "onnxscript", "run_as"} == (
        timing_conditions(tiny_vit).keys()
    )


def test_on_cuda_neither_events_nor_graphs_are_recorded(runtime, tiny_vit, monkeypatch):
    monkeypatch.setattr(table, "model_device", lambda model: GPU)
    monkeypatch.setattr(table, "device_name", lambda device: "a GPU")
    known = timing_conditions(tiny_vit, engine="onnxruntime")
    assert (known["device"], known["provider"]) == ("a GPU", TENSORRT)
    assert known["run_as"] == ["onnxruntime"]


def test_the_step_of_sizes_is_that_of_the_engine(opened, make_vit):
    wide = make_vit(embed_dim=256, num_heads=4, mlp_ratio=1.0)
    assert fastest_step(wide, engine="onnxruntime", precision="bfloat16") == 1
    assert len(opened) == 4


def test_pairs_are_checked_by_the_engine_of_the_table(
    exact_table: LatencyTable, opened, tiny_vit, calibration
):
    dense = StructuralUnits(shape_of(tiny_vit))
    conditions = {**exact_table.conditions, "run_as": ["onnxruntime"], "provider": CPU}
    measured = LatencyTable(**{**vars(exact_table), "conditions": conditions})
    known = predict_latency(measured, tiny_vit, dense, calibration)
    assert len(opened) > 1
    assert known["provider"] == CPU
