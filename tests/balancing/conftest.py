"""Generators that were never trained, saved as if they had been; and folders of phantoms."""

import functools

import jax
import numpy as np
import pytest

from medgan_jax.checkpoint import Checkpoints, save_generator
from medgan_jax.data.batches import load_dataset
from medgan_jax.data.phantom import phantom_image
from medgan_jax.images import write_png
from medgan_jax.training.state import build_networks


@pytest.fixture(scope="session")
def saved(tiny_config):
    """A function that saves the initial generator of a config in a folder, which it returns as text."""

    @functools.cache
    def initial(module):
        labels = np.zeros(1, np.int32) if module.num_classes else None
        init = jax.jit(functools.partial(module.init, training=False))
        return init(jax.random.key(0), np.zeros((1, 8), np.float32), labels)

    def save(folder, **overrides):
        config = tiny_config(**overrides)
        training, _ = load_dataset(config.data, image_size=config.image_size, channels=config.channels, progress=False)
        classes = sorted(set(training.labels)) if config.conditional else []
        module = build_networks(config, len(classes)).generator
        checkpoints = Checkpoints(folder / "generator", keep=1)
        record = {"config": config.to_dict(), "data_digest": training.digest, "classes": classes}
        save_generator(checkpoints, 0, initial(module), module, config.latent_dim, record)
        checkpoints.close()
        return str(folder)

    return save


@pytest.fixture(scope="session")
def lesions(tmp_path_factory):
    """A folder of classes: 12 benign and 5 malignant phantoms, 20 x 20 px; not to be changed."""
    folder = tmp_path_factory.mktemp("lesions")
    for label, number in (("benign", 12), ("malignant", 5)):
        (folder / label).mkdir()
        for i in range(number):
            write_png(folder / label / f"{i}.png", phantom_image(i, seed=number, image_size=20, label=label))
    return folder
