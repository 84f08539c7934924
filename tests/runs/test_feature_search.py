"""Searches without labels: of an encoder by the cosine, of a classifier by the agreement."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import timm
import torch
from optuna.storages import InMemoryStorage
from PIL import Image
from sklearn.datasets import load_digits
from timm.models.vision_transformer import VisionTransformer

import vit_ratio_opt as vro
from vit_ratio_opt.data.image_data import ImageData
from vit_ratio_opt.data.splits import Split
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.report.markdown import markdown_page
from vit_ratio_opt.runs.final import finish
from vit_ratio_opt.space.pairs import RatioPair

RECIPE = vro.Recipe(batch_size=64)


@pytest.fixture(scope="module")
def photos(few_digits: ImageData) -> ImageData:
    """Digits without labels."""

    def without(split: Split) -> Split:
        return Split(split.dataset, split.indices, torch.full((len(split),), -1))

    splits = {name: without(getattr(few_digits, name)) for name in ("train", "val", "test")}
    return replace(few_digits, **splits, classes=(), task="features", source={})


@pytest.fixture(scope="module")
def encoder() -> VisionTransformer:
    """Untrained, but with weights large enough that its features differ from image to image."""
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=8, patch_size=4, in_chans=1, embed_dim=32, depth=2,
        num_heads=4, mlp_ratio=2.0, num_classes=0,
    )  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def _search(dense: Any, data: ImageData, limit: Any, tmp_path: Path | None, **more: Any) -> Any:
    checkpoints = None if tmp_path is None else tmp_path / "models"
    run = vro.RunOptions(progress=False, device="cpu", checkpoints=checkpoints)
    return vro.Search(dense, data, limit, **{"training": RECIPE, "run": run, **more})


def _quiet(search: Any, study: optuna.Study, trials: int) -> None:
    search.run(study, trials, say=lambda line: None, explain=False)


def test_encoder_is_searched_trained_tested_and_resumed_without_labels(
    encoder: VisionTransformer, photos: ImageData, tmp_path: Path, url: str
) -> None:
    search = _search(encoder, photos, vro.Tolerance(0.1), tmp_path)
    study = search.create_study("photos", storage=url)
    stored = study.user_attrs
    assert stored["metric"]["name"] == "cosine similarity"
    assert stored["dense"]["val_accuracy"] == 1
    assert stored["settings"]["recipe"]["metric"] == "cosine"
    assert stored["settings"]["calibration_task"] == "features"
    assert len(stored["path"]) > 2
    assert 0 < stored["plan"]["noise"] < 0.1
    _quiet(search, study, 2)
    again = _search(encoder, photos, vro.Tolerance(0.1), tmp_path)
    study = again.create_study("photos", storage=url)
    _quiet(again, study, 3)
    assert len(study.trials) == 3
    for trial in study.trials:
        lost = 1 - trial.user_attrs["metric"]
        assert trial.constraints == {"cosine_similarity_drop": pytest.approx(lost - 0.1)}
    answer = again.answer(study)
    assert answer is not None
    tested = again.test(study)
    assert tested == pytest.approx(again.trainer.test(answer.load_model()), abs=1e-6)
    assert study.user_attrs["tested"]["dense"] == 1


def test_report_and_card_have_probes_where_there_are_labels(
    encoder: VisionTransformer, few_digits: ImageData, tmp_path: Path
) -> None:
    data = replace(few_digits, task="features")
    search = _search(encoder, data, vro.Budget(0.6), tmp_path)
    study = search.create_study("s", storage=InMemoryStorage())
    _quiet(search, study, 1)
    search.test(study)
    probes = study.user_attrs["probes"]
    assert (probes["images"], probes["bank"]) == (128, 256)
    assert probes["dense"]["knn"] == pytest.approx(vro.probe(search.dense, data).knn)
    page = markdown_page([study])
    assert "no labels are used" in page
    assert f"k-NN accuracy goes from {probes['dense']['knn']:.2f} to" in page
    (trial,) = study.trials
    manifest = finish(
        search.objective, RatioPair(*trial.params.values()), search.model_of(study, trial),
        tmp_path / "final.safetensors", trainer=search.trainer_for(replace(RECIPE, epochs=0)),
    )  # fmt: skip
    card = (tmp_path / "final.md").read_text()
    assert manifest["outputs"] == "features"
    assert "pipeline_tag: image-feature-extraction" in card
    assert f"| linear probe | {probes['dense']['linear']:.2f} |" in card
    assert "features = model(images)" in card
    assert "classes" not in card
    model, _ = vro.load_pruned(tmp_path / "final.safetensors", encoder)
    assert vro.export_model(model, tmp_path / "final.pt2", "torch-export") < 1e-4


def test_search_is_loaded_again_from_its_study(tmp_path: Path, url: str) -> None:
    torch.manual_seed(0)
    arguments = {
        "img_size": 8, "patch_size": 4, "embed_dim": 32, "depth": 2,
        "num_heads": 4, "mlp_ratio": 2.0, "num_classes": 0,
    }  # fmt: skip
    name = "vit_tiny_patch16_224"
    vro.save_dense(
        timm.create_model(name, **arguments),
        tmp_path / "e.safetensors",
        name=name,
        arguments=arguments,
    )
    dense = vro.load_dense(tmp_path / "e.safetensors")
    folder = tmp_path / "photos"
    for index, image in enumerate(load_digits().data[:60]):
        folder.mkdir(exist_ok=True)
        pixels = Image.fromarray((image.reshape(8, 8) * 15).astype("uint8"))
        pixels.save(folder / f"{index}.png")
    options = vro.LoadOptions(task="features", mean=(0.3,) * 3, std=(0.35,) * 3)
    data = vro.load_images(folder, image_size=8, options=options)
    assert not data.has_labels
    limit, recipe = vro.Budget(0.6), vro.Recipe(batch_size=16)
    search = _search(dense, data, limit, tmp_path, training=recipe)
    _quiet(search, search.create_study("s", storage=url), 1)
    places = vro.Places(checkpoints=tmp_path / "models")
    again = vro.load_search("s", url, places, vro.RunOptions(progress=False, device="cpu"))
    assert isinstance(again.trainer, vro.FeatureTrainer)
    study = again.create_study("s", storage=url)
    _quiet(again, study, 2)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "COMPLETE"]


def test_study_of_another_encoder_or_with_labels_is_refused(
    encoder: VisionTransformer, photos: ImageData, few_digits: ImageData
) -> None:
    storage, limit = InMemoryStorage(), vro.Budget(0.6)
    _search(encoder, photos, limit, None).create_study("s", storage=storage)
    other = copy.deepcopy(encoder)
    other.cls_token.data.add_(1)
    with pytest.raises(InputError, match="weights is"):
        _search(other, photos, limit, None).create_study("s", storage=storage)
    labelled = timm.create_model(
        "vit_tiny_patch16_224", img_size=8, patch_size=4, in_chans=1, embed_dim=32, depth=2,
        num_heads=4, mlp_ratio=2.0, num_classes=10,
    )  # fmt: skip
    unlabelled = replace(few_digits, task="features")
    _search(labelled, few_digits, limit, None).create_study("c", storage=storage)
    with pytest.raises(InputError, match=r"recipe\.metric is unset, not 'agreement'"):
        _search(labelled, unlabelled, limit, None).create_study("c", storage=storage)


@pytest.mark.parametrize(
    ("metric", "constraint", "limit"),
    [("agreement", "agreement_drop", 10.0), ("kl", "kl_divergence_rise", 0.05)],
)
def test_classifier_is_searched_without_labels(
    dense: VisionTransformer, photos: ImageData, metric: str, constraint: str, limit: float
) -> None:
    recipe = replace(RECIPE, metric=None if metric == "agreement" else metric, epochs=0)
    search = _search(dense, photos, vro.Tolerance(limit), None, training=recipe)
    study = search.create_study("s", storage=InMemoryStorage())
    settings, plan = study.user_attrs["settings"], study.user_attrs["plan"]
    assert settings["recipe"]["metric"] == metric
    assert "calibration_task" not in settings  # classes are compared as probabilities
    assert 0 < plan["noise"] < limit
    assert plan.get("noise_point", 1.0) == (1.0 if metric == "agreement" else limit / 2)
    assert len(study.user_attrs["path"]) > 2
    _quiet(search, study, 1)
    assert list(study.trials[0].constraints) == [constraint]


def test_budget_is_searched_from_the_best_pair_before_training(
    encoder: VisionTransformer, photos: ImageData
) -> None:
    search = _search(encoder, photos, vro.Budget(0.5), None, training=vro.Recipe(epochs=0))
    study = search.create_study("s", storage=InMemoryStorage())
    assert all(value < 1 for _, _, value in study.user_attrs["screened"])
    _quiet(search, study, 1)
    assert study.direction == optuna.study.StudyDirection.MAXIMIZE
    assert 0 < study.trials[0].value < 1


def test_encoder_with_labels_is_refused_with_the_task_that_it_needs(
    encoder: VisionTransformer, few_digits: ImageData
) -> None:
    with pytest.raises(InputError, match="load the images with `task='features'`"):
        _search(encoder, few_digits, vro.Budget(0.5), None)


def test_tolerance_in_points_is_refused_for_a_cosine(
    encoder: VisionTransformer, photos: ImageData
) -> None:
    with pytest.raises(InputError, match="must be below 1, but got 2"):
        _search(encoder, photos, vro.Tolerance(2), None)


def test_scores_that_need_labels_are_refused(
    dense: VisionTransformer, encoder: VisionTransformer, few_digits: ImageData
) -> None:
    data = replace(few_digits, task="features")
    for model in (dense, encoder):
        with pytest.raises(InputError, match="`unit='head'` scores heads by labels"):
            _search(model, data, vro.Budget(0.6), None, pruning=vro.Structural(unit="head"))


@pytest.mark.parametrize("pool", ["avg", ""])
def test_other_outputs_of_an_encoder_are_compared_too(photos: ImageData, pool: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=8, patch_size=4, in_chans=1, embed_dim=32, depth=2,
        num_heads=4, mlp_ratio=2.0, num_classes=0, global_pool=pool,
    )  # fmt: skip
    options = vro.SearchOptions(screen=False)
    search = _search(model, photos, vro.Budget(0.6), None, pruning=vro.Both(), options=options)
    study = search.create_study("s", storage=InMemoryStorage())
    _quiet(search, study, 1)
    assert 0 < study.trials[0].user_attrs["metric"] < search.dense_accuracy == 1


def test_embeddings_of_a_projection_are_compared_by_their_cosine(
    dense: VisionTransformer, photos: ImageData
) -> None:
    recipe = replace(RECIPE, metric="cosine")
    search = _search(dense, photos, vro.Budget(0.5), None, training=recipe)
    assert search.trainer.metric.name == "cosine similarity"
    assert search.options.calibration.task == "features"


class _Own:
    """A training loop of a user's own, without a metric of this package."""

    metric = vro.Metric("distance", larger_is_better=False)
    epochs = 0
    device = torch.device("cpu")

    def __init__(self, dense: VisionTransformer, images: torch.Tensor) -> None:
        self.dense, self.images = dense, images

    def identity(self) -> dict[str, Any]:
        return {"name": "own"}

    def evaluate(self, model: Any) -> float:
        with torch.no_grad():
            return float((model(self.images) - self.dense(self.images)).norm())

    def train(self, model: Any, context: Any) -> float:
        return self.evaluate(model)


def test_own_trainer_searches_an_encoder(encoder: VisionTransformer, photos: ImageData) -> None:
    images, _ = next(photos.batches(photos.val, 16, torch.device("cpu")))
    own = _Own(copy.deepcopy(encoder).eval(), images)
    search = _search(encoder, photos, vro.Budget(0.5), None, training=own)
    study = search.create_study("s", storage=InMemoryStorage())
    _quiet(search, study, 1)
    assert study.trials[0].value == study.trials[0].user_attrs["metric"] > 0
