"""MedImageGAN's SNGAN at 256 px (Miyato et al. 2018, arXiv:1802.05957), which it offers without figures.

python train.py --config=configs/experiments/sngan_256px.py --workdir=runs/sngan_256px --config.data.path=/data/isic

Published: nothing but the networks. The settings of sngan_128px.py are our choice.
Wants a GPU: on 2 CPU cores a step of the full network takes 8 s and 5 GB.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    """SNGAN, 256 px, 500 epochs, the settings of rate_100x."""
    c = default.get_config()
    c.arch = "sngan"
    c.batch_size = 16
    c.latent_dim = 256
    c.real_label = 0.9
    c.image_size = 256
    c.lr_dis = 2e-2
    c.num_epochs = 500
    return c
