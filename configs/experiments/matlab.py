"""The regime of MATLAB's example "Train Generative Adversarial Network (GAN)", with our networks.

python train.py --config=configs/experiments/matlab.py --workdir=runs/matlab --config.data.path=/data/isic

Published: pictures, of flowers, and scores beside the training, which are score_dis and score_gen in our metrics.jsonl:
(mean D(x) + mean(1 - D(G(z)))) / 2 of the discriminator, and mean D(G(z)) of the generator. Both are 0.5 where neither
wins.

Its 5x5 kernels are not offered: the networks are the 4x4 ones of DCGAN (Radford et al. 2016, arXiv:1511.06434), so its
pictures are not reproduced to the letter.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    """DCGAN, 64 px, 600 epochs, batch 128, flipped labels, dropout, simultaneous updates."""
    c = default.get_config()
    c.batch_size = 128
    c.num_epochs = 600
    c.dis_dropout = 0.5
    c.label_flip = 0.3  # of the reals in each batch, exactly
    c.simultaneous = True
    c.num_sample_images = 25
    c.sample_every_steps = 100
    c.data.horizontal_flip = True
    return c
