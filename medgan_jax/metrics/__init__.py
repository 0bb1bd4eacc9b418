"""Image metrics: `paired` compares two images, `distribution` compares two sets of images."""

from medgan_jax.metrics import distribution, paired

__all__ = ["distribution", "paired"]
