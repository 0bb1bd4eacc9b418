"""An attack that works is found, one that guesses is not, and images of one patient count once."""

import jax
import numpy as np
import pytest

from medgan_jax.auditing import attack, audit
from medgan_jax.checkpoint import Checkpoints, save_generator
from medgan_jax.data.batches import load_dataset
from medgan_jax.errors import UserError
from medgan_jax.training.state import build_networks


def attacked(training, held_out, groups=None):
    each = [np.arange(len(side)) for side in (training, held_out)]
    return attack(np.asarray(training, float), np.asarray(held_out, float), *(groups or each), seed=0)


def test_the_advantage_is_how_much_more_often_the_attacker_is_right_than_wrong():
    estimate = attacked([3, 2, 2, 0], [1, 2, -1]).advantage
    assert estimate.value == pytest.approx((3 + 2 + 2 - 1) / 12)  # pairs won less pairs lost, of 12; two are ties
    assert estimate.low <= estimate.value <= estimate.high


def test_what_separates_them_is_found():
    found = attacked(np.arange(20) + 20, np.arange(20))
    assert (found.advantage.value, found.advantage.low) == pytest.approx((1, 1))
    assert found.verdict == "found: it tells a training from a held-out image in 100% of pairs"


def test_guessing_is_not_found_and_its_interval_says_what_could_hide():
    random = np.random.default_rng(0)
    found = [attacked(random.normal(size=40), random.normal(size=30)) for _ in range(8)]
    assert sum(one.advantage.low <= 0 <= one.advantage.high for one in found) >= 6
    quiet = next(one for one in found if one.advantage.low <= 0)
    assert quiet.verdict == f"no advantage shown; one of up to {quiet.advantage.high:.2f} could hide"


def test_images_of_one_patient_are_resampled_together():
    random = np.random.default_rng(1)
    training, held_out = random.normal(0.7, 1, 12).repeat(10), random.normal(0, 1, 12).repeat(10)
    whole, single = (
        attacked(training, held_out, groups) for groups in ([np.arange(12).repeat(10)] * 2, [np.arange(120)] * 2)
    )
    widths = [one.advantage.high - one.advantage.low for one in (whole, single)]
    assert whole.advantage.value == single.advantage.value
    assert widths[0] > 2 * widths[1]


def test_the_share_found_at_few_false_alarms_needs_many_held_out_images():
    held_out = np.arange(200.0)
    found = attacked([300, 250, 198.5, 197.5, 100, 3], held_out).at_low_rate
    assert found.value == pytest.approx(4 / 6)  # above all but the two highest of 200
    assert attacked([300, 100], held_out[:99]).at_low_rate is None


def test_an_audit_needs_held_out_images(tiny_config, tmp_path):
    config = tiny_config(data_cache_dir=str(tmp_path / "cache"))
    training, _ = load_dataset(config.data, image_size=16, channels=3, progress=False)
    module = build_networks(config).generator
    variables = jax.tree.map(
        lambda x: np.zeros(x.shape, x.dtype),
        jax.eval_shape(lambda: module.init(jax.random.key(0), np.zeros((1, 8), np.float32), training=False)),
    )
    checkpoints = Checkpoints(tmp_path / "generator", keep=1)
    record = {"config": config.to_dict(), "data_digest": training.digest}
    save_generator(checkpoints, 0, variables, module, 8, record)
    checkpoints.close()
    with pytest.raises(UserError, match=r"held out images of 0 groups, and an audit needs 10 .*data\.holdout_fraction"):
        audit(tmp_path, config.to_dict()["data"])
