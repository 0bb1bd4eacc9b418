"""MedImageGAN's DCGAN (Radford et al. 2016, arXiv:1511.06434) with 256 latents in place of 100.

python train.py --config=configs/experiments/latent_256.py --workdir=runs/latent_256 --config.data.path=/data/isic

Published: PSNR 10.82 dB, SSIM 0.28, MS-GMSD 0.28, MDSI 0.52, HaarPSI 0.31.
Not known: how many images, of which classes.
"""

from ml_collections import ConfigDict

from configs.experiments import batch_16


def get_config() -> ConfigDict:
    """DCGAN, 64 px, 200 epochs, batch 16, 256 latents."""
    c = batch_16.get_config()
    c.latent_dim = 256
    return c
