"""The comparison of recipes for small data: what it trains, keeps, evaluates and shows."""

import functools
import json

import pytest
from PIL import Image

from benchmarks import small_data, small_data_table
from benchmarks.small_data import RECIPES, Recipe, steps_within, training_config, training_seconds
from medgan_jax.data.phantom import phantom_image
from medgan_jax.errors import UserError
from medgan_jax.evaluation.protocol import evaluate
from medgan_jax.images import write_png
from medgan_jax.workdir import Workdir, read_lines, write_json

TINY = {"image_size": 16, "gen_features": 4, "dis_features": 4, "latent_dim": 8, "batch_size": 4}
TINY |= {"data.holdout_fraction": 0.5}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Calls the command for 24 images of 16 px of the scarce class, and 8 others; `run.out` has the results."""
    (tmp_path / "images").mkdir()
    for i in range(32):
        write_png(tmp_path / f"images/{i}.png", phantom_image(i, seed=1, image_size=16))
    (tmp_path / "labels.csv").write_text("\n".join(f"{i},{'benign' if i < 8 else 'malignant'}" for i in range(32)))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(small_data, "evaluate", functools.partial(evaluate, replicates=2))  # no interval is shown
    monkeypatch.setitem(RECIPES, "sngan64", Recipe("sngan64", TINY))
    monkeypatch.setitem(RECIPES, "small64", Recipe("sngan64", TINY | {"lr_dis": 1e30}))

    def call(*arguments):
        files = [f"--data={tmp_path}/images", f"--labels_csv={tmp_path}/labels.csv", "--class_filter=malignant"]
        sizes = ["--images=16", "--minutes=1e-6", "--only=sngan64,small64", "--seeds=1"]
        return small_data.main([*files, *sizes, f"--out={call.out}", *arguments])

    call.out = tmp_path / "out"
    return call


def record(recipe, seed, kid, problem=""):
    names = ("kid_pyramid", "recall", "coverage", *(f"checkerboard_{n}" for n in (2, 4, 8)), "memorization")
    figures = {name: {"value": 0.5, "reals": {"value": 0.25}} for name in names}
    figures |= {"swd_64": {"value": 60, "reals": {"value": 50}}, "swd_32": {"value": 80, "reals": {"value": 30}}}
    figures |= {"kid": {"value": kid, "reals": {"value": -0.0001}}, "precision": {"value": None, "reals": None}}
    return {
        "size": 64, "budget": "images", "recipe": recipe, "sentence": "sngan64", "seed": seed, "steps": 1000 + seed,
        "batch_size": 16, "seconds": 90, "device": "2 CPU cores", "commit": "abc", "versions": {"jax": "0.10"},
        "problem": problem, "figures": {} if problem else figures,
        "protocol": {"reference": "28 of held out", "fakes": "113 of fakes"},
    }  # fmt: skip


def cells(markdown, recipe):
    line = next(line for line in markdown.splitlines() if line.startswith(f"| {recipe} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_table_has_means_over_seeds_and_what_diverged():
    records = [record("sngan64", 0, 0.12), record("sngan64", 1, 0.16), record("mine", 0, 0, "diverged at step 7")]
    about = {"data": "isic", "class_filter": "malignant", "images": 8000, "minutes": 15.0}
    markdown = small_data_table.table(records, about)
    assert "## 64 px, at equal images: 8,000 images seen" in markdown
    assert cells(markdown, small_data_table.REALS_ROW) == [
        "*real reference*", "", "0", "250", "0.25", "-", "0.25", "40", "0.2/0.2/0.2", "-", "",
    ]  # fmt: skip
    assert cells(markdown, "sngan64") == [
        "sngan64", "1,000 (1,000 to 1,001)", "140 (120 to 160)", "500", "0.50", "-", "0.50", "70", "0.5/0.5/0.5",
        "50 %", "1.5",
    ]  # fmt: skip
    assert cells(markdown, "mine")[1:] == ["-"] * 7 + ["-/-/-", "-", "-"]
    assert "\n- mine: seed 0 diverged at step 7\n" in markdown
    assert (
        "mine is sngan64; batches of 16; 28 of held out, 113 of fakes; 2 seeds: means (lowest to highest)" in markdown
    )


def test_minutes_become_steps_at_the_speed_of_the_log():
    lines = [{"step": 50, "images_per_s": 8.0}, {"step": 100, "images_per_s": 4.0}]
    assert training_seconds(lines, batch_size=4) == 25 + 50
    assert steps_within(5, lines, batch_size=4) == 400


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_its_config_for_as_many_images(name):
    data = {"source": "csv", "path": "images", "labels_csv": "labels.csv", "class_filter": "malignant"}
    config = training_config(name, seed=1, images=8000, data=data)
    assert config.num_steps * config.batch_size == 8000
    assert (config.seed, config.data.class_filter, config.data.holdout_fraction) == (1, "malignant", 0.2)
    assert (config.arch, config.dis, config.loss, config.gen_features, config.augment.color) == {
        "dcgan64": ("dcgan", "patch", "bce", 64, 0.0),
        "sngan64": ("sngan", "patch", "bce", 64, 0.0),
        "sngan_small64": ("sngan", "patch", "bce", 64, 0.0),
        "fastgan_patch": ("fastgan", "patch", "hinge", 16, 0.5),
        "dcgan_projected": ("dcgan", "projected", "hinge", 64, 0.5),
        "small64": ("fastgan", "projected", "hinge", 16, 0.5),
        "small128": ("fastgan", "projected", "hinge", 16, 0.5),
    }[name]


@pytest.mark.slow
def test_from_images_to_the_tables(run, capsys, monkeypatch):
    assert run() == 0
    markdown = (run.out / "small_data.md").read_text()
    assert capsys.readouterr().out.endswith(markdown + "\n")
    workdir, diverged = run.out / "sngan64/seed_0", run.out / "small64/seed_0"
    # So few minutes are over before 16 images are seen.
    assert json.loads((workdir / "steps.json").read_text()) == {"images": 4, "minutes": 4}

    # As if it had been stopped on the way to step 6; what has diverged is not tried again.
    write_json(workdir / "steps.json", {"images": 4, "minutes": 6})
    assert run() == 0
    found = json.loads((run.out / "results.json").read_text())["generators"]
    order = [(r["budget"], r["recipe"], r["steps"]) for r in found]
    assert order == [
        ("images", "sngan64", 4), ("images", "small64", 4), ("minutes", "sngan64", 6), ("minutes", "small64", 4),
    ]  # fmt: skip
    assert found[0]["protocol"]["reference"] == "12 of held out"
    assert found[0]["figures"]["kid"]["value"] != found[2]["figures"]["kid"]["value"]
    reals = [{name: figure["reals"] for name, figure in each["figures"].items()} for each in (found[0], found[2])]
    assert reals[0] == reals[1]
    assert [line["step"] for line in read_lines(Workdir(workdir).runs)] == [0, 4]
    assert len(list(read_lines(Workdir(diverged).runs))) == 1
    after = (run.out / "small_data.md").read_text()
    assert after.count(f"\n- small64: seed 0 {found[1]['problem']}\n") == 2
    with Image.open(run.out / "grid_16_minutes.webp") as picture:
        assert picture.height == 2 * 20  # the reals and the one that did not diverge

    # Again nothing is trained or evaluated, and the table is the same.
    scores = [*workdir.glob("scores_*.json")]
    before = [path.stat().st_mtime_ns for path in scores]
    (run.out / "small_data.md").unlink()
    assert run() == 0
    assert run("--table_only") == 0
    assert (run.out / "small_data.md").read_text() == after
    assert [path.stat().st_mtime_ns for path in scores] == before and len(scores) == 2
    assert len(list(read_lines(Workdir(workdir).runs))) == 2

    monkeypatch.setitem(RECIPES, "sngan64", Recipe("sngan64", TINY | {"lr_gen": 1e-5}))
    with pytest.raises(UserError, match="seed_0: holds a training that differs in lr_gen: 0.0002 -> 1e-05"):
        run()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--only=sngn64"], "--only=sngn64: there is none of this name; there are dcgan64, "),
        (["--seeds=0"], "--seeds=0: must be at least 1"),
        (["--minutes=0"], "--minutes=0: must be above 0"),
        (["--images=3"], "--images=3: must be at least 4, a batch of sngan64"),
        (["--class_filter=nevus"], "data.class_filter=.*nevus"),
        (["--data=nowhere"], "data.path=nowhere"),
    ],
)
def test_bad_input_is_one_line(run, arguments, complaint):
    with pytest.raises(UserError, match=complaint):
        run(*arguments)


def test_one_folder_holds_one_comparison(run):
    assert run("--table_only") == 0
    with pytest.raises(UserError, match="holds a comparison with --images=16; give that"):
        run("--table_only", "--images=32")
