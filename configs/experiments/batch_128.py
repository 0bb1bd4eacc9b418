"""MedImageGAN's DCGAN with batches of 128, those of DCGAN (Radford et al. 2016, arXiv:1511.06434).

python train.py --config=configs/experiments/batch_128.py --workdir=runs/batch_128 --config.data.path=/data/isic

Published: PSNR 9.91 dB, SSIM 0.04, MS-GMSD 0.27, MDSI 0.58, HaarPSI 0.31.
Not known: how many images, of which classes; with fewer than 128 there is no batch. The worst of its batch sizes.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    """DCGAN, 64 px, 200 epochs, batch 128."""
    c = default.get_config()
    c.batch_size = 128
    return c
