import contextlib
import ctypes
import os
import signal
import threading
import time

import pytest

from vit_ratio_opt.runs.signals import stop_on_signals


def test_the_first_signal_asks_and_the_second_ends_and_then_all_is_as_before():
    before = signal.getsignal(signal.SIGTERM)
    with stop_on_signals() as asked:
        assert not asked()
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked()
        assert asked.signal == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before


def test_signals_are_left_alone_outside_the_main_thread():
    seen = []

    def inside():
        with stop_on_signals() as asked:
            seen.append(asked())

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert seen == [False]


LAST_SECONDS = 0.3


def hang_in_c(ready):
    with stop_on_signals(LAST_SECONDS):
        ready.touch()
        lock, mutex = ctypes.CDLL(None).pthread_mutex_lock, ctypes.create_string_buffer(64)
        lock(mutex)
        lock(mutex)


def hang_in_python(ready):
    with stop_on_signals(LAST_SECONDS):
        ready.touch()
        while True:
            with contextlib.suppress(BaseException):
                time.sleep(600)


@pytest.mark.parametrize("hang", [hang_in_c, hang_in_python])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_second_signal_ends_a_process_that_hangs(start, tmp_path, hang, number):
    process = start(hang, tmp_path / "ready")
    deadline = time.monotonic() + 60
    while not (tmp_path / "ready").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, number)
    process.join(2 * LAST_SECONDS)
    assert process.exitcode is None
    os.kill(process.pid, number)
    process.join(10)
    assert process.exitcode == 128 + number
