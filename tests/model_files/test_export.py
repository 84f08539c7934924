from __future__ import annotations

import json
import sys
import warnings

import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

from vit_ratio_opt.cli import main as cli
from vit_ratio_opt.data.digits import load_digits
from vit_ratio_opt.data.load import load_images
from vit_ratio_opt.data.options import LoadOptions
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.model_files import export
from vit_ratio_opt.model_files.export import export_model, quantize
from vit_ratio_opt.model_files.exported import SUFFIXES, exported_accuracy, load_exported
from vit_ratio_opt.model_files.load import load_pruned
from vit_ratio_opt.model_files.save import save_dense, save_pruned
from vit_ratio_opt.models import onnx_file
from vit_ratio_opt.models.create import create_model
from vit_ratio_opt.pruning.cascade import prune_tokens
from vit_ratio_opt.pruning.importance import magnitude_importance
from vit_ratio_opt.pruning.prune import prune
from vit_ratio_opt.space.shape import BlockTokens
from vit_ratio_opt.training.evaluate import evaluate
from vit_ratio_opt.training.recipe import Recipe
from vit_ratio_opt.training.trainer import ImageTrainer

NAME = "vit_tiny_patch16_224"
DIGITS = {
    "img_size": 8, "patch_size": 4, "in_chans": 1, "embed_dim": 32, "depth": 1, "num_heads": 4,
    "mlp_ratio": 2.0, "num_classes": 10,
}  # fmt: skip


@pytest.fixture
def small(make_vit):
    return make_vit(depth=1)


@pytest.fixture(scope="module")
def small_onnx(tmp_path_factory):
    """A model, its ONNX file and that in int8."""
    torch.manual_seed(0)
    model = create_model(NAME, **(DIGITS | {"num_classes": 4}))
    metadata = {"classes": ("a", "b", "c", "é"), "mean": (0.5,), "std": [0.25], "by": "x"}
    path = tmp_path_factory.mktemp("onnx") / "a.onnx"
    export_model(model, path, metadata=metadata)
    return model, path, quantize(path, path.with_name("a.int8.onnx"))


@pytest.fixture(scope="module")
def digits_file(tmp_path_factory):
    """A pruned model as a study of the digits leaves it."""
    torch.manual_seed(0)
    dense = create_model(NAME, **DIGITS)
    pruned = prune(dense, (0.5, 0.5), magnitude_importance(dense))
    data = load_digits(seed=3)
    path = tmp_path_factory.mktemp("study") / "trial-0001.safetensors"
    manifest = {
        "macs_ratio": 0.5123, "classes": data.classes, "mean": data.mean, "std": data.std,
        "images": data.source, "dataset": "digits", "validation": data.fingerprint, "seed": 3,
    }  # fmt: skip
    save_pruned(pruned, path, manifest)
    return path


@pytest.fixture
def command(monkeypatch, capsys):
    """Exit code, standard output and standard error of ``vit-ratio-opt export``."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["vit-ratio-opt", "export", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return stop.value.code, *capsys.readouterr()

    return run


def pruned(model):
    return prune(model, (0.5, 0.5), magnitude_importance(model))


@pytest.mark.parametrize("to", SUFFIXES)
@pytest.mark.parametrize("kind", ["structural", "cascade"])
def test_exported_model_gives_the_same_logits(make_vit, tmp_path, capfd, images, kind, to):
    model = pruned(make_vit(depth=1))
    if kind == "cascade":
        model = prune_tokens(make_vit(), [BlockTokens(17, 17, 10), BlockTokens(9, 17, 5)])
    path = tmp_path / f"model{SUFFIXES[to]}"
    difference = export_model(model, path, to)
    run = load_exported(path)
    with torch.no_grad():
        for batch in (images, images[:1]):  # 8 is none of the sizes that the export looks at
            assert torch.allclose(run(batch), model(batch), rtol=1e-4, atol=1e-4)
    assert 0 <= difference <= 1e-4
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert capfd.readouterr() == ("", "")
    assert b"site-packages" not in path.read_bytes()


def test_a_distilled_model_is_exported_with_both_its_classifiers(make_vit, tmp_path, images):
    model = make_vit("deit_tiny_distilled_patch16_224", depth=1).train()
    export_model(model, tmp_path / "a.torchscript", "torchscript")
    assert model.training  # a copy was in evaluation mode
    run = load_exported(tmp_path / "a.torchscript")
    assert torch.allclose(run(images), model.eval()(images), atol=1e-4)


def test_a_model_of_any_image_size_takes_the_one_that_is_asked_for(make_vit, tmp_path):
    model = make_vit(depth=1, dynamic_img_size=True)
    export_model(model, tmp_path / "a.torchscript", "torchscript", image_size=48)
    larger = torch.randn(3, 3, 48, 48)
    run = load_exported(tmp_path / "a.torchscript")
    assert torch.allclose(run(larger), model(larger), atol=1e-4)
    with pytest.raises(InputError, match=r"images of \(32, 32\) pixels, not of 48"):
        export_model(make_vit(), tmp_path / "b.onnx", image_size=48)


def test_the_onnx_file_says_how_to_use_it_in_float_and_in_int8(small_onnx):
    for file in small_onnx[1:]:
        session = onnxruntime.InferenceSession(str(file))
        kept = session.get_modelmeta().custom_metadata_map
        assert json.loads(kept["classes"]) == ["a", "b", "c", "é"]
        assert json.loads(kept["mean"]) == [0.5]
        assert json.loads(kept["std"]) == [0.25]
        assert json.loads(kept["image_size"]) == [8, 8]
        assert kept["by"] == "x"
        (images,), (logits,) = session.get_inputs(), session.get_outputs()
        assert (images.name, images.shape) == ("images", ["batch", 1, 8, 8])
        assert (logits.name, logits.shape) == ("logits", ["batch", 4])


@pytest.mark.parametrize("to", ["torch-export", "torchscript"])
def test_the_other_formats_say_it_too(small, tmp_path, to):
    path = tmp_path / f"a{SUFFIXES[to]}"
    export_model(small, path, to, metadata={"classes": ["cat", "dog"]})
    kept = {"classes": "", "image_size": ""}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch would rather have no TorchScript
        if to == "torchscript":
            torch.jit.load(str(path), _extra_files=kept)
        else:
            torch.export.load(path, extra_files=kept)
    texts = {k: v if isinstance(v, str) else v.decode() for k, v in kept.items()}
    assert texts == {"classes": '["cat", "dog"]', "image_size": "[32, 32]"}


def test_int8_has_every_linear_layer_in_integers_and_stays_near(small_onnx):
    model, path, smaller = small_onnx
    images = torch.randn(8, 1, 8, 8)
    operators = [node.op_type for node in onnx.load(smaller).graph.node]
    # qkv, proj, fc1, fc2 and head; queries by keys and attention by values have no weights
    assert operators.count("MatMulInteger") == 5
    assert operators.count("MatMul") == 2
    assert "Gemm" not in operators
    with torch.no_grad():
        logits = model(images)
    assert 0 < (load_exported(smaller)(images) - logits).abs().max() < 0.1 * logits.std()
    assert smaller.stat().st_size < path.stat().st_size


def test_an_export_that_differs_is_refused_with_the_figure_and_leaves_no_file(
    small, tmp_path, monkeypatch
):
    load = export.load_exported
    monkeypatch.setattr(
        export,
        "load_exported",
        lambda *a: lambda images: load(*a)(images) + 0.25 * (len(images) == 5),
    )
    path = tmp_path / "a.torchscript"
    path.write_text("what was there")
    with pytest.raises(InputError, match=r"differ from the model's by 0\.\d+, more than 0\.0001"):
        export_model(small, path, "torchscript")
    assert path.read_text() == "what was there"
    assert list(tmp_path.iterdir()) == [path]


def test_logits_that_are_no_numbers_are_refused(small, tmp_path):
    with torch.no_grad():
        small.pos_embed.fill_(3e38)  # finite, but not what is made of it
    with pytest.raises(InputError, match="differ from the model's by nan"):
        export_model(small, tmp_path / "a.torchscript", "torchscript")
    assert list(tmp_path.iterdir()) == []


def test_an_exporters_error_is_told_in_one_line(small, tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("no such operator\nand a long story")

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(InputError, match=r"^The model cannot be exported to onnx: no such op\w+$"):
        export_model(small, tmp_path / "a.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_told_with_its_extra(small, tmp_path, monkeypatch):
    find = onnx_file.find_spec
    monkeypatch.setattr(
        onnx_file, "find_spec", lambda name: None if name == "onnxruntime" else find(name)
    )
    with pytest.raises(
        InputError, match=r"^ONNX needs onnxruntime: pip install 'vit_ratio_opt\[onnx\]'\.$"
    ):
        export_model(small, tmp_path / "a.onnx")
    export_model(small, tmp_path / "a.torchscript", "torchscript")  # which needs none of it


def test_names_formats_folders_and_sizes_that_cannot_be_are_refused(small, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"must end in '\.pt2', but got .*a\.onnx"):
        export_model(small, tmp_path / "a.onnx", "torch-export")
    with pytest.raises(InputError, match=r"`to` must be one of .*, but got 'tflite'"):
        export_model(small, tmp_path / "a.tflite", "tflite")
    for folder in ("file", "missing"):
        with pytest.raises(InputError, match=r"a\.torchscript cannot be written"):
            export_model(small, tmp_path / folder / "a.torchscript", "torchscript")
    monkeypatch.setattr(onnx_file, "_LARGEST", 10)
    with pytest.raises(InputError, match="One ONNX file holds less than 2 GB"):
        export_model(small, tmp_path / "a.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("to", SUFFIXES)
def test_a_damaged_or_missing_export_is_refused(tmp_path, to):
    path = tmp_path / f"a{SUFFIXES[to]}"
    with pytest.raises(InputError, match=f"no readable {to} file"):
        load_exported(path)
    path.write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(InputError, match=f"no readable {to} file"):
        load_exported(path)


# The command


def test_the_command_measures_float_and_int8_on_the_studys_test_images(digits_file, command):
    code, out, err = command(digits_file, "--int8")
    assert (code, err) == (0, "")
    output = digits_file.with_suffix(".onnx")
    smaller = digits_file.with_name("trial-0001.int8.onnx")
    lines = out.splitlines()
    assert lines[0].startswith(f"written to {output}: 0.")
    assert "FLOPs (0.5123 of the dense model's), outputs within " in lines[0]
    assert lines[1].startswith(f"written to {smaller}: 0.0")
    data = load_digits(seed=3)
    model, _ = load_pruned(digits_file)
    accuracies = exported_accuracy(output, data), exported_accuracy(smaller, data)
    assert accuracies[0] == pytest.approx(evaluate(model, data, data.test))
    assert lines[2] == (
        f"accuracy on the 360 test images of digits: {accuracies[0]:.2f} %, "
        f"in int8 {accuracies[1]:.2f} %"
    )


@pytest.mark.parametrize(
    ("task", "metric", "shown"),
    [
        ("multi-label", None, "mean average precision on the 8 test images of photos: {:.2f} %"),
        ("multi-label", "loss", "loss on the 8 test images of photos: {:.4g}"),
        ("regression", None, "mean absolute error on the 8 test images of photos: {:.4g}"),
        ("regression", "custom: kappa", "no metric is measured: the metric 'custom: kappa' needs"),
    ],
)
def test_the_command_measures_the_metric_of_the_study(tmp_path, command, task, metric, shown):
    folder = tmp_path / "photos"
    (folder / "images").mkdir(parents=True)
    for n in range(40):
        path = folder / "images" / f"{n}.png"
        Image.new("RGB", (8, 8), (6 * n, 60 * (n % 4), 0)).save(path)
    rows = [f"{n}.png,{n % 2},{int(n % 3 == 0)}" for n in range(40)]
    (folder / "train.csv").write_text("\n".join(["filename,one,two", *rows]))
    options = LoadOptions(task=task, label_key=["one", "two"])
    data = load_images(folder, options=options)
    torch.manual_seed(0)
    dense = create_model(NAME, **DIGITS | {"num_classes": 2, "in_chans": 3})
    recipe = Recipe(metric=metric).to_json()
    manifest = {
        "classes": data.classes, "mean": data.mean, "std": data.std, "dataset": data.name,
        "validation": data.fingerprint, "images": {**data.source, "root": None},
        "recipe": recipe, "calibration_task": task, "metric": {"name": "as stored"},
    }  # fmt: skip
    path = tmp_path / "trial.safetensors"
    save_pruned(prune(dense, (0.5, 0.5), magnitude_importance(dense)), path, manifest)
    code, out, err = command(path, "--data", folder)
    assert (code, err) == (0, "")
    if not metric or metric == "loss":
        trainer = ImageTrainer(data, Recipe(metric=metric), device="cpu", precision="float32")
        shown = shown.format(trainer.test(load_pruned(path)[0]))
    assert shown in out
    session = onnxruntime.InferenceSession(path.with_suffix(".onnx"))
    kept = session.get_modelmeta().custom_metadata_map
    assert (kept["task"], json.loads(kept["metric"])) == (task, {"name": "as stored"})


def test_the_command_exports_dense_models_where_it_is_told(tmp_path, command):
    torch.manual_seed(0)
    path, output = tmp_path / "dense.safetensors", tmp_path / "other.torchscript"
    save_dense(create_model(NAME, **DIGITS), path, name=NAME, arguments=DIGITS)
    code, out, _ = command(path, "--to", "torchscript", "--output", output)
    assert code == 0
    assert output.is_file()
    assert "of the dense model's" not in out
    # of images nothing is known, so int8 cannot be measured
    code, out, err = command(path, "--int8")
    assert (code, out) == (2, "")
    assert err == "Error: Accuracy is measured, not assumed: give --data, the images' folder.\n"
    assert not path.with_suffix(".onnx").exists()


def test_what_the_command_cannot_do_is_one_sentence_and_writes_nothing(
    digits_file, tmp_path, command
):
    truncated = tmp_path / "truncated.safetensors"
    truncated.write_bytes(digits_file.read_bytes()[:1000])
    here = sorted(tmp_path.iterdir())
    for arguments, sentence in (
        ([tmp_path / "missing.safetensors"], "There is no checkpoint"),
        ([truncated], "is no readable checkpoint (truncated?)"),
        ([digits_file, "--to", "torchscript", "--int8"], "--int8 is for --to onnx"),
        ([digits_file, "--output", tmp_path / "a.pt2"], "must end in '.onnx'"),
        ([digits_file, "--output", tmp_path / "no" / "a.onnx"], "is missing"),
        ([digits_file, "--output", tmp_path], "it is a folder"),
        ([digits_file, "--image-size", 16], "takes images of (8, 8) pixels, not of 16"),
        ([digits_file, "--output", tmp_path / "a.onnx", "--data", tmp_path], "leave --data out"),
    ):
        code, out, err = command(*arguments)
        assert (code, out) == (2, "")
        assert err.startswith("Error: ")
        assert sentence in err
        assert err.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == here
