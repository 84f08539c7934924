import ast
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import vit_ratio_opt
from vit_ratio_opt.cli import main as cli
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.utils import versions
from vit_ratio_opt.utils.versions import check_versions

if sys.version_info >= (3, 11):
    import tomllib
else:
    from pip._vendor import tomli as tomllib

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DEVELOPMENT = ("test", "lint", "bench", "dev")
EXTRAS = {
    name: texts
    for name, texts in PROJECT["optional-dependencies"].items()
    if name not in DEVELOPMENT
}
ALWAYS = [Requirement(text) for text in PROJECT["dependencies"]]
REQUIREMENTS = [*ALWAYS, *(Requirement(text) for texts in EXTRAS.values() for text in texts)]
# Their private names, or what they keep in a database, are relied on.
CAPPED = {"optuna", "optuna-dashboard", "sqlalchemy", "timm"}


def lowest_of(requirement):
    (bound,) = [bound for bound in requirement.specifier if bound.operator == ">="]
    return Version(bound.version)


@pytest.fixture
def installed(monkeypatch):
    """Versions that ``check_versions`` is to see, beside those of what is installed."""
    told = {}
    monkeypatch.setattr(versions, "version", lambda name: told.get(name) or version(name))
    monkeypatch.setattr(versions, "_requirements", lambda: ALWAYS)
    check_versions.cache_clear()
    yield told
    check_versions.cache_clear()


def test_the_lowest_versions_are_those_that_are_tested():
    """`make test-lowest` installs what this script prints."""
    script = [sys.executable, ROOT / ".ci" / "lowest.py"]
    pins = subprocess.run(script, capture_output=True, text=True, check=True).stdout.split()
    tested = {name: Version(pin) for name, _, pin in (line.partition("==") for line in pins)}
    assert tested == {requirement.name: lowest_of(requirement) for requirement in REQUIREMENTS}
    assert ".ci/lowest.py > $(LOWEST)/constraints.txt" in (ROOT / "Makefile").read_text()


def test_what_may_change_under_us_has_an_upper_bound():
    capped = {r.name for r in ALWAYS if any(bound.operator == "<" for bound in r.specifier)}
    assert capped == CAPPED


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=str)
def test_what_is_installed_lies_within_the_bounds(requirement):
    try:
        found = version(requirement.name)
    except PackageNotFoundError:
        pytest.skip(f"{requirement.name} is not installed")
    assert requirement.specifier.contains(found, prereleases=True), found


def test_everything_that_is_imported_is_a_dependency():
    declared = {canonicalize_name(requirement.name) for requirement in REQUIREMENTS}
    declared |= {"botocore", "markupsafe", "onnx-ir"}  # of boto3, jinja2 and onnxscript
    declared |= {"ipython"}  # only where a notebook has imported it
    homes = packages_distributions()
    for path in sorted((ROOT / "vit_ratio_opt").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for top in {name.partition(".")[0] for name in names} - {"vit_ratio_opt"}:
                if top not in sys.stdlib_module_names and top in homes:
                    found = {canonicalize_name(name) for name in homes[top]}
                    assert found & declared, f"{path.name} imports {top}"


def test_what_is_installed_here_is_neither_refused_nor_warned_of(installed, caplog):
    check_versions()
    assert not caplog.records


@pytest.mark.parametrize("old", ["1.0.20", "0.9.16", "1.0.23.dev0"])
def test_a_dependency_that_is_too_old_is_one_sentence(installed, old):
    installed["timm"] = old
    with pytest.raises(InputError) as raised:
        check_versions()
    (timm,) = [requirement for requirement in ALWAYS if requirement.name == "timm"]
    assert str(raised.value) == (f"timm {old} is too old for vit_ratio_opt: pip install '{timm}'")


def test_all_that_are_too_old_are_named_at_once(installed):
    installed |= {"timm": "1.0.20", "optuna": "4.5.0"}
    with pytest.raises(InputError, match=r"timm 1\.0\.20, optuna 4\.5\.0 are too old.*optuna<6"):
        check_versions()


def test_a_dependency_that_is_too_new_is_used_with_a_warning(installed, caplog):
    installed["optuna"] = "6.0.0"
    check_versions()
    (record,) = caplog.records
    assert "optuna 6.0.0 is newer than" in record.getMessage()
    assert "pip install 'optuna<6,>=5'" in record.getMessage()


def test_local_and_pre_releases_count_as_what_they_are(installed, caplog):
    installed |= {"torch": "99.0.0+cpu", "torchvision": "99.0.0a0+git"}
    check_versions()
    assert not caplog.records


def test_the_first_public_name_asks(installed):
    installed["timm"] = "1.0.20"
    with pytest.raises(InputError, match="too old"):
        _ = vit_ratio_opt.budget_curve


def test_the_command_line_says_it_and_gives_up(installed, capsys):
    installed["timm"] = "1.0.20"
    with pytest.raises(SystemExit) as ended:
        cli.run_command(lambda: None)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("Error: timm 1.0.20 is too old")


def test_a_checkout_that_is_not_installed_is_not_checked(monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(versions, "requires", missing)
    assert versions._requirements() == []
