"""What import-linter (`make lint`) does not check: private modules of others, and sizes."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "vit_ratio_opt"
FILES = sorted(PACKAGE.rglob("*.py"))
# Storages of Optuna's with other waits, which cannot be made of its public parts; and `_compat`,
# which is there for private names.
STORAGES = {"runs/database.py", "runs/grpc_client.py", "runs/proxy.py", "_compat.py"}


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def functions_of(path: Path) -> Iterator[ast.FunctionDef]:
    nodes = ast.walk(ast.parse(path.read_text(), str(path)))
    return (node for node in nodes if isinstance(node, ast.FunctionDef))


@pytest.mark.parametrize("path", [f for f in FILES if name_of(f) not in STORAGES], ids=name_of)
def test_no_file_imports_a_private_module_of_others(path: Path) -> None:
    """Any release may rename it; `_compat` has what there is no public way for."""
    imported = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            imported += [f"{node.module}.{alias.name}" for alias in node.names]
    private = [name for name in imported if "._" in name and "__" not in name]
    assert not [name for name in private if not name.startswith(PACKAGE.name)]


def test_no_file_is_above_400_lines_and_the_median_at_most_200() -> None:
    lengths = {name_of(path): len(path.read_text().splitlines()) for path in FILES}
    assert {name: length for name, length in lengths.items() if length > 400} == {}
    assert sorted(lengths.values())[len(lengths) // 2] <= 200


def test_no_function_is_above_60_lines() -> None:
    long = {
        f"{name_of(path)}:{function.name}": length
        for path in FILES
        for function in functions_of(path)
        if (length := function.end_lineno - function.lineno + 1) > 60  # type: ignore[operator]
    }
    assert long == {}


def test_no_function_has_more_than_eight_parameters() -> None:
    many = {}
    for path in FILES:
        for function in functions_of(path):
            arguments = function.args
            names = [a.arg for a in (*arguments.posonlyargs, *arguments.args)]
            count = len(names) + len(arguments.kwonlyargs) - (names[:1] in (["self"], ["cls"]))
            if count > 8:
                many[f"{name_of(path)}:{function.name}"] = count
    assert many == {}
