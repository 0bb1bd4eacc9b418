"""The arithmetic of what is asked for."""

import pytest

from medgan_jax.balancing.counts import choose_counts
from medgan_jax.errors import UserError

ISIC = {"benign": 447, "malignant": 113}


@pytest.mark.parametrize(
    ("target", "of_all", "benign", "malignant"),
    [
        ("equal", False, (447, 0), (113, 334)),
        ("equal", True, (113, 334), (113, 334)),
        ("1", False, (447, 0), (113, 113)),
        ("0.5", True, (447, 224), (113, 57)),
        ("malignant=200", False, (447, 0), (113, 87)),
        ("benign=100,malignant=200", False, (100, 0), (113, 87)),
        ("malignant=226", True, (224, 223), (113, 113)),  # the others: as many as there are
        ("malignant = 1000, benign=500", True, (57, 443), (113, 887)),
    ],
)
def test_what_is_asked_for(target, of_all, benign, malignant):
    assert choose_counts(target, ISIC, of_all=of_all) == {"benign": benign, "malignant": malignant}


@pytest.mark.parametrize("target", ["equal", "0.37", "a=90", "a=33,b=77,c=1000"])
def test_all_classes_have_the_same_share_of_fakes(target):
    reals = {"a": 31, "b": 70, "c": 211}
    counts = choose_counts(target, reals, of_all=True)
    shares = {label: fakes / (known + fakes) for label, (known, fakes) in counts.items()}
    assert max(abs(a - b) for a in shares.values() for b in shares.values()) < 1 / 31
    assert all(counts[label].reals <= reals[label] for label in reals)


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("", "must be equal, LABEL=N"),
        ("even", "must be equal, LABEL=N"),
        ("0", "must be equal, LABEL=N"),
        ("nan", "must be equal, LABEL=N"),
        ("1e999", "must be equal, LABEL=N"),
        ("malignat=200", "'malignat' is none of the classes benign, malignant; did you mean malignant"),
        ("malignant=200,malignant=300", "gives two numbers to malignant"),
        ("malignant=-1", "malignant=-1 must be a whole number above 0"),
        ("malignant=1.5", "malignant=1.5 must be a whole number above 0"),
        ("malignant=0", "malignant=0 must be a whole number above 0"),
        ("malignant=100", "no class is short of it, of the training images benign 447, malignant 113"),
    ],
)
def test_refuses(target, says):
    with pytest.raises(UserError, match=f"^--target={target}: {says}"):
        choose_counts(target, ISIC, of_all=False)
