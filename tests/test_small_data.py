"""The ablation for small data: what it trains, keeps, evaluates and shows."""

import json

import numpy as np
import pytest
from PIL import Image

from benchmarks import small_data, small_data_table
from benchmarks.small_data_ablation import PROTOCOLS, VARIANTS, Part, Variant, training_config
from medgan_jax.data.batches import load_dataset
from medgan_jax.data.phantom import phantom_image
from medgan_jax.errors import UserError
from medgan_jax.images import write_png
from medgan_jax.workdir import Workdir, read_lines

pytestmark = pytest.mark.slow

FEW = {"batch_size": 4, "latent_dim": 8, "data.holdout_fraction": 0.5}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Calls the command for 44 images of 16 px of the scarce class, and 12 others; `run.out` has the results."""
    (tmp_path / "images").mkdir()
    for i in range(56):
        write_png(tmp_path / f"images/{i}.png", phantom_image(i, seed=1, image_size=16))
    (tmp_path / "labels.csv").write_text("\n".join(f"{i},{'benign' if i < 12 else 'malignant'}" for i in range(56)))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setitem(VARIANTS, "published", Variant("", "the recipe", FEW))
    monkeypatch.setitem(VARIANTS, "conditional", Variant("published", "both", {"conditional": True}, all_classes=True))
    monkeypatch.setitem(VARIANTS, "best", Variant("published", "the best of it", best=True))
    monkeypatch.setitem(VARIANTS, "exploding", Variant("published", "too fast", {"lr_dis": 1e30}))
    part = Part(16, "melanomas", maps=4, images=16, seeds=1, variants=("conditional", "best"))
    monkeypatch.setitem(PROTOCOLS, "tiny", (part,))

    def call(*arguments):
        files = [f"--data={tmp_path}/images", f"--labels_csv={tmp_path}/labels.csv", "--class_filter=malignant"]
        return small_data.main([*files, "--protocol=tiny", f"--out={call.out}", *arguments])

    call.out = tmp_path / "out"
    return call


def estimate(value, reals):
    ends = {"value": value, "low": value - 1, "high": value + 1}
    return ends | {"reals": {"value": reals, "low": reals, "high": reals}}


def record(variant, seed, swd, problem=""):
    """Scores of 60 above and below `swd` at the two scales; the real reference's mean is 40."""
    names = (
        "kid",
        "kid_pyramid",
        "recall",
        "density",
        "coverage",
        "similarity",
        "memorization",
        *(f"checkerboard_{n}" for n in (2, 4, 8)),
    )
    figures = {name: estimate(0.5, 0.25) for name in names}
    figures |= {"swd_64": estimate(swd + 60, 50), "swd_32": estimate(swd - 60, 30)}
    return {
        "size": 64, "set": "melanomas", "variant": variant, "seed": seed, "maps": 16, "steps": 3000, "batch_size": 16,
        "seconds": 90, "device": "2 CPU cores", "commit": "abc", "scored_at": "abd",
        "versions": {"jax": "0.10"}, "problem": problem, "figures": {} if problem else figures, "inception": {},
        "protocol": {"reference": "28 of held out", "fakes": "113 of fakes"},
    }  # fmt: skip


def cells(markdown, variant):
    line = next(line for line in markdown.splitlines() if line.startswith(f"| {variant} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


ABOUT = {"data": "isic", "class_filter": "malignant", "protocol": "reduced"}
NAMES = {"published": Variant("", "the recipe"), "slower": Variant("published", "a slower generator")}


def test_distances_are_multiples_of_the_published_recipes():
    records = [record("published", 0, 120), record("published", 1, 160), record("slower", 0, 65)]
    records += [record("slower", 1, 0, problem="diverged at step 7")]
    markdown = small_data_table.table(records, ABOUT, NAMES)
    assert cells(markdown, small_data_table.REALS_ROW)[1:4] == ["40", "50/30", "0"]
    # The published recipe is 140 - 40 above the real reference.
    assert cells(markdown, "published")[1:4] == ["140 (120 to 160)", "200/80", "1.00 (0.80 to 1.20)"]
    assert cells(markdown, "slower")[1:4] == ["65", "125/5", "0.25"]
    assert cells(markdown, "slower")[10:12] == ["2.00", "50 %"]
    assert "| slower | published + | a slower generator | 2 seeds; seed 1 diverged at step 7 |" in markdown
    assert "16 feature maps, 3000 steps of 16 images; 28 of held out, 113 of fakes; means over seeds" in markdown


def test_a_recipe_that_reaches_the_real_reference_is_no_yardstick():
    markdown = small_data_table.table([record("published", 0, 40), record("slower", 0, 50)], ABOUT, NAMES)
    assert cells(markdown, "slower")[3] == "-"


def test_every_training_sees_as_many_images():
    data = {"path": "images", "labels_csv": "labels.csv"}
    for part in (part for parts in PROTOCOLS.values() for part in parts):
        for name in part.variants or VARIANTS:
            config = training_config(part, name, seed=1, data=data, class_filter="malignant")
            assert config.num_steps * config.batch_size == part.images
            assert (config.image_size, config.seed, config.gen_features) == (part.size, 1, part.maps)
            assert config.data.class_filter == ("" if config.conditional or part.set == "all" else "malignant")
    config = training_config(PROTOCOLS["full"][0], "translation", 0, data=data, class_filter="malignant")
    assert config.augment.flips and config.augment.translation == 0.125 and not config.augment.color


def test_from_images_to_the_table(run, capsys, monkeypatch):
    assert run() == 0
    markdown = (run.out / "small_data.md").read_text()
    assert capsys.readouterr().out.endswith(markdown + "\n")
    found = {r["variant"]: r for r in json.loads((run.out / "results.json").read_text())["generators"]}
    assert list(found) == ["conditional", "best"]
    # One real reference holds for all, whatever else a training has seen.
    assert found["conditional"]["protocol"]["reference"].startswith("22 of held out")
    reals = [{name: figure["reals"] for name, figure in each["figures"].items()} for each in found.values()]
    assert reals[0] == reals[1]

    folder = run.out / "16/melanomas"
    config = json.loads((folder / "published/seed_0/config.json").read_text())
    assert config["data"]["class_filter"] == "malignant"
    data = {"path": config["data"]["path"], "labels_csv": config["data"]["labels_csv"]}
    parsed = training_config(PROTOCOLS["tiny"][0], "published", 0, data=data, class_filter="malignant")
    _, held_out = load_dataset(parsed.data, image_size=16, channels=3)
    with Image.open(folder / "reals.png") as picture:
        first = np.asarray(picture)[2:18, 2:18]
    assert any((first == image).all() for image in held_out.images)
    with Image.open(run.out / "grid_16_melanomas.webp") as picture:
        assert picture.size == (110 + 12 * 18 + 2, 3 * 20)  # the reals and two variants

    # Again nothing is trained or evaluated, and the table is the same.
    scores = folder / "best/seed_0/scores.json"
    before = scores.stat().st_mtime_ns
    assert run() == 0
    (run.out / "small_data.md").unlink()
    assert run("--table_only") == 0
    assert (run.out / "small_data.md").read_text() == markdown
    assert len(list(read_lines(Workdir(folder / "published/seed_0").runs))) == 1
    assert scores.stat().st_mtime_ns == before

    monkeypatch.setitem(VARIANTS, "published", Variant("", "slower", FEW | {"lr_gen": 1e-5}))
    with pytest.raises(UserError, match="seed_0: the training there differs in .*lr_gen: 0.0002 -> 1e-05.*; undo that"):
        run("--only=published")


def test_a_training_that_diverges_is_a_result(run):
    for _ in range(2):
        assert run("--only=exploding", "--seeds=1") == 0
    (found,) = json.loads((run.out / "results.json").read_text())["generators"]
    assert found["problem"].startswith("diverged at step ")
    assert len(list(read_lines(Workdir(run.out / "16/melanomas/exploding/seed_0").runs))) == 1
    markdown = (run.out / "small_data.md").read_text()
    assert "Nothing was evaluated." in markdown
    assert f"1 seed; seed 0 {found['problem']}" in markdown


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--only=conditionl"], "--only=conditionl: there is none of this name; did you mean conditional?"),
        (["--parts=64/all"], "--parts=64/all: there is none of this name"),
        (["--seeds=0"], "--seeds=0: must be at least 1"),
        (["--class_filter=nevus"], "data.class_filter=.*nevus"),
        (["--data=nowhere"], "data.path=nowhere"),
        (["--protocol=large"], "--protocol.*large"),
    ],
)
def test_bad_input_is_one_line(run, arguments, complaint):
    with pytest.raises(UserError, match=complaint):
        run(*arguments)


def test_one_folder_holds_one_ablation(run):
    assert run("--table_only") == 0
    with pytest.raises(UserError, match="holds an ablation with --protocol=tiny; give that"):
        run("--table_only", "--protocol=reduced")
