"""For a few hundred images at 64 px: FastGAN's generator against a projected discriminator, on a laptop too.

python train.py --config=configs/small64.py --workdir=runs/small64 --config.data.path=/data/isic

On 113 of ISIC 2016's 141 melanomas, 28 held out, after 5,800 steps (64 to 69 minutes on one of 2 CPU cores), three
seeds: KID by EfficientNet-Lite1 0.006 to 0.010 (sngan_small64: 0.17 to 0.23), recall 0.44 to 0.46 where as many reals
have 0.82. After 1,200 steps: 0.014 and 0.30 (one seed). All without `checkerboard_weight`; with it, seed 0: no grid,
after 5,800 steps 0.009 and 0.42, after 1,750 0.012 and 0.43. Images with an up and a down need
`data.any_orientation=False`.
"""

from ml_collections import ConfigDict

from medgan_jax.config import default_config


def get_config() -> ConfigDict:
    """Projected GAN (Sauer et al. 2021, arXiv:2111.01007), with more augmentation once its discriminator overfits."""
    c = default_config()
    c.arch = "fastgan"
    c.dis = "projected"
    c.latent_dim = 128
    c.gen_features = 16
    c.loss = "hinge"
    c.checkerboard_weight = 1.0
    c.lr_gen = 5e-4
    c.lr_dis = 5e-4
    c.adam_beta1 = 0.0
    c.adam_beta2 = 0.99
    c.ema_decay = 0.998
    c.ema_rampup = 0.05
    c.data.any_orientation = True
    c.augment.color = 0.5
    c.augment.translation = 0.125
    c.augment.adaptive_target = 0.6
    c.augment.adaptive_images = 20_000
    c.num_steps = 6000
    c.sample_every_steps = 250
    c.checkpoint_every_steps = 250
    return c
