from collections.abc import Callable, Iterator
from pathlib import Path

import optuna
import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer

from vit_ratio_opt.training import ImageData, load_digits

optuna.logging.set_verbosity(optuna.logging.WARNING)
# Models this small lose more to waiting for a second thread than they gain from it.
torch.set_num_threads(1)

TINY = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 32,
    "depth": 2,
    "num_heads": 4,
    "mlp_ratio": 2.0,
    "num_classes": 4,
}


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests measure for themselves, and leave nothing in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def make_vit() -> Callable[..., VisionTransformer]:
    """Builds a tiny timm ViT; the same arguments always give the same weights."""

    def make(name: str = "vit_tiny_patch16_224", **changes: object) -> VisionTransformer:
        torch.manual_seed(0)
        model = timm.create_model(name, **(TINY | changes)).eval()
        with torch.no_grad():  # timm's biases, class tokens and LayerScales start at (nearly) zero
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        return model

    return make


@pytest.fixture
def tiny_vit(make_vit: Callable[..., VisionTransformer]) -> VisionTransformer:
    return make_vit()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def labels() -> torch.Tensor:
    return torch.tensor([0, 1, 2, 3, 0, 1, 2, 3])


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_digits()


@pytest.fixture(scope="module")
def dense() -> VisionTransformer:
    """Untrained, for the digits."""
    torch.manual_seed(0)
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=8, patch_size=4, in_chans=1, embed_dim=32, depth=2,
        num_heads=4, mlp_ratio=2.0, num_classes=10,
    )  # fmt: skip


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'study.db'}"
