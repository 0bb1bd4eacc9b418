"""One schema: fields are read whole or refused with every problem named; help, resume check and configs follow it."""

import json

import pytest

from medgan_jax import config as schema
from medgan_jax.config import changed_fields, config_path, default_config, named_config, parse_config
from medgan_jax.errors import UserError

NAMES = ("default", "quickstart", *(f"{kind}{size}" for kind in ("dcgan", "sngan", "small") for size in (64, 128, 256)))


def plain(name="default", **overrides):
    """Nested plain values of a config; `data_x` and `augment_x` are fields of these groups."""
    c = named_config(name)
    if c.data.source == "folder":
        c.data.path = "somewhere"
    values = c.to_dict()
    for field, value in overrides.items():
        group, _, leaf = field.partition("_")
        if leaf and group in ("data", "augment"):
            values[group][leaf] = value
        else:
            values[field] = value
    return values


@pytest.mark.parametrize("name", NAMES)
def test_packaged_configs_are_valid(name):
    config = parse_config(plain(name))
    assert parse_config(json.loads(json.dumps(config.to_dict()))) == config
    if name[:5] in ("dcgan", "sngan"):
        assert (config.arch, config.image_size) == (name[:5], int(name[5:]))
        assert config.latent_dim == (256 if name.startswith("sngan") else 100)


def test_defaults_are_the_published_ones():
    c = parse_config(plain())
    assert (c.lr_gen, c.lr_dis, c.adam_beta1, c.batch_size) == (2e-4, 2e-4, 0.5, 16)
    assert (c.latent_dim, c.gen_features, c.dis_features, c.image_size) == (100, 64, 64, 64)
    assert (c.real_label, c.label_flip, c.ema_decay) == (1.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("arch", "sngam", "one of dcgan, sngan, resnet, fastgan"),
        ("image_size", 100, "power of two from 16 to 512"),
        ("lr_dis", float("nan"), "a positive number"),
        ("adam_beta1", 1.0, "at least 0 and below 1"),
        ("gp_weight", -1.0, "0 or more"),
        ("real_label", 0.0, "above 0 and at most 1"),
        ("label_flip", 1.5, "from 0 to 1"),
        ("batch_size", 1, "at least 2, for batch normalisation"),
        ("num_epochs", 0, "at least 1"),
        ("seed", -1, "from 0 to 4294967295"),
        ("evaluate_every_steps", 5, "needs images that are not trained on: set data.holdout_fraction"),
        ("r1_every_steps", 16, "needs r1_weight above 0"),
        ("ema_rampup", 0.05, "needs ema_decay above 0"),
        ("data_holdout_fraction", 1.0, "at least 0 and below 1"),
        ("data_group_column", "patient", "needs data.source=csv"),
        ("data_source", "csv", "data.labels_csv is needed"),
        ("data_window", "4095,0", "auto, full, or LOW,HIGH, two numbers of which the first is smaller"),
        ("data_window", "0,nan", "auto, full, or LOW,HIGH"),
        ("data_frames", "last", "one of , first, all"),
        ("data_fit", "squash", "one of crop, pad, stretch"),
        ("data_path", "", "data.path is needed"),
        ("data_path", "gs://bucket/isic", "data.path='gs://bucket/isic' must be a path on this machine; copy"),
        ("data_cache_dir", "s3://b", "data.cache_dir='s3://b' must be a path on this machine"),
        ("init_from", "https://x.org/netG.pth", "must be a path on this machine"),
        ("output_prefix", "a\0b", "must be a path on this machine"),
        ("augment_color", 1.1, "from 0 to 1"),
        ("augment_adaptive_target", 0.6, "none is on: set one of augment.flips"),
        ("augment", True, "must be a group of fields"),
        ("batch_size", "16", "must be of type int"),
        ("batch_size", True, "must be of type int"),
        ("batchsize", 3, "is not a field, did you mean batch_size"),
    ],
)
def test_impossible_values_are_refused_in_one_line(field, value, says):
    with pytest.raises(UserError) as caught:
        parse_config(plain(**{field: value}))
    message = str(caught.value)
    assert field.replace("data_", "data.").replace("augment_", "augment.") in message
    assert says in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"augment_flips": True, "augment_adaptive_target": 0.6, "augment_probability": 0.5}, "leave one of them out"),
        ({"augment_flips": True, "augment_adaptive_target": 0.6, "loss": "wgan-gp"}, "no meaning with loss=wgan-gp"),
        ({"arch": "resnet", "upsample": "nearest"}, "upsample=nearest is for arch=dcgan or sngan"),
        ({"arch": "resnet", "image_size": 16}, "from 32 to 256 for arch=resnet"),
        ({"arch": "fastgan", "image_size": 16}, "from 32 to 512 for arch=fastgan"),
        ({"dis": "projected", "loss": "wgan-gp"}, "dis=projected goes with hinge or bce"),
        ({"dis": "projected", "dis_dropout": 0.1}, "dis_dropout=0.1 is for dis=patch"),
        ({"dis": "projected", "dis_features": 32}, "dis_features=32 is for dis=patch"),
        ({"conditional": True, "data_class_filter": "malignant"}, "keeps one: leave one of them out"),
        ({"data_any_orientation": True, "augment_flips": True}, "leave out augment.flips"),
        ({"loss": "hinge", "label_flip": 0.1}, "loss=hinge has none"),
        ({"on_alarm": "stop", "monitor_every_steps": 0}, "needs monitor_every_steps above 0"),
        ({"data_source": "tfds", "data_tfds_name": "x", "data_frames": "all"}, "data.frames=all is for files"),
    ],
)
def test_fields_that_contradict_each_other_are_refused(fields, says):
    with pytest.raises(UserError, match=says):
        parse_config(plain(**fields))


def test_all_problems_are_named_at_once():
    with pytest.raises(UserError) as caught:
        parse_config(plain(arch="x", image_size=7, data_source="y"))
    assert all(name in str(caught.value) for name in ("arch", "image_size", "data.source"))


def test_a_resumed_run_may_change_only_what_alters_no_step():
    old = plain("sngan64")
    free = {"num_epochs": 7, "log_every_steps": 3, "data_path": "elsewhere", "on_alarm": "stop", "guard": False}
    assert changed_fields(old, parse_config(plain("sngan64", **free))) == []
    new = parse_config(plain("sngan64", lr_dis=1e-3, augment_flips=True, data_class_filter="malignant", **free))
    assert changed_fields(old, new) == [
        "lr_dis: 0.0002 -> 0.001",
        "augment.flips: False -> True",
        "data.class_filter: '' -> 'malignant'",
    ]


def test_runs_share_compiled_steps_unless_a_step_differs():
    steps = parse_config(plain()).of_steps()
    assert parse_config(plain(seed=3, num_steps=9, data_path="elsewhere", report=False)).of_steps() == steps
    for other in (
        {"loss": "hinge"},
        {"batch_size": 32},
        {"augment_color": 0.5},
        {"data_horizontal_flip": True},
        {"data_any_orientation": True},
    ):
        assert parse_config(plain(**other)).of_steps() != steps


def test_former_names_are_accepted_with_a_notice(caplog):
    c = default_config()
    c.data.update(source="csv", path="images", labels="table.csv", label="malignant")
    config = parse_config(c)
    assert (config.data.labels_csv, config.data.class_filter) == ("table.csv", "malignant")
    assert "config.data.label is now called config.data.class_filter" in caplog.messages
    old = config.to_dict()
    old["data"]["label"] = old["data"].pop("class_filter")
    assert changed_fields(old, config) == []


def test_every_field_is_explained_and_listed_once():
    listed = [name for names in schema.field_groups().values() for name in names]
    assert sorted(listed) == sorted(schema.FIELDS)
    text = schema.help_text()
    assert all(f"--config.{name}=" in text for name in listed)
    assert all(field.metadata["help"] for field in schema.FIELDS.values())


def test_configs_are_found_by_name_and_by_path():
    assert config_path("small64").name == "small64.py"
    assert config_path(str(config_path("small64"))) == config_path("small64")
    for name, says in (("smal64", "did you mean small64"), ("configs/smal64.py", "no such config")):
        with pytest.raises(UserError, match=says):
            config_path(name)
