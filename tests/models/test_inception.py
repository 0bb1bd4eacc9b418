"""Features against an independent PyTorch network; what weights are refused."""

import re

import inception_oracle
import jax
import numpy as np
import pytest

from medgan_jax.errors import UserError
from medgan_jax.models.inception import InceptionFeatures, load_inception

pytestmark = pytest.mark.slow

IMAGES = ("noise", "large", "grey")  # enlarged, made smaller, of one channel
NORM = ("weight", "bias", "running_mean", "running_var")


@pytest.fixture(scope="module")
def oracle():
    with np.load(inception_oracle.EXPECTED) as file:
        return dict(file)


def layer_arrays(layer, shape):
    shapes = {f"{layer}.conv.weight": shape, **{f"{layer}.bn.{name}": shape[:1] for name in NORM}}
    return {name: inception_oracle.draw(name, tuple(shape)) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def variables(oracle, tmp_path_factory):
    """Those of a file with all that a published one holds."""
    arrays = {"fc.weight": np.zeros((1008, 2048)), "AuxLogits.fc.bias": np.full(1008, np.nan)}
    for layer, shape in zip(oracle["layers"], oracle["shapes"].tolist(), strict=True):
        arrays |= layer_arrays(layer, shape) | {f"{layer}.bn.num_batches_tracked": np.int64(0)}
    path = tmp_path_factory.mktemp("weights") / "inception.npz"
    np.savez(path, **arrays)
    return load_inception(path)


@pytest.fixture(scope="module")
def results(variables):
    """Features of each image, and the blocks' outputs for each."""

    def is_block(module, _):
        return str(module.name).startswith("Mixed")

    @jax.jit
    def apply(variables, images):
        return InceptionFeatures().apply(variables, images, capture_intermediates=is_block)

    return {name: apply(variables, inception_oracle.image(name)) for name in IMAGES}


@pytest.mark.parametrize("name", IMAGES)
def test_features_are_pytorchs(name, oracle, results):
    features, _ = results[name]
    assert features.shape == (1, 2048)
    assert features.dtype == np.float32
    np.testing.assert_allclose(features[0], oracle[f"features/{name}"], rtol=1e-4, atol=1e-4)


def test_blocks_are_pytorchs(oracle, results):
    blocks = results[IMAGES[0]][1]["intermediates"]
    assert len(blocks) == 11
    for name, outputs in blocks.items():
        (x,) = outputs["__call__"]
        np.testing.assert_allclose([x.mean(), x.std()], oracle[f"moments/{name}"], rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("what", ["padded_mean", "last_pool", "epsilon", "corners", "range"])
def test_other_networks_would_be_told_apart(what, oracle, results):
    """Those that count padding, pool by the mean at last, have another epsilon, resize by corners, or take [0, 1]."""
    features, _ = results[IMAGES[0]]
    assert np.abs(features[0, ::8] - oracle[f"wrong/{what}"]).max() > 0.1


def test_published_number_of_weights(variables):
    """Keras gives 21,802,784 without the classifier, with three numbers a channel for each batch normalisation."""
    flat = jax.tree.leaves_with_path(variables["params"])
    kernels, biases = (sum(x.size for path, x in flat if path[-1].key == kind) for kind in ("kernel", "bias"))
    assert kernels + 3 * biases == 21_802_784
    assert biases == 17_216


@pytest.mark.parametrize(
    "images", [np.zeros((1, 8, 8, 2), np.float32), np.zeros((8, 8, 3), np.float32), np.zeros((1, 8, 8, 3), np.uint8)]
)
def test_other_images_are_refused(images):
    with pytest.raises(ValueError, match="takes floating images"):
        InceptionFeatures().apply({"params": {}}, images)


FIRST = layer_arrays("Conv2d_1a_3x3", (32, 3, 3, 3)) | layer_arrays("Conv2d_2a_3x3", (32, 32, 3, 3))
BAD = {  # what differs in the first two layers
    "missing layer": ({}, "Conv2d_2b_3x3.conv.weight should be of shape (64, 32, 3, 3), and is missing"),
    "channels last": (
        {"Conv2d_2a_3x3.conv.weight": np.zeros((3, 3, 32, 32))},
        "Conv2d_2a_3x3.conv.weight should be of shape (32, 32, 3, 3), and is (3, 3, 32, 32)",
    ),
    "not finite": ({"Conv2d_1a_3x3.conv.weight": np.full((32, 3, 3, 3), np.nan)}, "weight is not finite, or negative"),
    "variance": ({"Conv2d_2a_3x3.bn.running_var": np.full(32, -1.0)}, "running_var is not finite, or negative"),
}


@pytest.mark.parametrize("case", BAD)
def test_other_weights_are_refused(case, tmp_path):
    changes, reason = BAD[case]
    path = tmp_path / "weights.npz"
    np.savez(path, **FIRST | changes)
    with pytest.raises(UserError, match=f"^{path}: .*{re.escape(reason)}; "):
        load_inception(path)


def test_weights_of_another_network_are_refused():
    with pytest.raises(UserError, match="Conv2d_1a_3x3.conv.weight should be of shape .*, and is missing"):
        load_inception(inception_oracle.EXPECTED.parent / "torch_files/zip.pth")
