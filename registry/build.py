"""Writes the sampler as a package of the OptunaHub registry, which needs nothing of this one.

A registry package is a folder that Optuna's users load by name and that depends on released
packages only, so the search half is copied into it, with its imports made relative.

    python registry/build.py DEST      # makes DEST/samplers/binary_search
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

HERE = Path(__file__).parent
SOURCE = HERE.parent / "vit_ratio_opt"
SEARCH = ("belief", "budget", "claims", "columns", "curve", "direction", "forecast")
SEARCH += ("front", "frontier", "log_losses", "margins", "noise", "plan", "sampler", "tolerance")
MODULES = (
    "errors.py",
    "_compat.py",
    *(f"search/{name}.py" for name in SEARCH),
)


def build(destination: Path) -> Path:
    """Write the package below ``destination``, which loads as ``samplers/binary_search``."""
    package = destination / "samplers" / "binary_search"
    shutil.copytree(HERE / "binary_search", package, dirs_exist_ok=True)
    shutil.copy(HERE.parent / "LICENSE", package)
    for module in MODULES:
        text = (SOURCE / module).read_text()
        text = text.replace("from vit_ratio_opt.search.", "from ._")
        text = text.replace("from vit_ratio_opt.", "from ._")
        (package / f"_{Path(module).name}").write_text(text)
    return package


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python registry/build.py DEST")
    print(build(Path(sys.argv[1])))
