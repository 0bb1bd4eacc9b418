"""How the arms of a trial draw their images."""

import numpy as np
import pytest

from medgan_jax.proving.arms import Arm, all_arms, plan

LABELS = np.array([0] * 12 + [1] * 4 + [0] * 24 + [1] * 8)  # 12 and 4 reals; two fakes for each
SYNTHETIC = np.arange(48) >= 16


def drawn(arm):
    """Of each class, the probabilities that a real and that a fake is drawn."""
    shares = plan(arm, LABELS, SYNTHETIC, 2).shares
    return [[shares[(label == LABELS) & (side == SYNTHETIC)].sum() for side in (False, True)] for label in (0, 1)]


@pytest.mark.parametrize(
    "arm, expected",
    [
        (Arm("plain"), [[0.75, 0], [0.25, 0]]),
        (Arm("weighted"), [[0.75, 0], [0.25, 0]]),
        (Arm("oversampled"), [[0.5, 0], [0.5, 0]]),
        (Arm("oversampled", "scarce", 1.0), [[0.5, 0], [0.25, 0.25]]),
        (Arm("augmented", "all", 0.5), [[1 / 3, 1 / 6], [1 / 3, 1 / 6]]),
        (Arm("oversampled", "only", 2.0), [[0, 0.5], [0, 0.5]]),
        (Arm("oversampled", "copies", 1.0), [[0.5, 0], [0.5, 0]]),
    ],
)
def test_shares(arm, expected):
    np.testing.assert_allclose(drawn(arm), expected)


def test_weights_make_classes_count_the_same():
    weighted = plan(Arm("weighted"), LABELS, SYNTHETIC, 2)
    np.testing.assert_allclose(weighted.class_weights, [2 / 3, 2])
    assert weighted.shares @ weighted.class_weights[LABELS] == pytest.approx(1)


def test_arms_have_names_of_their_own():
    arms = all_arms((0.5, 1.0))
    assert len({arm.name for arm in arms}) == len({arm.describe() for arm in arms}) == len(arms) == 14
    assert sum(arm.has_fakes for arm in arms) == 8
