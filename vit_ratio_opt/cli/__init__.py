"""The ``vit-ratio-opt`` command."""
