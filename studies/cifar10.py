"""Search the two pruning ratios of a CIFAR-10 ViT, within a FLOPs budget or a tolerance.

``--data`` is a folder with ``train/<class>/*`` and ``test/<class>/*``, or one in which torchvision
keeps CIFAR-10, or an empty one, into which it is downloaded. ``--strategy`` says what is pruned:
weights, the tokens that pass through them, or both. ``--fixed-ratio`` runs the baseline, one ratio
for both modules; with ``--strategy cascade`` that is CP-ViT.

    python studies/cifar10.py --data DIR --checkpoint FILE --budget 0.7 --n-trials 8 --epochs 1
    python studies/cifar10.py --data DIR --checkpoint FILE --budget 0.7 --epochs 1 --fixed-ratio
    python studies/cifar10.py --data DIR --checkpoint FILE --tolerance 2 --n-trials 12 --epochs 1
    python studies/cifar10.py --data DIR --checkpoint FILE --tolerance 1 --strategy both
    python studies/cifar10.py --data DIR --checkpoint FILE --tolerance 0.5 --strategy cascade \
        --cascade late --start runs/cifar10/checkpoints/cifar10-0%2e7/trial-0003.safetensors
"""

from __future__ import annotations

from image_search import study_of

from vit_ratio_opt.cli.app import run_command

main = study_of(
    "cifar10",
    "Search the two pruning ratios of a CIFAR-10 ViT, within a FLOPs budget or a tolerance.",
    validation="test",
)


if __name__ == "__main__":
    run_command(main)
