"""MedImageGAN's DCGAN (Radford et al. 2016, arXiv:1511.06434) with batches of 16, which it kept from then on.

python train.py --config=configs/experiments/batch_16.py --workdir=runs/batch_16 --config.data.path=/data/isic

Published: PSNR 12.76 dB, SSIM 0.30, MS-GMSD 0.25, MDSI 0.49, HaarPSI 0.37.
Not known: how many images, of which classes.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    """DCGAN, 64 px, 200 epochs, batch 16."""
    c = default.get_config()
    c.batch_size = 16
    return c
