"""Control files of the PyTorch system give the trainings and samplings that they gave there, or one line."""

import pytest
from ml_collections import ConfigDict

from configs import default
from configs.control_file import get_config
from medgan_jax.compat.medimagegan.control_file import SamplingPlan, load, plan_sampling
from medgan_jax.config import parse_config
from medgan_jax.errors import UserError

TRAINING = """
arch: 'SNGAN'

path: '/data/lesions/'
out: '/data/results'
run: 'melanoma'
seed: 42
n_gpu: 0

num_epochs: 5
learning_rate: 0.0002
beta_adam: 0.5
batch_size: 16

latent_vector: 256

image_size: 64
loader_workers: 2
number_channels: 3
gen_feature_maps: 64
dis_feature_maps: 32
"""
SAMPLING = """
arch: 'Generator'

path: '/data/netG.zip'
out: '/data/images/'
run: 'dummy'

n_gpu: 1

quantity: 100

image_size: 64
"""


def without(text, *keys):
    return "\n".join(line for line in text.splitlines() if line.partition(":")[0] not in keys)


def changed(text, **values):
    return without(text, *values) + "".join(f"\n{key}: {value}" for key, value in values.items())


@pytest.fixture
def read(tmp_path):
    def call(content):
        path = tmp_path / "input.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return load(path, default.get_config())

    return call


@pytest.fixture
def complaint(read):
    def call(content):
        with pytest.raises(UserError) as caught:
            read(content)
        message = str(caught.value)
        assert "input.yaml: " in message
        assert "\n" not in message
        assert len(message) < 1000
        return message.partition("input.yaml: ")[2]

    return call


def test_a_training_file(read):
    config = parse_config(read(TRAINING))
    expected = default.get_config()
    expected.update(
        arch="sngan", image_size=64, latent_dim=256, gen_features=64, dis_features=32, batch_size=16, num_epochs=5,
        lr_gen=2e-4, lr_dis=2e-4, seed=42, log_every_steps=10, output_prefix="/data/results/melanoma",
    )  # fmt: skip
    expected.data.path = "/data/lesions/"
    assert config == parse_config(expected)
    assert config.num_sample_images == 64


def test_a_sampling_file(read):
    config = read(SAMPLING)
    assert config.to_dict() == {
        "path": "/data/netG.zip", "out": "/data/images/", "run": "dummy", "quantity": 100, "image_size": 64, "seed": 0,
    }  # fmt: skip


def test_the_training_given_is_not_changed(tmp_path):
    (tmp_path / "input.yaml").write_text(TRAINING)
    base = default.get_config()
    load(tmp_path / "input.yaml", base)
    assert base == default.get_config()


@pytest.mark.parametrize(
    ("written", "generator", "discriminator"),
    [
        ("0.0002", 2e-4, 2e-4),
        ("0.5", 0.5, 0.5),
        ("0.999999", 0.999999, 0.999999),
        ("1", 2e-4, 2e-4),
        ("1.0", 2e-4, 2e-4),
        ("10", 2e-4, 2e-3),
        ("100.0", 2e-4, 2e-2),
        ("2e-4", 2e-4, 2e-4),  # text to YAML 1.1
        ("1e1", 2e-4, 2e-3),
        ("5E-5", 5e-5, 5e-5),
    ],
)
def test_learning_rates_of_1_or_more_multiply_the_discriminators(read, written, generator, discriminator):
    config = read(changed(TRAINING, learning_rate=written))
    assert (config.lr_gen, config.lr_dis) == pytest.approx((generator, discriminator), rel=1e-12)


@pytest.mark.parametrize(("arch", "ours"), [("WGAN", "dcgan"), ("DCGAN", "dcgan"), ("SNGAN", "sngan")])
def test_the_siblings_keys_select_its_loss(read, arch, ours):
    config = read(changed(TRAINING, arch=arch, critic_its=5, gp_lambda=10))
    assert (config.arch, config.loss, config.dis_steps, config.gp_weight) == (ours, "wgan-gp", 5, 10.0)


def test_other_architectures_have_cross_entropy(read):
    config = read(changed(TRAINING, arch="DCGAN"))
    assert (config.arch, config.loss, config.dis_steps) == ("dcgan", "bce", 1)


def test_keys_that_may_be_left_out(read):
    config = read(without(TRAINING, "seed", "n_gpu", "loader_workers"))
    assert config.seed == 0


def test_what_means_nothing_here_is_reported_once(read, capsys):
    assert read(TRAINING) == read(TRAINING)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "n_gpu and loader_workers have no meaning here" in lines[0]


def test_home_folders(read, monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    assert read(changed(TRAINING, out="~/results")).output_prefix == "/home/someone/results/melanoma"
    by_file = plan_sampling(read(changed(SAMPLING, path="~/g", out="~/i")), **NO_FLAGS)
    by_flags = plan_sampling(None, **NO_FLAGS | {"checkpoint": "~/g", "out": "~/i"})
    for plan in (by_file, by_flags):
        assert (str(plan.checkpoint), str(plan.out)) == ("/home/someone/g", "/home/someone/i")


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("arch", "SNGAM", "arch=SNGAM must be one of DCGAN, SNGAN, WGAN, Generator (did you mean SNGAN?)"),
        ("arch", "sngan", "did you mean SNGAN?"),
        ("arch", "[SNGAN]", "arch must be text, not a sequence"),
        ("image_size", "100", "image_size=100 must be a power of two from 16 to 512"),
        ("image_size", "0", "image_size=0 must be"),
        ("image_size", "64.0", "image_size must be a whole number, not 64.0"),
        ("number_channels", "4", "number_channels=4 must be one of 1, 3"),
        ("latent_vector", "0", "latent_vector=0 must be at least 1"),
        ("gen_feature_maps", "-1", "gen_feature_maps=-1 must be at least 1"),
        ("dis_feature_maps", "0", "dis_feature_maps=0 must be at least 1"),
        ("batch_size", "1", "batch_size=1 must be at least 2"),
        ("batch_size", "many", "batch_size must be a whole number, not many"),
        ("batch_size", "'16'", "batch_size must be a whole number, not '16'"),
        ("batch_size", "true", "batch_size must be a whole number, not true"),
        ("batch_size", "9" * 5000, "batch_size must be a whole number, not 999"),
        ("num_epochs", "0", "num_epochs=0 must be at least 1"),
        ("num_epochs", "", "num_epochs must be a whole number, not empty"),
        ("num_epochs", "{a: 1}", "num_epochs must be a whole number, not a mapping"),
        ("learning_rate", "0", "learning_rate=0.0 must be a positive number"),
        ("learning_rate", "-2e-4", "learning_rate=-0.0002 must be a positive number"),
        ("learning_rate", ".nan", "learning_rate=nan must be a positive number"),
        ("learning_rate", ".inf", "learning_rate=inf must be a positive number"),
        ("learning_rate", "9" * 400, "learning_rate=inf must be a positive number"),
        ("learning_rate", "yes", "learning_rate must be a number, not yes"),
        ("learning_rate", "nan", "learning_rate must be a number, not nan"),
        ("beta_adam", "1", "beta_adam=1.0 must be at least 0 and below 1"),
        ("beta_adam", "2e-4x", "beta_adam must be a number, not 2e-4x"),
        ("seed", "-1", "seed=-1 must be from 0"),
        ("seed", "0x" + "f" * 5000, "seed=0xfff"),
        ("seed", "9" * 4000, "... is far too large"),
        ("n_gpu", "all", "n_gpu must be a whole number, not all"),
        ("path", "''", "path is empty"),
        ("out", '"~\\ud800/x"', "out='~\\ud800/x' has a character that no file name can have"),
        ("path", "3", "path must be text, not 3 (put it in quotes)"),
        ("path", '"a\\0b"', "path='a\\x00b' has a character that no file name can have"),
        ("run", "2021-04-05", "run must be text, not 2021-04-05 (put it in quotes)"),
        ("run", "2021-13-45", "run must be text, not 2021-13-45 (put it in quotes)"),
        ("run", "''", "run='' must be a plain name"),
        ("run", "..", "run='..' must be a plain name"),
        ("run", "a/b", "run='a/b' must be a plain name"),
        ("run", "a\\b", "must be a plain name"),
        ("run", '"a\\nb"', "must be a plain name"),
        ("critic_its", "0", "critic_its=0 must be at least 1; gp_lambda is missing"),
        ("gp_lambda", "-1", "gp_lambda=-1.0 must be 0 or more"),
        ("gp_lamba", "10", "gp_lamba is not a key, did you mean gp_lambda?"),
        ("batchsize", "3", "batchsize is not a key"),
        ("quantity", "3", "quantity is not a key"),
        ("<<", "{seed: 3}", "<< is not a key"),
        ("run", "!!python/object/apply:os.system [touch exploded]", "has the tag tag:yaml.org,2002:python/object"),
        ("run", "!mine x", "has the tag !mine, but a control file holds plain values only"),
        ("run", "!!binary aGk=", "run must be text"),
    ],
)
def test_impossible_values_are_refused_by_their_key(complaint, key, value, says):
    parts = complaint(changed(TRAINING, **{key: value})).split("; ")
    for part in says.split("; "):
        assert any(part in found for found in parts), parts


def test_a_key_misspelt_is_not_also_missing(complaint):
    misspelt = without(TRAINING, "batch_size", "image_size") + "\nbatchsize: 16\nImage_Size: 64\n"
    assert complaint(misspelt) == (
        "batchsize is not a key, did you mean batch_size?; Image_Size is not a key, did you mean image_size?"
    )
    assert complaint(changed(TRAINING, arch="WGAN", critic_its=5, gp_lamba=10)) == (
        "gp_lamba is not a key, did you mean gp_lambda?"
    )


def test_all_problems_at_once(complaint):
    text = changed(without(TRAINING, "seed", "out", "batch_size"), arch="X", image_size=7, run=3, learning_rate=-1)
    says = complaint(text + "\nbatchsize: 3\nimage_size: 8\n")
    for part in ("arch=X", "image_size=7", "run must be", "learning_rate", "out is missing", "batch_size?", "twice"):
        assert part in says


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("quantity", "0", "quantity=0 must be at least 1"),
        ("quantity", "1.5", "quantity must be a whole number, not 1.5"),
        ("quantity", "0x" + "f" * 5000, "... is far too large"),
        ("image_size", "-64", "image_size=-64 must be at least 1"),
        ("seed", "4294967296", "seed=4294967296 must be from 0 to 4294967295"),
        ("batch_size", "16", "batch_size is not a key"),
        ("quantiy", "16", "quantiy is not a key"),
        ("run", "a/b", "run='a/b' must be a plain name"),
        ("arch", "generator", "did you mean Generator?"),
    ],
)
def test_impossible_samplings_are_refused(complaint, key, value, says):
    assert says in complaint(changed(SAMPLING, **{key: value}))


def test_missing_keys_of_a_sampling(complaint):
    assert complaint("arch: Generator") == (
        "path is missing; out is missing; run is missing; quantity is missing; image_size is missing"
    )


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "is empty"),
        ("# only a remark", "is empty"),
        ("- arch\n- path\n", "holds no keys"),
        ("SNGAN", "holds no keys"),
        ("arch: SNGAN\npath: [a, b\nout: c\n", "line 3 is not YAML"),
        ("arch: SNGAN\n\tpath: x\n", "line 2 is not YAML"),
        (SAMPLING.replace("zip'", "zip"), "line 4 opens a quote and does not close it"),
        ("arch: a\n---\narch: b\n", "line 2 is not YAML"),
        ("arch: *nothing\n", "line 1 is not YAML"),
        ("[a]: b\n", "line 1 has a key that is not a word"),
        (TRAINING + "seed: 3\n", "seed is there twice, again in line 22"),
        (b"arch: \x00\n", "is not text"),
        (b"arch: \xff\xff\n", "is not text"),
        ('arch: "\\UFFFFFFFF"', "is not text"),
        ("a: " + "[" * 20_000, "is nested too deeply"),
        ("#" * 70_000, "has more than 65536 bytes"),
        ("!!python/object/apply:os.system [touch exploded]", "line 1 has the tag"),
        ("!!python/dict {}", "line 1 has the tag"),
        ("!mine\narch: x", "line 1 has the tag !mine"),
    ],
)
def test_files_that_are_no_control_files(complaint, content, says):
    assert complaint(content).startswith(says)


def test_tags_execute_nothing(complaint, tmp_path):
    bomb = f"!!python/object/apply:os.system ['touch {tmp_path}/exploded']"
    for text in (bomb, f"arch: {bomb}", changed(TRAINING, seed=bomb), TRAINING + f"? {bomb}\n: 3\n", f"a: [{bomb}]"):
        complaint(text)
    assert not (tmp_path / "exploded").exists()


def test_merged_aliases_cost_nothing(complaint):
    """Each line would have nine times the keys of the one before it."""
    lines = ["a0: &a0 {x: 1}"]
    lines += [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}" for i in range(1, 12)]
    assert "a11 is not a key" in complaint("\n".join(lines))


def test_a_missing_file_and_a_folder(tmp_path):
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(UserError, match="no such control file"):
            load(path, default.get_config())


def test_the_config_wants_a_file():
    with pytest.raises(UserError, match=r"configs/control_file\.py:FILE\.yaml"):
        get_config()


NO_FLAGS = {"checkpoint": None, "out": None, "num_images": None, "seed": None}


def test_flags_alone_are_a_plan():
    plan = plan_sampling(None, checkpoint="a", out="b", num_images=None, seed=None)
    assert (str(plan.checkpoint), str(plan.out)) == ("a", "b")
    assert (plan.num_images, plan.seed, plan.prefix, plan.image_size) == (None, 0, "", None)
    plan.check_size(64)


@pytest.mark.parametrize("missing", ["checkpoint", "out"])
@pytest.mark.parametrize("value", [None, ""])
def test_flags_without_a_control_file_are_needed(missing, value):
    with pytest.raises(UserError, match=f"give --{missing}="):
        plan_sampling(None, **NO_FLAGS | {"checkpoint": "a", "out": "b", missing: value})


def test_flags_beside_a_control_file(read):
    config = read(changed(SAMPLING, seed=7))
    plan = plan_sampling(config, **NO_FLAGS)
    assert (plan.num_images, plan.seed, plan.prefix, plan.image_size) == (100, 7, "dummy", 64)
    plan = plan_sampling(config, **NO_FLAGS | {"num_images": 3, "seed": 0})
    assert (plan.num_images, plan.seed) == (3, 0)
    for name in ("checkpoint", "out"):
        with pytest.raises(UserError, match=f"--{name}=x: the control file says that"):
            plan_sampling(config, **NO_FLAGS | {name: "x"})


def test_a_movie_needs_no_folder(read):
    config = read(changed(SAMPLING, seed=7))
    by_file = plan_sampling(config, **NO_FLAGS, movie=True)
    assert (by_file.out, by_file.num_images, by_file.seed, by_file.image_size) == (None, None, 7, 64)
    by_flags = plan_sampling(None, **NO_FLAGS | {"checkpoint": "a", "num_images": 3}, movie=True)
    assert (str(by_flags.checkpoint), by_flags.out, by_flags.num_images) == ("a", None, 3)
    for given in (None, config):
        with pytest.raises(UserError, match="--out=b: --interpolate writes its movie only"):
            plan_sampling(given, **NO_FLAGS | {"out": "b"}, movie=True)
    with pytest.raises(UserError, match="give --checkpoint="):
        plan_sampling(None, **NO_FLAGS, movie=True)


def test_overridden_samplings_are_checked_again(read):
    config: ConfigDict = read(SAMPLING)
    config.update(quantity=0, run="a/b")
    with pytest.raises(UserError, match=r"run='a/b' must be .*; quantity=0 must be"):
        plan_sampling(config, **NO_FLAGS)


def test_the_size_of_a_plan(tmp_path):
    plan = SamplingPlan(tmp_path / "netG.pth", tmp_path, 3, 0, image_size=128)
    plan.check_size(128)
    with pytest.raises(UserError, match=r"image_size=128 in the control file, but .*netG\.pth have 64 px"):
        plan.check_size(64)
