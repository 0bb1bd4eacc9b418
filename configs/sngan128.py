"""SNGAN at 128 px: DCGAN with spectral normalisation in the discriminator (Miyato et al. 2018, arXiv:1802.05957).

python train.py --config=configs/sngan128.py --workdir=runs/sngan128 --config.data.path=/data/isic
"""

from ml_collections import ConfigDict

from medgan_jax.config import default_config


def get_config() -> ConfigDict:
    """MedImageGAN's SNGAN, 128 px."""
    c = default_config()
    c.arch = "sngan"
    c.image_size = 128
    c.latent_dim = 256
    return c
