"""What helps an SNGAN on a few hundred images, put together, 256 px. docs/small-data.md shows what each part does.

python train.py --config=configs/sngan_small256.py --workdir=runs/sngan_small256 --config.data.path=/data/isic

Not run at full size: a step takes 5.5 s and 5 GB on 2 CPU cores, so this wants a GPU. What is known is of 64 px.
"""

from ml_collections import ConfigDict

from medgan_jax.config import named_config


def get_config() -> ConfigDict:
    """`sngan_small64`, larger."""
    c = named_config("sngan_small64")
    c.image_size = 256
    return c
