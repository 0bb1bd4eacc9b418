"""What helps an SNGAN on a few hundred images, put together, 256 px. docs/small-data.md shows what each part does.

python train.py --config=configs/small256.py --workdir=runs/small256 --config.data.path=/data/isic

Not run at full size: a step takes 5.5 s and 5 GB on 2 CPU cores, so this wants a GPU. What is known is of 64 px.
"""

from ml_collections import ConfigDict

from configs import sngan256


def get_config() -> ConfigDict:
    """The published SNGAN, 256 px, with augmentation, upsampling without a grid, and an averaged generator."""
    c = sngan256.get_config()
    c.augment.flips = True
    c.augment.quarter_turns = True
    c.augment.translation = 0.125
    c.upsample = "nearest"
    c.ema_decay = 0.999
    c.ema_rampup = 0.05
    c.num_steps = 3000
    return c
