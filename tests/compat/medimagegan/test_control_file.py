"""Control files of the PyTorch system give the trainings and samplings that they gave there, or one line."""

import pytest

from configs.control_file import get_config
from medgan_jax.compat.medimagegan.control_file import check_sampling, load
from medgan_jax.config import default_config, parse_config
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


def changed(text, *, without=(), **values):
    kept = [line for line in text.splitlines() if line.partition(":")[0] not in (*without, *values)]
    return "\n".join([*kept, *(f"{key}: {value}" for key, value in values.items())]) + "\n"


@pytest.fixture
def read(tmp_path):
    def call(content):
        path = tmp_path / "input.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return load(path, default_config())

    return call


@pytest.fixture
def refusal(read):
    def call(content):
        with pytest.raises(UserError) as caught:
            read(content)
        _, message = str(caught.value).split("input.yaml: ")
        return message

    return call


def test_a_training_file_sets_its_fields_and_leaves_the_rest(read):
    expected = default_config()
    expected.update(
        arch="sngan", image_size=64, latent_dim=256, gen_features=64, dis_features=32, batch_size=16, num_epochs=5,
        lr_gen=2e-4, lr_dis=2e-4, seed=42, log_every_steps=10, output_prefix="/data/results/melanoma",
    )  # fmt: skip
    expected.data.path = "/data/lesions/"
    assert parse_config(read(TRAINING)) == parse_config(expected)


def test_a_sampling_file(read):
    assert read(SAMPLING).to_dict() == {
        "path": "/data/netG.zip", "out": "/data/images/", "run": "dummy", "quantity": 100, "image_size": 64, "seed": 0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("written", "generator", "discriminator"),
    [
        ("0.0002", 2e-4, 2e-4),
        ("0.999999", 0.999999, 0.999999),
        ("1", 2e-4, 2e-4),
        ("100.0", 2e-4, 2e-2),
        ("2e-4", 2e-4, 2e-4),  # text to YAML 1.1
        ("1e1", 2e-4, 2e-3),
    ],
)
def test_learning_rates_of_1_or_more_multiply_the_discriminators(read, written, generator, discriminator):
    config = read(changed(TRAINING, learning_rate=written))
    assert (config.lr_gen, config.lr_dis) == pytest.approx((generator, discriminator), rel=1e-12)


@pytest.mark.parametrize(("arch", "ours"), [("WGAN", "dcgan"), ("DCGAN", "dcgan"), ("SNGAN", "sngan")])
def test_the_keys_of_its_sibling_select_the_wasserstein_loss(read, arch, ours):
    config = read(changed(TRAINING, arch=arch, critic_its=5, gp_lambda=10))
    assert (config.arch, config.loss, config.dis_steps, config.gp_weight) == (ours, "wgan-gp", 5, 10.0)


def test_optional_keys_and_dates_as_names(read):
    config = read(changed(TRAINING, without=("seed", "n_gpu", "loader_workers"), run="2021-04-05"))
    assert (config.seed, config.output_prefix) == (0, "/data/results/2021-04-05")


def test_unused_keys_are_reported_once(read, capsys):
    assert read(TRAINING) == read(TRAINING)
    (line,) = capsys.readouterr().err.splitlines()
    assert "n_gpu and loader_workers have no meaning here" in line


def test_home_folders(read, monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    assert read(changed(TRAINING, out="~/results")).output_prefix == "/home/someone/results/melanoma"


@pytest.mark.parametrize(
    ("text", "key", "value", "says"),
    [
        (TRAINING, "arch", "sngan", "arch=sngan must be one of DCGAN, SNGAN, WGAN, Generator (did you mean SNGAN?)"),
        (TRAINING, "arch", "[SNGAN]", "arch must be text, not ['SNGAN']"),
        (TRAINING, "image_size", "100", "image_size=100 must be a power of two from 16 to 512"),
        (TRAINING, "number_channels", "4", "number_channels=4 must be one of 1, 3"),
        (TRAINING, "gen_feature_maps", "-1", "gen_feature_maps=-1 must be at least 1"),
        (TRAINING, "batch_size", "1", "batch_size=1 must be at least 2, for batch normalisation"),
        (TRAINING, "batch_size", "'16'", "batch_size must be a whole number, not '16'"),
        (TRAINING, "num_epochs", "0", "num_epochs=0 must be at least 1"),
        (TRAINING, "num_epochs", "", "num_epochs must be a whole number, not empty"),
        (TRAINING, "learning_rate", "0", "learning_rate=0.0 must be a positive number"),
        (TRAINING, "learning_rate", ".nan", "learning_rate=nan must be a positive number"),
        (TRAINING, "beta_adam", "1", "beta_adam=1.0 must be at least 0 and below 1"),
        (TRAINING, "seed", "-1", "seed=-1 must be from 0 to 4294967295"),
        (TRAINING, "n_gpu", "all", "n_gpu must be a whole number, not 'all'"),
        (TRAINING, "path", "''", "path is empty"),
        (TRAINING, "path", "3", "path must be text, not 3 (put it in quotes)"),
        (TRAINING, "run", "a/b", "run='a/b' must be a plain name, which the names of the outputs begin with"),
        (TRAINING, "gp_lambda", "-1", "critic_its is missing"),
        (TRAINING, "gp_lamba", "10", "gp_lamba is not a key, did you mean gp_lambda?"),
        (TRAINING, "quantity", "3", "quantity is not a key"),
        (SAMPLING, "quantity", "0", "quantity=0 must be at least 1"),
        (SAMPLING, "quantity", "1.5", "quantity must be a whole number, not 1.5"),
        (SAMPLING, "seed", "4294967296", "seed=4294967296 must be at least 0 and at most 4294967295"),
        (
            SAMPLING,
            "arch",
            "generator",
            "arch=generator must be one of DCGAN, SNGAN, WGAN, Generator (did you mean Gen",
        ),
    ],
)
def test_an_impossible_value_is_refused_by_its_key(refusal, text, key, value, says):
    assert refusal(changed(text, **{key: value})).startswith(says)


def test_all_problems_at_once_and_a_misspelt_key_is_not_also_missing(refusal):
    text = changed(TRAINING, without=("out", "batch_size"), arch="X", run=3, batchsize=16, Seeds=1)
    assert refusal(text) == (
        "batchsize is not a key, did you mean batch_size?; Seeds is not a key; out is missing; "
        "run must be text, not 3 (put it in quotes); arch=X must be one of DCGAN, SNGAN, WGAN, Generator"
    )
    assert refusal(changed(TRAINING, image_size=7, beta_adam=1)).count("must be") == 2
    assert refusal("arch: Generator") == (
        "path is missing; out is missing; run is missing; quantity is missing; image_size is missing"
    )


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("# only a remark", "holds no keys"),
        ("SNGAN", "holds no keys"),
        ("arch: SNGAN\npath: [a, b\nout: c\n", "line 3: "),
        ("arch: SNGAN\n\tpath: x\n", "line 2: "),
        (SAMPLING.replace("zip'", "zip"), "line 5: "),
        ("arch: a\n---\narch: b\n", "line 2: "),
        (TRAINING + "seed: 3\n", "line 22: seed is there twice"),
        (b"arch: \xff\xff\n", "is not text"),
        (b"#" * 70_000, "70,000 bytes are no control file"),
        ("path: " + "[" * 2000, "holds lists within lists"),
        ("seed: " + "9" * 9000, "holds a number too long to read"),
        ("run: !!python/name:os.system", "line 1: could not determine a constructor for the tag"),
    ],
)
def test_a_file_that_is_no_control_file(refusal, content, says):
    assert refusal(content).startswith(says)


def test_lists_of_lists_of_lists_are_not_written_out(refusal):
    lists = "".join(f"k{i + 1}: &k{i + 1} [*k{i}, *k{i}]\n" for i in range(40))
    said = refusal("k0: &k0 [a, b]\n" + lists + "arch: SNGAN\npath: *k40\n")
    assert "path must be text, not [[[[[[[...], [...]]" in said
    assert len(said) < 2000


def test_tags_execute_nothing(refusal, tmp_path):
    tag = f"!!python/object/apply:os.system ['touch {tmp_path}/executed']"
    for text in (tag, changed(TRAINING, seed=tag), TRAINING + f"? {tag}\n: 3\n", f"a: [{tag}]"):
        assert "tag:yaml.org,2002:python/object" in refusal(text)
    assert not (tmp_path / "executed").exists()


def test_a_missing_file(tmp_path):
    with pytest.raises(UserError, match="none.yaml: no such control file"):
        load(tmp_path / "none.yaml", default_config())
    with pytest.raises(UserError, match=r"configs/control_file\.py:FILE\.yaml"):
        get_config()


def test_sampling_is_checked_against_flags(read):
    config = read(SAMPLING)
    assert check_sampling(config, checkpoint=None, out=None) is config
    for name in ("checkpoint", "out"):
        with pytest.raises(UserError, match=f"--{name}=x: the control file says that"):
            check_sampling(config, **{"checkpoint": None, "out": None, name: "x"})
    config.update(quantity=0, run="a/b")  # by --config.quantity=0
    with pytest.raises(UserError, match=r"run='a/b' must be .*; quantity=0 must be"):
        check_sampling(config, checkpoint=None, out=None)
    with pytest.raises(UserError, match="is for training; run train.py"):
        check_sampling(read(TRAINING), checkpoint=None, out=None)
