"""For a few hundred images at 256 px, as `small64`.

python train.py --config=configs/small256.py --workdir=runs/small256 --config.data.path=/data/isic

Tried for 300 steps only, on an H200, one seed, with augmentation in every step: lesions with borders and pigment, under
a fine grid, with hairs at the same places in many images.
"""

from ml_collections import ConfigDict

from medgan_jax.config import named_config


def get_config() -> ConfigDict:
    """`small64`, larger."""
    c = named_config("small64")
    c.image_size = 256
    return c
