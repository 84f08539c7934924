"""Vision Transformers of timm: families, creation, surgery, what is supported."""
