"""The pages are true: their code runs, their links lead somewhere, their figures are recorded."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from statistics import mean

import optuna
import pytest

from vit_ratio_opt.cli.main import COMMANDS
from vit_ratio_opt.data.load import SOURCES
from vit_ratio_opt.models.families import FAMILIES

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
EXECUTED = [
    *("README.md", "docs/python.md", "docs/trainers.md", "docs/extending.md"),
    "docs/encoders.md",
]
NOT_RUN = "# Not run by the tests: "
# What makes the examples quick; everything else runs as it stands.
TINY = {
    "size=64),\n": "size=64),\n    options=vro.SearchOptions(screen=False),\n",
    "SearchOptions(seed=0)": "SearchOptions(screen=False)",
    "epochs=2": "epochs=1",
    "search.run(study, n_trials=8)": "search.run(study, n_trials=1)",
    "again.run(study, n_trials=12)": "again.run(study, n_trials=2)",
    "n_trials=8": "n_trials=2",
    "training=trainer)\n": "training=trainer, options=vro.SearchOptions(screen=False))\n",
    "vro.load_digits()": "vro.load_digits(val_fraction=0.6)",
    "data.train.batches(64)": "data.train.subset(range(256)).batches(64)",
    "data.train.batches(128)": "data.train.subset(range(512)).batches(128)",
}

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def code_blocks(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def prose(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    titles = re.findall(r"^#+ (.*)", prose(page.read_text()), re.MULTILINE)
    kept = (re.sub(r"[^\w\- ]", "", title.lower()) for title in titles)
    return {title.replace(" ", "-") for title in kept}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty folder, and everything that examples register forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    registries = [(registry, dict(registry)) for registry in (FAMILIES, SOURCES)]
    yield tmp_path
    for registry, before in registries:
        registry.clear()
        registry.update(before)
    optuna.logging.set_verbosity(verbosity)


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("page", EXECUTED)
def test_the_code_of_a_page_runs(page):
    namespace = {"__name__": "__main__"}
    blocks = code_blocks((ROOT / page).read_text())
    for block in blocks:
        if block.startswith(NOT_RUN):
            continue
        for usual, tiny in TINY.items():
            block = block.replace(usual, tiny)
        exec(compile(block, page, "exec"), namespace)
    assert len(blocks) >= 2


def test_blocks_that_are_not_run_say_why():
    reasons = [
        block.splitlines()[0].removeprefix(NOT_RUN)
        for page in EXECUTED
        for block in code_blocks((ROOT / page).read_text())
        if block.startswith(NOT_RUN)
    ]
    assert reasons == [
        "needs a folder of images and a file.",
        "needs pretrained weights.",
        "needs a model and a loop of your own.",
        *["needs pretrained weights."] * 2,
    ]


def test_each_addition_has_at_most_40_lines_and_checks_something():
    text = (ROOT / "docs/extending.md").read_text()
    sections = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE))
    things = ("cost", "criterion", "family of models", "source of images", "search", "report",
              "trainer")  # fmt: skip
    for thing in things:
        assert code_blocks(sections[f"A {thing}"]), thing
    assert all(len(block.splitlines()) <= 40 for block in code_blocks(text))
    for thing in set(things) - {"report"}:  # the report is checked with the trainer's study
        assert "\nassert " in "\n".join(code_blocks(sections[f"A {thing}"])), thing
    assert "assert latex_table(" in sections["A trainer"]


def test_the_readme_is_short_and_begins_with_python_soon():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 220
    begin = lines.index("```python")
    assert lines.index("```", begin) < 70


@pages
def test_links_and_anchors_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page.read_text())):
        if re.match(r"[a-z]+://", target):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), target
        assert not anchor or anchor in anchors(found), target


def test_every_page_is_linked_from_the_readme():
    text = (ROOT / "README.md").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert f"(docs/{page.name}" in text, page.name


@pages
def test_files_in_backticks_exist(page):
    for path in re.findall(
        r"`((?:benchmarks|studies|recipes|tests)/[\w./*-]+)`", page.read_text()
    ):
        assert list(ROOT.glob(path.rstrip("/"))), path
    for room, path in re.findall(r"`(\w+)/([\w/]+\.py)`", page.read_text()):
        assert room not in rooms() or (ROOT / "vit_ratio_opt" / room / path).is_file(), path


@pages
def test_make_targets_and_commands_exist(page):
    text = page.read_text()
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = re.findall(r"(?:^|`|; )make ([a-z-]+)", text, re.MULTILINE)
    assert set(named) <= targets
    commands = {run.__name__ for runs in COMMANDS.values() for run in runs}
    assert set(re.findall(r"vit-ratio-opt ([a-z]+)", text)) <= commands
    for script in re.findall(r"^python ((?:studies|benchmarks)/\S+)", text, re.MULTILINE):
        assert (ROOT / script).is_file(), script


def test_the_command_line_page_has_every_command():
    text = (ROOT / "docs/command-line.md").read_text()
    for runs in COMMANDS.values():
        for run in runs:
            assert re.search(rf"`(vit-ratio-opt )?{run.__name__}`", text), run.__name__


def rooms() -> list[str]:
    package = ROOT / "vit_ratio_opt"
    return [path.parent.name for path in package.glob("*/__init__.py")]


def test_the_architecture_page_has_exactly_the_rooms_there_are():
    text = (ROOT / "docs/architecture.md").read_text()
    listed = re.findall(r"^\| `([\w.]+)/?` \|", text, re.MULTILINE)
    files = [path.name for path in (ROOT / "vit_ratio_opt").glob("*.py")]
    hidden = {"__init__.py", "__main__.py"}
    assert sorted(listed) == sorted({*rooms(), *files} - hidden)
    assert all(f"`{name}`" in text for name in hidden)


def test_the_architecture_page_has_the_order_of_the_contracts():
    text = (ROOT / "docs/architecture.md").read_text()
    listed = re.findall(r"^\| `(\w+)(?:/|\.py)` \|", text, re.MULTILINE)
    (layers,) = re.findall(r"^layers = \[(.*?)^\]", (ROOT / "pyproject.toml").read_text(),
                           re.DOTALL | re.MULTILINE)  # fmt: skip
    order = [set(re.findall(r"vit_ratio_opt\.(\w+)", line)) for line in layers.splitlines()]
    order = [layer for layer in order if layer]
    rank = {room: index for index, layer in enumerate(order) for room in layer}
    ranks = [rank[room] for room in listed if room in rank]
    assert len(ranks) == len(rank)
    assert ranks == sorted(ranks)


def rows_of_results() -> Iterator[tuple[str, str, str, str]]:
    text = (ROOT / "README.md").read_text()
    for line in re.search(r"^## Results\n(.*?)^## ", text, re.DOTALL | re.MULTILINE)[
        1
    ].splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 5 and cells[4].endswith(".json`"):
            yield cells[1], cells[2], cells[3], cells[4].strip("`")


METHODS = {
    "Torch-Pruning": "torch-pruning", "CP-ViT": "cp-vit", "one ratio": "structural-fixed",
    "both": "both", "cascade": "cascade", "structural": "structural",
}  # fmt: skip


def recorded(file: str, question: str, method: str) -> str:
    rows = json.loads((ROOT / "benchmarks/results" / file).read_text())["rows"]
    if question.startswith("test %"):
        (budget,) = re.findall(r"at (0\.\d)", question)
        found = [row["accuracy"] for row in rows
                 if row["budget"] == float(budget) and row["method"] == method]  # fmt: skip
        return f"{mean(found):.2f}"
    found = [row["macs_ratio"] for row in rows
             if row["tolerance"] == 1.0 and row["method"] == method]  # fmt: skip
    return f"{mean(found):.3f}"


def test_the_figures_of_the_readme_are_those_of_the_files():
    rows = list(rows_of_results())
    assert 5 <= len(rows) <= 10
    for question, ours, other, file in rows:
        name, value = other.rsplit(" ", 1)
        assert value == recorded(file, question, METHODS[name]), (question, file)
        method = "ours" if question.startswith("test %") else METHODS[question.split(", ")[-1]]
        assert ours == recorded(file, question, method), (question, file)
