"""``benchmarks/gpu.py`` rehearsed on the CPU, stage by stage, and its augmentation."""

import json
import math
import time

import pytest
import torch
from safetensors import safe_open

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.model_files.load import load_dense

SECONDS = 2


@pytest.fixture(scope="module")
def gpu(benchmarks):
    import gpu

    return gpu


@pytest.fixture(scope="module")
def gpu_dense(gpu):
    import gpu_dense

    return gpu_dense


@pytest.fixture(scope="module")
def augment(gpu):
    import augment

    return augment


@pytest.fixture(scope="module")
def noise(gpu):
    return gpu.noise_images()


def train(gpu_dense, noise, out, **options):
    deadline = time.perf_counter() + SECONDS
    options = {"compiles": False, **options}
    return gpu_dense.train_dense(noise, gpu_dense.REHEARSAL, out, deadline, **options)


def rehearse(gpu, noise, out, monkeypatch, *stages):
    monkeypatch.setattr(gpu, "noise_images", lambda: noise)  # made already
    gpu.main(
        out=out, stage=list(stages), minutes=1, data=None, rehearse=True, compile_model=False,
        commit="abc",
    )  # fmt: skip
    return json.loads((out / "gpu.json").read_text())["rows"]


def test_the_rehearsal_gives_a_bfloat16_model_that_loads_and_a_row(
    gpu, noise, tmp_path, monkeypatch
):
    monkeypatch.setattr(gpu, "REHEARSED_SECONDS", SECONDS)
    (row,) = rehearse(gpu, noise, tmp_path, monkeypatch, "dense")
    with safe_open(tmp_path / "dense.safetensors", framework="pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.bfloat16}  # noqa: SIM118
    model = load_dense(tmp_path / "dense.safetensors")
    assert next(model.parameters()).dtype == torch.float32
    assert sum(p.numel() for p in model.parameters()) == row["params"]
    assert row["epochs"] > 0
    assert row["commit"] == "abc"
    assert not row["compiled"]
    assert {"val_accuracy", "test_accuracy", "test_accuracy_of_file", "macs"} <= row.keys()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense.safetensors", "gpu.json"]


@pytest.mark.parametrize("stage", ["paper", "quality", "frontier", "speed", "loop"])
def test_a_rehearsal_gives_each_row_once(gpu, noise, tmp_path, monkeypatch, stage):
    rows = rehearse(gpu, noise, tmp_path, monkeypatch, stage)
    assert {row["stage"] for row in rows} == {stage}
    assert all(row["device"] == "cpu" and row["commit"] == "abc" for row in rows)
    assert rehearse(gpu, noise, tmp_path, monkeypatch, stage) == rows


def test_a_stage_ends_with_its_time_and_goes_on_later(gpu, noise, tmp_path, monkeypatch, capsys):
    measured = []

    def tasks(images, dense):
        for number in range(3):
            yield {"number": number}, lambda number=number: measured.append(number) or {}

    def clock():
        return 100.0 * len(measured)

    monkeypatch.setattr(gpu.gpu_pruned, "paper", tasks)
    monkeypatch.setattr(gpu.time, "perf_counter", clock)
    rows = rehearse(gpu, noise, tmp_path, monkeypatch, "paper")
    assert [row["number"] for row in rows] == [0]
    assert "run it again" in capsys.readouterr().out
    measured.clear()
    assert len(rehearse(gpu, noise, tmp_path, monkeypatch, "paper")) == 2


def test_an_unknown_stage_is_refused(gpu, tmp_path):
    with pytest.raises(InputError, match="--stage"):
        gpu.main(out=tmp_path, stage=["papers"], rehearse=True)


def test_a_stage_without_images_is_refused(gpu, tmp_path):
    with pytest.raises(InputError, match="--data"):
        gpu.main(out=tmp_path, stage=["dense"], minutes=0.1)


def test_the_committed_model_fits_in_12_megabytes(gpu_dense):
    arguments = {"img_size": 32, "patch_size": 4, "num_classes": 10, "class_token": False}
    model = gpu_dense.create_model(
        gpu_dense.MODEL, global_pool="avg", **arguments, **gpu_dense.Training().model
    )
    assert 2 * sum(p.numel() for p in model.parameters()) < 12e6 - 20_000  # the header


def test_a_killed_training_leaves_a_model_and_is_resumed(gpu_dense, noise, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_dense, "SECONDS_PER_STATE", 0)
    save, saved = gpu_dense.save_half, []

    def killed(*args):
        save(*args)
        saved.append(True)
        if len(saved) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(gpu_dense, "save_half", killed)
    with pytest.raises(KeyboardInterrupt):
        train(gpu_dense, noise, tmp_path)
    load_dense(tmp_path / "dense.safetensors")
    with safe_open(tmp_path / "dense.training", framework="pt") as file:
        progress = json.loads(file.metadata()["progress"])
    assert progress["step"] == 3
    assert 0 < progress["progress"] < 1
    found = train(gpu_dense, noise, tmp_path)
    assert found["epochs"] > 3 / (len(noise.train) // gpu_dense.REHEARSAL.batch_size)
    assert found["seconds"] > progress["seconds"]


def test_a_training_of_another_recipe_is_not_resumed(gpu_dense, noise, tmp_path, monkeypatch):
    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(gpu_dense, "SECONDS_PER_STATE", 0)
    monkeypatch.setattr(gpu_dense, "save_half", killed)
    with pytest.raises(KeyboardInterrupt):
        train(gpu_dense, noise, tmp_path)
    with pytest.raises(InputError, match="seed"):
        train(gpu_dense, noise, tmp_path, seed=1)


def test_a_model_that_cannot_be_compiled_is_trained_as_it_is(
    gpu_dense, noise, tmp_path, monkeypatch
):
    def failing(model):
        def forward(images):
            raise RuntimeError("no compiler")

        return forward

    monkeypatch.setattr(torch, "compile", failing)
    assert not train(gpu_dense, noise, tmp_path, compiles=True)["compiled"]


def test_without_time_to_train_in_nothing_is_written(gpu_dense, noise, tmp_path):
    with pytest.raises(InputError, match="--minutes"):
        gpu_dense.train_dense(
            noise, gpu_dense.REHEARSAL, tmp_path, time.perf_counter(), compiles=False
        )
    assert not list(tmp_path.iterdir())


def test_the_learning_rate_rises_then_falls_to_zero(gpu_dense):
    training = gpu_dense.Training()
    rates = [training.lr_at(share / 100) for share in range(101)]
    assert rates[0] == 0
    assert rates[-1] == 0
    assert max(rates) == pytest.approx(training.lr, rel=0.01)
    assert rates.index(max(rates)) == pytest.approx(100 * training.warmup, abs=1)


def test_heads_begin_with_queries_that_are_like_keys_and_values_that_are_subtracted(gpu_dense):
    torch.manual_seed(0)
    arguments = {"img_size": 32, "patch_size": 4, "class_token": False, "embed_dim": 64}
    model = gpu_dense.create_model(
        gpu_dense.MODEL, depth=1, num_heads=2, global_pool="avg", num_classes=10, **arguments
    )
    gpu_dense.initialise(model)
    attention = model.blocks[0].attn
    query, key, value = attention.qkv.weight.detach().chunk(3)
    for queries, keys in zip(query.chunk(2), key.chunk(2), strict=True):
        assert (queries.T @ keys).diagonal().mean() > 0.2
    through = (attention.proj.weight.detach() @ value).diagonal().mean()
    assert through == pytest.approx(-0.4, abs=0.05)


def test_colours_stay_in_range_and_some_images_as_they_are(augment):
    torch.manual_seed(0)
    images = torch.randint(0, 256, (256, 3, 16, 16)).float()
    changed = augment.change_colours(images)
    assert changed.min() >= 0
    assert changed.max() <= 255
    same = (changed - images).abs().amax((1, 2, 3)) < 1e-3
    assert 0.8 * 256 / 10 < same.sum() < 0.4 * 256


def test_shifts_are_of_whole_pixels(augment, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(augment, "_MOVES", 10**9)  # none but the shift that all images have
    images = torch.randn(64, 3, 16, 16)
    moved = augment.move(images, flip=False)
    shifts = [(y, x) for y in range(-2, 3) for x in range(-2, 3)]
    found = set()
    for before, after in zip(images, moved, strict=True):
        inner = [
            (after - before.roll(shift, (1, 2)))[:, 2:-2, 2:-2].abs().max() for shift in shifts
        ]
        assert min(inner) < 1e-4
        found.add(shifts[inner.index(min(inner))])
    assert len(found) > 15


def test_half_of_the_images_are_mirrored_and_none_without_flip(augment, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(augment, "_MOVES", 10**9)
    slope = torch.linspace(-1, 1, 16).expand(200, 3, 16, 16)
    centre = (slice(None), 0, 8)
    for flip, expected in ((False, 0), (True, 100)):
        moved = augment.move(slope, flip=flip)[centre]
        mirrored = (moved[:, 9] < moved[:, 6]).sum().item()
        assert mirrored == pytest.approx(expected, abs=3 * math.sqrt(50) * flip)


def test_a_quarter_of_the_images_lose_a_box(augment):
    torch.manual_seed(0)
    erased = (augment.erase(torch.ones(400, 3, 32, 32)) == 0)[:, 0]
    shares = erased.float().mean((1, 2))
    assert (shares > 0).float().mean() == pytest.approx(0.25, abs=0.07)
    assert shares.max() < 0.4
    rows, columns = erased.any(2).sum(1), erased.any(1).sum(1)
    assert torch.equal(rows * columns, erased.sum((1, 2)))


def test_augmented_images_are_normalised(augment):
    torch.manual_seed(0)
    mean, std = torch.full((3, 1, 1), 0.5), torch.full((3, 1, 1), 0.25)
    images = torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8)
    changed = augment.augment(images, mean, std)
    assert changed.dtype == torch.float32
    assert changed.abs().max() <= 2.0 + 1e-5


def test_validation_and_test_images_are_joined_where_they_lie_in_two_data_sets(gpu, noise):
    from recording import joined

    assert noise.val.dataset is not noise.test.dataset
    both = joined(noise).val
    images = torch.cat([batch for batch, _ in both.batches(64)])
    held = [batch for split in (noise.val, noise.test) for batch, _ in split.batches(64)]
    assert torch.equal(images, torch.cat(held))
    assert torch.equal(both.labels, torch.cat([noise.val.labels, noise.test.labels]))
