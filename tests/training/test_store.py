"""Which checkpoint a training falls back to, and what is given up."""

import numpy as np
import pytest

from medgan_jax.training.store import Store
from medgan_jax.workdir import Workdir


@pytest.mark.parametrize(
    ("saved", "sound", "expected"),
    [([4, 8, 12], 11, 8), ([4, 8, 12], 12, 12), ([4, 8], 3, 0), ([], 9, 0), ([16, 20], 9, 16), ([6, 8], 3, 0)],
)
def test_the_last_sound_state_or_the_oldest_kept(tiny_config, tmp_path, saved, sound, expected):
    """Long trainings do not start anew because the checkpoint of old is gone."""
    files = Workdir(tmp_path / "run")
    config = tiny_config(checkpoint_every_steps=4)
    store = Store(files, config, data_digest="d")
    for step in saved:
        store.save(step, {"x": np.float32(step)})
    assert store.fall_back(sound) == expected
    assert store.latest_step() == (expected or None)
    store.close()
    left = [int(path.name) for path in files.checkpoints.iterdir() if path.name.isdigit()] if saved else []
    assert sorted(left) == [step for step in saved if step <= expected]
