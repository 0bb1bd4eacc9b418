#!/usr/bin/env python3
"""Trains a GAN on a folder of images: the same as `medgan train`. See `python train.py --help`."""

import sys

from medgan_jax.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
