"""The command `medgan report`."""

import subprocess
import sys

import pytest
from PIL import Image

from medgan_jax.commands.report import main
from medgan_jax.errors import UserError

pytestmark = pytest.mark.slow


def test_help_is_fast(command_environment):
    code = (
        "import sys\nfrom medgan_jax.commands.report import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as e:\n    assert not e.code\n"
        "assert not {'jax', 'matplotlib', 'PIL'} & set(sys.modules)\n"
    )
    shown = subprocess.check_output([sys.executable, "-c", code], env=command_environment, text=True)
    assert "usage: medgan report" in shown


def test_it_writes_the_report(make, no_plots, capsys, tmp_path):
    files = make()
    main([str(files.path), f"--out={tmp_path}/x.html"])
    assert capsys.readouterr().out == f"{tmp_path}/x.html\n"
    assert (tmp_path / "x.html").stat().st_size > 20_000
    assert not files.report.exists()


def test_it_writes_plots_and_a_movie_instead(make, capsys, tmp_path):
    files = make()
    files.metrics.write_text('{"step": 50, "loss_gen": 1.0, "loss_dis": 2.0}\n')
    files.evaluations.unlink()
    files.health.unlink()
    main([str(files.path), "--plots", f"--movie={tmp_path}/m.webp", "--fps=5"])
    with Image.open(tmp_path / "m.webp") as movie:
        assert (movie.n_frames, movie.size) == (5, (38, 38))  # the pictures of `make`: 2 x 2 images of 16 px
        movie.load()
        assert movie.info["duration"] == 200
    losses = files.path / "plots/losses.png"
    assert capsys.readouterr().out.splitlines() == [str(losses), f"{tmp_path}/m.webp"]
    assert list(losses.parent.iterdir()) == [losses]  # of the others there is nothing to draw
    with Image.open(losses) as picture:
        assert len(picture.convert("RGB").getcolors(2**24)) > 10
    assert not files.report.exists()


def test_a_movie_that_cannot_be_is_refused(make, tmp_path):
    files = make()
    with pytest.raises(UserError, match=r"m\.avi: a movie is a"):
        main([str(files.path), "--plots", "--movie=m.avi"])
    assert not (files.path / "plots").exists()  # before the plots
    for path in files.pictures().values():
        path.unlink()
    with pytest.raises(UserError, match="--movie: .*samples holds no pictures yet"):
        main([str(files.path), f"--movie={tmp_path}/m.webp"])
    assert list(tmp_path.glob("*.webp")) == []


def test_bad_arguments_are_one_line():
    for arguments, says in [
        ([], "workdir"),
        (["x", "--port=99999"], "--port: 99999 must be a whole number from 0 to 65535"),
        (["x", "--fps=0"], "--fps: 0 must be a number above 0"),
        (["x", "--sreve"], "--sreve"),
    ]:
        with pytest.raises(UserError, match=says):
            main(arguments)
