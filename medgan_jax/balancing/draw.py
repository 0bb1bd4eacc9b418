"""Draws images of a class, and says which of them are to be replaced: copies, and images of another class."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from medgan_jax.balancing.sources import Drawer, Reals
from medgan_jax.errors import UserError
from medgan_jax.metrics.distribution.features import efficientnet_features
from medgan_jax.metrics.distribution.memorization import LEAST_HELD_OUT, CopySearch, distances_of_unseen, memorized
from medgan_jax.sampling import classes_of, sample_batches, seeded_latents

KEPT, COPY, OTHER_CLASS = "kept", "copy", "other class"
BATCH = 16  # images at once, as in the search for copies
_FOLDS = 5
_REGULARISATION = 0.001  # scikit-learn's C; 1e-4 to 1e-2 are as good on ISIC 2016


class Draw(NamedTuple):
    """An image that was drawn.

    Attributes:
      number: its index; the image depends on the generator, the seed, the class and this alone.
      outcome: `KEPT`, or why it is replaced: `COPY` or `OTHER_CLASS`.
      nearest: the name of the training image that it looks most like.
      distance: from that image, as of `CopySearch`; six decimals.
    """

    number: int
    outcome: str
    nearest: str
    distance: str


def draw(
    drawer: Drawer,
    label: str,
    search: CopySearch,
    of_reals: np.ndarray,
    *,
    first: int,
    last: int,
    seed: int,
    mesh: Mesh,
    classify: Callable[[np.ndarray], np.ndarray] | None,
) -> Iterator[tuple[list[Draw], np.ndarray]]:
    """Draws images `first` to `last` - 1 of a class, a batch at a time.

    The classes of a conditional generator take turns, as in `classes_in_turn`: of C classes, number c draws the images
    c, c + C, c + 2 C, ... of the seed. Images of equal latents look alike, and would stand in two classes.

    Args:
      drawer: of the class.
      label: the class.
      search: among `drawer.training`.
      of_reals: see `distances_of_reals`.
      first: the first image.
      last: the end of them.
      seed: of the latents.
      mesh: the devices.
      classify: from images to their classes, those of another class are to be replaced; None to ask nobody.

    Yields:
      What becomes of each image, and the images, uint8 (N, H, W, C).
    """
    generator = drawer.generator
    classes = generator.classes or (label,)

    def index(number: int | np.ndarray) -> Any:
        return classes.index(label) + len(classes) * number

    def latents_of(numbers: np.ndarray) -> jax.Array:
        return seeded_latents(seed, index(numbers + first), latent_dim=generator.latent_dim)

    batches = sample_batches(
        generator.module,
        generator.variables,
        latents_of,
        last - first,
        batch_size=-(-BATCH // mesh.size) * mesh.size,
        mesh=mesh,
        labels_of=classes_of(generator, label if generator.classes else None),
    )
    number = first
    for images in batches:
        found = search.nearest(images)
        copies = memorized(found.distance, of_reals)
        others = classify(images) != label if classify else np.zeros(len(images), bool)
        draws = [
            Draw(
                index(number + i),
                COPY if copies[i] else OTHER_CLASS if others[i] else KEPT,
                drawer.training.names[found.index[i]],
                f"{found.distance[i]:.6f}",
            )
            for i in range(len(images))
        ]
        yield draws, images
        number += len(images)


def distances_of_reals(drawer: Drawer, search: CopySearch) -> tuple[np.ndarray, str]:
    """The distances of `distances_of_unseen`, of the class of the drawer; and which reals these are.

    Where there are none, only images equal to a training image to the grey level are copies.
    """
    training, apart = drawer.training.images, drawer.held_out
    distances = distances_of_unseen(search, training, drawer.groups, apart, drawer.ours)
    if len(apart) >= LEAST_HELD_OUT:
        return distances, f"any of {len(apart)} held-out images is"
    if not len(distances):
        return distances, "0: all of these are of one group"
    return distances, f"any of {len(distances)} of these is to the others"


def train_classifier(reals: Reals) -> tuple[Callable[[np.ndarray], np.ndarray], float]:
    """Fits a logistic regression on EfficientNet-Lite1's activations to real images, all classes of equal weight.

    Not on Lite0's, as generators are trained through that network.

    Returns:
      From images, uint8 (N, H, W, C), to their classes, str (N,); and its balanced accuracy on reals that it was not
      fitted to, by cross-validation with the images of a group on one side.

    Raises:
      UserError: a class has fewer than two reals, or there is one class.
    """
    from sklearn.linear_model import LogisticRegression  # here, because it takes long to import
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    counts = reals.counts
    if len(counts) < 2 or min(counts.values()) < 2:
        raise UserError("--agree: a classifier needs two classes of two real images or more; leave it out")
    features = efficientnet_features("lite1")
    vectors, labels = features.of(reals.images, batch_size=BATCH), reals.labels
    model = make_pipeline(
        StandardScaler(), LogisticRegression(C=_REGULARISATION, class_weight="balanced", max_iter=1000)
    )
    folds = StratifiedGroupKFold(min(_FOLDS, *counts.values()))
    groups = reals.source.groups or reals.source.names
    score = cross_val_score(model, vectors, labels, groups=groups, cv=folds, scoring="balanced_accuracy").mean()
    model.fit(vectors, labels)
    return lambda images: model.predict(features.of(images, batch_size=BATCH)), float(score)
