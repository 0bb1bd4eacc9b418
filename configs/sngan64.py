"""SNGAN at 64 px: DCGAN with spectral normalisation in the discriminator (Miyato et al. 2018, arXiv:1802.05957).

python train.py --config=configs/sngan64.py --workdir=runs/sngan64 --config.data.path=/data/isic

On 141 melanomas of ISIC 2016: noise at step 500, lesions under a strong grid at 1,000, under a fainter one at 1,500,
which is 8 minutes on 2 CPU cores.
"""

from ml_collections import ConfigDict

from medgan_jax.config import default_config


def get_config() -> ConfigDict:
    """MedImageGAN's SNGAN, 64 px."""
    c = default_config()
    c.arch = "sngan"
    c.image_size = 64
    c.latent_dim = 256
    return c
