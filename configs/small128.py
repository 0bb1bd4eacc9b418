"""For a few hundred images at 128 px, as `small64`.

python train.py --config=configs/small128.py --workdir=runs/small128 --config.data.path=/data/isic

Not trained at full size yet.
"""

from ml_collections import ConfigDict

from medgan_jax.config import named_config


def get_config() -> ConfigDict:
    """`small64`, larger."""
    c = named_config("small64")
    c.image_size = 128
    return c
