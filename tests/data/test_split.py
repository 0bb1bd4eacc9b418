"""What is held out: how much, of which classes, and never half a patient."""

import dataclasses
import itertools
import random
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from medgan_jax.data.batches import load_dataset
from medgan_jax.data.sources import FileSource, open_source
from medgan_jax.data.split import hold_out
from medgan_jax.errors import UserError


def source(labels, groups=None):
    names = tuple(f"image_{i:03d}.png" for i in range(len(labels)))
    return FileSource("here", names, tuple(labels), groups and tuple(groups))


def divide(source, fraction, ids=None):
    """`hold_out` of images that differ, unless `ids` say which do not."""
    return hold_out(source, fraction, ids or source.names)


LABELS = ["benign"] * 80 + ["malignant"] * 20


def test_each_class_gives_its_share_and_is_on_both_sides():
    training, apart = divide(source(LABELS), 0.25)
    assert Counter(apart.labels) == {"benign": 20, "malignant": 5}
    assert sorted(training.names + apart.names) == list(source(LABELS).names)
    assert list(training.names) == sorted(training.names)  # in the order of the source
    for side in (*divide(source(LABELS), 0.01), *divide(source(LABELS), 0.999)):
        assert set(side.labels) == {"benign", "malignant"}


def test_groups_stay_whole():
    groups = [f"patient {i // 3}" for i in range(100)]
    training, apart = divide(source(["benign"] * 100, groups), 0.3)
    assert not set(training.groups) & set(apart.groups)
    assert 27 <= len(apart) <= 33


def test_the_same_images_are_held_out_wherever_they_lie_and_whoever_joins():
    few, many = source(["benign"] * 60), source(["benign"] * 66)
    held = set(divide(few, 0.5)[1].names)
    assert set(divide(FileSource("there", few.names[::-1], few.labels), 0.5)[1].names) == held
    assert len(held & set(divide(many, 0.5)[1].names)) >= 25


def test_mixed_groups_and_copies_do_not_depend_on_the_order():
    rng = random.Random(0)
    images = [(f"{i}.png", rng.choice("aab"), f"patient {i // 3}", str(rng.randrange(300))) for i in range(120)]
    held = []
    for _ in range(3):
        names, labels, groups, ids = zip(*images, strict=True)
        held.append(set(divide(FileSource("here", names, labels, groups), 0.3, ids)[1].names))
        rng.shuffle(images)
    assert all(names == held[0] for names in held)


def test_what_cannot_be_divided_is_refused():
    with pytest.raises(UserError, match="the images of class 'malignant' in here are all of one group, 'a'"):
        divide(source(["benign", "benign", "malignant", "malignant"], ["b", "c", "a", "a"]), 0.2)
    with pytest.raises(UserError, match="holdout_fraction=0.2: the images in here"):
        divide(FileSource("here", ("a.png",)), 0.2)


def test_a_patient_with_nearly_all_images_stays_in_training():
    groups = ["big"] * 90 + [f"patient {i}" for i in range(10)]
    training, apart = divide(source(["benign"] * 100, groups), 0.2)
    assert "big" in training.groups and len(apart) == 10
    training, apart = divide(source(["benign"] * 100, groups), 0.9)
    assert "big" in apart.groups


def test_patients_with_images_of_several_classes():
    """Each class gives its share to within the images of one patient."""
    for seed, fraction in itertools.product(range(12), (0.1, 0.2, 0.5)):
        rng = random.Random(seed)
        groups = [f"{rng.random()}" for _ in range(80)]
        groups = [group for group in groups for _ in range(rng.randint(1, 5))]
        scarce = set(rng.sample(sorted(set(groups)), 20))
        labels = ["malignant" if group in scarce and rng.random() < 0.4 else "benign" for group in groups]
        training, apart = divide(source(labels, groups), fraction)
        assert not set(training.groups) & set(apart.groups)
        largest = Counter()
        for (_, label), count in Counter(zip(groups, labels, strict=True)).items():
            largest[label] = max(largest[label], count)
        for label, number in Counter(labels).items():
            held = apart.labels.count(label)
            assert 0 < held < number
            assert abs(held - fraction * number) <= largest[label], (seed, label)


def test_what_can_be_divided_is():
    """Against all divisions of few groups of few classes."""
    outcomes = Counter()
    for seed in range(150):
        rng = random.Random(seed)
        kinds = [rng.sample("abcd", rng.randint(1, 3)) for _ in range(rng.randint(2, 7))]
        images = [(f"{seed} {i}", label) for i, kind in enumerate(kinds) for label in kind]
        groups, labels = zip(*images, strict=True)
        possible = any(
            all(len({sides[i] for i, kind in enumerate(kinds) if label in kind}) == 2 for label in labels)
            for sides in itertools.product([True, False], repeat=len(kinds))
        )
        outcomes[possible] += 1
        if possible:
            for side in divide(source(labels, groups), 0.2):
                assert set(side.labels) == set(labels), seed
        else:
            with pytest.raises(UserError, match="are all of one group|no division was found"):
                divide(source(labels, groups), 0.2)
    assert min(outcomes[True], outcomes[False]) > 20


def test_equal_files_are_on_one_side_and_unreadable_ones_are_not_equal(tiny_config, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(12):  # each image twice
        Image.new("RGB", (16, 16), (number // 2, 0, 0)).save(folder / f"{number:02d}.png")
    for name in ("x.png", "y.png"):
        (folder / name).symlink_to("missing")
    fields = {"path": str(folder), "cache_dir": str(tmp_path / "cache"), "holdout_fraction": 0.3}
    data = dataclasses.replace(tiny_config().data, source="folder", on_bad_image="skip", **fields)
    sides = load_dataset(data, image_size=16, channels=3, progress=False)
    assert [len(side.images) for side in sides] == [8, 4]
    first, second = (set(side.images[:, 0, 0, 0].tolist()) for side in sides)
    assert first | second == set(range(6)) and not first & second


def test_patients_who_share_an_image_are_on_one_side():
    """A chain: patient 0 has an image of patient 1, who has one of patient 2."""
    groups = [f"patient {i // 4}" for i in range(40)]
    ids = [str(i) for i in range(40)]
    ids[4], ids[8] = ids[0], ids[5]
    for fraction in np.arange(0.05, 1, 0.1):
        sides = divide(source(["benign"] * 40, groups), fraction, ids)
        held = [set(side.groups) for side in sides]
        assert not held[0] & held[1]
        assert any({"patient 0", "patient 1", "patient 2"} <= side for side in held)
    with pytest.raises(UserError, match="all of one group, 'patient 0'"):
        divide(source(["benign"] * 12, groups[:12]), 0.2, ids[:12])


def test_the_parts_read_as_the_whole(tiny_config):
    phantoms = open_source(tiny_config(data_num_phantoms=8).data)
    ids = phantoms.content_ids(list)
    for side in divide(phantoms, 0.4, ids):
        for index, name in enumerate(side.names):
            whole = phantoms.names.index(name)
            assert side.labels[index] == phantoms.labels[whole]
            assert side.content_ids(list)[index] == ids[whole]
            np.testing.assert_array_equal(side.read(index, 16, 3), phantoms.read(whole, 16, 3))
