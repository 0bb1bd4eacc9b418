"""SNGAN at 256 px: DCGAN with spectral normalisation in the discriminator (Miyato et al. 2018, arXiv:1802.05957).

python train.py --config=configs/sngan256.py --workdir=runs/sngan256 --config.data.path=/data/isic

Wants a GPU: on 2 CPU cores a step of the full network takes 5.5 s and 5 GB.
"""

from ml_collections import ConfigDict

from medgan_jax.config import default_config


def get_config() -> ConfigDict:
    """MedImageGAN's SNGAN, 256 px."""
    c = default_config()
    c.arch = "sngan"
    c.image_size = 256
    c.latent_dim = 256
    return c
