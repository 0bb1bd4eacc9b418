"""Synthetic logs in, alarms out."""

import ast
import re

import pytest

from medgan_jax.config import FIELDS
from medgan_jax.training.health.checks import CHECKS
from medgan_jax.training.health.monitor import Monitor

SOUND_METRICS = {
    "loss_dis": 0.6, "loss_gen": 1.9, "score_real": 0.8, "score_fake_before": 0.2, "score_fake_after": 0.15,
    "grad_norm_gen": 50.0,
}  # fmt: skip
SOUND_HEALTH = {
    "diversity": 0.05, "diversity_reals": 0.2, "near_duplicates": 0.02, "memorization": 0.02,
    "memorization_reals": 0.01, "drift": 0.05, "logit_train": 2.0, "logit_held_out": 1.5, "logit_fakes": -2.0,
    "norms_gen": [1.0, 2.0], "norms_dis": [1.0, 2.0],
}  # fmt: skip
DISCRIMINATOR_WINS = {"score_real": 0.999, "score_fake_before": 1e-3, "score_fake_after": 1e-3}
DISCRIMINATOR_GUESSES = {"score_real": 0.5, "score_fake_before": 0.49}


def log(*parts):
    """Lines of both logs to the last step; each part is a last step and what differs from a sound training up to it."""
    metrics, health, first = [], [], 0
    for last, changes in parts:
        for step in range(first, last + 1, 50):
            changed = {name: value for name, value in changes.items() if name in SOUND_METRICS}
            metrics.append({"step": step, **SOUND_METRICS, **changed})
            if step % 100 == 0:
                changed = {name: value for name, value in changes.items() if name in SOUND_HEALTH and step}
                health.append({"step": step, **SOUND_HEALTH, **changed})
        first = last + 50
    return metrics[1:], health


def alarms(config, *parts, **options):
    return Monitor(config, **options).follow(*log(*parts))


FAILURES = {  # the alarm, and what differs in the config and in the logs
    "the discriminator wins": ("non_convergence", {}, DISCRIMINATOR_WINS),
    "against smoothed and flipped labels": (
        "non_convergence",
        {"real_label": 0.9, "label_flip": 0.1},
        {"score_real": 0.805, "score_fake_before": 0.01, "score_fake_after": 0.01},
    ),
    "the discriminator wins, hinge loss": ("non_convergence", {"loss": "hinge"}, {"loss_dis": 0.01}),
    "the discriminator guesses": ("non_convergence", {}, DISCRIMINATOR_GUESSES),
    "the discriminator guesses, hinge loss": ("non_convergence", {"loss": "hinge"}, {"loss_dis": 1.98}),
    "one image": ("mode_collapse", {}, {"diversity": 0.005}),
    "few images": ("mode_collapse", {}, {"near_duplicates": 0.8}),
    "all images change": ("oscillation", {}, {"drift": 0.22}),
    "large losses": ("divergence", {}, {"loss_gen": 300.0}),
    "large weights": ("divergence", {"loss": "wgan-gp"}, {"norms_dis": [9.0, 40.0]}),
    "held-out images look fake": ("overfitting", {}, {"logit_held_out": -1.0}),
    "training images reproduced": ("memorization", {}, {"memorization": 0.4}),
}


@pytest.mark.parametrize("case", FAILURES)
def test_a_failure_that_lasts_raises_its_alarm_once(tiny_config, case):
    name, config, changes = FAILURES[case]
    (alarm,) = alarms(tiny_config(**config), (1500, changes))
    assert alarm.name == name
    assert alarm.step in (500, 600)
    assert 0 <= alarm.since <= 100
    assert 2 <= len(alarm.remedies) <= 3
    named = set(re.findall(r"[a-z_.]+(?==)|(?<=lower )\w+|(?<=raise )\w+", " ".join(alarm.remedies)))
    assert named & set(FIELDS)
    assert named <= set(FIELDS)
    line = alarm.line("warned")
    assert (line["step"], line["alarm"], line["action"]) == (alarm.step, name, "warned")


SOUND = {  # what differs in the config and in the logs
    "bce": ({}, {}),
    "hinge": ({"loss": "hinge"}, {}),
    "wgan-gp": ({"loss": "wgan-gp"}, {}),
    "fakes convince after the update": ({}, DISCRIMINATOR_WINS | {"score_fake_after": 0.1}),
    "fakes convince before the update": ({}, DISCRIMINATOR_WINS | {"score_fake_before": 0.1}),
    "reals are not certain": ({}, DISCRIMINATOR_WINS | {"score_real": 0.9}),
    "few kinds of images from the start": ({}, {"diversity": 0.03}),
    "much drift": ({}, {"drift": 0.18}),
    "reals are alike": ({}, {"memorization": 0.3, "memorization_reals": 0.1}),
    "reals and fakes get the same logits": ({}, {"logit_train": 0.3, "logit_held_out": -0.3, "logit_fakes": -0.4}),
    "a critic's loss is large": ({"loss": "wgan-gp"}, {"loss_gen": 300.0}),
    "one layer grew": ({}, {"norms_gen": [4.0, 20.0]}),
}


@pytest.mark.parametrize("case", SOUND)
def test_a_sound_training_raises_nothing(tiny_config, case):
    config, changes = SOUND[case]
    assert alarms(tiny_config(**config), (1500, changes)) == []


def test_a_few_bad_lines_raise_nothing(tiny_config):
    bad = DISCRIMINATOR_WINS | {"loss_gen": 1e4, "diversity": 0.0, "memorization": 1.0}
    assert alarms(tiny_config(), (1000, {}), (1200, bad), (2000, {})) == []


def test_values_that_were_not_measured_raise_nothing(tiny_config):
    metrics, health = log((1500, {"logit_held_out": -1.0}))
    for line in health:
        del line["logit_held_out"]
    assert Monitor(tiny_config()).follow(metrics, health) == []


def test_a_vanishing_gradient_is_compared_with_the_first_however_long_ago(tiny_config):
    (alarm,) = alarms(tiny_config(), (500, {}), (2500, {"grad_norm_gen": 1.0}), (4000, {"grad_norm_gen": 1e-2}))
    assert (alarm.name, alarm.step) == ("non_convergence", 2800)  # when most of the window is bad
    assert "0.01, at first 50" in alarm.evidence


def test_gradients_of_steps_without_an_update_of_the_generator_do_not_count(tiny_config):
    """With dis_steps=2 and a line every 45 steps, every other line has a gradient of 0."""
    metrics, health = log((1500, {}))
    metrics = [SOUND_METRICS | {"step": step, "grad_norm_gen": 50.0 * (step % 2 == 0)} for step in range(45, 1501, 45)]
    assert Monitor(tiny_config(dis_steps=2)).follow(metrics, health) == []
    vanished = [line | {"grad_norm_gen": 1e-3} if line["step"] > 500 else line for line in metrics]
    assert [alarm.name for alarm in Monitor(tiny_config(dis_steps=2)).follow(vanished, health)] == ["non_convergence"]
    odd = [line | DISCRIMINATOR_WINS for line in metrics if line["step"] % 2]
    (alarm,) = Monitor(tiny_config(dis_steps=2)).follow(odd, health)
    assert "nan" not in alarm.evidence


def test_lost_diversity_is_mode_collapse_below_half_of_that_of_reals(tiny_config):
    (alarm,) = alarms(tiny_config(), (1000, {"diversity": 0.1}), (2000, {"diversity": 0.03}))
    assert (alarm.name, alarm.since) == ("mode_collapse", alarm.step - 500)
    assert alarms(tiny_config(), (1000, {"diversity": 0.3}), (2000, {"diversity": 0.11})) == []


def test_an_alarm_is_repeated_after_its_check_has_passed_for_alarm_patience(tiny_config):
    bad, good = {"memorization": 0.4}, {"memorization": 0.0}
    assert [alarm.step for alarm in alarms(tiny_config(), (1000, bad), (2000, good), (3000, bad))] == [500, 2300]
    assert [alarm.step for alarm in alarms(tiny_config(), (1000, bad), (1400, good), (3000, bad))] == [500]


@pytest.mark.parametrize("patience", [400, 1000])
def test_alarm_patience_is_how_long_a_failure_must_last(tiny_config, patience):
    (alarm,) = alarms(tiny_config(alarm_patience=patience), (1500, {"memorization": 0.9}))
    assert (alarm.step, alarm.since) == (patience, 0)


def test_after_a_rollback_earlier_lines_are_no_evidence(tiny_config):
    bad = (2000, {"memorization": 0.9})
    assert [alarm.step for alarm in alarms(tiny_config(), bad)] == [500]
    assert [alarm.step for alarm in alarms(tiny_config(), bad, slowed_at=900)] == [500, 1400]
    impatient = tiny_config(alarm_patience=100)  # still at least four lines of health.jsonl
    assert [alarm.step for alarm in alarms(impatient, bad, slowed_at=900)] == [300, 1300]


@pytest.mark.parametrize("cut", [250, 700, 1300])
def test_a_resumed_training_raises_the_same_alarms(tiny_config, cut):
    metrics, health = log((900, {"memorization": 0.9}), (2000, {"diversity": 0.0}))
    expected = Monitor(tiny_config()).follow(metrics, health)
    assert [alarm.name for alarm in expected] == ["memorization", "mode_collapse"]
    resumed = Monitor(tiny_config())
    before, after = ([[line for line in lines if (line["step"] > cut) == late] for lines in (metrics, health)]
                     for late in (False, True))  # fmt: skip
    assert resumed.follow(*before) + resumed.follow(*after) == expected


@pytest.mark.parametrize(
    ("changes", "lower_lr"),
    [
        (DISCRIMINATOR_WINS, "lr_dis"),
        (DISCRIMINATOR_GUESSES, "lr_gen"),
        ({"norms_dis": [9.0, 40.0]}, "lr_dis"),
        ({"norms_gen": [9.0, 40.0]}, "lr_gen"),
    ],
)
def test_the_learning_rate_to_lower_is_named(tiny_config, changes, lower_lr):
    (alarm,) = alarms(tiny_config(), (1500, changes))
    assert alarm.lower_lr == lower_lr
    assert alarm.remedies[0].startswith(f"lower {lower_lr}, now 0.0002, to 5e-05")


def test_learning_rates_that_are_too_low_are_to_be_raised(tiny_config):
    low = {"lr_gen": 2e-8, "lr_dis": 2e-8}
    (alarm,) = alarms(tiny_config(lr_gen=2e-6), (1500, DISCRIMINATOR_WINS))
    assert alarm.remedies[0] == "raise lr_gen, now 2e-06, to 0.0002"
    (alarm,) = alarms(tiny_config(**low), (1500, DISCRIMINATOR_GUESSES))
    assert alarm.remedies[0] == "raise lr_dis, now 2e-08, to 0.0002"
    (alarm,) = alarms(tiny_config(**low), (1500, {"diversity": 0.001}))
    assert "raise lr_gen and lr_dis, now 2e-08, to 0.0002" in alarm.remedies


REMEDIES_OF = {  # configs that some remedies do not fit, or that follow them already
    "usual": {},
    "all remedies taken": {
        "arch": "sngan", "loss": "wgan-gp", "dis_steps": 5, "dis_dropout": 0.5, "augment_translation": 0.1,
        "augment_flips": True, "ema_decay": 0.99, "data_holdout_fraction": 0.2, "evaluate_every_steps": 50,
    },
    "bce targets": {"arch": "dcgan", "real_label": 0.9, "label_flip": 0.1, "num_steps": 0},
    "hinge, some dropout": {"loss": "hinge", "dis_dropout": 0.2},
    "rollback": {"on_alarm": "rollback", "monitor_every_steps": 100, "lr_dis": 5e-5},
    "unusual rates": {"lr_gen": 2e-6, "adam_beta1": 0.9, "simultaneous": True, "dtype": "bfloat16"},
}  # fmt: skip


@pytest.mark.parametrize("case", REMEDIES_OF)
def test_remedies_change_the_config_and_are_accepted_by_it(tiny_config, case):
    options = REMEDIES_OF[case]
    config = tiny_config(**options)
    all_fail = {
        "grad_norm_gen": 1e-3, "diversity": 0.0, "drift": 1.0, "norms_gen": [9.0, 40.0], "logit_held_out": -1.0,
        "memorization": 0.9,
    }  # fmt: skip
    guesses = DISCRIMINATOR_GUESSES | {"loss_dis": 1.98, "norms_dis": [9.0, 40.0]}
    raised = alarms(config, (500, {}), (1500, all_fail)) + alarms(config, (1500, guesses))
    assert {alarm.name for alarm in raised} == {check.name for check in CHECKS}
    for alarm in raised:
        assert 2 <= len(set(alarm.remedies)) == len(alarm.remedies) <= 3
        for remedy in alarm.remedies:
            quoted = re.sub(r"=([a-z][-\w]*)", r"='\1'", remedy)
            changes = {
                field.replace(".", "_"): ast.literal_eval(value)
                for field, value in re.findall(r"([a-z_.0-9]+)=('[^']*'|[-\w.]+)", quoted)
            }
            if changes.pop("on_alarm", None):
                assert config.on_alarm != "rollback"
            assert not changes or tiny_config(**options | changes) != config


def test_a_value_that_is_not_finite(tiny_config):
    alarm = Monitor(tiny_config()).not_finite("loss_gen is nan", 7, 4)
    assert (alarm.name, alarm.step, alarm.since, alarm.evidence) == ("divergence", 7, 4, "loss_gen is nan")
    assert alarm.lower_lr == "lr_dis"
    assert Monitor(tiny_config(lr_gen=0.5)).not_finite("loss_gen is nan", 7, 4).lower_lr == "lr_gen"
