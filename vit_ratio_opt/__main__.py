"""``python -m vit_ratio_opt`` is ``vit-ratio-opt``, for those who start modules, as torchrun."""

from vit_ratio_opt.cli import main

if __name__ == "__main__":
    main()
