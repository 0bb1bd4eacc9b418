"""MedImageGAN's SNGAN: spectral normalisation in the discriminator (Miyato et al. 2018, arXiv:1802.05957).

python train.py --config=configs/experiments/spectral_norm.py --workdir=runs/spectral_norm --config.data.path=/data/isic

Published: PSNR 12.04 dB, SSIM 0.35, MS-GMSD 0.27, MDSI 0.46, HaarPSI 0.40.
Not known: how many images, of which classes; what "the best parameters" before it were. They are taken to be batch 16,
256 latents and label smoothing.
"""

from ml_collections import ConfigDict

from configs.experiments import label_smoothing


def get_config() -> ConfigDict:
    """SNGAN, 64 px, 200 epochs, batch 16, 256 latents, target 0.9 for reals."""
    c = label_smoothing.get_config()
    c.arch = "sngan"
    return c
