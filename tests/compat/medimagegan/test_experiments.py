"""MedImageGAN's experiments: their configs, what the command runs, keeps, refuses and prints."""

import dataclasses
import json
import os
import re
import signal
import threading
import time

import numpy as np
import pytest
from PIL import Image

from medgan_jax.checkpoint import load_generator
from medgan_jax.commands.experiments import main
from medgan_jax.compat.medimagegan.experiments import PUBLISHED_FIGURES, run_experiments, table
from medgan_jax.compat.medimagegan.published import COLUMNS, PUBLISHED, published_scores
from medgan_jax.config import Config, changed_fields, named_config, parse_config
from medgan_jax.data.batches import load_dataset
from medgan_jax.data.phantom import phantom_image
from medgan_jax.errors import UserError
from medgan_jax.evaluation.image_sets import sampled
from medgan_jax.images import write_png
from medgan_jax.sharding import data_mesh, replicated

pytestmark = pytest.mark.slow

SETTINGS = {"data": "phantoms", "class_filter": "", "scale": 0.5, "seed": 0, "features": 4}


def test_configs_are_the_published_ones():
    configs = {name: named_config(f"medimagegan:{name}") for name in PUBLISHED_FIGURES}
    for c in configs.values():
        c.data.path = "somewhere"
    configs = {name: parse_config(c) for name, c in configs.items()}
    sngan = dataclasses.replace(configs["rate_100x_300_epochs"], num_epochs=200)
    assert changed_fields(Config().to_dict(), sngan) == [
        "arch: 'dcgan' -> 'sngan'", "latent_dim: 100 -> 256", "lr_dis: 0.0002 -> 0.02", "real_label: 1.0 -> 0.9",
    ]  # fmt: skip
    c = configs["matlab"]
    assert (c.batch_size, c.num_epochs, c.label_flip, c.dis_dropout, c.arch) == (128, 600, 0.3, 0.5, "dcgan")
    assert c.simultaneous and c.data.horizontal_flip
    assert [c.batch_size for c in configs.values()] == [128, 64, 16, 128] + 9 * [16] + [128]
    assert [c.num_epochs for c in configs.values()] == 3 * [200] + [800] + 6 * [200] + [300, 500, 500, 600]


@pytest.mark.parametrize("name", ["", "batch_15"])
def test_an_unknown_config_names_the_known_ones(name):
    with pytest.raises(UserError) as refused:
        named_config(f"medimagegan:{name}")
    says = str(refused.value)
    assert f"medimagegan.py:{name or 'NAME'}: give one of these after the colon: batch_128, batch_64, " in says
    assert says.endswith(", sngan_256px, matlab")


def test_from_training_to_table(tiny_config, tmp_path, capsys):
    tiny = {"num_steps": 0, "num_epochs": 2, "arch": "dcgan"}
    experiments = {
        "batch_64": tiny_config(**tiny, batch_size=64),  # more than the data has
        "batch_16": tiny_config(**tiny),
        "rate_100x": tiny_config(**tiny, lr_dis=1e38),  # diverges
    }
    assert run_experiments(experiments, tmp_path, SETTINGS) == 0
    printed = capsys.readouterr().out
    assert "batch_64: batch_size=64 is more than the 12 images" in printed
    refused, finished, diverged = json.loads((tmp_path / "table.json").read_text())["experiments"]
    assert refused["problem"].startswith("not run: batch_size=64")
    assert re.match("training diverged at step [123]: ", diverged["problem"])
    assert "scores" not in refused and "scores" not in diverged
    assert (finished["steps"], finished["epochs"], finished["images"], finished["problem"]) == (3, 1, 12, "")
    assert finished["published"] == list(PUBLISHED_FIGURES["batch_16"])
    log = [json.loads(line) for line in (tmp_path / "batch_16/metrics.jsonl").read_text().splitlines()]
    assert finished["seconds"] == pytest.approx(4 * (2 / log[0]["images_per_s"] + 1 / log[1]["images_per_s"]))

    mesh = data_mesh()
    generator = load_generator(tmp_path / "batch_16", replicated(mesh))
    fakes = sampled(generator, 64, seed=0, mesh=mesh, title="", progress=False).images
    c = experiments["batch_16"]
    reals = load_dataset(c.data, image_size=c.image_size, channels=3)[0].images
    expected = published_scores(fakes, reals, seed=0).means
    for column in COLUMNS:
        assert finished["scores"]["means"][column] == pytest.approx(expected[column])
    with Image.open(tmp_path / "batch_16.png") as picture:
        assert picture.size == (8 * 18 + 2, 3 * 18 + 2)
        np.testing.assert_array_equal(np.asarray(picture)[20:36, 2:18], fakes[0])
    with Image.open(tmp_path / "table.png") as picture:
        assert picture.width > picture.height
    markdown = (tmp_path / "table.md").read_text()
    for text in ("12 images (phantoms)", "scale 0.5, seed 0", "CPU cores", "Not the full experiments", "jax "):
        assert text in markdown
    assert "| rate_100x | PSNR | 12.03 | - | - | - | - |" in markdown

    # Again: nothing is trained; other settings or images are refused.
    files = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/**/*")}
    assert run_experiments({name: experiments[name] for name in ("batch_16", "rate_100x")}, tmp_path, SETTINGS) == 0
    assert capsys.readouterr().out == "batch_16: was run before\nrate_100x: was run before\n"
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/**/*")} == files
    assert (tmp_path / "table.md").read_text() == markdown
    with pytest.raises(UserError, match=r"holds experiments with --scale=0.5; give that, or another --out"):
        run_experiments(experiments, tmp_path, SETTINGS | {"scale": 0.25})
    with pytest.raises(UserError, match=r"batch_16: .*the images: 12 with digest"):
        run_experiments({"batch_16": tiny_config(**tiny, data_num_phantoms=13)}, tmp_path, SETTINGS)


def test_a_signal_ends_all(tiny_config, tmp_path):
    log = tmp_path / "batch_16/metrics.jsonl"

    def interrupt():
        while not log.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    config = tiny_config(arch="dcgan", num_steps=10**6, checkpoint_every_steps=10**6)
    assert run_experiments({"batch_16": config, "latent_128": config}, tmp_path, SETTINGS) == 128 + signal.SIGINT
    assert not (tmp_path / "batch_16/experiment.json").exists()
    assert not (tmp_path / "latent_128").exists()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """12 images."""
    folder = tmp_path_factory.mktemp("images")
    for i in range(12):
        write_png(folder / f"{i}.png", phantom_image(i, seed=1, image_size=16))
    return folder


def test_the_command_on_too_few_images(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert main([f"--data={folder}", f"--out={tmp_path}/out", "--only=batch_16, batch_128", "--features=3"]) == 0
    printed = capsys.readouterr().out
    assert printed.endswith((tmp_path / "out/table.md").read_text() + "\n")
    for text in (f"12 images ({folder.name})", "both networks have 3 feature maps", "nothing was run", "| batch_128 |"):
        assert text in printed


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--only=batch_15"], "--only=batch_15: there is no such experiment; give some of batch_128,"),
        (["--scale=0"], "--scale=0: must be a number above 0"),
        (["--scale=nan"], "--scale=nan: must be a number above 0"),
        (["--scale=half"], "--scale: invalid float value: 'half'"),
        (["--features=0"], "gen_features=0 must be at least 1"),
        (["--class_filter=mel"], "data.class_filter='mel'"),
        (["--out="], "give --out="),
        (["--seed=-1"], "seed=-1 must be"),
        (["--data=no/such"], "data.path=no/such"),
        (["--labels=no/such.csv"], "no/such.csv: no such file"),
        (["--scael=1"], "unrecognized arguments: --scael=1"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(folder, tmp_path, arguments, says):
    with pytest.raises(UserError) as refused:
        main([f"--data={folder}", f"--out={tmp_path}/out", *arguments])
    assert says in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_a_table_of_full_runs_says_nothing_of_scale():
    means = dict.fromkeys(COLUMNS, dict(zip(PUBLISHED, (12.345, 0.5, 0.25, 0.4, 0.3), strict=True)))
    scores = {"means": means, "num_pairs": 64, "num_each": 70, "num_reference": 71, "skipped": []}
    settings = {"data": "lesions", "scale": 1.0, "seed": 3, "class_filter": "malignant", "features": None}
    run = {"steps": 1600, "epochs": 200, "seconds": 90, "device": "a", "versions": {"jax": "1"}, "images": 141}
    text = table([{"name": "batch_64", "problem": "", "settings": settings, "scores": scores, **run}])
    assert "Not the full" not in text
    for words in (
        "| batch_64 | PSNR | 12.46 | 12.35 | 12.35 | 12.35 | 12.35 |\n|  | SSIM | 0.23 | 0.50 | 0.50 | 0.50 | 0.50 |",
        "| batch_64 | 1600 | 200 | 141 | 90 s | finished |",
        "141 images (lesions, malignant)", "seed 3", "64 fakes and", "nearest of 71", "Reals: 70 other",
    ):  # fmt: skip
        assert words in text
