"""MedImageGAN's DCGAN (Radford et al. 2016, arXiv:1511.06434) with batches of 64.

python train.py --config=configs/experiments/batch_64.py --workdir=runs/batch_64 --config.data.path=/data/isic

Published: PSNR 12.46 dB, SSIM 0.23, MS-GMSD 0.25, MDSI 0.49, HaarPSI 0.35.
Not known: how many images, of which classes.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    """DCGAN, 64 px, 200 epochs, batch 64."""
    c = default.get_config()
    c.batch_size = 64
    return c
