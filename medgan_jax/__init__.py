"""Synthetic medical images for data sets that are too small and too unbalanced: GANs in JAX."""

__version__ = "0.1.0"
