"""For a few hundred images at 256 px, as `small64`.

python train.py --config=configs/small256.py --workdir=runs/small256 --config.data.path=/data/isic

Not trained at full size yet.
"""

from ml_collections import ConfigDict

from medgan_jax.config import named_config


def get_config() -> ConfigDict:
    """`small64`, larger."""
    c = named_config("small64")
    c.image_size = 256
    return c
