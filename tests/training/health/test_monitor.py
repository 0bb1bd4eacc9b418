"""Each alarm by its own sign, none by sound figures, and the same ones however often a training is stopped."""

import ast
import re

import pytest

from medgan_jax.config import field_names
from medgan_jax.training.health.checks import SIGNS, Found
from medgan_jax.training.health.monitor import Monitor

SOUND_METRICS = {
    "loss_dis": 0.6, "loss_gen": 1.9, "score_real": 0.8, "score_fake_before": 0.2, "score_fake_after": 0.15,
    "grad_norm_gen": 50.0,
}  # fmt: skip
SOUND_HEALTH = {
    "diversity": 0.05, "diversity_reals": 0.2, "near_duplicates": 0.02, "copies": 0.02, "copies_reals": 0.01,
    "drift": 0.05, "logit_train": 2.0, "logit_held_out": 1.5, "logit_fakes": -2.0,
    "norms_gen": [1.0, 2.0], "norms_dis": [1.0, 2.0],
}  # fmt: skip


def metrics(steps, **changes):
    return [{"step": step, **SOUND_METRICS, **changes} for step in steps]


def health(steps, **changes):
    return [{"step": step, **SOUND_HEALTH, **changes} for step in steps]


def in_order(*lines):
    return sorted((line for part in lines for line in part), key=lambda line: (line["step"], "diversity" in line))


def watch(monitor, lines):
    """The alarms that lines of both logs raise, in their order."""
    raised = []
    for line in lines:
        if "diversity" in line:
            raised += monitor.take_health(line)
        else:
            monitor.take_metrics(line)
    return raised


def alarms(config, metrics_changes=None, health_changes=None, steps=1500):
    lines = in_order(
        metrics(range(50, steps + 1, 50), **metrics_changes or {}),
        health([0]),
        health(range(100, steps + 1, 100), **health_changes or {}),
    )
    return watch(Monitor(config), lines)


DISCRIMINATOR_WINS = {"score_real": 0.999, "score_fake_before": 1e-3, "score_fake_after": 1e-3}
FAILURES = {  # name of the alarm, and what differs in the config, the metrics and the looks
    "the discriminator wins": ("non_convergence", {}, DISCRIMINATOR_WINS, {}),
    "against smoothed and flipped labels": (
        "non_convergence",
        {"real_label": 0.9, "label_flip": 0.1},
        {"score_real": 0.805, "score_fake_before": 0.01, "score_fake_after": 0.01},
        {},
    ),
    "by the hinge loss": ("non_convergence", {"loss": "hinge"}, {"loss_dis": 0.01}, {}),
    "the generator wins": ("non_convergence", {}, {"score_real": 0.5, "score_fake_before": 0.49}, {}),
    "the generator wins by the hinge loss": ("non_convergence", {"loss": "hinge"}, {"loss_dis": 1.98}, {}),
    "one image": ("mode_collapse", {}, {}, {"diversity": 0.005}),
    "few images": ("mode_collapse", {}, {}, {"near_duplicates": 0.8}),
    "runaway losses": ("divergence", {}, {"loss_gen": 300.0}, {}),
    "runaway weights": ("divergence", {"loss": "wgan-gp"}, {}, {"norms_dis": [9.0, 40.0]}),
    "images known by heart": ("overfitting", {}, {}, {"logit_held_out": -1.0}),
    "copies": ("copies", {}, {}, {"copies": 0.4}),
}


@pytest.mark.parametrize("case", FAILURES)
def test_a_sign_that_lasts_raises_its_alarm_once(tiny_config, case):
    name, config, metrics_changes, health_changes = FAILURES[case]
    (alarm,) = alarms(tiny_config(**config), metrics_changes, health_changes)
    assert alarm.name == name
    assert alarm.step in (500, 600)
    assert 0 <= alarm.since <= 100
    assert 2 <= len(alarm.remedies) <= 3
    named = set(re.findall(r"[a-z_.]+(?==)|(?<=lower )\w+|(?<=raise )\w+", " ".join(alarm.remedies)))
    assert named & set(field_names())
    assert named <= set(field_names())
    line = alarm.line("warned")
    assert (line["step"], line["alarm"], line["action"]) == (alarm.step, name, "warned")


@pytest.mark.parametrize("loss", ["bce", "hinge", "wgan-gp"])
def test_sound_figures_raise_nothing(tiny_config, loss):
    assert alarms(tiny_config(loss=loss)) == []


NEAR_MISSES = {  # what differs in the config, the metrics and the looks
    "the generator answers the update": (
        {}, {"score_real": 0.999, "score_fake_before": 0.001, "score_fake_after": 0.1}, {}
    ),
    "the update undoes the generator's step": (
        {}, {"score_real": 0.999, "score_fake_before": 0.1, "score_fake_after": 0.001}, {}
    ),
    "reals are not certain": ({}, {"score_real": 0.9, "score_fake_before": 0.001, "score_fake_after": 0.001}, {}),
    "reals are alike": ({}, {}, {"copies": 0.3, "copies_reals": 0.1}),
    "reals and fakes look alike": ({}, {}, {"logit_train": 0.3, "logit_held_out": -0.3, "logit_fakes": -0.4}),
    "a critic's loss": ({"loss": "wgan-gp"}, {"loss_gen": 300.0}, {}),
    "one layer grew": ({}, {}, {"norms_gen": [4.0, 20.0]}),
}  # fmt: skip


@pytest.mark.parametrize("case", NEAR_MISSES)
def test_half_of_a_sign_raises_nothing(tiny_config, case):
    config, metrics_changes, health_changes = NEAR_MISSES[case]
    assert alarms(tiny_config(**config), metrics_changes, health_changes) == []


def test_less_diversity_than_ever_is_sound_while_it_is_half_of_that_of_reals(tiny_config):
    lines = in_order(
        metrics(range(50, 2001, 50)),
        health(range(0, 1001, 100), diversity=0.3),
        health(range(1100, 2001, 100), diversity=0.11),
    )
    assert watch(Monitor(tiny_config()), lines) == []


def test_gradients_are_compared_with_the_first_however_long_it_is(tiny_config):
    lines = in_order(
        metrics(range(50, 501, 50)), metrics(range(550, 2501, 50), grad_norm_gen=1.0),
        metrics(range(2550, 4001, 50), grad_norm_gen=0.01), health(range(0, 4001, 100)),
    )  # fmt: skip
    assert [alarm.step for alarm in watch(Monitor(tiny_config()), lines)] == [2800]


def test_a_vanishing_gradient_is_non_convergence(tiny_config):
    lines = in_order(
        metrics(range(50, 501, 50)), metrics(range(550, 1501, 50), grad_norm_gen=1e-3), health(range(0, 1501, 100))
    )
    (alarm,) = watch(Monitor(tiny_config()), lines)
    assert (alarm.name, alarm.step) == ("non_convergence", 800)  # most of the window
    assert "0.001, at first 50" in alarm.evidence


def test_shrinking_diversity_is_mode_collapse(tiny_config):
    """0.03 alone is sound, early in a training; after 0.1 it is not."""
    assert alarms(tiny_config(), {}, {"diversity": 0.03}) == []
    lines = in_order(
        metrics(range(50, 2001, 50)),
        health(range(0, 1001, 100), diversity=0.1),
        health(range(1100, 2001, 100), diversity=0.03),
    )
    (alarm,) = watch(Monitor(tiny_config()), lines)
    assert (alarm.name, alarm.since) == ("mode_collapse", alarm.step - 500)


def test_images_that_change_as_a_whole_are_an_oscillation(tiny_config):
    assert alarms(tiny_config(), {}, {"drift": 0.18}) == []
    (alarm,) = alarms(tiny_config(adam_beta1=0.9), {}, {"drift": 0.22})
    assert alarm.name == "oscillation"
    assert "adam_beta1, now 0.9" in alarm.remedies[1]


def test_a_few_bad_lines_raise_nothing(tiny_config):
    bad = {**DISCRIMINATOR_WINS, "loss_gen": 1e4}
    lines = in_order(
        metrics(range(50, 1001, 50)), metrics(range(1050, 1201, 50), **bad), metrics(range(1250, 2001, 50)),
        health(range(0, 1001, 100)), health([1100, 1200], diversity=0.0, copies=1.0), health(range(1300, 2001, 100)),
    )  # fmt: skip
    assert watch(Monitor(tiny_config()), lines) == []


def test_an_alarm_comes_again_after_its_sign_has_been_away(tiny_config):
    """For as long as it must last; one that flickers is one alarm."""

    def watched(*spans):
        lines = in_order(*(health(range(first, last + 1, 100), copies=copies) for first, last, copies in spans))
        return [alarm.step for alarm in watch(Monitor(tiny_config()), lines)]

    assert watched((100, 1000, 0.4), (1100, 2000, 0.0), (2100, 3000, 0.4)) == [500, 2300]
    assert watched((100, 1000, 0.4), (1100, 1400, 0.0), (1500, 3000, 0.4)) == [500]


def test_patience_is_a_field(tiny_config):
    for patience in (400, 1000):
        (alarm,) = alarms(tiny_config(alarm_patience=patience), {}, {"copies": 0.9})
        assert (alarm.step, alarm.since) == (patience, 0)


@pytest.mark.parametrize("cut", [250, 700, 1300])
def test_stopping_changes_no_alarm(tiny_config, cut):
    """One alarm before the cut, or at it, and one after."""
    lines = in_order(
        metrics(range(50, 2001, 50)),
        health(range(0, 901, 100), copies=0.9),
        health(range(1000, 2001, 100), diversity=0.0),
    )
    expected = watch(Monitor(tiny_config()), lines)
    assert [alarm.name for alarm in expected] == ["copies", "mode_collapse"]
    before = [line for line in lines if line["step"] <= cut]
    gone_on = Monitor(tiny_config())
    gone_on.follow(
        [line for line in before if "diversity" not in line], [line for line in before if "diversity" in line]
    )
    after = watch(gone_on, [line for line in lines if line["step"] > cut])
    assert after == [alarm for alarm in expected if alarm.step > cut]


def test_what_was_not_measured_raises_nothing(tiny_config):
    """Logs of an older version, and a training without held-out images."""
    lines = in_order(
        [{"step": step, "diversity": 0.1} for step in range(0, 1001, 100)],
        [{"step": step} for step in range(50, 1001, 50)],
    )
    assert watch(Monitor(tiny_config()), lines) == []


def test_remedies_tell_the_rate_of_now(tiny_config):
    """After a rollback it is not the config's."""
    lines = in_order(metrics(range(50, 501, 50), **DISCRIMINATOR_WINS), health(range(0, 501, 100)))
    (alarm,) = watch(Monitor(tiny_config(lr_dis=5e-5)), lines)
    assert "lower lr_dis, now 5e-05" in alarm.remedies[0]


@pytest.mark.parametrize(
    ("metrics_changes", "health_changes", "too_fast"),
    [
        (DISCRIMINATOR_WINS, {}, "lr_dis"),
        ({"score_real": 0.5, "score_fake_before": 0.5}, {}, "lr_gen"),
        ({}, {"norms_dis": [9.0, 40.0]}, "lr_dis"),
        ({}, {"norms_gen": [9.0, 40.0]}, "lr_gen"),
    ],
)
def test_the_network_that_is_too_fast_is_named(tiny_config, metrics_changes, health_changes, too_fast):
    (alarm,) = alarms(tiny_config(), metrics_changes, health_changes)
    assert alarm.too_fast == too_fast
    assert alarm.remedies[0].startswith(f"lower {too_fast}, now 0.0002, to 5e-05")


REMEDIES_OF = {  # configs that remedies may not fit, and what the usual ones would be refused for, or are already
    "usual": {},
    "all of it done": {
        "arch": "sngan", "loss": "wgan-gp", "dis_steps": 5, "dis_dropout": 0.5, "augment_translation": 0.1,
        "augment_flips": True, "ema_decay": 0.99, "data_holdout_fraction": 0.2, "evaluate_every_steps": 50,
    },
    "targets of bce": {"arch": "dcgan", "real_label": 0.9, "label_flip": 0.1, "num_steps": 0},
    "hinge, as low as dropout of remedies": {"loss": "hinge", "dis_dropout": 0.2},
    "rolling back": {"on_alarm": "rollback", "monitor_every_steps": 100, "lr_dis": 5e-5},
    "of other rates": {"lr_gen": 2e-6, "adam_beta1": 0.9, "simultaneous": True, "dtype": "bfloat16"},
}  # fmt: skip


@pytest.mark.parametrize("case", REMEDIES_OF)
def test_remedies_are_such_that_the_config_allows_them(tiny_config, case):
    options = REMEDIES_OF[case]
    config = tiny_config(**options)
    monitor = Monitor(config)
    for name in SIGNS:
        for too_fast in ("lr_gen", "lr_dis"):
            (first, *rest) = (alarm := monitor._alarm(name, 9, 4, Found("", "", too_fast))).remedies
            assert len(rest) in (1, 2)
            assert len({first, *rest}) == len(alarm.remedies)
            for remedy in alarm.remedies:
                changes = {
                    field.replace(".", "_"): ast.literal_eval(value)
                    for field, value in re.findall(r"([a-z_.0-9]+)=('[^']*'|[-\w.]+)", quoted(remedy))
                }
                assert ("on_alarm" in changes) <= (config.on_alarm != "rollback")
                changed = tiny_config(
                    **options | {name: value for name, value in changes.items() if name != "on_alarm"}
                )
                assert changed != config or not changes or "on_alarm" in changes


def quoted(remedy):
    """With the names among its values in quotes."""
    return re.sub(r"=([a-z][-\w]*)", r"='\1'", remedy)


def test_rates_that_are_too_low_are_to_be_raised(tiny_config):
    (alarm,) = alarms(tiny_config(lr_gen=2e-6), DISCRIMINATOR_WINS)
    assert alarm.remedies[0] == "raise lr_gen, now 2e-06, to 0.0002"
    (alarm,) = alarms(tiny_config(lr_gen=2e-8, lr_dis=2e-8), {"score_real": 0.5, "score_fake_before": 0.5})
    assert alarm.remedies[0] == "raise lr_dis, now 2e-08, to 0.0002"
    (alarm,) = alarms(tiny_config(lr_gen=2e-8, lr_dis=2e-8), {}, {"diversity": 0.001})
    assert "raise lr_gen and lr_dis, now 2e-08, to 0.0002" in alarm.remedies


def test_steps_without_a_turn_of_the_generator_tell_nothing_of_its_gradient(tiny_config):
    """Six of eleven lines are of such steps, where its norm is 0."""
    lines = in_order(
        [line | {"grad_norm_gen": 0.0 if line["step"] % 2 else 50.0} for line in metrics(range(45, 1501, 45))],
        health(range(0, 1501, 100)),
    )
    assert watch(Monitor(tiny_config(dis_steps=2)), lines) == []
    lost = [line | {"grad_norm_gen": 1e-3} if line["step"] > 500 and "score_real" in line else line for line in lines]
    assert [alarm.name for alarm in watch(Monitor(tiny_config(dis_steps=2)), lost)] == ["non_convergence"]


def test_the_evidence_is_true_at_the_first_look_of_all(tiny_config):
    (alarm,) = alarms(tiny_config(), {}, {"diversity": 0.005})
    assert "two fakes at their best by 0.005" in alarm.evidence


def test_gradients_are_compared_with_the_first_that_were_logged(tiny_config):
    """A training of an older version has none at its beginning."""
    old = [
        {name: value for name, value in line.items() if name != "grad_norm_gen"} for line in metrics(range(50, 951, 50))
    ]
    lines = in_order(
        old, metrics(range(1000, 1501, 50)), metrics(range(1550, 2501, 50), grad_norm_gen=1e-3),
        health(range(1000, 2501, 100)),
    )  # fmt: skip
    (alarm,) = watch(Monitor(tiny_config()), lines)
    assert "0.001, at first 50" in alarm.evidence
    (alarm,) = watch(
        Monitor(tiny_config()), in_order([line | DISCRIMINATOR_WINS for line in old], health(range(0, 901, 100)))
    )
    assert "nan" not in alarm.evidence


def test_after_a_rollback_what_was_before_is_no_evidence(tiny_config):
    """The rates were others: the signs must last as long as at first."""
    lines = in_order(metrics(range(50, 2001, 50)), health(range(0, 2001, 100), copies=0.9))
    assert [alarm.step for alarm in watch(Monitor(tiny_config()), lines)] == [500]
    assert [alarm.step for alarm in watch(Monitor(tiny_config(), slowed_at=900), lines)] == [500, 1400]
    impatient = Monitor(tiny_config(alarm_patience=100), slowed_at=900)  # four looks at least
    assert [alarm.step for alarm in watch(impatient, lines)] == [300, 1300]


def test_a_number_that_is_none(tiny_config):
    alarm = Monitor(tiny_config()).not_finite("loss_gen is nan", 7, 4)
    assert (alarm.name, alarm.step, alarm.since, alarm.evidence) == ("divergence", 7, 4, "loss_gen is nan")
    assert alarm.too_fast == "lr_dis"
    assert Monitor(tiny_config(lr_gen=0.5)).not_finite("loss_gen is nan", 7, 4).too_fast == "lr_gen"
