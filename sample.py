#!/usr/bin/env python3
"""Samples images from a trained generator: the same as `medgan sample`. See `python sample.py --help`."""

import sys

from medgan_jax.cli import main

if __name__ == "__main__":
    main(["sample", *sys.argv[1:]])
