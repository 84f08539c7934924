"""Stop on SIGTERM and Ctrl-C: the first signal stops in order, the second one at once."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator
from types import FrameType

from vit_ratio_opt.runs.connections import stopping

__all__ = ["SearchStopped", "StopRequest", "stop_on_signals"]


class SearchStopped(SystemExit):
    """Raised when a signal has stopped a search or a training whose state was saved.

    Uncaught, it ends the process with 128 plus the signal's number, so that Slurm or Kubernetes
    know that there is more to do.

    Args:
        number: Number of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


class StopRequest:
    """Request to stop this process, which a signal makes.

    Attributes:
        signal: Number of the signal; 0 before one came.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._set = threading.Event()

    def __call__(self) -> bool:
        """Return whether a signal has asked to stop."""
        return self._set.is_set()

    def ask(self, number: int) -> None:
        """Record that the signal with this number asks to stop."""
        self.signal = number
        self._set.set()

    def wait(self, seconds: float) -> None:
        """Sleep until a signal asks to stop, at the most for ``seconds``."""
        self._set.wait(seconds)


@contextlib.contextmanager
def stop_on_signals(last_seconds: float = 2.0) -> Iterator[StopRequest]:
    """Turn SIGTERM (preemption) and Ctrl-C into a request to stop, for as long as this lasts.

    A second signal raises KeyboardInterrupt, and ends the process after ``last_seconds`` if it is
    still there, as in a call in C or with a database that does not answer.

    Outside the main thread, which alone receives signals, nothing is changed.

    Args:
        last_seconds: Time for everything that cleans up after the second signal.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def stop(number: int, frame: FrameType | None) -> None:
        if request():
            raise KeyboardInterrupt
        request.ask(number)
        stopping.set()
        # Not print: the signal may have interrupted a print.
        os.write(2, b"\nstopping: saving the training state; press Ctrl-C again to stop at once\n")

    reader, writer = socket.socketpair()
    writer.setblocking(False)
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, stop) for number in numbers}
    # Python's handlers wait for the main thread, which may hang; the socket is written at once.
    wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    threading.Thread(
        target=_end_at_once, args=(reader, last_seconds), daemon=True, name="signals"
    ).start()
    try:
        yield request
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        writer.close()
        stopping.clear()


def _end_at_once(reader: socket.socket, last_seconds: float) -> None:
    """End the process some seconds after the second signal, or at the third one."""
    with reader:
        received = 0
        while received < 2:
            numbers = reader.recv(1)
            if not numbers:
                return
            received += numbers[0] in (signal.SIGTERM, signal.SIGINT)
        reader.settimeout(last_seconds)
        with contextlib.suppress(TimeoutError):
            while more := reader.recv(1):
                if more[0] in (signal.SIGTERM, signal.SIGINT):  # a third one
                    break
            else:
                return
        os._exit(128 + numbers[0])
