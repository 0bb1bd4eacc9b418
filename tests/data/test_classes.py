"""Classes as numbers, and the refusal of what cannot be learned by class."""

import re

import numpy as np
import pytest

from medgan_jax.data.classes import class_number, in_proportion, number_classes
from medgan_jax.errors import UserError


def test_classes_are_the_sorted_labels_of_the_training_images():
    classes = number_classes(("b", "c", "a", "b", "b"), ("c", "b"), "lesions")
    assert classes.names == ("a", "b", "c")
    assert classes.training.dtype == classes.held_out.dtype == np.int32
    assert classes.training.tolist() == [1, 2, 0, 1, 1]
    assert classes.held_out.tolist() == [2, 1]
    assert classes.counts.tolist() == [1, 3, 1]
    assert number_classes(("a", "b"), None, "lesions").held_out is None


@pytest.mark.parametrize(
    ("numbers", "balanced", "says"),
    [
        ((9, 3), True, "9, malignant 3; batches draw them equally, so a malignant image is seen 3.0 times as often as"),
        ((5, 5), True, "5, malignant 5; batches draw them equally$"),
        ((9, 1), False, "9, malignant 1; batches draw them in these proportions$"),
    ],
)
def test_the_log_says_how_classes_are_drawn(numbers, balanced, says):
    labels = ("benign",) * numbers[0] + ("malignant",) * numbers[1]
    assert re.match(f"classes: benign {says}", number_classes(labels, None, "lesions").describe(balanced=balanced))


def test_what_cannot_be_learned_by_class_is_refused():
    for labels, held_out, says in [
        (None, None, "the images of lesions have no labels"),
        (("mole",) * 3, None, "all 3 images of lesions are 'mole'"),
        (
            tuple(f"{age}.5" for age in range(300)),
            None,
            "the 300 .* have 300 labels: 0.5, 1.5, 10.5 and 297 more; give",
        ),
        (("mole", "scar"), ("mole", "wart"), "images of 'wart' are held out of lesions, and none are left to train on"),
    ]:
        with pytest.raises(UserError, match=f"^conditional=True.*{says}"):
            number_classes(labels, held_out, "lesions")


def test_the_class_that_a_flag_names():
    assert class_number("malignant", ("benign", "malignant")) == 1
    for names in (("mole", "n\xe9vus"), ("mole", "ne\u0301vus")):
        assert class_number("n\xe9vus", names) == class_number("ne\u0301vus", names) == 1
    with pytest.raises(UserError, match="^label=malign: .* are benign, malignant; did you mean malignant?"):
        class_number("malign", ("benign", "malignant"))
    with pytest.raises(UserError, match="are benign, malignant; give one of them"):
        class_number("x", ("benign", "malignant"))
    with pytest.raises(UserError, match="has no classes, as its training was not conditional"):
        class_number("x", ())


@pytest.mark.parametrize("counts", [(448, 113), (0, 3, 5), (7,)])
def test_proportions_hold_at_every_length(counts):
    classes = in_proportion(300, counts)
    assert classes.dtype == np.int32
    drawn = np.cumsum(np.eye(len(counts))[classes], axis=0)
    expected = np.arange(1, 301)[:, None] * np.array(counts) / sum(counts)
    assert np.abs(drawn - expected).max() <= 1
    np.testing.assert_array_equal(in_proportion(37, counts), classes[:37])
