"""What callers give beside the model."""

import copy

import numpy as np
import pytest
import torch

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.pruning.calibration import Calibration, calibrate
from vit_ratio_opt.pruning.importance import magnitude_importance, taylor_importance
from vit_ratio_opt.pruning.prune import prune, prune_ranks
from vit_ratio_opt.pruning.reconstruct import repair
from vit_ratio_opt.pruning.survey import survey_attention


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        (lambda x: [(x, torch.zeros(8))], "must be a tensor, but is a tuple"),
        (lambda x: [{"image": x}], "must be a tensor, but is a dict"),
        (lambda x: [x, x.numpy()], "Batch 1 of the images must be a tensor, but is a ndarray"),
        (lambda x: x, r"put one batch into a list, `\[batch\]`"),
        (lambda x: {"train": x}, "must be a sequence of batches"),
        (lambda x: [(255 * x).byte()], "float32, as the model is, normalised .* is in uint8"),
        (lambda x: [x.half()], "must be in float32, as the model is, but is in float16"),
        (lambda x: [x[:, :1]], r"must have shape \(batch, 3, 32, 32\)"),
        (lambda x: [x[..., :16]], r"must have shape .* has \(8, 3, 32, 16\)"),
        (lambda x: [x[0]], r"must have shape .* has \(3, 32, 32\)"),
        (lambda x: [x, x / 0], "Batch 1 of the images has values that are NaN or infinite"),
        (lambda x: [x.to("meta")], "must be on the model's device, cpu, but is on meta"),
    ],
)
def test_images_that_the_model_does_not_take_are_refused(
    tiny_vit, images, batches, message, calibration: Calibration
) -> None:
    pruned = prune(tiny_vit, (0.5, 0.5), calibration)
    before = copy.deepcopy(pruned.state_dict())
    with pytest.raises(InputError, match=message):
        calibrate(tiny_vit, batches(images))
    with pytest.raises(InputError, match=message):
        repair(pruned, batches(images), calibration)
    assert all(torch.equal(before[key], value) for key, value in pruned.state_dict().items())


def test_a_generator_gives_what_its_list_gives(tiny_vit, images, labels) -> None:
    halves = list(images.chunk(2))
    known, own = calibrate(tiny_vit, halves), calibrate(tiny_vit, iter(halves))
    for name, tensor in known.to_tensors().items():
        assert torch.equal(tensor, own.to_tensors()[name])
    one, other = (prune(tiny_vit, (0.5, 0.5), known) for _ in range(2))
    assert repair(one, halves, known) == repair(other, iter(halves), known)
    used = iter(halves)
    list(used)
    with pytest.raises(InputError, match="a generator gives its batches only once"):
        calibrate(tiny_vit, used)
    with pytest.raises(InputError, match="a generator gives its batches only once"):
        taylor_importance(tiny_vit, iter([]))


def test_a_repair_with_other_images_is_refused(tiny_vit, images, calibration: Calibration) -> None:
    pruned = prune(tiny_vit, (0.5, 0.5), calibration)
    for others in (images.flip(0), images + 1, torch.randn_like(images)):
        with pytest.raises(InputError, match="the images of the calibration in their order"):
            repair(pruned, [others], calibration)
    repair(pruned, list(images.split(3)), calibration)  # batches may differ


def test_one_image_is_enough(tiny_vit, images) -> None:
    known = calibrate(tiny_vit, [images[:1]])
    pruned = prune(tiny_vit, (0.5, 0.5), known)
    repair(pruned, [images[:1]], known)
    assert pruned(images).isfinite().all()


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (lambda x, y: x, "must be a pair of images and labels, but is a Tensor"),
        (lambda x, y: {"x": x}, "must be a pair of images and labels, but is a dict"),
        (lambda x, y: (x, y[:3]), r"labels of batch 0 must have shape \(8,\)"),
        (lambda x, y: (x, y.int()), "must be in int64, but are in int32"),
        (lambda x, y: (x, y.tolist()), "must be a tensor, but are a list"),
        (lambda x, y: (x, y.float()), r"must have shape \(8, 4\)"),
        (lambda x, y: (x.byte(), y), "is in uint8"),
    ],
)
def test_labels_that_do_not_fit_are_refused(tiny_vit, images, labels, batch, message) -> None:
    with pytest.raises(InputError, match=message):
        taylor_importance(tiny_vit, [batch(images, labels)])


def test_the_survey_of_the_attention_looks_at_its_images(tiny_vit, images) -> None:
    with pytest.raises(InputError, match="Batch 1 of the images must be a tensor"):
        survey_attention(tiny_vit, [images, (images, images)])


def test_logits_that_are_no_numbers_are_refused(tiny_vit, images, labels) -> None:
    with torch.no_grad():
        tiny_vit.pos_embed.fill_(3e38)
    with pytest.raises(InputError, match="NaN or infinite outputs for batch 0"):
        calibrate(tiny_vit, [images])
    with pytest.raises(InputError, match="NaN or infinite outputs for batch 0"):
        taylor_importance(tiny_vit, [(images, labels)])


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ((0.5,), r"`pair` must be \(mhsa_ratio, ffn_ratio\)"),
        ((0.1, 0.2, 0.3), r"`pair` must be \(mhsa_ratio, ffn_ratio\)"),
        (0.5, r"`pair` must be \(mhsa_ratio, ffn_ratio\)"),
        (None, r"`pair` must be \(mhsa_ratio, ffn_ratio\)"),
        (("0.5", 0.5), "`mhsa_ratio` must be a number, but got '0.5'"),
        ((0.5, False), "`ffn_ratio` must be a number, but got False"),
        ((float("nan"), 0.5), "`mhsa_ratio` must be in"),
        ((0.5, float("inf")), "`ffn_ratio` must be in"),
        ((-0.1, 0.5), "`mhsa_ratio` must be in"),
        ((0.5, 1.0), "`ffn_ratio` must be in"),
    ],
)
def test_ratios_that_are_none_are_refused(tiny_vit, pair, message) -> None:
    with pytest.raises(InputError, match=message):
        prune(tiny_vit, pair, magnitude_importance(tiny_vit))


def test_ratios_of_numpy_and_lists_are_ratios(tiny_vit) -> None:
    guide = magnitude_importance(tiny_vit)
    expected = prune(tiny_vit, (0.5, 0.25), guide).state_dict()
    for pair in ([0.5, 0.25], (np.float32(0.5), np.float64(0.25))):
        state = prune(tiny_vit, pair, guide).state_dict()
        assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())


def test_sizes_that_are_no_whole_numbers_are_refused(
    tiny_vit, images, calibration: Calibration
) -> None:
    with pytest.raises(InputError, match="`dims` must be a whole number"):
        prune_ranks(tiny_vit, 8.5, 16, calibration)
    with pytest.raises(InputError, match="`round_to` must be at least 1"):
        prune(tiny_vit, (0.5, 0.5), calibration, round_to=1.5)


@pytest.mark.parametrize("changes", [{"act_layer": "relu6"}, {"qkv_bias": False}], ids=str)
def test_a_calibration_of_another_architecture_is_refused(
    make_vit, tiny_vit, images, changes
) -> None:
    with pytest.raises(InputError, match="The calibration is not of this model"):
        prune(tiny_vit, (0.5, 0.5), calibrate(make_vit(**changes), [images]))


def test_a_calibration_of_other_weights_is_refused(
    tiny_vit, images, calibration: Calibration
) -> None:
    calibration = Calibration.from_tensors(calibration.to_tensors())  # as the cache has it
    prune(copy.deepcopy(tiny_vit).train().requires_grad_(False), (0.5, 0.5), calibration)
    with torch.no_grad():
        tiny_vit.blocks[1].norm2.bias.add_(1e-3)
    with pytest.raises(InputError, match="other weights or another architecture"):
        prune(tiny_vit, (0.5, 0.5), calibration)
    with pytest.raises(InputError, match="other weights or another architecture"):
        prune_ranks(tiny_vit, 8, 16, calibration)


def test_a_guide_of_another_kind_is_refused(tiny_vit, images) -> None:
    scores = magnitude_importance(tiny_vit)
    with pytest.raises(InputError, match="`scores` must be a Calibration or an Importance"):
        prune(tiny_vit, (0.5, 0.5), [images])
    with pytest.raises(InputError, match="`calibration` must be a Calibration, but is a Importan"):
        prune_ranks(tiny_vit, 8, 16, scores)
    with pytest.raises(InputError, match="`calibration` must be a Calibration, but is a Importan"):
        repair(copy.deepcopy(tiny_vit), [images], scores)
