"""The walk passes through the images that its seed gives, keeps to where latents lie, and ends where it began."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from medgan_jax.checkpoint import TrainedGenerator
from medgan_jax.errors import UserError
from medgan_jax.interpolation import movie_path, slerp, walk_frames, write_walk
from medgan_jax.sampling import generate, seeded_latents
from medgan_jax.sharding import data_mesh

pytestmark = pytest.mark.slow

LEG = 4  # frames from one image to the next, here


@dataclasses.dataclass(frozen=True)
class Painter:
    """In place of a network, which takes long to compile: each pixel is tanh of a weighted sum of the latent."""

    image_size: int = 16

    def apply(self, variables, latents, labels, training):
        tints = 0.0 if labels is None else variables["tints"][labels][:, None]
        return jnp.tanh(latents @ variables["weights"] + tints).reshape(-1, 16, 16, 3)


@pytest.fixture(scope="module")
def generator():
    weights = np.random.default_rng(0).normal(size=(8, 16 * 16 * 3)).astype(np.float32) / 4
    return TrainedGenerator(
        module=Painter(), variables={"weights": weights}, latent_dim=8, step=40, about={}, digest="abc"
    )


def walk(generator, **options):
    """(N, H, W, C)."""
    defaults = {"num_images": 3, "seed": 5, "batch_size": 8, "mesh": data_mesh(), "frames_per_leg": LEG}
    return np.stack(list(walk_frames(generator, **defaults | options)))


def assert_images(frames, images):
    """Up to the rounding of batches."""
    assert np.abs(frames.astype(int) - np.asarray(images)).max() <= 1


def test_a_walk_passes_through_the_images_of_its_seed_and_closes(generator):
    frames = walk(generator)
    assert frames.shape == (3 * LEG, 16, 16, 3)
    latents = seeded_latents(5, np.arange(3), latent_dim=8)
    assert_images(frames[::LEG], generate(generator.module, generator.variables, latents))
    frames = frames.astype(float)
    steps = [np.abs(a - b).mean() for a, b in zip(frames, [*frames[1:], frames[0]], strict=True)]
    assert 0 < max(steps) < 4 * np.mean(steps)  # from the last frame to the first too
    assert np.abs(frames - walk(generator, batch_size=4)).max() <= 1
    assert np.abs(frames - walk(generator, seed=6)).max() > 10


def test_a_walk_through_given_or_truncated_latents(generator):
    latents = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
    expected = generate(generator.module, generator.variables, latents)
    assert_images(walk(generator, num_images=None, latents=latents)[::LEG], expected)
    assert len(walk(generator, num_images=2, latents=latents)) == 2 * LEG
    truncated = seeded_latents(5, np.arange(3), latent_dim=8, truncation=0.5)
    expected = generate(generator.module, generator.variables, truncated)
    assert_images(walk(generator, truncation=0.5)[::LEG], expected)


def test_a_walk_keeps_to_one_class(generator):
    """The first, unless another one is asked for."""
    variables = {**generator.variables, "tints": np.float32([-1, 1])}
    conditional = dataclasses.replace(generator, variables=variables, classes=("benign", "malignant"))
    latents = seeded_latents(5, np.arange(3), latent_dim=8)
    for label, number in [(None, 0), ("malignant", 1)]:
        expected = generate(conditional.module, variables, latents, np.full(3, number))
        assert_images(walk(conditional, label=label)[::LEG], expected)
    with pytest.raises(UserError, match="did you mean malignant"):
        walk(conditional, label="malignan")


def test_the_movie_of_a_walk_passes_through_eight_images_by_default(generator, tmp_path):
    options = {"num_images": None, "seed": 5, "batch_size": 8, "mesh": data_mesh(), "frames_per_leg": 1}
    write_walk(generator, tmp_path / "a.gif", **options)
    with Image.open(tmp_path / "a.gif") as image:
        assert (image.size, image.n_frames) == ((256, 256), 8)


def test_too_few_images_are_refused(generator):
    for options, says in [
        ({"num_images": 1}, "num_images=1: a walk passes through two images or more"),
        ({"num_images": None, "latents": np.ones((1, 8), np.float32)}, "two images or more"),
        ({"num_images": 3, "latents": np.ones((2, 8), np.float32)}, "has 2 rows"),
    ]:
        with pytest.raises(UserError, match=says):
            walk(generator, **options)


def test_flags_of_a_folder_are_refused(tmp_path):
    assert movie_path(None, grid=True, overwrite=True) is None
    assert movie_path(str(tmp_path / "a.mp4"), grid=False, overwrite=False) == tmp_path / "a.mp4"
    for given in ("grid", "overwrite"):
        with pytest.raises(UserError, match=f"--{given}: --interpolate writes its movie only"):
            movie_path("a.mp4", **{"grid": False, "overwrite": False} | {given: True})
    with pytest.raises(UserError, match="give --interpolate=FILE"):
        movie_path("", grid=False, overwrite=False)
    with pytest.raises(UserError, match=r"a\.avi"):
        movie_path(str(tmp_path / "a.avi"), grid=False, overwrite=False)


def angle(a, b):
    cosine = np.sum(a * b, axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return np.arccos(cosine.clip(-1, 1))


def test_slerp_turns_evenly_in_the_plane_of_both_ends():
    starts, ends = np.random.default_rng(0).normal(size=(2, 6, 32))
    shares = np.linspace(0, 1, 6)
    points = slerp(starts, ends, shares)
    np.testing.assert_allclose(points[0], starts[0], rtol=1e-6)
    np.testing.assert_allclose(points[-1], ends[-1], rtol=1e-6)
    np.testing.assert_allclose(angle(starts, points), shares * angle(starts, ends), atol=1e-3)
    np.testing.assert_allclose(angle(points, ends), (1 - shares) * angle(starts, ends), atol=1e-3)
    norms = (1 - shares) * np.linalg.norm(starts, axis=1) + shares * np.linalg.norm(ends, axis=1)
    np.testing.assert_allclose(np.linalg.norm(points, axis=1), norms, rtol=1e-5)


def test_slerp_stays_where_normal_latents_lie():
    starts, ends = np.random.default_rng(1).normal(size=(2, 200, 128))
    middle = np.linalg.norm(slerp(starts, ends, np.full(200, 0.5)), axis=1)
    assert np.abs(middle / np.sqrt(128) - 1).max() < 0.2  # a straight line would be at 0.71
    assert middle.mean() / np.sqrt(128) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("end", [[6.0, 8.0, 0.0], [-3.0, -4.0, 0.0], [0.0, 0.0, 0.0]])  # same way, opposite, none
def test_slerp_between_ends_without_a_plane_of_their_own(end):
    for first, last in (([3.0, 4.0, 0.0], end), (end, [3.0, 4.0, 0.0])):
        starts, ends = np.tile([first, last], (3, 1, 1)).swapaxes(0, 1)
        points = slerp(starts, ends, np.array([0, 0.5, 1]))
        np.testing.assert_allclose(points[[0, 2]], [first, last], atol=1e-5)
        assert np.isfinite(points).all()
