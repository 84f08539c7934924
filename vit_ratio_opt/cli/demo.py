"""``vit-ratio-opt demo``: two ratios beside one on handwritten digits."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from vit_ratio_opt.cli.command import Panel, option
from vit_ratio_opt.cli.options import SeedOption
from vit_ratio_opt.utils.files import check_writable_folder, write_json, write_text

__all__ = ["POINTS", "SHARE", "TRIALS", "DemoOptions", "demo"]

_MODEL = "vit_tiny_patch16_224"
_ARGUMENTS: dict[str, Any] = {
    "img_size": 8, "patch_size": 2, "in_chans": 1, "num_classes": 10, "embed_dim": 64, "depth": 4,
    "num_heads": 8, "mlp_ratio": 2.0,
}  # fmt: skip
POINTS, SHARE = 1.0, 0.7
TRIALS = (14, 8)  # without and with training
_LINES = ("dense model", "one ratio (CP-ViT)", "two ratios", "two ratios, weights too *")


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """Options of ``vit-ratio-opt demo``."""

    train: Annotated[
        bool,
        option(Panel.MODEL, "Train the dense model instead of using the packaged one.", "--train"),
    ] = False
    seed: SeedOption = 0
    folder: Annotated[
        Path, option(Panel.OUTPUT, "Folder for the studies, their models and the report.")
    ] = Path("runs/demo")


def demo(options: DemoOptions) -> None:
    """Show what two pruning ratios save, on scikit-learn's digits.

    It takes about half a minute on two idle CPU cores.

    A small dense ViT leaves out patches, with one ratio for its attention and FFN modules as
    CP-ViT does, and with two. Both are searched with a tolerance and within a budget, without
    fine-tuning. With the tolerance, a third search removes weights too and fine-tunes each
    model for one epoch.
    """
    started = time.perf_counter()
    check_writable_folder(options.folder)
    rows = _search(options)
    sentence = _sentence(rows)
    console = Console(markup=False, highlight=False)
    console.print(_table(rows), f"\n{sentence}", soft_wrap=True)
    console.print(f"Report: {options.folder / 'report.html'}", soft_wrap=True)
    seconds = round(time.perf_counter() - started, 1)
    found = {"seed": options.seed, "seconds": seconds, "sentence": sentence, "rows": rows}
    write_json(found, options.folder / "demo.json")


def _dense_model(options: DemoOptions) -> Any:
    """Return the packaged dense model; with ``--train`` one that is trained once."""
    import vit_ratio_opt as vro

    if not options.train:
        return vro.load_demo_model()
    path = options.folder / f"dense-seed{options.seed}.safetensors"
    if path.exists():
        return vro.load_dense(path)
    import torch

    from vit_ratio_opt.data.preprocessing import remember_preprocessing

    data = vro.load_digits(seed=options.seed)
    torch.manual_seed(options.seed)
    model = vro.create_model(_MODEL, **_ARGUMENTS)
    remember_preprocessing(model, data.preprocess)
    recipe = vro.Recipe(
        epochs=60, batch_size=64, lr=3e-3, weight_decay=0.05, warmup=0.15, distillation=0.0,
        augment=True,
    )  # fmt: skip
    vro.finetune(model, data, recipe, vro.TrialContext(seed=options.seed, title="dense"))
    vro.save_dense(model, path, name=_MODEL, arguments=_ARGUMENTS)
    return model


def _search(options: DemoOptions) -> list[dict[str, Any]]:
    """Run or resume the four studies, write the report, and return the rows of the table."""
    print("loading torch ...", flush=True)
    import vit_ratio_opt as vro
    from vit_ratio_opt.records.trials import tested_accuracy
    from vit_ratio_opt.report.html import html_page

    dense = _dense_model(options)
    data = vro.load_digits(seed=options.seed if options.train else 0)
    storage = f"sqlite:///{options.folder / 'study.db'}"
    tolerance, patches = vro.Tolerance(POINTS), vro.Tokens()
    searches: dict[str, tuple[vro.Tolerance | vro.Budget, vro.Tokens | vro.Both]] = {
        "one": (tolerance, patches),
        "two": (tolerance, patches),
        "both": (tolerance, vro.Both()),
        "budget": (vro.Budget(SHARE), patches),
    }
    rows, studies = list[dict[str, Any]](), list[Any]()
    for name, (limit, pruning) in searches.items():
        print(f"searching, {len(studies) + 1} of {len(searches)} ...", flush=True)
        # A trial costs little more than a look; without training, it is the same every time.
        epochs = 1 if name == "both" else 0
        recipe = vro.Recipe(epochs=epochs, batch_size=64, lr=3e-4)
        how = vro.SearchOptions(
            fixed_ratio=name == "one", screen=False, confirmations=epochs, seed=options.seed
        )
        run = vro.RunOptions(checkpoints=options.folder / "checkpoints" / name)
        search = vro.Search(
            dense, data, limit, pruning=pruning, training=recipe, options=how, run=run
        )
        study = search.create_study(f"demo-{name}", storage=storage)
        search.run(study, TRIALS[epochs], say=lambda _: None, explain=False)
        search.test(study)
        answer = search.answer(study)
        assert answer is not None  # no trial fails
        pairs = {
            "one": {0: None, 1: answer.found}, "two": {2: answer.found}, "both": {3: answer.found},
            "budget": {1: answer.baseline, 2: answer.found},
        }[name]  # fmt: skip
        for line, pair in pairs.items():
            trial = None if pair is None else pair.trial
            rows.append({
                "name": _LINES[line],
                "study": study.study_name,
                "checkpoint": None if trial is None else trial.user_attrs["checkpoint"],
                "mhsa_ratio": 0.0 if pair is None else pair.pair[0],
                "ffn_ratio": 0.0 if pair is None else pair.pair[1],
                "macs_ratio": 1.0 if pair is None else pair.cost_ratio,
                "val_accuracy": search.dense_accuracy if pair is None else pair.own_accuracies[0],
                "test_accuracy": tested_accuracy(study, trial),
            })  # fmt: skip
        studies.append(study)
    write_text(html_page(studies, storage), options.folder / "report.html")
    return rows


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(
        box=SIMPLE, padding=(0, 1, 0, 0), show_edge=False,
        caption="* fine-tuned for one epoch, the others not at all", caption_justify="left",
    )  # fmt: skip
    for heading in ("", "MHSA", "FFN", "FLOPs", "val %", "test %"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    titles = {1: f"loses at most {POINTS:g} point", 4: f"at most {SHARE:g} of the FLOPs"}
    for number, row in enumerate(rows):
        if number in titles:
            table.add_row(titles[number])
        cells = [f"{row[key]:.3f}" for key in ("mhsa_ratio", "ffn_ratio", "macs_ratio")]
        cells += [f"{row[key]:.2f}" for key in ("val_accuracy", "test_accuracy")]
        table.add_row(f"  {row['name']}" if number else row["name"], *cells)
    return table


def _sentence(rows: list[dict[str, Any]]) -> str:
    """Say what two ratios saved, or that they saved nothing, from the rows of the table."""
    share = rows[2]["macs_ratio"] / rows[1]["macs_ratio"]
    if share >= 1:
        return "Here two ratios need no fewer FLOPs than one ratio."
    return (
        f"Two ratios keep the accuracy within {POINTS:g} point with {share:.2f} of the FLOPs "
        f"that one ratio needs; with {SHARE:g} of the dense model's FLOPs, test accuracy is "
        f"{rows[5]['test_accuracy']:.1f} % instead of {rows[4]['test_accuracy']:.1f} %."
    )
