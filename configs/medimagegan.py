"""The published experiments of MedImageGAN, and the training settings of MATLAB's example.

python train.py --config=configs/medimagegan.py:batch_16 --workdir=runs/batch_16 --config.data.path=/data/isic

`EXPERIMENTS` says what each changes of configs/default.py. docs/experiments.md has the published scores beside ours.
Papers: DCGAN (Radford et al. 2016, arXiv:1511.06434), label smoothing (Salimans et al. 2016, arXiv:1606.03498), SNGAN
(Miyato et al. 2018, arXiv:1802.05957), two learning rates (Heusel et al. 2017, arXiv:1706.08500).

Not published, in any of them: how many images, of which classes. Not published and our choice: the epochs of
`long_training`; the settings kept from `label_smoothing` on; the discriminator's rate of `sngan_128px`; all of
`sngan_256px`, which wants a GPU: on 2 CPU cores a step of the full network takes 5.5 s and 5 GB.

`matlab` has the settings of "Train Generative Adversarial Network (GAN)". It published pictures, of flowers, and two
scores, which are `score_dis` and `score_gen` in our metrics.jsonl: (mean D(x) + mean(1 - D(G(z)))) / 2 of the
discriminator, and mean D(G(z)) of the generator. Both are 0.5 where neither wins. Its networks have 5x5 kernels, ours
the 4x4 ones of DCGAN, so its pictures are not reproduced exactly.
"""

from typing import Any

from ml_collections import ConfigDict

from medgan_jax.config import default_config
from medgan_jax.errors import UserError

LATENT_256 = {"batch_size": 16, "latent_dim": 256}
SMOOTHED = LATENT_256 | {"real_label": 0.9}
SNGAN = SMOOTHED | {"arch": "sngan"}
RATE_100X = SNGAN | {"lr_dis": 2e-2}
EXPERIMENTS: dict[str, dict[str, Any]] = {
    "batch_128": {"batch_size": 128},
    "batch_64": {"batch_size": 64},
    "batch_16": {"batch_size": 16},
    "long_training": {"batch_size": 128, "num_epochs": 800},
    "latent_128": {"batch_size": 16, "latent_dim": 128},
    "latent_256": LATENT_256,
    "label_smoothing": SMOOTHED,
    "spectral_norm": SNGAN,
    "rate_10x": SNGAN | {"lr_dis": 2e-3},
    "rate_100x": RATE_100X,
    "rate_100x_300_epochs": RATE_100X | {"num_epochs": 300},
    "sngan_128px": RATE_100X | {"image_size": 128, "num_epochs": 500},
    "sngan_256px": RATE_100X | {"image_size": 256, "num_epochs": 500},
    "matlab": {
        "batch_size": 128,
        "num_epochs": 600,
        "dis_dropout": 0.5,
        "label_flip": 0.3,  # of the reals in each batch, exactly
        "simultaneous": True,
        "num_sample_images": 25,
        "sample_every_steps": 100,
        "data.horizontal_flip": True,
    },
}


def get_config(name: str = "") -> ConfigDict:
    """The experiment of that name."""
    if name not in EXPERIMENTS:
        known = ", ".join(EXPERIMENTS)
        raise UserError(f"configs/medimagegan.py:{name or 'NAME'}: give one of these after the colon: {known}")
    c = default_config()
    c.update_from_flattened_dict(EXPERIMENTS[name])
    return c
