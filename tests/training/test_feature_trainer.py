"""Training without labels: a pruned model is compared with, and brought back to, its dense one."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from vit_ratio_opt.data.image_data import ImageData
from vit_ratio_opt.data.splits import Split
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.space.metric import Metric
from vit_ratio_opt.training.context import TrainingStopped, TrialContext
from vit_ratio_opt.training.evaluate import predict
from vit_ratio_opt.training.features import FeatureTrainer
from vit_ratio_opt.training.finetune import finetune
from vit_ratio_opt.training.matching import MatchingLoss, Reference, final_tokens
from vit_ratio_opt.training.metrics import MEASURES, Measure
from vit_ratio_opt.training.recipe import Recipe
from vit_ratio_opt.training.trainer import ImageTrainer


def _without_labels(split: Split, images: int) -> Split:
    few = split.subset(torch.arange(images))
    return Split(few.dataset, few.indices, torch.full((images,), -1))


@pytest.fixture(scope="module")
def photos(digits: ImageData) -> ImageData:
    """Digits without labels, a few of them."""
    parts = {
        name: _without_labels(getattr(digits, name), count)
        for name, count in {"train": 96, "val": 48, "test": 48}.items()
    }
    return replace(digits, **parts, classes=(), task="features")


@pytest.fixture(scope="module")
def encoder() -> VisionTransformer:
    torch.manual_seed(0)
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=8, patch_size=4, in_chans=1, embed_dim=32, depth=2,
        num_heads=4, mlp_ratio=2.0, num_classes=0,
    ).eval()  # fmt: skip


@pytest.fixture
def damaged(encoder: VisionTransformer) -> Callable[[], VisionTransformer]:
    """Copies of the encoder, or of another model, that give something else."""

    def make(model: VisionTransformer = encoder) -> VisionTransformer:
        torch.manual_seed(1)
        other = copy.deepcopy(model)
        with torch.no_grad():
            for parameter in other.blocks.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        return other

    return make


@pytest.mark.parametrize(("metric", "value"), [("cosine", 1), ("agreement", 100), ("kl", 0)])
def test_dense_model_has_the_best_value_exactly(
    dense: VisionTransformer, photos: ImageData, metric: str, value: float
) -> None:
    trainer = FeatureTrainer(dense, photos, Recipe(metric=metric), device="cpu")
    assert trainer.evaluate(dense) == trainer.test(dense) == value
    assert trainer.standard_error(dense) == 0


def test_usual_metric_follows_the_outputs(
    dense: VisionTransformer, encoder: VisionTransformer, photos: ImageData
) -> None:
    of_encoder, of_classifier = (FeatureTrainer(m, photos) for m in (encoder, dense))
    assert of_encoder.metric == Metric("cosine similarity")
    assert of_encoder.identity()["recipe"]["metric"] == "cosine"
    assert of_classifier.metric == Metric("agreement", "%")
    assert of_classifier.metric.constraint == "agreement_drop"
    assert of_classifier.with_recipe(Recipe(metric="kl")).metric.constraint == "kl_divergence_rise"


def test_metrics_compare_with_the_dense_outputs(
    dense: VisionTransformer, photos: ImageData, damaged: Callable[..., VisionTransformer]
) -> None:
    other, val = damaged(dense), photos.val
    found, wanted = (predict(model, photos, val) for model in (other, dense))
    cosines = F.cosine_similarity(found, wanted)
    same = (found.argmax(1) == wanted.argmax(1)).float()
    divergence = F.kl_div(
        found.log_softmax(1), wanted.log_softmax(1), log_target=True, reduction="batchmean"
    )
    trainer = FeatureTrainer(dense, photos, Recipe(metric="cosine"), device="cpu")
    assert trainer.evaluate(other) == pytest.approx(float(cosines.mean()), abs=1e-6)
    error = float(cosines.std(unbiased=False)) / len(val) ** 0.5
    assert trainer.standard_error(other) == pytest.approx(error, rel=1e-4)
    agreement = trainer.with_recipe(Recipe()).evaluate(other)
    assert agreement < 100
    assert agreement == pytest.approx(100 * float(same.mean()))
    assert trainer.with_recipe(Recipe(metric="kl")).evaluate(other) == pytest.approx(
        float(divergence), rel=1e-4
    )


def test_cosine_of_tokens_is_a_mean_over_each_image() -> None:
    outputs, dense = torch.randn(2, 6, 5, 4)
    by_image = F.cosine_similarity(outputs, dense, dim=-1).mean(dim=1)
    assert MEASURES["cosine"](outputs, dense) == pytest.approx(float(by_image.mean()), abs=1e-6)


def test_images_with_infinite_logits_do_not_agree() -> None:
    dense = torch.eye(3)
    assert MEASURES["agreement"](dense.clone().fill_(torch.nan), dense) == 0


def test_own_measure_gets_the_dense_outputs(
    encoder: VisionTransformer, photos: ImageData, damaged: Callable[..., VisionTransformer]
) -> None:
    far = Measure(Metric("distance", larger_is_better=False), F.l1_loss)
    trainer = FeatureTrainer(encoder, photos, Recipe(metric=far), device="cpu")
    assert trainer.evaluate(encoder) == 0
    assert trainer.evaluate(damaged()) > 0


def test_object_of_torchmetrics_gets_the_dense_outputs(
    encoder: VisionTransformer, photos: ImageData, damaged: Callable[..., VisionTransformer]
) -> None:
    torchmetrics = pytest.importorskip("torchmetrics")
    metric = torchmetrics.regression.CosineSimilarity(reduction="mean")
    found = FeatureTrainer(encoder, photos, Recipe(metric=metric), device="cpu")
    usual = FeatureTrainer(encoder, photos, device="cpu")
    assert found.evaluate(damaged()) == pytest.approx(usual.evaluate(damaged()), abs=1e-5)


@pytest.mark.parametrize("changes", [{}, {"augment": True}, {"ema": 0.5}])
def test_training_brings_the_features_back(
    encoder: VisionTransformer,
    photos: ImageData,
    damaged: Callable[..., VisionTransformer],
    changes: dict[str, Any],
) -> None:
    recipe = Recipe(epochs=3, batch_size=32, lr=3e-3, **changes)
    trainer, model, losses = FeatureTrainer(encoder, photos, recipe, device="cpu"), damaged(), []
    before = trainer.evaluate(model)
    context = TrialContext(report=lambda epoch, value, loss=None, /: losses.append(loss))
    after = trainer.train(model, context)
    assert before + 0.05 < after == trainer.evaluate(model) < 1
    assert losses == sorted(losses, reverse=True)


def test_without_epochs_nothing_is_trained(
    encoder: VisionTransformer, photos: ImageData, damaged: Callable[..., VisionTransformer]
) -> None:
    trainer = FeatureTrainer(encoder, photos, Recipe(epochs=0), device="cpu")
    model = damaged()
    assert trainer.train(model, TrialContext()) == trainer.evaluate(damaged())


@pytest.mark.parametrize("kind", ["encoder", "classifier"])
def test_labels_are_not_read(
    encoder: VisionTransformer,
    dense: VisionTransformer,
    photos: ImageData,
    damaged: Callable[..., VisionTransformer],
    kind: str,
) -> None:
    train = photos.train
    named = Split(train.dataset, train.indices, torch.arange(len(train)) % 3)
    labelled = replace(photos, train=named, classes=("a", "b", "c"))
    model, recipe, trained = encoder if kind == "encoder" else dense, Recipe(batch_size=32), []
    for data in (photos, labelled):
        trained.append(damaged(model))
        FeatureTrainer(model, data, recipe, device="cpu").train(trained[-1], TrialContext())
    first, second = (part.state_dict() for part in trained)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_classifier_trains_as_with_distillation_alone(
    digits: ImageData,
    dense: VisionTransformer,
    photos: ImageData,
    damaged: Callable[..., VisionTransformer],
) -> None:
    recipe, trained = Recipe(batch_size=32, distillation=1, temperature=3), []
    labelled = replace(digits, train=digits.train.subset(torch.arange(96)))
    with_labels = ImageTrainer(labelled, recipe, device="cpu")
    for trainer in (with_labels, FeatureTrainer(dense, photos, recipe, device="cpu")):
        trained.append(damaged(dense))
        trainer.train(trained[-1], TrialContext(teacher=dense))
    first, second = (part.state_dict() for part in trained)
    torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-4)


def _loss(loss: MatchingLoss, model: nn.Module, dense: nn.Module, images: Any) -> torch.Tensor:
    return loss.of_batch(model, images, torch.empty(0), dense)[0]


def test_loss_of_the_dense_model_itself_is_zero_and_so_are_its_gradients(
    encoder: VisionTransformer, photos: ImageData
) -> None:
    images, _ = next(photos.batches(photos.train, 8, torch.device("cpu")))
    student = copy.deepcopy(encoder)
    loss = _loss(MatchingLoss(student, Reference(encoder, photos)), student, encoder, images)
    torch.autograd.backward(loss)
    assert float(loss) == pytest.approx(0, abs=1e-5)
    assert (
        max(float(p.grad.abs().max()) for p in student.parameters() if p.grad is not None) < 1e-4
    )


def test_loss_of_a_batch_is_the_mean_of_its_parts(
    encoder: VisionTransformer, photos: ImageData, damaged: Callable[..., VisionTransformer]
) -> None:
    images, _ = next(photos.batches(photos.train, 8, torch.device("cpu")))
    student = damaged()
    loss = MatchingLoss(student, Reference(encoder, photos))
    parts = [_loss(loss, student, encoder, part) for part in images.chunk(4)]
    whole = _loss(loss, student, encoder, images)
    assert float(whole) == pytest.approx(float(torch.stack(parts).mean()), rel=1e-5)


def test_loss_has_cosine_and_distance_of_tokens_and_output(
    encoder: VisionTransformer, photos: ImageData, damaged: Callable[..., VisionTransformer]
) -> None:
    images, _ = next(photos.batches(photos.train, 96, torch.device("cpu")))
    student = damaged()
    wanted = 0.0
    for part in ("forward_features", "forward"):
        aim, seen = (getattr(model, part)(images) for model in (encoder, student))
        mean, deviation = aim.flatten(0, -2).mean(0), aim.flatten(0, -2).std(0, unbiased=False)
        aim, seen = (aim - mean) / deviation, (seen - mean) / deviation
        wanted += float(1 - F.cosine_similarity(seen, aim, dim=-1).mean())
        wanted += float(F.smooth_l1_loss(seen, aim))
    found = _loss(MatchingLoss(student, Reference(encoder, photos)), student, encoder, images)
    assert float(found) == pytest.approx(wanted, rel=1e-3)


class _FewerTokens(nn.Module):
    """An encoder that leaves out a patch."""

    def __init__(self, encoder: VisionTransformer) -> None:
        super().__init__()
        self.encoder, self.norm = encoder, nn.Identity()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tokens: torch.Tensor = self.norm(self.encoder.forward_features(images)[:, :-1])
        return tokens[:, 0]


def test_model_with_fewer_tokens_is_compared_by_its_output(
    encoder: VisionTransformer, photos: ImageData
) -> None:
    images, _ = next(photos.batches(photos.train, 8, torch.device("cpu")))
    student = _FewerTokens(encoder)
    loss = _loss(MatchingLoss(student, Reference(encoder, photos)), student, encoder, images)
    assert float(loss) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(
    "name",
    [
        "vit_tiny_patch16_224", "vit_base_patch16_clip_224", "vit_base_patch16_siglip_224",
        "beit_base_patch16_224", "eva02_tiny_patch14_224", "deit_tiny_distilled_patch16_224",
        "cait_xxs24_224",
    ],
)  # fmt: skip
def test_tokens_that_enter_the_pooling_are_found(name: str) -> None:
    sizes = {"embed_dim": 32, "depth": 2, "num_heads": 4}
    model = timm.create_model(name, img_size=32, patch_size=8, num_classes=0, **sizes).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad(), final_tokens(model) as found:
        model(images)
        wanted = model.forward_features(images)
    assert torch.equal(found[0], wanted)
    assert not model.norm._forward_hooks


def test_stopped_training_resumes_to_the_same_weights(
    encoder: VisionTransformer,
    photos: ImageData,
    damaged: Callable[..., VisionTransformer],
    tmp_path: Path,
) -> None:
    trainer = FeatureTrainer(encoder, photos, Recipe(epochs=2, batch_size=32), device="cpu")
    whole, model, steps = damaged(), damaged(), iter(range(9))
    trainer.train(whole, TrialContext())
    context = TrialContext(state=tmp_path / "state", should_stop=lambda: next(steps) == 4)
    with pytest.raises(TrainingStopped):
        trainer.train(model, context)
    resumed = damaged()
    trainer.train(resumed, TrialContext(state=tmp_path / "state"))
    first, second = whole.state_dict(), resumed.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    another = FeatureTrainer(damaged(), photos, trainer.recipe, device="cpu")
    with pytest.raises(InputError, match="other matched"):
        another.train(damaged(), TrialContext(state=tmp_path / "state"))


def test_finetune_takes_the_dense_model_as_teacher(
    encoder: VisionTransformer, photos: ImageData, damaged: Callable[..., VisionTransformer]
) -> None:
    recipe, first, second = Recipe(batch_size=32), damaged(), damaged()
    trainer = FeatureTrainer(encoder, photos, recipe, device="cpu")
    value = finetune(first, photos, recipe, teacher=encoder)
    assert value == trainer.train(second, TrialContext())
    with pytest.raises(InputError, match="give it as `teacher`"):
        finetune(first, photos, recipe)
    with pytest.raises(InputError, match="`mix` mixes labels"):
        finetune(
            first, photos, recipe, teacher=encoder, mix=lambda images, labels: (images, labels)
        )


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"label_smoothing": 0.1}, "`label_smoothing` is for labels"),
        ({"class_weights": "balanced"}, "`class_weights` is for labels"),
        ({"distillation": 0.3}, "`distillation` cannot be 0.3"),
        ({"metric": "agreement"}, "the model gives features: use 'cosine'"),
        ({"metric": "accuracy"}, "use 'cosine', 'agreement', 'kl', or a function"),
    ],
)
def test_what_needs_labels_or_classes_is_refused(
    encoder: VisionTransformer, photos: ImageData, recipe: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        FeatureTrainer(encoder, photos, Recipe(**recipe))


def test_trainers_of_the_wrong_task_are_refused(
    encoder: VisionTransformer, photos: ImageData, digits: ImageData
) -> None:
    with pytest.raises(InputError, match="load it with `task='features'`"):
        FeatureTrainer(encoder, digits)
    with pytest.raises(InputError, match=r"use `FeatureTrainer\(dense, data\)`"):
        ImageTrainer(photos)
    with pytest.raises(InputError, match="gives one value for each image"):
        FeatureTrainer(timm.create_model(
            "vit_tiny_patch16_224", img_size=8, patch_size=4, in_chans=1, embed_dim=32, depth=2,
            num_heads=4, num_classes=1,
        ), photos)  # fmt: skip


def test_outputs_that_are_too_many_to_keep_are_refused(
    encoder: VisionTransformer, photos: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vit_ratio_opt.training.matching._MOST_OUTPUTS", 1000)
    with pytest.raises(InputError, match="32 numbers for each of 48 images"):
        FeatureTrainer(encoder, photos, device="cpu").evaluate(encoder)
