"""DCGAN at 256 px (Radford et al. 2016, arXiv:1511.06434).

python train.py --config=configs/dcgan256.py --workdir=runs/dcgan256 --config.data.path=/data/isic
"""

from ml_collections import ConfigDict

from medgan_jax.config import default_config


def get_config() -> ConfigDict:
    """The published DCGAN, 256 px."""
    c = default_config()
    c.arch = "dcgan"
    c.image_size = 256
    return c
