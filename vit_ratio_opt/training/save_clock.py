"""When the state of a training is saved. Never imports torch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from vit_ratio_opt.utils.checks import check_number

__all__ = ["STATE_SECONDS", "SaveClock", "check_state_every"]

STATE_SECONDS = 300.0
"""Usual seconds between two saves of a state: what a killed process loses at most."""


class SaveClock:
    """Tells when the state of a training has to be saved again.

    Args:
        seconds: Seconds between two saves; 0 saves at every opportunity.
        now: Clock, in seconds.
    """

    def __init__(
        self, seconds: float = STATE_SECONDS, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._seconds, self._now = seconds, now
        self.restart()

    def restart(self) -> None:
        """Begin to count the seconds anew."""
        self._since = self._now()

    def __call__(self) -> bool:
        """Return whether the seconds are over; if so, begin to count anew."""
        if self._now() - self._since < self._seconds:
            return False
        self.restart()
        return True


def check_state_every(value: Any) -> float:
    """Return a number of seconds between two saves of a state.

    Raises:
        InputError: ``value`` is no finite number, or below 0.
    """
    return check_number("state_every", value, "at least 0, in seconds", least=0, most=math.inf)
