"""Which module may import which: read from the source, imports inside functions included."""

import ast
import sys
from collections import deque
from collections.abc import Iterator
from functools import cache
from importlib.util import resolve_name
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "vit_ratio_opt"
TORCH = {"torch", "torchvision", "timm", "fvcore", "safetensors.torch"}
# What shows or runs a study: `records` is below all of these.
ABOVE_RECORDS = {"report", "runs", "cli"}
# Circles that are still there. A module that leaves its circle leaves this set.
KNOTS: set[str] = set()


def _module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


PATHS = {_module_name(path): path for path in sorted((ROOT / PACKAGE).rglob("*.py"))}


def _is_type_checking(node: ast.AST) -> bool:
    guards = ("TYPE_CHECKING", "typing.TYPE_CHECKING")
    return isinstance(node, ast.If) and ast.unparse(node.test) in guards


def _import_statements(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            yield child
        elif _is_type_checking(child):
            for statement in child.orelse:
                yield from _import_statements(ast.Module([statement], []))
        else:
            yield from _import_statements(child)


def _with_parents(module: str) -> set[str]:
    """A module and the packages whose ``__init__`` runs before it."""
    parts = module.split(".")
    return {".".join(parts[:end]) for end in range(1, len(parts) + 1)}


@cache
def imports_of(module: str) -> frozenset[str]:
    """Modules that a module imports, at any place: full names in the package, and others."""
    path = PATHS[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found: set[str] = set()
    for statement in _import_statements(ast.parse(path.read_text(), str(path))):
        if isinstance(statement, ast.Import):
            for alias in statement.names:
                found |= _with_parents(alias.name)
        else:
            source = "." * statement.level + (statement.module or "")
            source = resolve_name(source, package)
            found |= _with_parents(source)
            found |= {f"{source}.{a.name}" for a in statement.names} & PATHS.keys()
    return frozenset(found - _with_parents(module))


def find_path(start: str, goals: set[str]) -> list[str]:
    """Shortest chain of imports from a module to one of the goals; empty if there is none."""
    came_from: dict[str, str] = {}
    queue = deque([start])
    while queue:
        module = queue.popleft()
        for imported in sorted(imports_of(module)) if module in PATHS else ():
            if imported in goals:
                chain = [imported, module]
                while chain[-1] != start:
                    chain.append(came_from[chain[-1]])
                return chain[::-1]
            if imported not in came_from:
                came_from[imported] = module
                queue.append(imported)
    return []


def _inside(folder: str) -> list[str]:
    found = [name for name in PATHS if f"{name}.".startswith(f"{PACKAGE}.{folder}.")]
    assert found, f"{PACKAGE}/{folder} is not there"
    return found


def _names(modules: set[str]) -> set[str]:
    return {f"{PACKAGE}.{module}" for module in modules}


@pytest.mark.parametrize("module", [m for m in PATHS if m not in _names(KNOTS)])
def test_no_circle_of_imports(module: str) -> None:
    circle = find_path(module, {module})
    assert not circle, f"circle of imports: {' -> '.join(circle)}"


def test_utils_import_the_standard_library_and_errors_only() -> None:
    allowed = {PACKAGE, f"{PACKAGE}.errors", *_inside("utils")}
    for module in _inside("utils"):
        others = {
            name
            for name in imports_of(module) - allowed
            if name.partition(".")[0] not in sys.stdlib_module_names | {"packaging"}
        }
        assert not others, f"{module} imports {', '.join(sorted(others))}"


# Each is a storage of Optuna's with other waits, and cannot be made of its public parts.
STORAGES = {"runs.database", "runs.grpc_client", "runs.proxy"}


@pytest.mark.parametrize("module", [m for m in PATHS if m not in _names(STORAGES)])
def test_no_module_imports_a_private_module_of_others(module: str) -> None:
    """Any release may rename it; `_compat` has what there is no public way for."""
    private = {name for name in imports_of(module) - PATHS.keys() if "._" in name}
    assert not private, f"{module} imports {', '.join(sorted(private))}"


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [("records", TORCH | _names(ABOVE_RECORDS)), ("search", TORCH)],
)
def test_records_and_search_never_reach(folder: str, forbidden: set[str]) -> None:
    for module in _inside(folder):
        chain = find_path(module, forbidden)
        assert not chain, f"{folder} must not import {chain[-1]}: {' -> '.join(chain)}"
