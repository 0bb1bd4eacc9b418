"""The classifiers of trials."""

import jax
import numpy as np
import pytest

from medgan_jax.config import AugmentConfig
from medgan_jax.models import efficientnet_lite
from medgan_jax.proving import classifier as module
from medgan_jax.proving.classifier import CLASSIFIERS, Plan

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def images():
    """24 discs on grey, those of class 1 dark and those of class 0 bright, each of another size and place."""
    random = np.random.default_rng(0)
    labels = np.arange(24) % 2
    rows, columns = np.mgrid[:16, :16]
    found = []
    for label in labels:
        (y, x), radius = random.uniform(5, 11, 2), random.uniform(2.5, 4.5)
        disc = (rows - y) ** 2 + (columns - x) ** 2 < radius**2
        found.append(np.where(disc, 30 if label else 220, 128))
    return np.repeat(np.stack(found).astype(np.uint8)[..., None], 3, axis=-1), labels


def uniform(number, weights=(1, 1), augmented=False):
    return Plan(np.full(number, 1 / number), np.array(weights, np.float32), augmented)


def test_a_linear_classifier_learns_and_repeats_itself(images):
    pixels, labels = images
    classifier = CLASSIFIERS["linear"]
    inputs = classifier.inputs(pixels, augmented=True)
    variables = jax.device_get(classifier.train(inputs[:16], labels[:16], uniform(16), steps=100, seed=1))
    scores = classifier.predict(variables, inputs[16:])
    assert scores.shape == (8, 2) and (scores.argmax(1) == labels[16:]).all()
    np.testing.assert_allclose(scores.sum(1), 1)
    once, again = (
        classifier.train(inputs[:16], labels[:16], uniform(16, augmented=True), steps=2, seed=1) for _ in range(2)
    )
    assert jax.tree.all(jax.tree.map(np.array_equal, once, again))
    of_class = Plan(labels[:16] / 8, np.array([1, 0], np.float32), False)  # the only class drawn weighs nothing
    ignoring = classifier.train(inputs[:16], labels[:16], of_class, steps=5, seed=1)
    assert not np.any(ignoring["params"]["kernel"])
    # Where it looks: the map's mean is the logit, but for the constants of standardisation.
    attention = classifier.attention(variables, pixels[16:], 1).mean((1, 2))
    kernel, shift = variables["params"]["kernel"][:, 1], variables["mean"] / variables["deviation"]
    logits = (inputs[16:, 0] / variables["deviation"] - shift) @ kernel
    np.testing.assert_allclose(attention, logits + shift @ kernel, rtol=1e-3, atol=1e-3)


@pytest.fixture
def short(monkeypatch):
    """The network ends after its second stage: all kinds of layers are there, and few to compile, as in flips alone.

    What it is made of is private: no user chooses it.
    """
    whole = efficientnet_lite.load_efficientnet_lite("lite0", folded=False)
    names = ["stem", *(f"block_{i}" for i in range(3)), "head", "classifier"]
    cut = {group: {name: layers[name] for name in names if name in layers} for group, layers in whole.items()}
    cut["params"]["head"] = cut["params"]["head"] | {"kernel": whole["params"]["head"]["kernel"][:24]}
    monkeypatch.setattr(efficientnet_lite, "_STAGES", efficientnet_lite._STAGES[:2])
    monkeypatch.setattr(module, "load_efficientnet_lite", lambda variant, folded: cut)
    monkeypatch.setattr(module, "AUGMENTATION", AugmentConfig(flips=True))


def test_fine_tuning_changes_all_of_the_network(images, short):
    pixels, labels = images
    classifier = CLASSIFIERS["finetuned"]
    start = classifier._initial(pixels, 2)  # nothing public has ImageNet's weights with the new layer
    variables = classifier.train(pixels, labels, uniform(24, augmented=True), steps=2, seed=0)
    moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), start, jax.device_get(variables))
    assert all(jax.tree.leaves(moved))
    assert classifier.attention(variables, pixels[:2], 1).shape == (2, 8, 8)
    np.testing.assert_allclose(classifier.predict(variables, pixels[:3]).sum(1), 1)
