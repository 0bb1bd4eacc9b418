"""Our side: the project's own functions, called as `train.py` and `sample.py` call them. A worker, see `pipe`.

`python -m benchmarks.ours about` prints what it runs on.
"""

import functools
import json
import platform
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from os import cpu_count
from pathlib import Path
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.pipe import peak_memory, serve
from configs import default
from medgan_jax.checkpoint import load_generator
from medgan_jax.cli import keep_freed_memory
from medgan_jax.config import Config, named_config, parse_config
from medgan_jax.evaluation.protocol import paired_scores
from medgan_jax.images import write_png
from medgan_jax.metrics.distribution.features import efficientnet_features
from medgan_jax.models.efficientnet_lite import EfficientNetLite, load_efficientnet_lite
from medgan_jax.sampling import sample_batches, seeded_latents
from medgan_jax.sharding import data_mesh, replicated, sharded
from medgan_jax.training.health.probe import NUM_FAKES, Probe
from medgan_jax.training.state import Networks, build_networks, initial_state
from medgan_jax.training.step import metric_names, sampling_variables, train_step_at

MAX_STEPS = 256  # whose indices are at hand, as in the trainer


def about() -> dict[str, Any]:
    """Versions, and the default backend with its device."""
    versions = {"python": platform.python_version(), "jax": jax.__version__, "flax": flax.__version__}
    device = jax.devices()[0]
    return {"versions": versions, "backend": jax.default_backend(), "device": device.device_kind}


def training_config(
    *,
    size: int,
    batch: int,
    latent: int = 100,
    maps: int = 64,
    dtype: str = "float32",
    arch: str = "sngan",
    augmented: bool = False,
) -> Config:
    """A checked config: the published training, or `small64` for arch="fastgan"; with everything that `augment` offers.

    Without `augmented`, nothing is augmented. The penalty of `small64` on grids is off, as the peer has none.
    """
    config = named_config("small64") if arch == "fastgan" else default.get_config()
    config.augment.update(default.get_config().augment)
    config.arch, config.image_size, config.latent_dim, config.batch_size = arch, size, latent, batch
    config.gen_features = maps
    config.checkerboard_weight = 0.0
    if config.dis == "patch":
        config.dis_features = maps
    config.dtype = dtype
    config.data.source = "phantom"
    if augmented:
        config.augment.update(flips=True, quarter_turns=True, color=1.0, translation=0.125, cutout=0.5)
    return parse_config(config)


class Training:
    """A state, a random data set on the device, and `program`, the compiled step."""

    def __init__(self, config: Config, num_images: int = 512) -> None:
        """Draws weights and images, and compiles."""
        self.mesh = data_mesh()
        shared = replicated(self.mesh)
        self.config, self.networks = config, jax.device_put(build_networks(config), shared)
        random = np.random.default_rng(0)
        shape = (num_images, config.image_size, config.image_size, config.channels)
        initialise = functools.partial(initial_state, self.networks, config)
        self.state = jax.jit(initialise, out_shardings=shared)()
        self.images = jax.device_put(random.integers(0, 256, shape, np.uint8), shared)
        self.indices = random.integers(0, num_images, (MAX_STEPS, config.batch_size), np.int32)

        def step(networks: Networks, *arguments: Any) -> Any:
            return train_step_at(*arguments, networks=networks, config=config)

        call = jax.jit(
            step,
            in_shardings=(shared, shared, shared, sharded(self.mesh, axis=1), shared),
            out_shardings=shared,
            donate_argnums=1,
        )
        self.program = call.lower(self.networks, self.state, self.images, self.indices, np.int32(0)).compile()

    def run(self, steps: int) -> dict[str, np.ndarray]:
        """`steps` iterations, and their metrics on the host: the only place that calls `train_step_at`."""
        history = []
        for k in range(steps):
            arguments = self.state, self.images, self.indices, np.int32(k)
            self.state, metrics = self.program(self.networks, *arguments)
            history.append(metrics)
        return dict(zip(metric_names(self.config), np.stack(history, axis=1), strict=True))

    def health_check(self) -> float:
        """Seconds of a health check, as the trainer does it; the first one compiles."""
        if not hasattr(self, "probe"):
            images = np.asarray(self.images)
            held_out = images[: len(images) // 4]
            self.probe = Probe(self.networks, self.config, images, held_out, mesh=self.mesh)
        latents = functools.partial(seeded_latents, self.config.seed, latent_dim=self.config.latent_dim)
        start = time.perf_counter()
        generator = sampling_variables(self.state, networks=self.networks, config=self.config)
        fakes = sample_batches(
            self.networks.generator, generator, latents, NUM_FAKES, batch_size=self.config.batch_size, mesh=self.mesh
        )
        self.probe.measure(np.concatenate(list(fakes)), generator, self.state.dis.variables)
        return time.perf_counter() - start


def matmul_rate(size: int, repeats: int, dtype: str) -> float:
    """The rate of a product of two (size, size) matrices on the default device, in FLOP/s."""

    @jax.jit
    def multiply(x: jax.Array, matrix: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, repeats, lambda _, x: jnp.dot(x, matrix), x)

    # Random numbers: a GPU's clock depends on how many bits change. Scaled, so that the products stay as large.
    random = jax.random.normal(jax.random.key(0), (2, size, size), jnp.float32)
    x, matrix = random[0].astype(dtype), (random[1] / size**0.5).astype(dtype)
    multiply = multiply.lower(x, matrix).compile()
    jax.block_until_ready(multiply(x, matrix))
    start = time.perf_counter()
    jax.block_until_ready(multiply(x, matrix))
    return 2 * size**3 * repeats / (time.perf_counter() - start)


class _Worker:
    def setup(self, *, num_images: int = 512, **options: Any) -> dict[str, Any]:
        self.training = Training(training_config(**options), num_images)
        return about()

    def run(self, steps: int) -> dict[str, Any]:
        """Seconds for `steps` iterations; waits after each `MAX_STEPS`."""
        start = time.perf_counter()
        while steps > 0:
            metrics = self.training.run(min(steps, MAX_STEPS))
            steps -= MAX_STEPS
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "losses": [float(metrics[name][-1]) for name in ("loss_dis", "loss_gen")]}

    def health_check(self) -> dict[str, Any]:
        """Seconds of a health check; the first one compiles."""
        return {"seconds": self.training.health_check()}

    def memory(self) -> dict[str, Any]:
        on_device = jax.devices()[0].memory_stats() or {}
        return {"bytes": on_device.get("peak_bytes_in_use") or peak_memory()}

    def matmul(self, size: int, repeats: int, dtype: str) -> dict[str, Any]:
        return {"flops": matmul_rate(size, repeats, dtype)}

    def setup_sampling(self, checkpoint: str, batch: int) -> dict[str, Any]:
        self.mesh, self.batch = data_mesh(), batch
        self.generator = load_generator(Path(checkpoint), replicated(self.mesh))
        return about()

    def compute(self, images: int) -> dict[str, Any]:
        """Seconds to compute images 0 ... images - 1, which are kept for `encode`."""
        latents = functools.partial(seeded_latents, 0, latent_dim=self.generator.latent_dim)
        start = time.perf_counter()
        self.images = list(
            sample_batches(
                self.generator.module, self.generator.variables, latents, images, batch_size=self.batch, mesh=self.mesh
            )
        )
        return {"seconds": time.perf_counter() - start}

    def setup_metrics(self, size: int, pairs: int) -> dict[str, Any]:
        self.pairs = np.random.default_rng(0).integers(0, 256, (2, pairs, size, size, 3), np.uint8)
        return about()

    def score(self) -> dict[str, Any]:
        """Seconds of the five metrics over all pairs, and the seconds of each."""
        each = {}
        for name in ("psnr", "ssim", "ms_gmsd", "mdsi", "haarpsi"):
            start = time.perf_counter()
            paired_scores(*self.pairs, [name], pairing="random")
            each[name] = time.perf_counter() - start
        return {"seconds": sum(each.values()), "each": each}

    def setup_features(self, size: int, batch: int) -> dict[str, Any]:
        network, variables = EfficientNetLite("lite0"), jax.device_put(load_efficientnet_lite("lite0"))
        images = jax.random.uniform(jax.random.key(0), (batch, size, size, 3), minval=-1)

        def logits(images: jax.Array, variables: Any) -> jax.Array:
            return network.apply(variables, images).logits

        forward = jax.jit(logits)
        gradient = jax.jit(jax.grad(lambda images, variables: logits(images, variables).sum()))
        self.features = {backward: (gradient if backward else forward, images, variables) for backward in (False, True)}
        return about()

    def run_features(self, steps: int, backward: bool) -> dict[str, Any]:
        """Seconds of `steps` times the logits; with `backward`, also the gradient of their sum to the images."""
        call, *arguments = self.features[backward]
        start = time.perf_counter()
        for _ in range(steps):
            jax.block_until_ready(call(*arguments))
        return {"seconds": time.perf_counter() - start}

    def lite1_features(self, size: int, images: int) -> dict[str, Any]:
        """Seconds of the features that evaluation compares, of random images; the first call compiles."""
        features = efficientnet_features()
        drawn = np.random.default_rng(0).integers(0, 256, (images, size, size, 3), np.uint8)
        start = time.perf_counter()
        features.of(drawn)
        return {"seconds": time.perf_counter() - start}

    def encode(self) -> dict[str, Any]:
        """Seconds to write them as PNG files, on all cores."""
        images = [image for batch in self.images for image in batch]
        folder = Path(tempfile.mkdtemp())
        try:
            start = time.perf_counter()
            with ThreadPoolExecutor(cpu_count()) as pool:
                list(pool.map(lambda i: write_png(folder / f"{i:06d}.png", images[i]), range(len(images))))
            seconds = time.perf_counter() - start
            size = sum(file.stat().st_size for file in folder.iterdir())
        finally:
            shutil.rmtree(folder)
        return {"seconds": seconds, "images": len(images), "bytes": size}


if __name__ == "__main__":
    if sys.argv[1:] == ["about"]:
        print(json.dumps(about()))
    else:
        keep_freed_memory()
        worker = _Worker()
        serve({name: getattr(worker, name) for name in dir(worker) if not name.startswith("_")})
