import pytest
import timm
import torch

from vit_ratio_opt.models import precision
from vit_ratio_opt.models.precision import TimedPrecision, faster_precision

SHAPE = (3, 32, 32)


def vit(**arguments):
    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
    return timm.create_model("vit_tiny_patch16_224", **(sizes | arguments))


@pytest.fixture(params=[False, True], ids=["evaluation", "training"])
def training(request):
    return request.param


@pytest.fixture
def timed(monkeypatch):
    """The times of both precisions by a fake clock; tiny models are timed, on any CPU."""
    seconds, now, precisions = {"float32": 2.0, "bfloat16": 1.0}, [0.0], []

    def run(device, chosen):
        precisions.append(chosen)
        now[0] += seconds[chosen] / 2  # between two looks at the clock
        return torch.autocast("cpu", torch.bfloat16, enabled=chosen == "bfloat16")

    monkeypatch.setattr(precision, "_LEAST_MACS", 0)
    monkeypatch.setattr(precision, "_computes_bfloat16", lambda: True)
    monkeypatch.setattr(precision, "autocast", run)
    for clock in ("perf_counter", "process_time"):
        monkeypatch.setattr(precision.time, clock, lambda: now[0])
    return seconds, precisions


@pytest.mark.parametrize(("half", "chosen"), [(1.61, "float32"), (1.59, "bfloat16")])
def test_bfloat16_has_to_be_a_quarter_faster(timed, training, half, chosen):
    seconds, precisions = timed
    seconds["bfloat16"] = half
    found = faster_precision(vit(), SHAPE, training=training)
    assert found.precision == chosen
    assert found.speedup == pytest.approx(2 / half)
    assert precisions == ["float32", "bfloat16"] * 4  # in turn, and once to prepare both


def test_a_slow_model_is_timed_less_often(timed, training, monkeypatch):
    moments = iter(range(0, 1000, 15))
    monkeypatch.setattr(precision.time, "monotonic", lambda: next(moments))
    assert faster_precision(vit(), SHAPE, training=training).speedup == 2
    assert len(timed[1]) == 2 * 3


@pytest.mark.usefixtures("timed")
def test_a_model_that_was_timed_is_as_before(training):
    model = vit(drop_path_rate=0.5, proj_drop_rate=0.5).train()
    model.blocks[1].eval()
    model.head.weight.grad = torch.ones_like(model.head.weight)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    with torch.set_grad_enabled(not training):  # whatever the caller has set
        faster_precision(model, SHAPE, training=training)
    assert torch.equal(torch.rand(3), expected)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert torch.equal(model.head.weight.grad, torch.ones_like(model.head.weight))
    assert all(p.grad is None for name, p in model.named_parameters() if name != "head.weight")


def test_small_models_and_other_processors_are_not_timed(timed, training, monkeypatch):
    untimed = TimedPrecision("float32")
    with monkeypatch.context() as patch:
        patch.setattr(precision, "_LEAST_MACS", 10**9)
        assert faster_precision(vit(), SHAPE, training=training) == untimed
    with monkeypatch.context() as patch:
        patch.setattr(precision, "_computes_bfloat16", lambda: False)
        assert faster_precision(vit(), SHAPE, training=training) == untimed
    meta = vit().to("meta")
    assert faster_precision(meta, SHAPE, training=training) == untimed
    assert timed[1] == []


@pytest.mark.usefixtures("timed")
def test_a_frozen_model_is_timed_for_evaluation_only():
    model = vit().requires_grad_(False)
    assert faster_precision(model, SHAPE, training=True) == TimedPrecision("float32")
    assert faster_precision(model, SHAPE, training=False) == TimedPrecision("bfloat16", 2)


@pytest.mark.parametrize(
    ("found", "has_it"),
    [
        ({"avx512_f": True, "avx512_bf16": False}, False),
        ({"avx512_bf16": True}, True),
        ({"amx_bf16": True}, True),
        ({"neon": True, "bf16": True}, True),
    ],
)
def test_which_processors_compute_in_bfloat16(monkeypatch, found, has_it):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    assert precision._computes_bfloat16() is has_it


@pytest.mark.parametrize("has_it", [False, True])
def test_an_earlier_pytorch_knows_the_processor_as_well(monkeypatch, has_it):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_it)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert precision._computes_bfloat16() is has_it
