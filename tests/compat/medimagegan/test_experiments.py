"""The door that runs the published experiments: what it runs, keeps, refuses and prints."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from medgan_jax.checkpoint import load_generator
from medgan_jax.compat.medimagegan import experiments
from medgan_jax.compat.medimagegan.experiments import PUBLISHED_FIGURES, RECORD, main, table
from medgan_jax.compat.medimagegan.published import PUBLISHED, published_scores
from medgan_jax.data.phantom import phantom_image
from medgan_jax.errors import UserError
from medgan_jax.evaluation.image_sets import sampled
from medgan_jax.images import write_png
from medgan_jax.sharding import data_mesh, replicated
from medgan_jax.training import loop, member

CONFIG = """
from configs import default


def get_config():
    c = default.get_config()
    c.update(arch="sngan", image_size=16, latent_dim=8, batch_size={batch}, num_epochs={epochs})
    return c
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """12 images of 16 px, and configs: one published name, one of our own, one that the data cannot run."""
    folder = tmp_path_factory.mktemp("experiments")
    for i in range(12):
        write_png_in(folder / "images", f"{i}.png", phantom_image(i, seed=1, image_size=16))
    (folder / "configs").mkdir()
    for name, fields in {
        "ours": {"batch": 4, "epochs": 4},
        "batch_64": {"batch": 64, "epochs": 2},
        "batch_16": {"batch": 4, "epochs": 2},
    }.items():
        (folder / "configs" / f"{name}.py").write_text(CONFIG.format(**fields))
    return folder


def write_png_in(folder, name, image):
    folder.mkdir(exist_ok=True)
    write_png(folder / name, image)


@pytest.fixture
def run(folder, tmp_path, monkeypatch):
    """Calls the door; `trained` are the workdirs of the trainings it started."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    train = loop.train

    def call(*arguments, out=tmp_path / "out"):
        call.out = out
        return main(
            [f"--data={folder}/images", f"--configs={folder}/configs", f"--out={out}", "--features=4", *arguments]
        )

    def counted(config, workdir):
        call.trained.append(workdir.name)
        return train(config, workdir)

    call.trained = []
    monkeypatch.setattr(loop, "train", counted)
    return call


def test_experiments_from_folder_to_table(run, folder, capsys):
    assert run("--scale=0.5") == 0
    assert run.trained == ["batch_16", "ours"]  # in the published order, those of our own last
    printed = capsys.readouterr().out
    markdown = (run.out / "table.md").read_text()
    assert printed.endswith(markdown + "\n")
    for text in ("12 images (images)", "scale 0.5, seed 0", "CPU cores", "Not the full experiments", "jax "):
        assert text in markdown
    assert "batch_64: batch_size=64 is more than the 12 images" in printed

    saved = json.loads((run.out / "table.json").read_text())
    assert [row["name"] for row in saved["experiments"]] == ["batch_64", "batch_16", "ours"]
    refused, published, ours = saved["experiments"]
    assert "scores" not in refused
    assert refused["problem"].startswith("not run: batch_size=64")
    assert published["published"] == list(PUBLISHED_FIGURES["batch_16"])
    assert ours["published"] == []
    for row, steps in ((published, 3), (ours, 6)):
        assert (row["steps"], row["epochs"], row["images"]) == (steps, steps / 3, 12)
        mesh = data_mesh()
        generator = load_generator(run.out / row["name"], replicated(mesh))
        assert (generator.step, generator.module.features) == (steps, 4)
        fakes = sampled(generator, 64, seed=0, mesh=mesh, title="", progress=False).images
        names = sorted((folder / "images").iterdir(), key=lambda path: path.name)
        reals = np.stack([np.asarray(Image.open(name)) for name in names])
        expected = published_scores(fakes, reals, seed=0)
        assert row["scores"]["nearest"] == pytest.approx(expected.nearest)
        assert row["scores"]["as_published"] == pytest.approx(expected.as_published)
        with Image.open(run.out / f"{row['name']}.png") as picture:
            assert picture.size == (8 * 18 + 2, 3 * 18 + 2)
            np.testing.assert_array_equal(np.asarray(picture)[20:36, 2:18], fakes[0])

    with Image.open(run.out / "table.png") as picture:  # reals, and two experiments
        assert picture.width > picture.height > 200

    # Again: nothing is trained; what has other settings is refused.
    assert run("--scale=0.5") == 0
    assert run.trained == ["batch_16", "ours"]
    assert (run.out / "table.md").read_text() == markdown
    with pytest.raises(UserError, match=r"holds experiments with --scale=0.5; give that"):
        run("--scale=0.25")
    with pytest.raises(UserError, match=r"holds experiments with --seed=0; give that"):
        run("--scale=0.5", "--seed=1")
    with pytest.raises(UserError, match=r"holds experiments with --data=images; give that"):
        run("--scale=0.5", f"--data={folder}")
    (folder / "configs/other.py").write_text(CONFIG.format(batch=4, epochs=6))
    record = json.loads((run.out / "ours" / RECORD).read_text())
    (run.out / "other").mkdir()
    (run.out / "other" / RECORD).write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"other: .* differs in steps: 6 -> 9"):
        run("--scale=0.5", "--only=other")
    (run.out / "other" / RECORD).write_text("{}")
    with pytest.raises(UserError, match=r"other/experiment.json: is no record of an experiment"):
        run("--scale=0.5", "--only=other")
    (folder / "configs/other.py").unlink()


def test_a_stop_and_a_divergence(run, monkeypatch, capsys):
    """The first ends all with the signal's exit code, the second only its experiment; neither is scored."""
    answers = {"batch_16": 0, "ours": 130}

    def train(config, workdir):
        run.trained.append(workdir.name)
        workdir.mkdir(exist_ok=True)
        if workdir.name == "batch_16":
            raise member.Diverged("training diverged at step 2: loss_gen is nan; no checkpoint. Lower the rate")
        return answers[workdir.name]

    monkeypatch.setattr(loop, "train", train)
    assert run("--only=ours, batch_16") == 130
    assert run.trained == ["batch_16", "ours"]
    assert not (run.out / "ours" / RECORD).exists()
    text = (run.out / "table.md").read_text()
    assert re.search(r"\| batch_16 \| 6 \| 2 \| 12 \| 0 s \| training diverged at step 2: loss_gen is nan \|", text)
    assert "| batch_16 | PSNR | 12.76 | - | - | - | - |" in text
    assert run("--only=ours,batch_16") == 130
    assert run.trained == ["batch_16", "ours", "ours"]  # what diverged would diverge again


def test_other_errors_end_it(run, tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/settings.json").write_text('{"scale": 9}')  # of a start that began nothing, and binds nobody

    def train(config, workdir):
        raise UserError("the disk is full")

    monkeypatch.setattr(loop, "train", train)
    with pytest.raises(UserError, match="the disk is full"):
        run()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--only=batch_15"], "--only=batch_15: there is no such experiment; did you mean batch_16?"),
        (["--scale=0"], "--scale: 0 must be a number above 0"),
        (["--scale=nan"], "--scale: nan must be a number above 0"),
        (["--scale=half"], "--scale: half must be a number above 0"),
        (["--features=0"], "--features: 0 must be a whole number, at least 1"),
        (["--label=mel"], "'mel'"),
        (["--out="], "give --out="),
        (["--seed=-1"], "seed=-1 must be"),
        (["--data=no/such"], "--data=no/such"),
        (["--labels=no/such.csv"], "--labels=no/such.csv"),
        (["--configs=no/such"], "--configs=no/such: holds no config files"),
        (["--scael=1"], "unrecognized arguments: --scael=1"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(run, arguments, says):
    with pytest.raises(UserError) as refused:
        run(*arguments)
    assert says in str(refused.value)
    assert not run.out.exists()


def test_a_broken_config_is_named(run, tmp_path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/batch_16.py").write_text("def get_config(): return 1 / 0")
    with pytest.raises(UserError, match=r"batch_16.py is not a working config file \(division by zero\)"):
        run(f"--configs={tmp_path}/configs")


def test_a_table_of_full_runs_says_nothing_of_scale():
    column = dict(zip(PUBLISHED, (12.345, 0.5, 0.25, 0.4, 0.3), strict=True))
    scores = {
        "as_published": column, "as_published_floor": column | {"psnr": 15}, "nearest": column,
        "nearest_floor": column | {"psnr": 20}, "num_as_published": 64,
        "num_each": 70, "num_reference": 71, "skipped": [],
    }  # fmt: skip
    run = {"steps": 1600, "epochs": 200, "seconds": 90, "device": "a", "versions": {"jax": "1"}, "images": 141}
    records = [{"name": "batch_64", "problem": "", "scores": scores, **run}]
    text = table(records, {"data": "lesions", "scale": 1.0, "seed": 3, "label": "malignant", "features": None})
    assert "Not the full" not in text
    assert (
        "| batch_64 | PSNR | 12.46 | 12.35 | 15.00 | 12.35 | 20.00 |\n|  | SSIM | 0.23 | 0.50 | 0.50 | 0.50 | 0.50 |"
        in text
    )
    assert "| batch_64 | 1600 | 200 | 141 | 90 s | finished |" in text
    for words in ("141 images (lesions, malignant)", "seed 3", "64 fakes and", "nearest of 71", "Reals: 70 other"):
        assert words in text


def test_time_is_read_from_the_log(tmp_path):
    lines = [{"step": 10, "images_per_s": 20.0}, {"step": 15, "images_per_s": 40.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert experiments._seconds(tmp_path, 4) == 10 * 4 / 20 + 5 * 4 / 40
