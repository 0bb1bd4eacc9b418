"""MedImageGAN's SNGAN at 128 px (Miyato et al. 2018, arXiv:1802.05957), whose images trained its classifier.

python train.py --config=configs/experiments/sngan_128px.py --workdir=runs/sngan_128px --config.data.path=/data/isic

Published: PSNR 12.18 dB, SSIM 0.24, MS-GMSD 0.15, MDSI 0.52, HaarPSI 0.45.
Not known: how many images, of which classes; the discriminator's rate. It was raised, and 100-fold was the last that
was published: that is our choice.
"""

from ml_collections import ConfigDict

from configs.experiments import rate_100x


def get_config() -> ConfigDict:
    """SNGAN, 128 px, 500 epochs, the settings of rate_100x."""
    c = rate_100x.get_config()
    c.image_size = 128
    c.num_epochs = 500
    return c
