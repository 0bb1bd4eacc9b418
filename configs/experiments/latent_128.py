"""MedImageGAN's DCGAN (Radford et al. 2016, arXiv:1511.06434) with 128 latents in place of 100.

python train.py --config=configs/experiments/latent_128.py --workdir=runs/latent_128 --config.data.path=/data/isic

Published: PSNR 11.89 dB, SSIM 0.29, MS-GMSD 0.27, MDSI 0.49, HaarPSI 0.32.
Not known: how many images, of which classes.
"""

from ml_collections import ConfigDict

from configs.experiments import batch_16


def get_config() -> ConfigDict:
    """DCGAN, 64 px, 200 epochs, batch 16, 128 latents."""
    c = batch_16.get_config()
    c.latent_dim = 128
    return c
