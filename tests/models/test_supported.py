"""Models that compute something else than their classes say, or that are not all there."""

import copy
import re
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from timm.layers import Attention, Mlp
from timm.models.vision_transformer import Block, VisionTransformer
from timm.utils.model_ema import ModelEma, ModelEmaV2, ModelEmaV3
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils import prune as masks
from torch.optim.swa_utils import AveragedModel

from vit_ratio_opt.composer import Search
from vit_ratio_opt.errors import InputError, UnsupportedModelError
from vit_ratio_opt.latency.table import measure_latency
from vit_ratio_opt.latency.timing import time_models
from vit_ratio_opt.model_files.export import export_model
from vit_ratio_opt.model_files.save import save_dense, save_pruned
from vit_ratio_opt.models.shape import shape_of
from vit_ratio_opt.pruning.calibration import calibrate
from vit_ratio_opt.pruning.cascade import prune_tokens
from vit_ratio_opt.pruning.count import count_macs
from vit_ratio_opt.pruning.importance import magnitude_importance, taylor_importance
from vit_ratio_opt.pruning.options import Structural
from vit_ratio_opt.pruning.prune import prune, prune_ranks, prune_units
from vit_ratio_opt.pruning.reconstruct import repair
from vit_ratio_opt.runs.options import RunOptions
from vit_ratio_opt.search.limits import Budget
from vit_ratio_opt.space.shape import BlockTokens
from vit_ratio_opt.training.context import TrialContext
from vit_ratio_opt.training.evaluate import evaluate
from vit_ratio_opt.training.finetune import finetune
from vit_ratio_opt.training.recipe import Recipe

MakeViT = Callable[..., VisionTransformer]


@pytest.fixture
def digits_vit(make_vit: MakeViT) -> VisionTransformer:
    return make_vit(img_size=8, patch_size=4, in_chans=1, num_classes=10)


def search(model, digits) -> Search:
    run = RunOptions(progress=False)
    return Search(model, digits, Budget(0.6), training=Recipe(epochs=0), run=run)


# Modules that compute something else


def wrap_method(where: str, name: str = "forward") -> Callable[[nn.Module], None]:
    def change(model: nn.Module) -> None:
        module = model.get_submodule(where)
        old = getattr(module, name)
        setattr(module, name, lambda *args, **more: old(*args, **more))

    return change


def replace(where: str, make: Callable[[nn.Module], nn.Module]) -> Callable[[nn.Module], None]:
    return lambda model: model.set_submodule(where, make(model.get_submodule(where)))


def subclass(where: str) -> Callable[[nn.Module], None]:
    def change(model: nn.Module) -> None:
        module = model.get_submodule(where)
        kind = type(module)
        module.__class__ = type("Own", (kind,), {"forward": lambda self, x, **_: x})

    return change


class Wrapper(nn.Module):
    """As adapters are put around a layer."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args, **more):
        return self.inner(*args, **more)


class Twice(nn.Sequential):
    def forward(self, x):
        return super().forward(super().forward(x))


class Doubled(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 2 * weight


def hook(where: str, kind: str) -> Callable[[nn.Module], None]:
    return lambda model: getattr(model.get_submodule(where), kind)(lambda *_: None)


def mask(model: nn.Module) -> None:
    masks.l1_unstructured(model.blocks[0].mlp.fc1, "weight", amount=0.5)


def old_weight_norm(model: nn.Module) -> None:
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(model.blocks[0].mlp.fc1)


def quantise(model: nn.Module) -> None:
    layer = model.blocks[0].mlp.fc1
    model.blocks[0].mlp.fc1 = torch.ao.nn.quantized.dynamic.Linear(
        layer.in_features, layer.out_features
    )


def tie(first: str, second: str) -> Callable[[nn.Module], None]:
    return lambda model: model.set_submodule(second, model.get_submodule(first))


def share_memory(model: nn.Module) -> None:
    first, second = (block.attn.qkv for block in model.blocks)
    second.weight = nn.Parameter(first.weight.data)


def wrong_sizes(model: nn.Module) -> None:
    model.blocks[0].attn.num_heads = 2


REFUSED = {
    "block.forward": (wrap_method("blocks.0"), "`blocks.0.forward` was replaced"),
    "attn.forward": (wrap_method("blocks.1.attn"), "`blocks.1.attn.forward` was replaced"),
    "mlp.forward": (wrap_method("blocks.1.mlp"), "del model.blocks[1].mlp.forward"),
    "qkv.forward": (wrap_method("blocks.0.attn.qkv"), "`blocks.0.attn.qkv.forward`"),
    "norm.forward": (wrap_method("norm"), "`norm.forward` was replaced"),
    "model.forward": (wrap_method(""), "`forward` was replaced"),
    "forward_features": (wrap_method("", "forward_features"), "`forward_features` was replaced"),
    "pool": (wrap_method("", "pool"), "`pool` was replaced"),
    "attention class": (subclass("blocks.0.attn"), "`blocks.0.attn` has attention class Own"),
    "ffn class": (subclass("blocks.0.mlp"), "`blocks.0.mlp` has feed-forward class Own"),
    "block class": (subclass("blocks.1"), "`blocks.1` has block class Own"),
    "block in Sequential": (replace("blocks.0", nn.Sequential), "block class Sequential"),
    "block in wrapper": (replace("blocks.0", Wrapper), "block class Wrapper"),
    "layer in wrapper": (replace("blocks.0.mlp.fc1", Wrapper), "layer class Wrapper"),
    "patches in wrapper": (replace("patch_embed.proj", Wrapper), "layer class Wrapper"),
    "compiled block": (replace("blocks.0", torch.compile), "`blocks.0` is compiled"),
    "blocks run twice": (replace("blocks", lambda old: Twice(*old)), "container of class Twice"),
    "matrix after a norm": (
        replace("blocks.0.norm1", lambda old: nn.Sequential(old, nn.Linear(32, 32))),
        "`blocks.0.norm1.1.weight` is a matrix",
    ),
    "matrix for a scale": (replace("blocks.0.ls1", lambda _: nn.Linear(32, 32)), "`blocks.0.ls1`"),
    "matrix for drop path": (
        replace("blocks.0.drop_path1", lambda _: nn.Linear(32, 32)),
        "`blocks.0.drop_path1`",
    ),
    "unused matrix": (
        lambda model: model.add_module("adapter", nn.Linear(32, 32)),
        "`adapter.weight` is a matrix",
    ),
    "activation of all neurons": (
        replace("blocks.0.mlp.act", lambda _: nn.Softmax(-1)),
        "`blocks.0.mlp.act` has an activation of class Softmax",
    ),
    "activation of each neuron": (
        replace("blocks.0.mlp.act", lambda _: nn.PReLU(64)),
        "`blocks.0.mlp.act` has an activation of class PReLU",
    ),
    "parametrisation": (
        lambda model: parametrizations.weight_norm(model.blocks[0].mlp.fc1),
        "remove_parametrizations(model.blocks[0].mlp.fc1, 'weight')",
    ),
    "parametrised norm": (
        lambda model: parametrize.register_parametrization(model.norm, "weight", Doubled()),
        "`norm` has parametrised weights",
    ),
    "mask": (mask, "torch.nn.utils.prune.remove(model.blocks[0].mlp.fc1, 'weight')"),
    "weight norm": (old_weight_norm, "torch.nn.utils.remove_weight_norm(model.blocks[0].mlp.fc1)"),
    "spectral norm": (
        lambda model: nn.utils.spectral_norm(model.blocks[0].mlp.fc1),
        "torch.nn.utils.remove_spectral_norm",
    ),
    "forward hook": (hook("blocks.0", "register_forward_hook"), "`blocks.0` has a hook"),
    "pre-forward hook": (hook("head", "register_forward_pre_hook"), "`head` has a hook"),
    "backward hook": (hook("norm", "register_full_backward_hook"), "`norm` has a hook"),
    "state hook": (hook("", "register_state_dict_post_hook"), "The model has a hook"),
    "gradient hook": (
        lambda model: model.head.weight.register_hook(lambda gradient: 0 * gradient),
        "`head.weight` has a hook on its gradient",
    ),
    "quantised": (quantise, "`blocks.0.mlp.fc1` is quantised"),
    "one block twice": (tie("blocks.0", "blocks.1"), "`blocks.1.norm1.weight` share their memory"),
    "one norm twice": (tie("norm", "blocks.1.norm1"), "share their memory"),
    "one memory twice": (share_memory, "`blocks.1.attn.qkv.weight` share their memory"),
    "heads set by hand": (wrong_sizes, "`blocks.0.attn.qkv` must have a weight of shape (48, 32)"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED)
def test_what_computes_something_else_is_refused_by_name_before_anything_is_measured(
    make_vit: MakeViT, images: torch.Tensor, change: Callable, message: str
) -> None:
    model = make_vit()
    change(model)
    for use in (shape_of, magnitude_importance, partial(calibrate, images=[images])):
        with pytest.raises(UnsupportedModelError, match=re.escape(message)) as error:
            use(model)
        assert "\n" not in str(error.value)


def test_every_entry_refuses_a_wrapped_block(
    make_vit: MakeViT, digits_vit, digits, images: torch.Tensor, labels: torch.Tensor, tmp_path
) -> None:
    model = make_vit()
    known, scores = calibrate(model, [images]), magnitude_importance(model)
    for altered in (model, digits_vit):
        wrap_method("blocks.0")(altered)
    for use in (
        lambda: prune(model, (0.5, 0.5), known),
        lambda: prune(model, (0.5, 0.5), scores),
        lambda: prune_ranks(model, 8, 16, known),
        lambda: prune_units(model, 1, 16, scores),
        lambda: repair(model, [images], known),
        lambda: prune_tokens(model, [BlockTokens(9, 9, 9)] * 2),
        lambda: taylor_importance(model, [(images, labels)]),
        lambda: measure_latency(model),
        lambda: time_models([model]),
        lambda: export_model(model, tmp_path / "model.pt2", "torch-export"),
        lambda: save_dense(model, tmp_path / "dense.safetensors", name="vit_tiny_patch16_224"),
        lambda: save_pruned(model, tmp_path / "pruned.safetensors", {}),
        lambda: search(digits_vit, digits),
    ):
        with pytest.raises(UnsupportedModelError, match=r"`blocks\.0\.forward` was replaced"):
            use()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", [Attention, Mlp, Block, nn.Linear, VisionTransformer])
def test_a_class_whose_forward_was_replaced_is_refused(
    tiny_vit: VisionTransformer, monkeypatch: pytest.MonkeyPatch, kind: type[nn.Module]
) -> None:
    old = kind.forward
    monkeypatch.setattr(
        kind, "forward", lambda self, x, *args, **more: old(self, x, *args, **more)
    )
    message = rf"`{kind.__name__}\.forward` of .* was replaced"
    with pytest.raises(UnsupportedModelError, match=message):
        shape_of(tiny_vit)


# Wrappers that are known


def compiled_in_place(model: nn.Module) -> nn.Module:
    model.compile(backend="eager")
    model(torch.zeros(1, 3, 32, 32))  # before any hook is there
    return model


@pytest.mark.parametrize(
    "wrap",
    [
        partial(torch.compile, backend="eager"), compiled_in_place, nn.DataParallel, ModelEma,
        ModelEmaV2, ModelEmaV3, AveragedModel,
        lambda model: torch.compile(nn.DataParallel(model), backend="eager"),
    ],
    ids=["compile", "compile in place", "parallel", "EMA", "EMA 2", "EMA 3", "SWA", "both"],
)  # fmt: skip
def test_a_known_wrapper_is_taken_off(
    make_vit: MakeViT, images: torch.Tensor, labels: torch.Tensor, wrap: Callable
) -> None:
    expected = make_vit()
    wrapped = wrap(make_vit())
    assert shape_of(wrapped) == shape_of(expected)
    known = calibrate(wrapped, [images])
    scores = taylor_importance(wrapped, [(images, labels)])
    for guide, own in (
        (known, calibrate(expected, [images])),
        (scores, taylor_importance(expected, [(images, labels)])),
    ):
        pruned, other = prune(wrapped, (0.5, 0.5), guide), prune(expected, (0.5, 0.5), own)
        assert type(pruned) is VisionTransformer
        with torch.no_grad():
            assert torch.equal(pruned(images), other(images))


def test_a_parametrisation_that_was_removed_again_is_no_hook(
    make_vit: MakeViT, images: torch.Tensor
) -> None:
    model = make_vit()
    layer = model.blocks[0].mlp.fc1
    parametrizations.weight_norm(layer)
    parametrize.remove_parametrizations(layer, "weight")
    assert shape_of(model) == shape_of(make_vit())
    calibrate(model, [images])


def test_other_wrappers_are_refused_with_the_name_of_the_model_inside(
    tiny_vit: VisionTransformer,
) -> None:
    class Lit(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = tiny_vit

    with pytest.raises(UnsupportedModelError, match=r"A Lit around a model .* `\.backbone`"):
        shape_of(Lit())


# Precision, frozen weights, values


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_study_uses_a_copy_in_float32_and_says_so(digits_vit, digits, caplog, dtype) -> None:
    model = digits_vit.to(dtype)
    made = search(model, digits)
    assert {p.dtype for p in made.dense.parameters()} == {torch.float32}
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert "its copy is converted to float32" in caplog.text


@pytest.mark.parametrize("part", ["", "blocks.1.mlp"])
def test_a_model_that_is_not_in_float32_cannot_be_measured(
    tiny_vit: VisionTransformer, images: torch.Tensor, part: str
) -> None:
    tiny_vit.get_submodule(part).half()
    for use in (calibrate, lambda model, batches: taylor_importance(model, [])):
        with pytest.raises(InputError, match=r"in float16.*: call `model.float\(\)`"):
            use(tiny_vit, [images])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["blocks.1.mlp.fc1.weight", "norm.bias", "pos_embed"])
def test_weights_that_are_no_numbers_are_refused_by_name(
    digits_vit, digits, images: torch.Tensor, name: str, value: float, tmp_path
) -> None:
    with torch.no_grad():
        digits_vit.get_parameter(name).view(-1)[3] = value
    for use in (
        lambda: calibrate(digits_vit, [images]),
        lambda: search(digits_vit, digits),
        lambda: export_model(digits_vit, tmp_path / "model.pt2", "torch-export"),
        lambda: save_pruned(digits_vit, tmp_path / "pruned.safetensors", {}),
    ):
        with pytest.raises(InputError, match=f"`{name}` has values that are NaN or infinite"):
            use()


def test_large_weights_whose_sum_overflows_are_no_infinite_weights(
    tiny_vit: VisionTransformer,
) -> None:
    with torch.no_grad():
        tiny_vit.blocks[0].attn.qkv.bias.fill_(3e38)
    magnitude_importance(tiny_vit)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.to("meta"), "on the device 'meta'"),
        (lambda m: m.blocks[1].mlp.to("meta"), "`blocks.1.mlp.fc1.weight` is on the device"),
        (
            lambda m: setattr(
                m.norm, "bias", nn.Parameter(m.norm.bias.data.to(torch.complex64))
            ),
            "`norm.bias` is complex",
        ),
        (
            lambda m: setattr(
                m.head, "weight", nn.Parameter(m.head.weight.detach().to_sparse())
            ),
            r"`head.weight` is a tensor of another kind \(torch.sparse_coo\)",
        ),
    ],
)  # fmt: skip
def test_weights_that_are_no_plain_numbers_are_refused(
    digits_vit, digits, images, change: Callable, message: str
) -> None:
    change(digits_vit)
    with pytest.raises(InputError, match=message):
        search(digits_vit, digits)
    with pytest.raises(InputError, match=message):
        calibrate(digits_vit, [images])


def test_weights_in_one_vector_are_not_shared(
    tiny_vit: VisionTransformer, images: torch.Tensor
) -> None:
    vector = nn.utils.parameters_to_vector(tiny_vit.parameters()).detach()
    nn.utils.vector_to_parameters(vector, tiny_vit.parameters())
    pruned = prune(tiny_vit, (0.5, 0.5), calibrate(tiny_vit, [images]))
    assert shape_of(pruned).params == sum(p.numel() for p in pruned.parameters())


def test_a_model_frozen_for_inference_is_trained_as_any_other(digits_vit, digits, caplog) -> None:
    other = copy.deepcopy(digits_vit).requires_grad_(False)
    recipe, models = Recipe(epochs=1, batch_size=512), []
    for model in (digits_vit, other):
        made = search(model, digits)
        assert made.settings.frozen is None
        pruned = made.pruner.prune(made.space.max_pair)
        finetune(pruned, digits, recipe, TrialContext(progress=False))
        models.append(pruned.state_dict())
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
    assert not any(p.requires_grad for p in other.parameters())
    assert "All parameters of the model are frozen" in caplog.text


def test_frozen_parts_stay_as_pruning_made_them(digits_vit, digits, caplog) -> None:
    digits_vit.patch_embed.requires_grad_(False)
    digits_vit.blocks[0].requires_grad_(False)
    digits_vit.blocks[1].attn.proj.weight.requires_grad_(False)
    made = search(digits_vit, digits)
    assert made.settings.frozen == ("patch_embed", "blocks.0", "blocks.1.attn.proj.weight")
    pruned = made.pruner.prune(made.space.max_pair)
    before = copy.deepcopy(pruned.state_dict())
    finetune(pruned, digits, Recipe(epochs=1, batch_size=512), TrialContext(progress=False))
    after = pruned.state_dict()
    same = {name for name in after if torch.equal(before[name], after[name])}
    assert same == {n for n in after if n.startswith(made.settings.frozen)}
    assert "stay frozen in fine-tuning" in caplog.text


def test_a_part_that_is_skipped_and_frozen_keeps_its_weights_to_the_bit(
    digits_vit, digits
) -> None:
    digits_vit.blocks[1].requires_grad_(False)
    run, recipe = RunOptions(progress=False), Recipe(epochs=1, batch_size=512)
    pruning = Structural(skip=("blocks.1",))
    made = Search(digits_vit, digits, Budget(0.8), training=recipe, pruning=pruning, run=run)
    pruned = made.pruner.prune(made.curve[0])
    finetune(pruned, digits, recipe, TrialContext(progress=False))
    for name, weight in digits_vit.blocks[1].state_dict().items():
        assert torch.equal(weight, pruned.blocks[1].state_dict()[name])
    digits_vit.requires_grad_(True)
    free = Search(digits_vit, digits, Budget(0.8), training=recipe, pruning=pruning, run=run)
    refitted = free.pruner.prune(free.curve[0]).blocks[1].mlp.fc2.weight
    assert not torch.equal(refitted, digits_vit.blocks[1].mlp.fc2.weight)


def test_training_what_is_frozen_as_a_whole_is_refused(digits_vit, digits) -> None:
    with pytest.raises(InputError, match=r"frozen, so there is nothing to train"):
        finetune(
            digits_vit.requires_grad_(False),
            digits,
            Recipe(epochs=1),
            TrialContext(progress=False),
        )


def test_a_model_made_in_inference_mode_can_be_searched_and_says_why_not_measured(
    make_vit: MakeViT, digits, images: torch.Tensor
) -> None:
    with torch.inference_mode():
        model = make_vit(img_size=8, patch_size=4, in_chans=1, num_classes=10)
    assert not any(p.is_inference() for p in search(model, digits).dense.parameters())
    with pytest.raises(InputError, match=r"made in `torch\.inference_mode"):
        calibrate(model, [torch.zeros(1, 1, 8, 8)])
    with torch.inference_mode(), pytest.raises(InputError, match=r"outside of `torch\.inference_"):
        calibrate(make_vit(), [images])


def test_the_callers_model_stays_as_it_is(
    make_vit: MakeViT, digits, images: torch.Tensor, labels: torch.Tensor
) -> None:
    model = make_vit(img_size=8, patch_size=4, in_chans=1, num_classes=10, drop_path_rate=0.5)
    model.train()
    model.blocks[0].eval()
    model.norm.requires_grad_(False)

    def state() -> list:
        return [
            [module.training for module in model.modules()],
            [(p.requires_grad, p.dtype, p.grad) for p in model.parameters()],
            [tensor.sum().item() for tensor in model.state_dict().values()],
            torch.get_rng_state().tolist(),
        ]

    before, batch = state(), torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    known = calibrate(model, [batch])
    taylor_importance(model, [(batch, labels)])
    repair(prune(model, (0.5, 0.5), known), [batch], known)
    search(model, digits)
    evaluate(model, digits, digits.val.subset(torch.arange(8)))
    time_models([model])
    after = state()
    assert before[:3] == after[:3]


# Classifiers


class Cosine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.prototypes = nn.Parameter(torch.randn(10, 32))

    def forward(self, x):
        return F.linear(F.normalize(x, dim=-1), F.normalize(self.prototypes, dim=-1))


CLASSIFIERS = {
    "linear": lambda: nn.Linear(32, 10),
    "without bias": lambda: nn.Linear(32, 10, bias=False),
    "sequence": lambda: nn.Sequential(nn.LayerNorm(32), nn.Dropout(0.5), nn.Linear(32, 10)),
    "two layers": lambda: nn.Sequential(nn.Linear(32, 8), nn.GELU(), nn.Linear(8, 10)),
    "cosine": Cosine,
}


@pytest.mark.parametrize("make", CLASSIFIERS.values(), ids=CLASSIFIERS)
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"])
def test_the_classifier_says_how_many_classes_there_are_and_what_it_costs(
    make_vit: MakeViT, digits, name: str, make: Callable[[], nn.Module]
) -> None:
    model = make_vit(name, img_size=8, patch_size=4, in_chans=1, num_classes=1000)
    model.head = make()
    if hasattr(model, "head_dist"):
        model.head_dist = make()
    shape = shape_of(model)
    assert shape.num_classes == 10
    assert shape.params == sum(p.numel() for p in model.parameters())
    counted = count_macs(model, torch.zeros(1, 1, 8, 8))
    assert shape.macs == sum(macs for key, macs in counted.items() if key != "layer_norm")
    pruned = search(model, digits).pruner.prune((0.5, 0.5))
    assert shape_of(pruned).params == sum(p.numel() for p in pruned.parameters())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Linear(16, 4), "`head` takes 16 features, but the model has 32"),
        (lambda: nn.Sequential(nn.Linear(16, 4)), "`head` cannot take the model's features"),
        (lambda: nn.Sequential(nn.Linear(32, 4), nn.Flatten(0)), "`head` must give logits of"),
        (lambda: nn.MultiheadAttention(32, 4), "`head` cannot take the model's features"),
    ],
)
def test_a_classifier_that_gives_no_logits_is_refused(
    tiny_vit: VisionTransformer, images: torch.Tensor, make: Callable, message: str
) -> None:
    tiny_vit.head = make()
    for use in (shape_of, partial(calibrate, images=[images])):
        with pytest.raises(UnsupportedModelError, match=message) as error:
            use(tiny_vit)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: setattr(m, "head", nn.Identity()), "The model has no classifier"),
        (lambda m: setattr(m, "global_pool", ""), "The model has no pooling"),
        (lambda m: m.reset_classifier(0), "The model has no classifier"),
        (lambda m: setattr(m, "head", nn.Linear(32, 7)), "The model has 7 classes, but digits"),
        (lambda m: m.set_input_size((16, 16)), r"images of \(16, 16\) pixels"),
        (
            lambda m: setattr(m, "pos_embed", nn.Parameter(torch.zeros(1, 3, 32))),
            "The model cannot process images of digits",
        ),
        (lambda m: m.pos_embed.data.fill_(3e38), "NaN or infinite outputs for images of digits"),
    ],
)
def test_a_model_that_cannot_classify_the_images_is_refused_before_a_study(
    digits_vit, digits, change: Callable, message: str
) -> None:
    change(digits_vit)
    with pytest.raises(InputError, match=message) as error:
        search(digits_vit, digits)
    assert "\n" not in str(error.value)


def test_pooling_classes_and_size_are_those_of_the_model_as_it_is(make_vit: MakeViT) -> None:
    model = make_vit(num_classes=1000)
    model.reset_classifier(10, "avg")
    model.set_input_size((64, 64))
    shape = shape_of(model)
    assert (shape.num_classes, shape.patches) == (10, 64)
    counted = count_macs(model, torch.zeros(1, 3, 64, 64))
    assert shape.macs == sum(macs for key, macs in counted.items() if key != "layer_norm")


def test_two_outputs_of_distilled_training_are_refused(make_vit: MakeViT, digits) -> None:
    model = make_vit(
        "deit_tiny_distilled_patch16_224", img_size=8, patch_size=4, in_chans=1, num_classes=10
    )
    model.set_distilled_training(True)
    with pytest.raises(UnsupportedModelError, match="set_distilled_training"):
        search(model, digits)


@pytest.mark.parametrize("act", [nn.ReLU(), nn.PReLU(), nn.Tanh()], ids=str)
@torch.no_grad()
def test_activations_of_single_neurons_are_pruned_exactly(
    make_vit: MakeViT, images: torch.Tensor, masked_outputs: Callable, act: nn.Module
) -> None:
    from vit_ratio_opt.models.surgery import keep_units

    model = make_vit()
    model.blocks[0].mlp.act = act
    heads, neurons = [range(4)] * 2, [range(0, 64, 3), range(40)]
    expected = masked_outputs(model, images, heads, neurons)
    torch.testing.assert_close(
        keep_units(model, heads, neurons)(images), expected, atol=1e-5, rtol=1e-5
    )
