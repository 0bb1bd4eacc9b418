"""Signals that ask a run to stop."""

import os
import signal
import time

import pytest

from medgan_jax.training.signals import Signals


class AsksWhenDeleted:
    """Sends a signal where Python drops exceptions, as in the garbage collection of JAX."""

    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(1000):  # the handler runs here
            pass


def test_a_signal_that_python_would_drop_is_not_lost():
    with Signals(), pytest.raises(KeyboardInterrupt) as raised:
        AsksWhenDeleted()
        time.sleep(10)
    assert raised.value.args == (signal.SIGTERM,)
