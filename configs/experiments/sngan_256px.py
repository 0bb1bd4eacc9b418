"""MedImageGAN's SNGAN at 256 px (Miyato et al. 2018, arXiv:1802.05957), which it offers without figures.

python train.py --config=configs/experiments/sngan_256px.py --workdir=runs/sngan_256px --config.data.path=/data/isic

Published: nothing but the networks. The settings of sngan_128px.py are our choice.
Wants a GPU: on 2 CPU cores a step of the full network takes 5.5 s and 5 GB.
"""

from ml_collections import ConfigDict

from configs.experiments import sngan_128px


def get_config() -> ConfigDict:
    """SNGAN, 256 px, 500 epochs, the settings of rate_100x."""
    c = sngan_128px.get_config()
    c.image_size = 256
    return c
