"""The package works without its folder `compat`."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import medgan_jax

WITHOUT = """
import functools, importlib, pkgutil, sys
from pathlib import Path
# An editable installation would find the folder where it still is.
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in str(getattr(finder, "__module__", ""))]
import jax, medgan_jax
import numpy as np
for module in pkgutil.walk_packages(medgan_jax.__path__, "medgan_jax."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)

from medgan_jax.checkpoint import Checkpoints, load_generator, save_generator
from medgan_jax.errors import UserError
from medgan_jax.models.dcgan import Generator
from medgan_jax.sample_folder import sample_to_folder
from medgan_jax.sharding import data_mesh, replicated

module, mesh = Generator(16, 1, 2), data_mesh()
init = functools.partial(module.init, training=True)
shapes = jax.eval_shape(init, jax.random.key(0), jax.numpy.zeros((1, 4)))
variables = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), shapes)
checkpoints = Checkpoints(Path("generator"), keep=1)
save_generator(checkpoints, 3, variables, module, 4, {})
checkpoints.close()
generator = load_generator(Path("generator"), replicated(mesh))
sample_to_folder(generator, Path("images"), num_images=2, seed=0, batch_size=2, mesh=mesh)
Path("netG.pth").touch()
try:
    load_generator(Path("netG.pth"), replicated(mesh))
except UserError as error:
    print(error)
assert not any(name.startswith("medgan_jax.compat") for name in sys.modules)
"""


@pytest.mark.slow
def test_without_compat_all_else_works(command_environment, tmp_path):
    """Every module is imported, and a generator saved, loaded and sampled; only a file of PyTorch is refused."""
    package = Path(medgan_jax.__file__).parent
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(package, tmp_path / "medgan_jax", ignore=ignored)
    shutil.rmtree(tmp_path / "medgan_jax/compat")
    environment = command_environment | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "netG.pth: is a file, and reading one needs medgan_jax/compat; give a training's workdir" in done.stdout
    assert len(list((tmp_path / "images").glob("*.png"))) == 2
