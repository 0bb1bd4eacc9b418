"""Imports point one way: what stands further left in LAYERS knows nothing of what stands to its right."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = (
    {"errors", "progress"},
    {"images", "torch_files", "streams", "losses", "sharding", "distributed", "compilation", "memory"},
    {"config", "data", "models", "metrics", "torch_writer"},
    {"measures", "control_file", "augmentation"},
    {"checkpoint", "movie"},
    {"sampling"},
    {"evaluation", "interpolation"},
    {"training.state", "training.workdir", "training.signs", "training.tensorboard", "training.signals"},
    {"training.monitor"},
    {"report.record", "report.frames"},
    {"report.plots"},
    {"report.sections"},
    {"report.page"},
    {"training.step", "training.outputs", "training.transfer"},
    {"training.probe", "training.journal", "training.store", "training.program"},
    {"training.member"},
    {"training.seeds"},
    {"training.loop"},
    {"cli"},
    {"torch_import", "torch_export", "experiments", "report.server"},
    {"report.__main__"},
)
WITHIN = {  # between the files of one folder, in the same sense
    "data": ("phantom", "labels", "classes", "sources", "isic", "split", "cache", "pipeline"),
    "models": ("convolution", "batch_norm", "spectral_norm", "classes", "dcgan", "resnet", "torch_layout", "inception"),
    "metrics": ("filters", "psnr", "ssim", "ms_gmsd", "mdsi", "haarpsi"),
    "measures": (
        "bootstrap",
        "sets",
        "pyramid",
        "sliced_wasserstein",
        "kid",
        "fid",
        "manifold",
        "features",
        "checkerboard",
        "diversity",
        "copies",
    ),
    "evaluation": ("sets", "quick", "protocol", "published", "page"),
}
MODULES = sorted(
    path for path in (ROOT / "medgan_jax").rglob("*.py") if path.name != "__init__.py" and ".venv" not in path.parts
)


def dotted(path):
    return ".".join(path.relative_to(ROOT / "medgan_jax").with_suffix("").parts)


def group(module):
    return module if module.startswith(("training.", "report.")) else module.split(".")[0]


def rank(module):
    (found,) = [i for i, layer in enumerate(LAYERS) if group(module) in layer]
    return found


def imports(path):
    """Modules of ours that a file imports at run time, under `if TYPE_CHECKING` excepted."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} has a relative import"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                as_file = ROOT / (full.replace(".", "/") + ".py")
                yield full if as_file.exists() else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_imports_point_left(path):
    here = dotted(path)
    for name in imports(path):
        root, _, module = name.partition(".")
        assert root not in ("benchmarks", "configs", "tests", "train", "sample"), f"{here} imports {name}"
        if root != "medgan_jax" or not module:
            continue
        if group(module) == group(here) and group(here) in WITHIN:
            order = WITHIN[group(here)]
            assert order.index(module.split(".")[1]) < order.index(here.split(".")[1]), f"{here} imports {module}"
        else:
            assert rank(module) < rank(here), f"{here} imports {module}"


def test_the_rule_sees_imports():
    loop = set(imports(ROOT / "medgan_jax/training/loop.py"))
    assert {"medgan_jax.training.step", "medgan_jax.training.member", "jax"} <= loop


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.py")), ids=lambda path: path.name)
def test_configs_import_only_ml_collections_and_each_other(path):
    ours = {
        "pathlib",
        "medgan_jax.compat.medimagegan.control_file",
        "medgan_jax.errors",
    }  # what reads another format needs
    others = set(imports(path)) - (ours if path.name == "control_file.py" else set())
    assert {name.split(".")[0] for name in others} <= {"ml_collections", "configs"}


@pytest.mark.parametrize(
    "path", [ROOT / "train.py", ROOT / "sample.py", ROOT / "evaluate.py"], ids=lambda path: path.name
)
def test_doors_are_short(path):
    assert len(path.read_text().splitlines()) < 80


def test_importing_starts_nothing():
    """No device, no flag, no slow library."""
    code = (
        "import sys, medgan_jax, medgan_jax.training.loop\n"
        "from jax._src import xla_bridge\n"
        "assert not xla_bridge._backends, 'a device was started'\n"
        "assert not {'tensorflow_datasets', 'tensorflow', 'matplotlib'} & set(sys.modules)\n"
        "from absl import flags\n"
        "assert 'workdir' not in flags.FLAGS\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_help_needs_no_jax():
    code = (
        "import sys, runpy; sys.argv = ['train.py', '--help']\n"
        "try:\n    runpy.run_path('train.py', run_name='__main__')\n"
        "except SystemExit as e:\n    assert not e.code\n"
        "assert 'jax' not in sys.modules\n"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert "--config" in out
    assert "--workdir" in out
