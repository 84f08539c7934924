"""Prints the lowest version of each dependency that pyproject.toml allows, for `pip install -c`.

Without those of the extras for development: no user installs them.
"""

import re
import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    from pip._vendor import tomli as tomllib

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
DEVELOPMENT = ("test", "lint", "bench", "dev")


def lowest(project: dict) -> list[str]:
    """A pin for each dependency of a project, those of its extras included.

    Raises:
        SystemExit: A dependency has no lower bound.
    """
    extras = project["optional-dependencies"]
    wanted = sum(
        (extras[name] for name in extras if name not in DEVELOPMENT), project["dependencies"]
    )
    return [_pin(requirement) for requirement in wanted]


def _pin(requirement: str) -> str:
    found = re.fullmatch(r"([\w.-]+)(?:\[[\w,]+\])?>=([\w.]+)(?:,[^;]*)?(?:\s*;.*)?", requirement)
    if found is None:
        raise SystemExit(f"{requirement!r} has no lowest version: write `name>=version`.")
    return "{}=={}".format(*found.groups())


if __name__ == "__main__":
    print(*lowest(tomllib.loads(PYPROJECT.read_text())["project"]), sep="\n")
