from collections.abc import Callable

import optuna
import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer

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
