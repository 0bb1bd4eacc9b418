"""The door `python -m medgan_jax.report`."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from medgan_jax.commands.report import main, parse
from medgan_jax.errors import UserError
from medgan_jax.report import page

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


def test_it_writes_plots_and_a_movie_instead(make, capsys, tmp_path):
    files = make()
    main(parse([str(files.path), "--plots", f"--movie={tmp_path}/m.webp", "--fps=5"]))
    with Image.open(tmp_path / "m.webp") as movie:
        assert (movie.n_frames, movie.size) == (5, (38, 38))  # the pictures of `make`: 2 x 2 images of 16 px
        movie.load()
        assert movie.info["duration"] == 200
    assert "plots/scores.png" in capsys.readouterr().out
    assert not files.report.exists()


def test_a_movie_needs_pictures(make, tmp_path):
    files = make()
    for path in files.pictures().values():
        path.unlink()
    with pytest.raises(UserError, match="--movie: .*samples holds no pictures yet"):
        main(parse([str(files.path), f"--movie={tmp_path}/m.webp"]))
    assert list(tmp_path.glob("*.webp")) == []


def test_a_movie_that_cannot_be_is_refused_before_the_plots(make):
    files = make()
    with pytest.raises(UserError, match=r"m\.avi: a movie is a"):
        main(parse([str(files.path), "--plots", "--movie=m.avi"]))
    assert not (files.path / "plots").exists()


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
