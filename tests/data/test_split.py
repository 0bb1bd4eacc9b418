"""What is held out: how much, of which classes, and never half a patient."""

from collections import Counter

import numpy as np
import pytest

from medgan_jax.data.sources import FileSource, open_source
from medgan_jax.data.split import hold_out
from medgan_jax.errors import UserError


def source(labels, groups=None):
    names = tuple(f"image_{i:03d}.png" for i in range(len(labels)))
    return FileSource("here", names, tuple(labels), groups and tuple(groups))


LABELS = ["benign"] * 80 + ["malignant"] * 20


def test_each_class_gives_its_share():
    training, apart = hold_out(source(LABELS), 0.25)
    assert Counter(apart.labels) == {"benign": 20, "malignant": 5}
    assert set(training.names) | set(apart.names) == set(source(LABELS).names)
    assert not set(training.names) & set(apart.names)
    assert len(training) + len(apart) == 100
    assert list(training.names) == sorted(training.names)  # in the order of the source


@pytest.mark.parametrize("fraction", [0.01, 0.5, 0.999])
def test_each_class_is_on_both_sides(fraction):
    for side in hold_out(source(LABELS), fraction):
        assert set(side.labels) == {"benign", "malignant"}


def test_groups_stay_whole():
    groups = [f"patient {i // 3}" for i in range(100)]
    training, apart = hold_out(source(["benign"] * 100, groups), 0.3)
    assert not set(training.groups) & set(apart.groups)
    assert 27 <= len(apart) <= 33


def test_the_same_images_are_held_out_wherever_they_lie_and_whoever_joins():
    few, many = source(["benign"] * 60), source(["benign"] * 66)
    held = set(hold_out(few, 0.5)[1].names)
    assert set(hold_out(FileSource("there", few.names[::-1], few.labels), 0.5)[1].names) == held
    assert len(held & set(hold_out(many, 0.5)[1].names)) >= 25


def test_what_cannot_be_divided_is_refused():
    with pytest.raises(UserError, match="the images of class 'malignant' in here are all of one group, 'a'"):
        hold_out(source(["benign", "benign", "malignant", "malignant"], ["b", "c", "a", "a"]), 0.2)
    with pytest.raises(UserError, match="holdout_fraction=0.2: the images in here"):
        hold_out(FileSource("here", ("a.png",)), 0.2)


def test_the_parts_read_as_the_whole(tiny_config):
    phantoms = open_source(tiny_config(data_num_phantoms=8).data)
    for side in hold_out(phantoms, 0.4):
        assert len(side.content_ids(None)) == len(side)
        for index, name in enumerate(side.names):
            whole = phantoms.names.index(name)
            assert side.labels[index] == phantoms.labels[whole]
            assert side.content_ids(None)[index] == phantoms.content_ids(None)[whole]
            np.testing.assert_array_equal(side.read(index, 16, 3), phantoms.read(whole, 16, 3))
