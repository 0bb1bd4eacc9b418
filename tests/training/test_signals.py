"""Signals that ask a run to stop."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from medgan_jax.training.signals import Signals


class AsksWhenDeleted:
    """Sends a signal where Python drops exceptions, as in the garbage collection of JAX."""

    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(1000):  # the handler runs here
            pass


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU"])
def test_each_signal_that_asks_is_noted(name):
    with Signals() as signals:
        signals.postpone()
        os.kill(os.getpid(), signal.Signals[name])
        assert signals.caught == signal.Signals[name]


def test_a_signal_that_python_would_drop_is_not_lost():
    with Signals(), pytest.raises(KeyboardInterrupt) as raised:
        AsksWhenDeleted()
        time.sleep(10)
    assert raised.value.args == (signal.SIGTERM,)


def test_in_another_thread_no_handler_is_installed():
    """Where Python allows none: a server may train in one."""

    def handlers():
        with Signals():
            return signal.getsignal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(handlers).result() is before
