"""Compare the installed dependencies with the bounds in pyproject.toml, without torch."""

from __future__ import annotations

import logging
from functools import cache
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement

from vit_ratio_opt.errors import InputError

__all__ = ["PACKAGES", "check_versions", "installed_versions"]

PACKAGES = ("vit_ratio_opt", "torch", "timm", "optuna")
"""Packages whose versions a study stores: they may change what a model computes."""

_logger = logging.getLogger(f"optuna.{__name__}")


def installed_versions(*packages: str) -> dict[str, str]:
    """Return the installed version of each package; of :data:`PACKAGES` by default."""
    found = {}
    for package in packages or PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


@cache
def check_versions() -> None:
    """Refuse dependencies that are too old and warn of those that are too new, once.

    pip installs both: ``pip install timm==1.0.20`` only complains. The check takes 10 ms.

    Raises:
        InputError: A dependency is older than this package's lower bound, with which
            this package is not tested.
    """
    old: list[tuple[str, str]] = []
    new: list[tuple[str, str]] = []
    for requirement in _requirements():
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:  # importing it will fail with a message
            continue
        if not requirement.specifier.contains(installed, prereleases=True):
            bounds = [bound for bound in requirement.specifier if bound.operator == ">="]
            is_old = any(not bound.contains(installed, prereleases=True) for bound in bounds)
            (old if is_old else new).append((f"{requirement.name} {installed}", str(requirement)))
    if new:
        _logger.warning(
            f"{_names(new)} newer than this release of vit_ratio_opt knows. Should anything "
            f"fail: {_install(new)}"
        )
    if old:
        raise InputError(f"{_names(old)} too old for vit_ratio_opt: {_install(old)}")


def _requirements() -> list[Requirement]:
    """Return the requirements of every installation, without those of extras."""
    try:
        found = [Requirement(text) for text in requires("vit_ratio_opt") or ()]
    except PackageNotFoundError:  # a checkout on the path that was not installed
        return []
    return [requirement for requirement in found if requirement.marker is None]


def _names(outside: list[tuple[str, str]]) -> str:
    verb = "is" if len(outside) == 1 else "are"
    return f"{', '.join(name for name, _ in outside)} {verb}"


def _install(outside: list[tuple[str, str]]) -> str:
    return f"pip install {' '.join(f'{requirement!r}' for _, requirement in outside)}"
