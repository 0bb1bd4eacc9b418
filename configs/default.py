"""Every field at its default. The values are the published ones of DCGAN (Radford et al. 2016, arXiv:1511.06434).

`medgan_jax/config.py` defines the fields; `python train.py --help` explains each. Set any on the command line:
--config.batch_size=32 --config.data.path=/data/isic
"""

from ml_collections import ConfigDict

from medgan_jax.config import default_config


def get_config() -> ConfigDict:
    """A DCGAN at 64 px on a folder of images."""
    return default_config()
