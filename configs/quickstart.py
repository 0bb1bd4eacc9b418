"""`small64` with few feature maps, on computer-drawn skin lesions that come with the package: minutes, no files needed.

python train.py --config=configs/quickstart.py --workdir=runs/quickstart

Lesions by step 100, their colours and borders by step 200.
"""

from ml_collections import ConfigDict

from medgan_jax.config import named_config


def get_config() -> ConfigDict:
    """8 feature maps, 200 steps of 8 images."""
    c = named_config("small64")
    c.gen_features = 8
    c.lr_gen = 1e-3
    c.lr_dis = 1e-3
    c.augment.color = 0.0
    c.augment.translation = 0.0
    c.augment.adaptive_target = 0.0
    c.batch_size = 8
    c.num_steps = 200
    c.guard = False  # phantoms are no patients
    c.sample_every_steps = 50
    c.data.source = "phantom"
    return c
