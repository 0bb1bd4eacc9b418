"""A small SNGAN on computer-drawn skin lesions that come with the package: minutes on a laptop, no files needed.

python train.py --config=configs/quickstart.py --workdir=runs/quickstart

Grey lesions by step 500, colours and borders by step 1,500, after 70 s on 2 CPU cores.
"""

from ml_collections import ConfigDict

from medgan_jax.config import default_config


def get_config() -> ConfigDict:
    """64 px, 16 feature maps, 1,500 steps."""
    c = default_config()
    c.arch = "sngan"
    c.gen_features = 16
    c.dis_features = 16
    c.num_steps = 1500
    c.ema_decay = 0.99
    c.data.source = "phantom"
    c.data.horizontal_flip = True
    return c
