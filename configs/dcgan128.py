"""DCGAN at 128 px (Radford et al. 2016, arXiv:1511.06434).

python train.py --config=configs/dcgan128.py --workdir=runs/dcgan128 --config.data.path=/data/isic
"""

from ml_collections import ConfigDict

from medgan_jax.config import default_config


def get_config() -> ConfigDict:
    """The published DCGAN, 128 px."""
    c = default_config()
    c.arch = "dcgan"
    c.image_size = 128
    return c
