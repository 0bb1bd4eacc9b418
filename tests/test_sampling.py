"""Image i depends on (seed, i) and the generator alone."""

import csv
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from PIL import Image

from medgan_jax.checkpoint import TrainedGenerator
from medgan_jax.errors import UserError
from medgan_jax.models.batch_norm import estimate_statistics
from medgan_jax.models.dcgan import Generator
from medgan_jax.sample_folder import sample_to_folder
from medgan_jax.sampling import MAX_ATTEMPTS, check_truncation, generate, load_latents, open_guard, seeded_latents
from medgan_jax.sharding import data_mesh


@dataclasses.dataclass(frozen=True)
class Painter:
    """In place of a network, which takes long to compile: each class has a colour, and each latent eight stripes."""

    channels: int = 3
    image_size: int = 16

    def apply(self, variables, latents, labels, training):
        images = jnp.tanh(latents).repeat(2, axis=1)[:, :, None, None] / 4
        if labels is not None:
            images += variables["colours"][labels][:, None, None]
        return jnp.broadcast_to(images, (len(latents), 16, 16, self.channels))


NAMES = ("benign", "malignant", "unclear")


@pytest.fixture(scope="module")
def generator():
    return TrainedGenerator(Painter(), variables={}, latent_dim=8, step=40, about={}, digest="abc")


@pytest.fixture(scope="module")
def conditional(generator):
    return dataclasses.replace(generator, variables={"colours": 0.5 * np.eye(3, dtype=np.float32)}, classes=NAMES)


def sample(generator, out, **options):
    defaults = {"num_images": 7, "seed": 5, "batch_size": 4, "mesh": data_mesh()}
    manifest = sample_to_folder(generator, out, **defaults | options).manifest
    assert manifest.parent == out and manifest.name.endswith("manifest.csv")
    return {path.name: path.read_bytes() for path in out.iterdir()}


def column(out, name):
    with open(out / "manifest.csv", encoding="utf-8", errors="surrogateescape", newline="") as file:
        return [row[name] for row in csv.DictReader(file)]


def pixels(out):
    images = []
    for path in sorted(out.glob("0*.png")):
        with Image.open(path) as image:
            images.append(np.asarray(image))
    return np.stack(images)


def test_batch_size_and_number_of_devices_change_no_image(generator, tmp_path):
    """Of a real network, whose batch normalization uses running statistics."""
    module = Generator(16, 3, 4)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(3), jnp.zeros((1, 8)), training=True))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: np.abs(rng.normal(size=x.shape)).astype(np.float32), shapes)
    variables["params"] = jax.tree.map(lambda x: rng.normal(0, 0.4, x.shape).astype(np.float32), shapes["params"])
    network = dataclasses.replace(generator, module=module, variables=variables)
    sample(network, tmp_path / "a")
    sample(network, tmp_path / "b", batch_size=3, mesh=Mesh(jax.devices()[:1], ("data",)), num_images=6)
    a, b = (pixels(tmp_path / name).astype(int) for name in "ab")
    assert a.shape == (7, 16, 16, 3)
    assert np.abs(a[:6] - b).max() <= 1
    assert a.std() > 10  # the images are not flat, so the comparison means something


def test_an_image_is_a_function_of_seed_and_index(generator, tmp_path):
    first = sample(generator, tmp_path / "a", grid=True)
    assert sample(generator, tmp_path / "b", grid=True) == first
    sample(generator, tmp_path / "c", seed=6)
    images = [*pixels(tmp_path / "a"), *pixels(tmp_path / "c")]
    assert len({image.tobytes() for image in images}) == 14


class Picky:
    """In place of a guard: rejects images whose first stripe is bright, as half of each class are."""

    def copies(self, images):
        return images[:, 0].min(2).mean(1) > 127.5


def test_a_guard_has_what_it_rejects_drawn_again(conditional, tmp_path):
    plain = sample(conditional, tmp_path / "plain", num_images=9)
    options = {"num_images": 9, "truncation": 2.0}
    files = sample(conditional, tmp_path / "a", guard=Picky(), **options)
    assert sample(conditional, tmp_path / "b", guard=Picky(), batch_size=2, **options) == files
    rejected = Picky().copies(pixels(tmp_path / "plain"))
    attempts = np.array(column(tmp_path / "a", "attempt"), int)
    np.testing.assert_array_equal(attempts > 0, rejected)
    assert rejected.any() and not rejected.all()
    assert not Picky().copies(pixels(tmp_path / "a")).any()
    assert column(tmp_path / "a", "label") == column(tmp_path / "plain", "label")
    sample(conditional, tmp_path / "cut", **options)
    for name, attempt in zip(sorted(plain), attempts, strict=False):
        assert (files[name] == (tmp_path / "cut" / name).read_bytes()) == (attempt == 0)
    written = sample_to_folder(
        conditional, tmp_path / "c", num_images=9, seed=5, batch_size=4, mesh=data_mesh(), truncation=2.0, guard=Picky()
    )
    assert (written.num_images, written.rejected) == (9, attempts.sum())


def test_attempts_are_draws_of_their_own():
    indices, attempts = np.divmod(np.arange(40, dtype=np.int32), 4)
    latents = np.asarray(seeded_latents(5, indices, attempts, latent_dim=50))
    np.testing.assert_array_equal(latents[::4], seeded_latents(5, np.arange(10, dtype=np.int32), latent_dim=50))
    correlations = np.corrcoef(latents) - np.eye(40)
    assert np.abs(correlations).max() < 0.7


def test_a_generator_that_only_copies_ends_in_one_line_and_loses_nothing(generator, tmp_path):
    before = sample(generator, tmp_path / "a")

    class All:
        def copies(self, images):
            return np.ones(len(images), bool)

    guarded = dataclasses.replace(generator, guard=tmp_path / "guard.npz")
    with pytest.raises(UserError, match=rf"guard\.npz: all {MAX_ATTEMPTS} draws of image 0 of seed 5 .*--noguard"):
        sample(guarded, tmp_path / "a", guard=All(), overwrite=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()} == before


def test_whether_there_is_a_guard(generator, tmp_path):
    latents = np.ones((1, 8), np.float32)
    with pytest.raises(UserError, match=r"^guard: there is no guard\.npz with this generator"):
        open_guard(True, generator, None)
    guarded = dataclasses.replace(generator, guard=tmp_path / "guard.npz")
    with pytest.raises(UserError, match="^guard: draws other latents"):
        open_guard(True, guarded, latents)
    for asked, trained, given in [(None, generator, None), (False, guarded, None), (None, guarded, latents)]:
        assert open_guard(asked, trained, given) is None
    for asked in (None, True):
        with pytest.raises(UserError, match="damaged"):  # it is opened
            open_guard(asked, guarded, None)


def test_the_callers_latents_are_used_in_order(generator, tmp_path):
    latents = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)
    sample(generator, tmp_path / "a", num_images=None, latents=latents, batch_size=2)
    expected = generate(generator.module, generator.variables, latents)
    np.testing.assert_array_equal(pixels(tmp_path / "a"), expected)
    assert column(tmp_path / "a", "seed") == [""] * 5


def test_classes_come_in_turn_and_a_label_changes_the_class_and_not_the_latents(conditional, tmp_path):
    sample(conditional, tmp_path / "all")
    assert column(tmp_path / "all", "label") == [NAMES[i % 3] for i in range(7)]
    of_class = []
    for number, name in enumerate(NAMES):
        sample(conditional, tmp_path / name, label=name)
        assert column(tmp_path / name, "label") == [name] * 7
        of_class.append(pixels(tmp_path / name))
        assert set(of_class[number].mean(axis=(1, 2)).argmax(axis=1)) == {number}
    np.testing.assert_array_equal(of_class[0].min(axis=3), of_class[1].min(axis=3))
    np.testing.assert_array_equal(pixels(tmp_path / "all"), [of_class[i % 3][i] for i in range(7)])


def test_classes_are_named_as_they_are(conditional, tmp_path):
    """Whatever a folder or a table may call them, bytes that are no text included."""
    names = ('caf\u00e9, "\u2603"', "two\nlines", "\udcffbad")
    sample(dataclasses.replace(conditional, classes=names), tmp_path / "a", num_images=3)
    assert tuple(column(tmp_path / "a", "label")) == names


def test_a_label_that_was_not_learned_writes_nothing(generator, conditional, tmp_path):
    for trained, label, says in [
        (conditional, "malignnt", "classes of the checkpoint are benign, malignant, unclear; did you mean malignant"),
        (conditional, "", "give one of them"),
        (generator, "benign", "the checkpoint has no classes"),
    ]:
        with pytest.raises(UserError, match=f"^label={label}: .*{says}"):
            sample(trained, tmp_path / "a", label=label)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (np.zeros((3, 9), np.float32), r"shape \(3, 9\), but this generator takes \(N, 8\)"),
        (np.zeros((0, 8), np.float32), "takes"),
        (np.full((2, 8), np.nan, np.float32), "finite"),
        (np.zeros((2, 8), "U3"), "finite"),
        (np.full((2, 8), 1e300), "finite"),
        (np.zeros((2, 8), "m8[s]"), "finite"),
        (b"hello", "not a .npy file of numbers; save"),
        (b"\x93NUMPY\x01\0\x02\0{\n", "not a .npy file of numbers; save"),
        (None, "cannot be read"),
    ],
)
def test_bad_latents_are_refused(tmp_path, content, says):
    path = tmp_path / "z.npy"
    if isinstance(content, np.ndarray):
        np.save(path, content)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=says):
        load_latents(path, 8)


def test_fewer_latents_than_images_are_refused(generator, tmp_path):
    with pytest.raises(UserError, match="has 3 rows"):
        sample(generator, tmp_path / "a", num_images=4, latents=np.zeros((3, 8), np.float32))
    assert not (tmp_path / "a").exists()


def test_latents_are_normal_and_truncated_ones_the_same_within_bounds():
    """Normal without its tails: those that lie within the bounds by themselves have the same distribution."""
    numbers = np.arange(400, dtype=np.int32)
    latents = np.asarray(seeded_latents(5, numbers, latent_dim=50))
    assert latents.mean() == pytest.approx(0, abs=0.03)
    assert latents.std() == pytest.approx(1, abs=0.02)
    assert np.isfinite(seeded_latents(2**32 - 1, numbers, latent_dim=50)).all()  # the largest seed
    np.testing.assert_array_equal(seeded_latents(5, numbers[::-1], latent_dim=50)[::-1], latents)
    order = np.argsort(latents.ravel())
    cut = np.asarray(seeded_latents(5, numbers, latent_dim=50, truncation=1.0))
    assert np.abs(cut).max() <= 1
    assert np.all(np.diff(cut.ravel()[order]) >= 0)  # the same order: an image keeps its character
    left = np.abs(latents[np.abs(latents) < 1])
    for share in (0.25, 0.5, 0.75):
        assert np.quantile(np.abs(cut), share) == pytest.approx(np.quantile(left, share), rel=0.05)
    whole = np.asarray(seeded_latents(5, numbers, latent_dim=50, truncation=4.0))
    np.testing.assert_allclose(whole, np.clip(latents, -4, 4), atol=0.15)


def test_truncated_images_are_those_of_truncated_latents(conditional, tmp_path):
    cut = np.asarray(seeded_latents(5, np.arange(4, dtype=np.int32), latent_dim=8, truncation=0.5))
    sample(conditional, tmp_path / "cut", truncation=0.5, num_images=4)
    sample(conditional, tmp_path / "given", latents=cut, num_images=4)
    sample(conditional, tmp_path / "whole", num_images=4)
    np.testing.assert_array_equal(pixels(tmp_path / "cut"), pixels(tmp_path / "given"))
    assert np.abs(pixels(tmp_path / "whole").astype(int) - pixels(tmp_path / "cut")).max() > 5
    assert column(tmp_path / "whole", "truncation") == [""] * 4
    assert column(tmp_path / "cut", "truncation") == ["0.5"] * 4


@pytest.mark.slow
def test_truncated_images_are_not_paler(tmp_path):
    """By running statistics of all latents, maps of truncated ones would have less contrast layer by layer."""
    module = Generator(16, features=4, num_classes=2)
    key, number = jax.random.key(1), np.zeros(1, np.int32)
    variables = jax.jit(functools.partial(module.init, training=True))(key, np.zeros((1, 8), np.float32), number)
    latents = np.random.default_rng(0).normal(size=(32, 16, 8)).astype(np.float32)
    labels = np.tile(np.arange(16, dtype=np.int32) % 2, (32, 1))
    variables = jax.jit(functools.partial(estimate_statistics, module))(variables, latents, labels)
    trained = TrainedGenerator(module, variables, latent_dim=8, step=0, about={}, digest="", classes=NAMES[:2])
    contrasts = {}
    for truncation in (None, 0.3):
        sample(trained, tmp_path / f"{truncation}", truncation=truncation, num_images=32)
        contrasts[truncation] = pixels(tmp_path / f"{truncation}").std()
    cut = seeded_latents(5, np.arange(32), latent_dim=8, truncation=0.3)
    pale = np.asarray(generate(module, variables, cut, np.arange(32) % 2)).std()
    assert pale < 0.8 * contrasts[None] < contrasts[0.3] < 1.25 * contrasts[None]


def test_truncation_is_checked():
    check_truncation(None, np.ones((1, 2)))
    check_truncation(1.5, None)
    for bad in (0, -1, 4.5, float("nan")):
        with pytest.raises(UserError, match="must be above 0 and at most 4"):
            check_truncation(bad, None)
    with pytest.raises(UserError, match="leave one of them out"):
        check_truncation(1.0, np.ones((1, 2)))
