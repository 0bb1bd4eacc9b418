#!/usr/bin/env python3
"""Compares generated images with real ones: the same as `medgan evaluate`. See `python evaluate.py --help`."""

import sys

from medgan_jax.cli import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
