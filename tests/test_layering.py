"""What import-linter (pyproject.toml) cannot see: what starts at import, and how fast --help is."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def python(code):
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True).stdout


def test_importing_starts_nothing():
    """No device, no flag, no slow library."""
    python(
        "import sys, medgan_jax.training.trainer\n"
        "from jax._src import xla_bridge\n"  # no public way to ask without starting one
        "assert not xla_bridge._backends, 'a device was started'\n"
        "assert not {'tensorflow_datasets', 'tensorflow', 'matplotlib', 'sklearn'} & set(sys.modules)\n"
        "from absl import flags\n"
        "assert 'workdir' not in flags.FLAGS\n"
    )


@pytest.mark.parametrize("command", ["train", "sample", "evaluate"])
def test_help_needs_no_jax(command):
    out = python(
        f"import sys, runpy; sys.argv = ['{command}.py', '--help']\n"
        f"try:\n    runpy.run_path('{command}.py', run_name='__main__')\n"
        "except SystemExit as e:\n    assert not e.code\n"
        "assert 'jax' not in sys.modules\n"
    )
    assert f"python {command}.py --" in out
    assert "--workdir" in out or "--checkpoint" in out


@pytest.mark.parametrize("script", ["train.py", "sample.py", "evaluate.py"])
def test_scripts_are_short(script):
    assert len((ROOT / script).read_text().splitlines()) < 60
