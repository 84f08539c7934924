"""``python -m vit_ratio_opt`` is ``vit-ratio-opt``, for those who start modules, as torchrun."""

from __future__ import annotations

import signal


def main() -> None:
    """Run ``vit-ratio-opt``; Ctrl-C ends it without a traceback from the start."""
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    from vit_ratio_opt.cli.main import main as run

    signal.signal(signal.SIGINT, before)
    run()


if __name__ == "__main__":
    main()
