"""MedImageGAN's DCGAN with one-sided label smoothing (Salimans et al. 2016, arXiv:1606.03498).

python train.py --config=configs/experiments/label_smoothing.py --workdir=runs/smoothing --config.data.path=/data/isic

Published: PSNR 12.92 dB, SSIM 0.35, MS-GMSD 0.29, MDSI 0.45, HaarPSI 0.39.
Not known: how many images, of which classes. Batch 16 and 256 latents, as before it.
"""

from ml_collections import ConfigDict

from configs.experiments import latent_256


def get_config() -> ConfigDict:
    """DCGAN, 64 px, 200 epochs, batch 16, 256 latents, target 0.9 for reals."""
    c = latent_256.get_config()
    c.real_label = 0.9
    return c
