"""MedImageGAN's longer training of its worst batch size, 128 (DCGAN, Radford et al. 2016, arXiv:1511.06434).

python train.py --config=configs/experiments/long_training.py --workdir=runs/long_training --config.data.path=/data/isic

Published: no figures, but that the images come to resemble the reals.
Not known: the number of epochs; 800, four times as many as in batch_128.py, is our choice.
"""

from ml_collections import ConfigDict

from configs.experiments import batch_128


def get_config() -> ConfigDict:
    """DCGAN, 64 px, 800 epochs, batch 128."""
    c = batch_128.get_config()
    c.num_epochs = 800
    return c
