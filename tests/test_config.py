"""Configs are read whole or refused with every problem named."""

import dataclasses
import importlib
import json

import pytest

from configs import default
from medgan_jax.config import (
    CHANGEABLE,
    AugmentConfig,
    Config,
    DataConfig,
    changed_fields,
    field_names,
    parse_config,
)
from medgan_jax.errors import UserError

NAMES = (
    "default",
    "quickstart",
    "small64",
    "small128",
    "small256",
    "dcgan64",
    "dcgan128",
    "dcgan256",
    "sngan64",
    "sngan128",
    "sngan256",
)


def plain(name="default", **overrides):
    c = importlib.import_module(f"configs.{name}").get_config()
    if c.data.source == "folder":
        c.data.path = "somewhere"
    values = c.to_dict()
    for field, value in overrides.items():
        name, _, leaf = field.partition("_")
        group, field = (values[name], leaf) if leaf and name in ("data", "augment") else (values, field)
        group[field] = value
    return values


@pytest.mark.parametrize("name", NAMES)
def test_shipped_configs_are_valid(name):
    config = parse_config(plain(name))
    if name[:5] in ("dcgan", "sngan"):
        assert config.arch == name[:5]
        assert config.image_size == int(name[5:])
        assert config.latent_dim == (256 if name.startswith("sngan") else 100)


def test_defaults_are_the_published_ones():
    c = parse_config(plain())
    assert (c.lr_gen, c.lr_dis, c.adam_beta1, c.batch_size) == (2e-4, 2e-4, 0.5, 16)
    assert (c.latent_dim, c.gen_features, c.dis_features, c.image_size) == (100, 64, 64, 64)
    assert (c.real_label, c.label_flip, c.ema_decay) == (1.0, 0.0, 0.0)


def test_survives_json():
    config = parse_config(plain("sngan128"))
    assert parse_config(json.loads(json.dumps(config.to_dict()))) == config


def test_every_default_stands_in_the_dataclasses_and_the_reverse():
    fields = {f.name for f in dataclasses.fields(Config)}
    data = {f.name for f in dataclasses.fields(DataConfig)}
    augment = {f.name for f in dataclasses.fields(AugmentConfig)}
    assert set(default.get_config()) == fields
    assert set(default.get_config().data) == data
    assert set(default.get_config().augment) == augment
    groups = {f"data.{name}" for name in data} | {f"augment.{name}" for name in augment}
    assert set(field_names()) == fields - {"data", "augment"} | groups
    assert {name for name in CHANGEABLE if "." not in name} <= fields
    assert {name.removeprefix("data.") for name in CHANGEABLE if "." in name} <= data


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("arch", "sngam", "did you mean sngan"),
        ("image_size", 100, "power of two from 16 to 512"),
        ("image_size", 8, "power of two from 16 to 512"),
        ("image_size", 1024, "power of two from 16 to 512"),
        ("channels", 4, "1, 3"),
        ("dtype", "float16", "float32, bfloat16"),
        ("lr_gen", -1e-4, "positive"),
        ("lr_dis", float("nan"), "positive"),
        ("lr_dis", float("inf"), "positive"),
        ("adam_beta1", 1.0, "below 1"),
        ("adam_beta2", -0.1, "at least 0"),
        ("ema_decay", 1.0, "below 1"),
        ("dis_dropout", 1.0, "below 1"),
        ("loss", "hing", "did you mean hinge"),
        ("gp_weight", -1.0, "0 or more"),
        ("dis_steps", 0, "at least 1"),
        ("real_label", 0.0, "above 0"),
        ("label_flip", 1.5, "from 0 to 1"),
        ("batch_size", 1, "at least 2"),
        ("latent_dim", 0, "at least 1"),
        ("num_steps", -1, "0 or more"),
        ("num_epochs", 0, "at least 1"),
        ("keep_checkpoints", 0, "at least 1"),
        ("log_every_steps", 0, "at least 1"),
        ("evaluate_every_steps", -1, "0 or more"),
        ("evaluate_every_steps", 5, "needs images that are not trained on: set data.holdout_fraction"),
        ("best_measure", "sdw", "did you mean swd"),
        ("data_holdout_fraction", 1.0, "at least 0 and below 1"),
        ("data_group_column", "patient", "needs data.source=csv"),
        ("seed", -1, "from 0"),
        ("data_source", "foldr", "did you mean folder"),
        ("data_source", "csv", "data.labels_csv is needed"),
        ("data_source", "tfds", "data.tfds_name is needed"),
        ("data_path", "", "data.path is needed"),
        ("data_on_bad_image", "ignore", "refuse, skip"),
        ("upsample", "nearst", "did you mean nearest"),
        ("r1_weight", -1.0, "0 or more"),
        ("lecam_weight", float("inf"), "0 or more"),
        ("consistency_weight", -0.1, "0 or more"),
        ("r1_every_steps", 0, "at least 1"),
        ("r1_every_steps", 16, "needs r1_weight above 0"),
        ("ema_rampup", -0.1, "0 or more"),
        ("ema_rampup", 0.05, "needs ema_decay above 0"),
        ("augment_color", 1.1, "from 0 to 1"),
        ("augment_translation", -0.1, "from 0 to 1"),
        ("augment_cutout", 2.0, "from 0 to 1"),
        ("augment_probability", 1.5, "from 0 to 1"),
        ("augment_adaptive_target", 1.0, "below 1"),
        ("augment_adaptive_target", 0.6, "none is on: set one of augment.flips"),
        ("augment_adaptive_images", 0, "at least 1"),
        ("augment_flips", 1, "of type bool"),
        ("augment", True, "group of fields"),
        ("batch_size", "16", "of type int"),
        ("batch_size", True, "of type int"),
        ("arch", None, "of type str"),
        ("data", 3, "group of fields"),
    ],
)
def test_impossible_values_are_refused(field, value, says):
    with pytest.raises(UserError) as caught:
        parse_config(plain(**{field: value}))
    assert field.replace("data_", "data.").replace("augment_", "augment.") in str(caught.value)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_field_names_the_nearest():
    with pytest.raises(UserError, match="batchsize is not a field, did you mean batch_size"):
        parse_config(plain(batchsize=3))


def test_all_problems_at_once():
    with pytest.raises(UserError) as caught:
        parse_config(plain(arch="x", image_size=7, data_source="y"))
    assert all(name in str(caught.value) for name in ("arch", "image_size", "data.source"))


@pytest.mark.parametrize(
    "field",
    [
        "arch", "image_size", "channels", "latent_dim", "gen_features", "dis_features", "dtype", "batch_size",
        "lr_gen", "lr_dis", "adam_beta1", "adam_beta2", "real_label", "label_flip", "ema_decay", "seed",
        "upsample", "conditional", "balance_classes", "r1_weight", "r1_every_steps", "lecam_weight",
        "consistency_weight", "ema_rampup", "augment.flips", "augment.quarter_turns", "augment.color",
        "augment.translation", "augment.cutout", "augment.probability", "augment.adaptive_target",
        "augment.adaptive_images",
        "data.source", "data.class_filter", "data.split", "data.horizontal_flip", "data.num_phantoms",
    ],
)  # fmt: skip
def test_what_shapes_a_training_may_not_change(field):
    old = plain()
    *group, leaf = field.split(".")
    (old[group[0]] if group else old)[leaf] = "something else"
    (change,) = changed_fields(old, parse_config(plain()))
    assert change.startswith(f"{field}: 'something else' -> ")


def test_changed_fields_names_what_may_not_change():
    old = plain("sngan64")
    new = parse_config(plain("sngan64", num_epochs=7, log_every_steps=3, data_path="elsewhere", lr_dis=1e-3))
    assert changed_fields(old, new) == ["lr_dis: 0.0002 -> 0.001"]
    del old["lr_dis"]  # written before the field existed
    assert changed_fields(old, new) == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("upsample", "nearest"), ("conditional", True), ("dis_dropout", 0.5), ("loss", "hinge"), ("r1_weight", 10.0),
        ("lecam_weight", 0.3), ("consistency_weight", 10.0), ("dis_steps", 2), ("simultaneous", True),
        ("ema_rampup", 0.05), ("init_from", "runs/other"), ("augment_flips", True), ("augment_quarter_turns", True),
        ("augment_color", 1.0), ("augment_translation", 0.125), ("augment_cutout", 0.5),
    ],
)  # fmt: skip
def test_what_an_older_version_did_not_have_was_off(field, value):
    """Its config.json lacks the field; what it began without is not to be turned on half-way."""
    old, name = plain(), field.replace("augment_", "augment.")
    group = old.pop("augment") if "." in name else old
    off = group.pop(name.removeprefix("augment."))
    assert changed_fields(old, parse_config(plain())) == []
    new = plain(**{field: value}, **({"ema_decay": 0.999} if field == "ema_rampup" else {}))
    assert f"{name}: {off!r} -> {value!r}" in changed_fields(old, parse_config(new))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"augment_flips": True, "augment_adaptive_target": 0.6, "augment_probability": 0.5}, "leave one of them out"),
        (
            {"augment_flips": True, "augment_adaptive_target": 0.6, "loss": "wgan-gp"},
            "has no meaning with loss=wgan-gp",
        ),
        ({"augment_flips": True, "augment_adaptive_target": 0.6, "augment_probability": 0.0}, "none is on"),
        ({"arch": "resnet", "upsample": "nearest"}, "upsample=nearest is for arch=dcgan or sngan"),
        ({"arch": "resnet", "image_size": 16}, "from 32 to 256 for arch=resnet"),
        ({"arch": "resnet", "image_size": 512}, "from 32 to 256 for arch=resnet"),
        ({"conditional": True, "data_class_filter": "malignant"}, "keeps one: leave one of them out"),
    ],
)
def test_fields_that_contradict_each_other_are_refused(fields, says):
    with pytest.raises(UserError) as caught:
        parse_config(plain(**fields))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_goes_together_is_taken():
    parse_config(plain(augment_flips=True, augment_adaptive_target=0.6))
    parse_config(plain(arch="resnet", image_size=256, conditional=True))
    parse_config(plain(ema_decay=0.999, ema_rampup=0.05, r1_weight=10.0, r1_every_steps=16, upsample="bilinear"))


def test_targets_belong_to_cross_entropy():
    for field, value in (("real_label", 0.9), ("label_flip", 0.1)):
        with pytest.raises(UserError, match="loss=hinge has none"):
            parse_config(plain(loss="hinge", **{field: value}))
    assert parse_config(plain(loss="hinge")).loss == "hinge"
