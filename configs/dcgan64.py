"""DCGAN at 64 px (Radford et al. 2016, arXiv:1511.06434).

python train.py --config=configs/dcgan64.py --workdir=runs/dcgan64 --config.data.path=/data/isic
"""

from ml_collections import ConfigDict

from medgan_jax.config import default_config


def get_config() -> ConfigDict:
    """The published DCGAN, 64 px."""
    c = default_config()
    c.arch = "dcgan"
    c.image_size = 64
    return c
