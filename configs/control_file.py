"""A control file of MedImageGAN, a PyTorch project, as it is.

python train.py --config=configs/control_file.py:input.yaml       arch: DCGAN, SNGAN or WGAN
python sample.py --config=configs/control_file.py:generate.yaml   arch: Generator

What a control file has no key for is as in configs/default.py; override any field with --config.FIELD=VALUE.
"""

from pathlib import Path

from ml_collections import ConfigDict

from medgan_jax.compat.medimagegan.control_file import load
from medgan_jax.config import default_config
from medgan_jax.errors import UserError


def get_config(path: str = "") -> ConfigDict:
    """The training, or the sampling, that the control file describes."""
    if not path:
        raise UserError("configs/control_file.py: give the control file too, as configs/control_file.py:FILE.yaml")
    return load(Path(path), default_config())
