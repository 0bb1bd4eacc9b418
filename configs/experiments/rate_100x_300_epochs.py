r"""MedImageGAN's SNGAN with a discriminator 100 times as fast, after 100 epochs more.

python train.py --config=configs/experiments/rate_100x_300_epochs.py --workdir=runs/rate_100x_300 \
    --config.data.path=/data/isic

Published: PSNR 12.21 dB, SSIM 0.21, MS-GMSD 0.26, MDSI 0.49, HaarPSI 0.41.
Not known: how many images, of which classes. The same as rate_100x.py up to epoch 200.
Two rates: Heusel et al. 2017, arXiv:1706.08500.
"""

from ml_collections import ConfigDict

from configs.experiments import rate_100x


def get_config() -> ConfigDict:
    """As rate_100x, 300 epochs."""
    c = rate_100x.get_config()
    c.num_epochs = 300
    return c
