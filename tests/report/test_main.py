"""The door `python -m medgan_jax.report`."""

import subprocess
import sys
import types
from pathlib import Path

import pytest

from medgan_jax.errors import UserError
from medgan_jax.report import page
from medgan_jax.report.__main__ import main, parse

ROOT = Path(__file__).parents[2]


def test_help_is_fast():
    code = (
        "import sys, runpy; sys.argv = ['report', '--help']\n"
        "try:\n    runpy.run_module('medgan_jax.report', run_name='__main__')\n"
        "except SystemExit as e:\n    assert not e.code\n"
        "assert not {'jax', 'matplotlib', 'PIL'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert "--serve" in done.stdout


def test_it_is_short():
    assert len((ROOT / "medgan_jax/report/__main__.py").read_text().splitlines()) < 80


def test_it_writes_the_report(make, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(page, "draw_plots", lambda record: {})
    files = make()
    main(parse([str(files.path), f"--out={tmp_path}/x.html"]))
    assert capsys.readouterr().out == f"{tmp_path}/x.html\n"
    assert (tmp_path / "x.html").stat().st_size > 20_000
    assert not files.report.exists()


def test_it_writes_plots_and_a_movie_instead(make, capsys, monkeypatch):
    files = make()
    movies = []
    stub = types.SimpleNamespace(
        write_movie=lambda path, frames, *, frames_per_second: movies.append((path, list(frames), frames_per_second))
    )
    monkeypatch.setitem(sys.modules, "medgan_jax.movie", stub)
    main(parse([str(files.path), "--plots", "--movie=m.webp", "--fps=5"]))
    ((path, frames, rate),) = movies
    assert (path, len(frames), rate) == (Path("m.webp"), 5, 5.0)
    assert "plots/scores.png" in capsys.readouterr().out
    assert not files.report.exists()


def test_a_movie_needs_pictures(make, monkeypatch):
    files = make()
    for path in files.pictures().values():
        path.unlink()
    monkeypatch.setitem(sys.modules, "medgan_jax.movie", types.SimpleNamespace(write_movie=None))
    with pytest.raises(UserError, match="--movie: .*samples holds no pictures yet"):
        main(parse([str(files.path), "--movie=m.webp"]))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "workdir"),
        (["x", "--port=99999"], "--port: 99999 must be a whole number from 0 to 65535"),
        (["x", "--port=http"], "--port: http must be"),
        (["x", "--fps=0"], "--fps: 0 must be a number above 0"),
        (["x", "--sreve"], "--sreve"),
    ],
)
def test_bad_arguments_are_one_line(arguments, says):
    with pytest.raises(UserError, match=says):
        parse(arguments)
