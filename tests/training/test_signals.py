"""Signals that ask a run to stop."""

import gc
import os
import signal
import time

import pytest

from medgan_jax.training.signals import Signals


def test_a_signal_during_garbage_collection_is_not_lost():
    sent = []

    def ask(phase, info):
        if not sent:
            sent.append(phase)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0)  # where the handler runs

    gc.callbacks.append(ask)
    try:
        with Signals(), pytest.raises(KeyboardInterrupt):
            gc.collect()
            time.sleep(10)
    finally:
        gc.callbacks.remove(ask)
    assert sent
