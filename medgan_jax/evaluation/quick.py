"""The fast part of an evaluation, for use during training."""

import numpy as np

from medgan_jax.errors import UserError
from medgan_jax.metrics.distribution.features import efficientnet_features
from medgan_jax.metrics.distribution.kid import kid
from medgan_jax.metrics.distribution.swd import sliced_wasserstein

MIN_IMAGES = 20
_MAX_IMAGES = 500  # of each set


def check_enough(held_out: int, training: int) -> None:
    """Raises UserError when there are too few images, held out or to train on, for their distances to mean anything."""
    for number, kept, change in ((held_out, "held out", "raise"), (training, "left to train on", "lower")):
        if number < MIN_IMAGES:
            raise UserError(
                f"evaluate_every_steps: needs {MIN_IMAGES} images or more, and {number} are {kept}; "
                f"{change} data.holdout_fraction, or set evaluate_every_steps=0"
            )


class QuickEvaluation:
    """Distances of fakes to held-out images, beside those of as many training images (the real reference).

    Attributes:
      features: those that KID is of.
      num_fakes: that are to be compared.
    """

    def __init__(self, training: np.ndarray, held_out: np.ndarray, *, seed: int) -> None:
        """Measures the real reference.

        Args:
          training: uint8, (N, H, W, C).
          held_out: uint8, (M, H, W, C).
          seed: decides patches and projections; the same at every step, so that figures can be compared.
        """
        random = np.random.default_rng(seed)  # images are sorted by class: the first ones would be of one class

        def some(images: np.ndarray) -> np.ndarray:
            return np.asarray(images[np.sort(random.permutation(len(images))[:_MAX_IMAGES])])

        self._seed = seed
        self.features = efficientnet_features()
        self._reference = some(held_out)
        self._reference_features = self.features.of(self._reference)
        self._reals = self._distances(some(training))
        self.num_fakes = min(len(training), _MAX_IMAGES)

    def figures(self, fakes: np.ndarray) -> dict[str, float]:
        """`swd` (the mean over scales), `swd_SIZE` of each scale, `kid`, and each of reals as `NAME_reals`.

        Args:
          fakes: uint8, (`num_fakes`, H, W, C).
        """
        return self._distances(fakes) | {f"{name}_reals": value for name, value in self._reals.items()}

    def _distances(self, images: np.ndarray) -> dict[str, float]:
        by_scale = sliced_wasserstein(images, self._reference, seed=self._seed, replicates=0)
        distances = {f"swd_{size}": estimate.value for size, estimate in by_scale.items()}
        vectors = self.features.of(images)
        return {
            "swd": float(np.mean(list(distances.values()))),
            "kid": kid(vectors, self._reference_features, seed=self._seed, replicates=0).value,
            **distances,
        }
