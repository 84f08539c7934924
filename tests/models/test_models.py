"""Which of timm's models can be pruned: each, at a small width, goes the whole way.

Many names come to the same model at that width: the same modules, which from the same weights give
the same outputs to the last bit. One of them then stands for all.

``MODELS=docs python -m pytest tests/models/test_models.py`` exports them too, which takes minutes,
and writes the table ``docs/models.md``.
"""

from __future__ import annotations

import math
import os
import re
import warnings
from collections import defaultdict
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import AttentionRope, SwiGLU

from vit_ratio_opt.composer import Search
from vit_ratio_opt.errors import InputError, UnsupportedModelError
from vit_ratio_opt.latency import table, timing
from vit_ratio_opt.latency.timing import TimingEffort
from vit_ratio_opt.model_files.load import load_dense, load_pruned
from vit_ratio_opt.model_files.save import save_dense
from vit_ratio_opt.models.beit import BiasedAttention
from vit_ratio_opt.models.blocks import ViT, branches
from vit_ratio_opt.models.cait import TalkingHeads
from vit_ratio_opt.models.classifier import blind
from vit_ratio_opt.models.create import create_model
from vit_ratio_opt.models.separate import separate_names
from vit_ratio_opt.models.shape import shape_of
from vit_ratio_opt.models.surgery import keep_units
from vit_ratio_opt.models.vit import ParallelBlock
from vit_ratio_opt.pruning.calibration import Calibration, calibrate
from vit_ratio_opt.pruning.count import count_macs
from vit_ratio_opt.pruning.importance import Importance, magnitude_importance
from vit_ratio_opt.pruning.options import Both, CalibrationOptions, Structural
from vit_ratio_opt.pruning.prune import prune
from vit_ratio_opt.pruning.reconstruct import repair
from vit_ratio_opt.runs.options import RunOptions, SearchOptions
from vit_ratio_opt.search.limits import Budget
from vit_ratio_opt.space.pairs import RatioPair
from vit_ratio_opt.space.structural import StructuralSpace
from vit_ratio_opt.training.evaluate import evaluate
from vit_ratio_opt.training.recipe import Recipe

MODULES = ("vision_transformer", "deit", "beit", "eva", "cait")
# In these modules, but refused; and other architectures with attention.
REFUSED = [
    *("beit3_base_patch16_224", "beit3_large_patch16_224", "vit_dlittle_patch16_reg1_gap_256"),
    *(
        "vit_dwee_patch16_reg1_gap_256",
        "vit_dpwee_patch16_reg1_gap_256",
        "beit3_giant_patch14_224",
    ),
    *("beit3_giant_patch14_336", "vit_base_mci_224", "vit_small_r26_s32_224"),
    *("eva02_base_patch14_224", "eva02_base_patch14_448", "eva02_base_patch16_clip_224"),
    *("eva02_large_patch14_224", "eva02_large_patch14_448", "eva02_large_patch14_clip_224"),
    *("eva02_large_patch14_clip_336", "vit_large_patch16_sapiens2"),
    *("vit_huge_patch16_sapiens2", "vit_giant_patch16_sapiens2", "vit_5b_patch16_sapiens2"),
    *(
        f"vit_{size}_patch16_rope_mixed_{kind}224"
        for size in ("small", "base", "large")
        for kind in ("", "ape_")
    ),
    *("vit_relpos_small_patch16_224", "samvit_base_patch16", "swin_tiny_patch4_window7_224"),
    "pit_ti_224",
    *("xcit_nano_12_p16_224", "levit_128s", "crossvit_tiny_240", "convit_tiny", "volo_d1_224"),
    *("mvitv2_tiny", "twins_svt_small", "tiny_vit_5m_224", "resnet18"),
]


# One of each kind of block.
KINDS = [
    "vit_tiny_patch16_224",
    "deit_tiny_distilled_patch16_224",
    "vit_base_patch16_siglip_224",  # attention pooling
    "vit_giant_patch14_dinov2",  # packed SwiGLU
    "aimv2_large_patch14_224",  # SwiGLU
    "vit_base_patch16_rpn_224",  # norms after
    "vit_base_patch16_18x2_224",  # parallel attentions
    "vit_base_patch16_xp_224",  # parallel attention and FFN, norms on queries and keys
    "beit_base_patch16_224",  # position biases
    "vit_small_patch16_dinov3",  # rotary embeddings
    "eva02_enormous_patch14_clip_224",  # norms after, in EVA's class
    "cait_xxs24_224",  # talking heads
]


EVERY = sorted({name for module in MODULES for name in timm.list_models(module=module)})


def names() -> list[str]:
    return [name for name in EVERY if name not in REFUSED]


def patch_size(name: str) -> int:
    found = re.search(r"patch(\d+)", name)
    return int(found[1]) if found else 16


@cache
def small(name: str) -> ViT:
    """The model with two narrow blocks and four by four patches; everything else as it is."""
    torch.manual_seed(0)
    arguments = {"depth": 2, "embed_dim": 32, "num_heads": 4, "num_classes": 5}
    if name == "vit_base_patch16_sapiens2":  # as many as heads, in each of its twelve blocks
        arguments["num_kv_heads"] = 4
    model = create_model(name, img_size=4 * patch_size(name), **arguments)
    with torch.no_grad():  # biases, class tokens and LayerScales start at (nearly) zero
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@cache
def twins() -> dict[str, str]:
    """Of every name the first one that comes to the same model."""
    first: dict[tuple[str, bytes], str] = {}
    found = {}
    with torch.no_grad():
        for name in names():
            model = small(name)
            outputs = model(images_for(model, 2)).numpy().tobytes()
            found[name] = first.setdefault((str(model), outputs), name)
    return found


def images_for(model: ViT, count: int) -> torch.Tensor:
    size = (count, model.in_chans, *model.patch_embed.img_size)
    return torch.randn(size, generator=torch.Generator().manual_seed(1))


def guide_for(model: ViT) -> Importance | Calibration:
    """What prunes it soonest."""
    if shape_of(model).all_heads:
        return calibrate(model, [images_for(model, 2)])
    return magnitude_importance(model)


@pytest.mark.parametrize("name", names())
@torch.no_grad()
def test_a_model_of_timm_can_be_pruned(name: str, masked_outputs) -> None:
    if twins()[name] != name:
        return  # seen already, under its first name
    model = small(name)
    images, shape = images_for(model, 2), shape_of(model)
    heads = [[0, 2] if i % 2 else [1, 2, 3] for i in range(len(shape.blocks))]
    if shape.all_heads:
        heads = [[0, 1, 2, 3]] * len(shape.blocks)
    neurons = [list(range(0, block.hidden_dim, 2 + i)) for i, block in enumerate(shape.blocks)]
    expected = masked_outputs(model, images, heads, neurons)
    pruned = keep_units(model, heads, neurons)
    torch.testing.assert_close(pruned(images), expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(expected, model(images), atol=1e-3)
    cut = prune(model, (0.3, 0.6), guide_for(model))
    assert shape_of(cut).params == sum(parameter.numel() for parameter in cut.parameters())
    traced = count_macs(cut, images[:1])
    norms = ("layer_norm", "rms_norm")
    macs = sum(count for operator, count in traced.items() if operator not in norms)
    dense = StructuralSpace(shape, "head")
    assert shape_of(cut).macs == macs == dense.pruned_macs(RatioPair(0.3, 0.6))


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_block_is_calibrated_cut_and_repaired(name: str) -> None:
    model = small(name)
    images = list(images_for(model, 64).split(16))
    known = calibrate(model, images)
    whole = prune(model, (0, 0), known)
    assert torch.equal(whole(images[0]), model(images[0]))
    pruned = prune(model, (0.5, 0.5), known)
    space = StructuralSpace(shape_of(model))
    assert shape_of(pruned).macs <= space.pruned_macs(RatioPair(0.5, 0.5)) < space.macs

    def error() -> float:
        with torch.no_grad():
            return float(
                sum((pruned.forward_features(x) - model.forward_features(x)).square().mean()
                    for x in images)
            )  # fmt: skip

    before = error()
    errors = repair(pruned, images, known)
    assert len(errors) > len(branches(model)) / 2
    assert all(after <= start for start, after in errors)
    assert error() < before


@pytest.mark.parametrize("name", KINDS)
def test_the_latency_of_every_kind_of_block_is_predicted(name: str, monkeypatch) -> None:
    params = cache(lambda model: shape_of(model).params)  # a model is timed many times

    def take(model: ViT, images: torch.Tensor, count: int) -> list[float]:
        return [1e-9 * params(model)] * count

    monkeypatch.setattr(timing, "time_runs", take)
    once = TimingEffort(turns=1, turn_seconds=0.0)
    monkeypatch.setattr(table, "time_models", partial(timing.time_models, effort=once))
    for sizes in ("_HEADS", "_RANKS", "_NEURONS"):  # what lies between is interpolated exactly
        monkeypatch.setattr(table, sizes, 2)
    model = small(name)
    start = prune(model, (0.3, 0.4), calibrate(model, [images_for(model, 16)]))
    for dense in (model, start):  # a study may begin with a pruned model
        measured, shape = table.measure_latency(dense), shape_of(dense)
        assert measured.error == pytest.approx(0, abs=1e-6)
        assert measured.predict(shape.blocks) == pytest.approx(shape.params)


@pytest.mark.parametrize("allocation", ["global", "energy", "uniform"])
def test_heads_that_keep_their_rank_go_whole_however_they_are_spread(allocation: str) -> None:
    torch.manual_seed(0)
    model = create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=48, depth=3, num_heads=6,
        num_classes=4, qk_norm=True,
    )  # fmt: skip
    known = calibrate(model, [images_for(model, 16)])
    for heads in range(16):
        pruned = shape_of(prune(model, (heads / 18, 0), known, allocation=allocation))
        assert all(block.head_dim == 8 for block in pruned.blocks)
        assert pruned.heads == 18 - heads


@pytest.mark.parametrize("name", ["vit_base_patch16_rpn_224", "vit_base_patch16_xp_224"])
def test_a_cascade_of_other_blocks_is_refused_before_a_study_is_made(digits, name: str) -> None:
    model = create_model(
        name, img_size=8, patch_size=4, in_chans=1, embed_dim=32, depth=2, num_heads=4,
        num_classes=10,
    )  # fmt: skip
    with pytest.raises(UnsupportedModelError, match="only timm's Block can leave out tokens"):
        Search(model, digits, Budget(0.6), pruning=Both())
    Search(model, digits, Budget(0.6))


def test_whole_heads_of_mixed_heads_are_refused_before_a_study_is_made(digits) -> None:
    model = create_model(
        "cait_xxs24_224", img_size=8, patch_size=4, in_chans=1, embed_dim=32, depth=2,
        num_heads=4, num_classes=10,
    )  # fmt: skip
    with pytest.raises(UnsupportedModelError, match="none can go"):
        Search(model, digits, Budget(0.6), pruning=Structural(unit="head"))


def test_images_of_another_size_than_the_flops_are_counted_at_are_refused(digits) -> None:
    model = create_model(
        "vit_tiny_patch16_224", img_size=16, patch_size=4, in_chans=1, embed_dim=32, depth=2,
        num_heads=4, num_classes=10, dynamic_img_size=True,
    )  # fmt: skip
    with pytest.raises(InputError, match=r"Call `model\.set_input_size` first"):
        Search(model, digits, Budget(0.6))
    model.set_input_size(8)
    assert Search(model, digits, Budget(0.6)).pruner.shape.patches == 4


def test_heads_that_keep_their_rank_are_searched_whole(digits, url) -> None:
    torch.manual_seed(0)
    model = create_model(
        "vit_tiny_patch16_224", img_size=8, patch_size=4, in_chans=1, embed_dim=32, depth=2,
        num_heads=4, num_classes=10, qk_norm=True,
    )  # fmt: skip
    search = Search(
        model, digits, Budget(0.6), training=Recipe(epochs=0),
        options=SearchOptions(calibration=CalibrationOptions(images=32)),
        run=RunOptions(progress=False),
    )  # fmt: skip
    study = search.create_study("heads", storage=url)
    search.run(study, n_trials=2, say=lambda _: None, explain=False)
    for trial in study.trials:
        assert trial.user_attrs["macs_ratio"] <= 0.6
        removed = 8 - sum(heads for heads, _, _ in trial.user_attrs["blocks"])
        assert removed == math.ceil(trial.params["mhsa_ratio"] * 8)  # two blocks of four heads
        if trial.number:  # the first one has the fixed ratio
            assert trial.params["mhsa_ratio"] * 8 == removed
        assert all(dims == 8 for _, dims, _ in trial.user_attrs["blocks"])


@pytest.mark.parametrize(
    "name", ["beit_base_patch16_224", "vit_small_patch16_dinov3", "cait_xxs24_224"]
)
def test_other_architectures_are_searched_trained_and_come_back_from_their_files(
    digits, url, tmp_path: Path, name: str
) -> None:
    torch.manual_seed(0)
    dense = tmp_path / "dense.safetensors"
    save_dense(
        create_model(
            name, img_size=8, patch_size=4, in_chans=1, embed_dim=32, depth=2, num_heads=4,
            num_classes=10, global_pool="avg",
        ),
        dense,
    )  # fmt: skip
    search = Search(
        load_dense(dense), digits, Budget(0.6), training=Recipe(epochs=1, batch_size=128),
        options=SearchOptions(screen=False, calibration=CalibrationOptions(images=32)),
        run=RunOptions(checkpoints=tmp_path, progress=False),
    )  # fmt: skip
    study = search.create_study("other", storage=url)
    search.run(study, n_trials=2, say=lambda _: None, explain=False)
    for trial in study.trials:
        assert trial.user_attrs["macs_ratio"] <= 0.6
        model, manifest = load_pruned(tmp_path / trial.user_attrs["checkpoint"])
        assert evaluate(model, digits, digits.val) == pytest.approx(trial.user_attrs["accuracy"])
        assert shape_of(model).macs == manifest["macs"] == trial.user_attrs["macs"]
        sizes = [[b.num_heads, b.head_dim, b.hidden_dim] for b in shape_of(model).blocks]
        assert sizes == trial.user_attrs["blocks"]


def test_separate_layers_give_what_timms_parallel_block_gives() -> None:
    name, arguments = "vit_base_patch16_xp_224", {"depth": 2, "embed_dim": 32, "num_heads": 4}
    for changes in ({}, {"qkv_bias": False, "init_values": 0.1}, {"qk_norm": False}):
        torch.manual_seed(0)
        theirs = timm.create_model(name, img_size=32, **arguments, **changes).eval()
        ours = create_model(name, img_size=32, **arguments, **changes)
        ours.load_state_dict(separate_names(theirs.state_dict()))
        assert all(type(block) is ParallelBlock for block in ours.blocks)
        images = images_for(ours, 2)
        torch.testing.assert_close(ours(images), theirs(images), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "name",
    [
        "vit_base_patch16_xp_224",
        "beit_base_patch16_224",
        "cait_xxs24_224",
        "eva02_enormous_patch14_clip_224",
        "eva02_tiny_patch14_224",  # queries, keys and values apart
        "vit_small_patch16_dinov3_qkvb",
        "vit_small_patch16_rope_224",
    ],
)
@torch.no_grad()
def test_a_file_with_timms_names_loads_and_gives_what_timms_model_gives(
    name: str, tmp_path: Path
) -> None:
    arguments = {"depth": 1, "embed_dim": 32, "num_heads": 4, "img_size": 4 * patch_size(name)}
    theirs = timm.create_model(name, **arguments).eval()
    for parameter in theirs.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    path = tmp_path / "dense.safetensors"
    save_file(theirs.state_dict(), path)
    ours = load_dense(path, name=name, **arguments)
    images = images_for(ours, 2)
    torch.testing.assert_close(ours(images), theirs(images), atol=1e-5, rtol=1e-5)
    if hasattr(theirs, "set_input_size"):
        for model in (ours, theirs):
            model.set_input_size(6 * patch_size(name))
        images = images_for(ours, 2)
        torch.testing.assert_close(ours(images), theirs(images), atol=1e-5, rtol=1e-5)


def test_pruned_models_come_back_in_another_process_bit_for_bit(
    assert_comes_back: Callable[..., None],
) -> None:
    distinct = set(twins().values())
    pruned = {name: prune(small(name), (0.4, 0.5), guide_for(small(name))) for name in distinct}
    assert_comes_back(pruned, {name: images_for(model, 2) for name, model in pruned.items()})
    assert len(names()) >= 60


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_pruned_is_refused_by_name_in_one_sentence(name: str) -> None:
    if "sapiens2" in name and not timm.is_model(name):
        pytest.skip("a later release of timm has it")
    # A few of the blocks are enough, where all are alike.
    shallow = {"depth": 2} if name in EVERY and "sapiens" not in name else {}
    with torch.device("meta"), pytest.raises(UnsupportedModelError) as error:
        create_model(name, **shallow)
    message = str(error.value)
    assert "`" in message or "class" in message
    assert "\n" not in message
    assert len(REFUSED) >= 15


def _kind(model: ViT) -> str:
    """In words, what is not as in a plain ViT."""
    block, ffn = model.blocks[0], branches(model)[0][1]
    words = {
        "ResPostBlock": "norms after",
        "EvaBlockPostNorm": "norms after",
        "ParallelThingsBlock": "two attentions and two FFNs in parallel",
        "ParallelBlock": "attention and FFN in parallel",
    }
    parts = [words.get(type(block).__name__, "")]
    attn = branches(model)[0][0].module
    if isinstance(attn, AttentionRope):
        parts.append("rotary embeddings (EVA's class): whole heads only")
    elif shape_of(model).whole_heads:
        parts.append("norms on queries and keys: whole heads only")
    if isinstance(attn, BiasedAttention):
        parts.append("position biases (BEiT)")
    if isinstance(attn, TalkingHeads):
        parts.append("talking heads (CaiT): ranks only")
    if shape_of(model).fc1_rows == 2:
        parts.append("SwiGLU" if isinstance(ffn.module, SwiGLU) else "packed SwiGLU")
    if getattr(model, "attn_pool", None) is not None:
        parts.append("attention pooling")
    if type(model).__name__ == "VisionTransformerDistilled":
        parts.append("distilled, two classifiers")
    return ", ".join(part for part in parts if part) or "plain"


@pytest.mark.skipif("MODELS" not in os.environ, reason="writes docs/models.md; minutes")
def test_the_table_of_models_is_written(tmp_path: Path) -> None:
    from vit_ratio_opt.model_files.export import export_model

    by_kind = defaultdict(list)
    for name in names():
        model = small(name)
        pruned = prune(model, (0.4, 0.5), guide_for(model))
        kind = _kind(model)
        if twins()[name] == name:  # seconds each
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                export_model(pruned, tmp_path / "model.onnx", "onnx")
        by_kind[kind].append(name)
    refused = []
    for name in REFUSED:
        with torch.device("meta"):
            try:
                create_model(name)
            except InputError as error:
                refused.append((name, str(error).split(", which")[0].split(" cannot")[0]))
    lines = [
        "# Models",
        "",
        "Written by `MODELS=docs python -m pytest tests/models/test_models.py`: each of these "
        "names of "
        f"timm ({timm.__version__}) was made with two narrow blocks, pruned, compared with "
        "masking, counted, saved, loaded in a fresh process and exported to ONNX, whose outputs "
        f"onnxruntime gave within 1e-4. {len(names())} names come to {len(set(twins().values()))} "
        "different models at that width: where modules and outputs were the same to the last bit, "
        "one of them went the whole way.",
        "",
        "| kind | names | |",
        "| --- | --- | --- |",
        *(
            f"| {kind} | {len(found)} | {', '.join(f'`{name}`' for name in found)} |"
            for kind, found in sorted(by_kind.items(), key=lambda item: -len(item[1]))
        ),
        "",
        "Refused by name, among others:",
        "",
        "| name | because |",
        "| --- | --- |",
        *(f"| `{name}` | {why} |" for name, why in refused),
        "",
    ]
    Path(os.environ["MODELS"], "models.md").write_text("\n".join(lines))


def test_a_blind_model_gives_every_image_the_same_output_and_leaves_the_model_alone():
    torch.manual_seed(0)
    model = create_model(
        "vit_tiny_patch16_224", img_size=8, patch_size=4, embed_dim=32, depth=1, num_heads=2,
        num_classes=3,
    ).eval()  # fmt: skip
    with torch.no_grad():
        model.head.bias.copy_(torch.tensor([1.0, 2.0, 3.0]))
        images = torch.randn(4, 3, 8, 8)
        before = model(images)
        assert blind(model)(images).tolist() == [[1.0, 2.0, 3.0]] * 4
        assert torch.equal(model(images), before)
        model.reset_classifier(0)
        assert torch.equal(blind(model)(images), model(images))
