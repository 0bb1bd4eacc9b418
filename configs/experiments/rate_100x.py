"""MedImageGAN's SNGAN with a discriminator that learns 100 times as fast as the generator.

python train.py --config=configs/experiments/rate_100x.py --workdir=runs/rate_100x --config.data.path=/data/isic

Published: PSNR 12.03 dB, SSIM 0.25, MS-GMSD 0.26, MDSI 0.48, HaarPSI 0.38.
Not known: how many images, of which classes; whether the settings of spectral_norm.py were kept, which is assumed.
Two rates: Heusel et al. 2017, arXiv:1706.08500.
"""

from ml_collections import ConfigDict

from configs.experiments import spectral_norm


def get_config() -> ConfigDict:
    """As spectral_norm, with the discriminator's rate 0.02."""
    c = spectral_norm.get_config()
    c.lr_dis = 2e-2
    return c
