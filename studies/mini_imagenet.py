"""Search the two pruning ratios of a Mini-ImageNet ViT, within a FLOPs budget or a tolerance.

``--data`` is a folder with ``train/<class>/*`` and ``val/<class>/*`` (or ``test``), or one with
``images/*`` and ``train.csv``, ``val.csv``, ``test.csv`` as the data set is usually passed on.
Those three have different classes, for few-shot learning; here all images are put together and a
fifth of each class is held out for the test.

The dense model is one of ``studies/train_dense.py`` at 84 pixels, or any timm ViT that was
fine-tuned on these classes, at its own size.

    python studies/train_dense.py dense.safetensors --data DIR --image-size 84 --patch-size 12 \
        --embed-dim 96 --num-heads 6 --mlp-ratio 3 --epochs 40 --cutmix 1 --drop-path 0.05 \
        --ema 0.998
    python studies/mini_imagenet.py --data DIR --checkpoint dense.safetensors --tolerance 1
    python studies/mini_imagenet.py --data DIR --checkpoint dense.safetensors --tolerance 1 \
        --strategy cascade --fixed-ratio
"""

from __future__ import annotations

from image_search import study_of

from vit_ratio_opt.cli.app import run_command

main = study_of(
    "mini-imagenet",
    "Search the two pruning ratios of a Mini-ImageNet ViT, within a budget or a tolerance.",
    validation="train",
)


if __name__ == "__main__":
    run_command(main)
