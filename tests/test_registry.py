import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("optunahub")
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """The OptunaHub package, built into a registry of its own."""
    destination = tmp_path_factory.mktemp("registry")
    build = [sys.executable, str(ROOT / "registry" / "build.py"), str(destination)]
    subprocess.run(build, check=True, capture_output=True)
    return destination / "samplers" / "binary_search"


def run(package, code):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(package.parents[1])],
        check=True, capture_output=True, text=True, cwd=package.parent,
    )  # fmt: skip
    return done.stdout


def test_registry_package_loads_by_itself(package):
    code = """
import sys, optunahub
module = optunahub.load_local_module("samplers/binary_search", registry_root=sys.argv[1])
import optuna
from optuna.distributions import FloatDistribution as Float
curve = [(i / 16, 1 - i / 16) for i in range(17)]
space = {"x": Float(0, 1), "y": Float(0, 1)}
sampler = module.BinarySearchSampler(space, module.BudgetSearch(curve))
study = optuna.create_study(direction="maximize", sampler=sampler)
study.optimize(lambda t: -abs(t.suggest_float("x", 0, 1) - 0.2) + 0 * t.suggest_float("y", 0, 1),
               n_trials=50)
print(len(study.trials), study.best_params["x"], *{"torch", "vit_ratio_opt"} & set(sys.modules))
"""
    trials, best = run(package, code).split()
    assert int(trials) <= 9
    assert float(best) == 3 / 16


def test_registry_package_searches_with_noise(package):
    code = """
import random, sys, optunahub
module = optunahub.load_local_module("samplers/binary_search", registry_root=sys.argv[1])
import optuna
from optuna.distributions import FloatDistribution as Float
optuna.logging.set_verbosity(optuna.logging.ERROR)
space, dice = {"x": Float(0, 1), "y": Float(0, 1)}, random.Random(0)
curve = [(i / 16, 1 - i / 16) for i in range(17)]
noise = module.Noise(0.02, is_known=False)
plan = module.BudgetSearch(curve, baseline=(0.5, 0.5), noise=noise)
study = optuna.create_study(
    direction="maximize", sampler=module.BinarySearchSampler(space, plan, n_trials=10)
)
study.optimize(lambda t: -(t.suggest_float("x", 0, 1) - 0.2) ** 2 + dice.gauss(0, 0.02)
               + 0 * t.suggest_float("y", 0, 1), n_trials=10)
print(study.trials[0].params["x"], study.sampler.answer(study)[0])
"""
    first, best = map(float, run(package, code).split())
    assert first == 0.5
    assert abs(best - 0.2) < 0.2


def test_registry_package_searches_the_frontier(package):
    code = """
import sys, optunahub
module = optunahub.load_local_module("samplers/binary_search", registry_root=sys.argv[1])
import optuna
from optuna.distributions import FloatDistribution as Float
optuna.logging.set_verbosity(optuna.logging.ERROR)
space = {"x": Float(0, 1), "y": Float(0, 1)}
cost = lambda x, y: 1 - (x + y) / 2
pairs = [(i / 8, j / 8) for i in range(9) for j in range(9) if i + j in (4, 8, 12)]
levels = [(level / 8, level / 8) for level in (2, 4, 6)]
plan = module.FrontierSearch(levels, pairs, cost, (0.25, 0.5, 0.75), dense=1.0, worst=1.0)
study = optuna.create_study(
    directions=["maximize", "minimize"], sampler=module.BinarySearchSampler(space, plan)
)
def objective(trial):
    x, y = (trial.suggest_float(name, 0, 1) for name in space)
    return 1 - 0.1 * x**2 - 0.6 * y**2, cost(x, y)
study.optimize(objective, n_trials=12)
print(len(study.trials), min(study.best_trials, key=lambda t: abs(t.values[1] - 0.5)).params["x"])
"""
    trials, best = run(package, code).split()
    assert 3 < int(trials) <= 12
    assert float(best) > 0.5  # y costs more


def test_registry_example_runs(package):
    said = run(package, f"import runpy; runpy.run_path({str(package / 'example.py')!r})")
    assert "costs 0.5" in said


def test_registry_readme_has_the_front_matter(package):
    _, front, body = (package / "README.md").read_text().split("---\n", 2)
    keys = [line.split(":")[0] for line in front.splitlines()]
    assert keys == ["author", "title", "description", "tags", "optuna_versions", "license"]
    assert "## Abstract" in body
    assert (package / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
