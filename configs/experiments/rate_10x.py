"""MedImageGAN's SNGAN with a discriminator that learns 10 times as fast as the generator.

python train.py --config=configs/experiments/rate_10x.py --workdir=runs/rate_10x --config.data.path=/data/isic

Published: PSNR 12.05 dB, SSIM 0.30, MS-GMSD 0.27, MDSI 0.50, HaarPSI 0.37.
Not known: how many images, of which classes; whether the settings of spectral_norm.py were kept, which is assumed.
Two rates: Heusel et al. 2017, arXiv:1706.08500.
"""

from ml_collections import ConfigDict

from configs.experiments import spectral_norm


def get_config() -> ConfigDict:
    """As spectral_norm, with the discriminator's rate 0.002."""
    c = spectral_norm.get_config()
    c.lr_dis = 2e-3
    return c
