"""`import medgan_jax`: what it offers to Python code draws, trains and evaluates as the commands do, and is silent."""

import functools
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import medgan_jax
from medgan_jax.checkpoint import Checkpoints, save_generator
from medgan_jax.commands import sample
from medgan_jax.data.phantom import phantom_image
from medgan_jax.models.dcgan import Generator
from medgan_jax.training.callback import Callback, Stop

CLASSES = ["benign", "malignant"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A generator of arbitrary weights, 16 px."""
    module = Generator(16, 3, 2, num_classes=2)
    init = functools.partial(module.init, training=True)
    shapes = jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 4)), jnp.zeros(1, int))
    random = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: np.abs(random.normal(0, 0.5, x.shape)).astype(x.dtype), shapes)
    variables["params"] = jax.tree.map(lambda x: random.normal(0, 0.5, x.shape).astype(x.dtype), shapes["params"])
    path = tmp_path_factory.mktemp("run") / "generator"
    checkpoints = Checkpoints(path, keep=1)
    save_generator(checkpoints, 40, variables, module, 4, {"classes": CLASSES})
    checkpoints.close()
    return path


def test_every_name_is_there():
    assert set(medgan_jax.__all__) <= set(dir(medgan_jax))
    for name in medgan_jax.__all__:
        assert getattr(medgan_jax, name)
    assert callable(medgan_jax.metrics.paired.psnr) and callable(medgan_jax.metrics.distribution.kid)
    with pytest.raises(AttributeError, match="has no attribute 'sample'"):
        medgan_jax.sample  # noqa: B018


@pytest.mark.parametrize("label", [None, "malignant"])
def test_a_generator_draws_what_the_command_writes(folder, tmp_path, label):
    generator = medgan_jax.load(folder)
    assert (generator.image_size, generator.channels, generator.classes) == (16, 3, ("benign", "malignant"))
    assert generator.step == 40 and f"digest='{generator.digest}'" in repr(generator)
    flags = [] if label is None else [f"--label={label}"]
    sample.main([f"--checkpoint={folder}", f"--out={tmp_path}/out", "--num_images=5", "--seed=3", *flags])
    written = [np.asarray(Image.open(tmp_path / f"out/{i:06}.png")) for i in range(5)]
    drawn = generator.sample(5, seed=3, label=label)
    assert drawn.dtype == np.uint8 and len({image.tobytes() for image in drawn}) == 5
    np.testing.assert_array_equal(drawn, written)


def test_a_walk_passes_through_the_images_of_its_seed(folder):
    generator = medgan_jax.load(str(folder))
    walk = generator.interpolate(3, seed=3, label="malignant", frames=4)
    assert (walk.shape, walk.dtype) == ((12, 16, 16, 3), np.uint8)
    assert np.abs(walk[::4].astype(int) - generator.sample(3, seed=3, label="malignant")).max() <= 1


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda g: g.sample(0), "^0 images: give 1 or more"),
        (lambda g: g.sample(2, seed=-1), "^seed=-1 must be from 0 to"),
        (lambda g: g.sample(2, seed=1.5), "^1.5: must be a whole number"),
        (lambda g: medgan_jax.train("quickstart", "w", data="lesions"), "^data: is a group of fields"),
        (lambda g: medgan_jax.evaluate(None, np.zeros((4, 16, 16, 3), np.uint8)), "^fakes: must be uint8"),
        (lambda g: g.sample(2, label="malign"), "^label=malign: .*did you mean malignant"),
        (lambda g: g.interpolate(1), "^num_images=1: a walk passes through two"),
        (lambda g: g.interpolate(2, frames=0), "^0 images"),
        (lambda g: medgan_jax.load("nowhere"), "^nowhere: no such folder"),
        (lambda g: medgan_jax.train("smal64", "w"), "^config=smal64: no such config; did you mean small64"),
        (lambda g: medgan_jax.train("quickstart", "w", num_step=1), "num_step is not a field, did you mean num_steps"),
        (lambda g: medgan_jax.train("quickstart", "w", data={"num_phantom": 1}), "did you mean data.num_phantoms"),
        (lambda g: medgan_jax.train("quickstart", __file__), f"^workdir={__file__}: is a file"),
    ],
)
def test_what_is_wrong_is_one_line_without_flags(folder, monkeypatch, tmp_path, call, says):
    generator = medgan_jax.load(folder)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(medgan_jax.UserError, match=says) as raised:
        call(generator)
    assert "--" not in str(raised.value)
    assert not list(tmp_path.iterdir())


class At(Callback):
    """Does `what()` at one step."""

    def __init__(self, step, what):
        self.step, self.what = step, what

    def every(self, config):
        return 1

    def on_step(self, run, state):
        return self.what() if run.step == self.step else None


@pytest.mark.slow
def test_training_is_silent_and_goes_on_where_it_was_interrupted(tiny_config, tmp_path, capfd, caplog):
    """With a `Config` and with plain values, of which one field of a group is replaced."""
    config = tiny_config(data_cache_dir=str(tmp_path / "cache"), data_num_phantoms=5)
    train = functools.partial(medgan_jax.train, workdir=tmp_path / "run", data={"num_phantoms": 12})
    with pytest.raises(KeyboardInterrupt):
        train(config, callbacks=[At(2, lambda: os.kill(os.getpid(), signal.SIGINT))])
    assert medgan_jax.load(tmp_path / "run").step == 2
    generator = train(config.to_dict(), callbacks=[At(3, lambda: Stop("a test"))])
    assert generator.step == 3 and generator.sample(2).shape == (2, 16, 16, 3)
    shown = capfd.readouterr()
    assert not shown.out and not caplog.records
    bars = ("decoding images", "compiling", "training", "sampling")
    assert all(line.startswith(bars) for line in shown.err.splitlines() if line)


@pytest.fixture(scope="module")
def phantoms():
    return np.stack([phantom_image(i, seed=5, image_size=16) for i in range(6)])


@pytest.mark.slow
def test_a_report_says_what_was_compared(phantoms, capsys):
    report = medgan_jax.evaluate(phantoms[:2], phantoms[2:], pairing="random", features="pixels", seed=4)
    found = report.to_dict()
    assert found["protocol"]["reference"] == "2 of the reals, one half"
    assert (found["protocol"]["seed"], found["protocol"]["pairing"][:6]) == (4, "random")
    assert found["figures"]["psnr"]["reals"]["low"] <= found["figures"]["psnr"]["reals"]["value"]
    assert "PSNR, dB" in str(report) and "PSNR, dB" in report._repr_html_()
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda x: {"fakes": x / 255}, r"^fakes: must be uint8, .* and is float64, \(6, 16, 16, 3\)"),
        (lambda x: {"reals": x.tolist()}, "^reals: must be uint8, .* and is a list"),
        (lambda x: {"reals": x[..., :2]}, r"^reals: must be uint8"),
        (lambda x: {"reals": x[:, :8]}, r"^reals: must be uint8"),
        (lambda x: {"reals": x[..., :1]}, "^reals: has images of 16 x 16 px with 1 channel, and fakes of"),
        (lambda x: {"fakes": x[:, :8, :8]}, "^fakes: .*of 16 px or more"),
        (lambda x: {"fakes": x[:0]}, "^fakes: .* an image or more"),
        (lambda x: {"reals": x[:3]}, "^the reals: 3 images are too few to compare with; give 4"),
        (lambda x: {"reals": x[:1], "train": x}, "^the reals: 1 images are too few to compare with; give 2"),
        (lambda x: {"train": x[0]}, "^train: must be uint8"),
        (lambda x: {"pairing": "closest"}, "^pairing=closest: must be one of nearest"),
        (lambda x: {"features": "vgg"}, "^features=vgg: must be one of efficientnet-lite1"),
    ],
)
def test_sets_that_cannot_be_compared(phantoms, change, says):
    with pytest.raises(medgan_jax.UserError, match=says):
        medgan_jax.evaluate(**{"fakes": phantoms, "reals": phantoms} | change(phantoms))
