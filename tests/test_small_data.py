"""The ladder of techniques for small data: what it trains, keeps, scores and tells."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from benchmarks import small_data, small_data_table
from benchmarks import small_data_ladder as ladder
from benchmarks.small_data_ladder import Part, Rung
from medgan_jax.data.batches import load_dataset
from medgan_jax.data.phantom import phantom_image
from medgan_jax.errors import UserError
from medgan_jax.images import write_png
from medgan_jax.training import loop
from medgan_jax.workdir import Workdir

RUNGS = {
    "published": Rung("", "the recipe", {"batch_size": 4, "latent_dim": 8}),
    "slower": Rung("published", "a slower generator", {"lr_gen": 1e-4}),
    "best": Rung("published", "the best of it", best=True),
}
PROTOCOLS = {
    "tiny": (
        Part(16, "melanomas", maps=4, images=16, seeds=1, rungs=("published", "best")),
        Part(16, "all", maps=4, images=16, seeds=1, rungs=("published",)),
    ),
    "other": (),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """60 images of 16 px, of which two thirds are malignant, and their labels."""
    folder = tmp_path_factory.mktemp("small_data")
    (folder / "images").mkdir()
    for i in range(60):
        write_png(folder / f"images/{i}.png", phantom_image(i, seed=1, image_size=16))
    lines = [f"{i},{'malignant' if i % 3 else 'benign'}" for i in range(60)]
    (folder / "labels.csv").write_text("\n".join(lines))
    return folder


@pytest.fixture
def run(folder, tmp_path, monkeypatch):
    """Calls the door; `trained` are the workdirs of the trainings it started."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    monkeypatch.setattr(ladder, "RUNGS", RUNGS)
    monkeypatch.setattr(ladder, "PROTOCOLS", PROTOCOLS)
    monkeypatch.setattr(ladder, "HOLDOUT", 0.5)
    train = loop.train
    out = tmp_path / "out"

    def call(*arguments):
        given = [f"--data={folder}/images", f"--labels={folder}/labels.csv", "--label=malignant", "--protocol=tiny"]
        return small_data.main([*given, f"--out={out}", *arguments])

    def counted(config, workdir):
        call.trained.append(str(workdir.relative_to(out)))
        return train(config, workdir)

    call.out, call.trained = out, []
    monkeypatch.setattr(loop, "train", counted)
    return call


def estimate(value, floor):
    ends = {"value": value, "low": value - 1, "high": value + 1}
    return ends | {"floor": {"value": floor, "low": floor, "high": floor}}


def record(rung, seed, swd, problem=""):
    """Scores of 120 and 60 above and below `swd` at the two scales; all floors are 40."""
    names = ("kid", "density", "coverage", "checkerboard_2", "checkerboard_4", "checkerboard_8", "similarity", "copies")
    figures = {name: estimate(0.5, 0.25) for name in names}
    figures |= {"swd_64": estimate(swd + 60, 50), "swd_32": estimate(swd - 60, 30)}
    return {
        "size": 64, "set": "melanomas", "rung": rung, "seed": seed, "maps": 16, "steps": 3000, "batch_size": 16,
        "seconds": 90, "at_once": 1, "device": "2 CPU cores", "commit": "abc", "scored_at": "abd",
        "versions": {"jax": "0.10"}, "problem": problem, "figures": {} if problem else figures, "inception": {},
        "protocol": {"reference": "28 of held out", "fakes": "113 of fakes"},
    }  # fmt: skip


def cells(markdown, rung):
    line = next(line for line in markdown.splitlines() if line.startswith(f"| {rung} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


ABOUT = {"data": "isic", "label": "malignant", "protocol": "reduced"}
NAMES = {"published": ("", "the recipe"), "slower": ("published", "a slower generator")}


def test_distances_are_told_as_multiples_of_the_published_recipes():
    records = [record("published", 0, 120), record("published", 1, 160), record("slower", 0, 65)]
    records += [record("slower", 1, 0, problem="diverged at step 7")]
    markdown = small_data_table.table(records, ABOUT, NAMES)
    assert cells(markdown, r"*floor*")[1:4] == ["40", "50/30", "0"]
    # The published recipe is 140 - 40 above the floor.
    assert cells(markdown, "published")[1:4] == ["140 (120 to 160)", "200/80", "1.00 (0.80 to 1.20)"]
    assert cells(markdown, "slower")[1:4] == ["65", "125/5", "0.25"]
    assert cells(markdown, "slower")[8:10] == ["2.00", "50 %"]
    assert "| slower | published + | a slower generator | 2 seeds; seed 1 diverged at step 7 |" in markdown
    assert "16 feature maps, 3000 steps of 16 images; 28 of held out, 113 of fakes; means over seeds" in markdown


def test_nothing_is_a_multiple_of_a_recipe_that_reaches_the_floor():
    assert math.isnan(small_data_table.above_floor(50, floor=40, published=40))
    assert math.isnan(small_data_table.above_floor(50, floor=40, published=math.nan))
    assert small_data_table.above_floor(50, floor=40, published=60) == 0.5


def test_a_part_without_scores_says_so():
    markdown = small_data_table.table([record("published", 0, 0, problem="diverged at step 7")], ABOUT, NAMES)
    assert "Nothing was scored." in markdown


def test_every_rung_is_a_training_that_sees_as_many_images():
    for part in (part for parts in ladder.PROTOCOLS.values() for part in parts):
        for name in part.rungs or ladder.RUNGS:
            config = ladder.training_config(
                part, name, seed=1, data={"path": "images", "labels_csv": "labels.csv"}, label="malignant"
            )
            assert config.num_steps * config.batch_size == part.images
            assert (config.image_size, config.seed, config.gen_features) == (part.size, 1, part.maps)
            assert config.data.class_filter == ("" if config.conditional or part.set == "all" else "malignant")
    turned = ladder.training_config(
        ladder.PROTOCOLS["full"][0], "translation", 0, data={"path": "images", "labels_csv": "x"}, label="malignant"
    )
    assert turned.augment.flips and turned.augment.translation == 0.125 and not turned.augment.color


def test_a_conditional_generator_is_judged_by_the_images_of_the_class_alone(folder, monkeypatch):
    """Those, and no others, by which the other rungs are judged: one floor holds for all of them."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    part = Part(16, "melanomas", maps=4, images=16, seeds=1)
    data = {"path": f"{folder}/images", "labels_csv": f"{folder}/labels.csv"}

    def judges(name):
        config = ladder.training_config(part, name, 0, data=data, label="malignant")
        train, _ = load_dataset(config.data, image_size=16, channels=3)
        return small_data._judges(SimpleNamespace(about={"data_digest": train.digest}), config, "malignant")

    found, expected = judges("conditional"), judges("translation")
    assert [len(images.images) for images in expected] == [32, 8]
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours.images, theirs.images)


def test_the_ladder_from_images_to_table(run, folder, capsys):
    assert run() == 0
    assert run.trained == [f"16/{name}/seed_0" for name in ("melanomas/published", "all/published")]
    markdown = (run.out / "small_data.md").read_text()
    assert capsys.readouterr().out.endswith(markdown + "\n")
    assert "20 of held out, 20 of fakes" in markdown and "30 of held out, 30 of fakes" in markdown

    results = json.loads((run.out / "results.json").read_text())
    by_name = {(r["set"], r["rung"], r["seed"]): r for r in results["generators"]}
    assert len(by_name) == 3
    # best/ holds the only generator that was evaluated: the last one.
    chosen, last = by_name["melanomas", "best", 0], by_name["melanomas", "published", 0]
    assert (chosen["generator"], chosen["figures"]) == (last["generator"], last["figures"])

    config = ladder.training_config(
        PROTOCOLS["tiny"][0], "published", 0, label="malignant",
        data={"path": f"{folder}/images", "labels_csv": f"{folder}/labels.csv"},
    )  # fmt: skip
    _, held_out = load_dataset(config.data, image_size=16, channels=3)
    with Image.open(run.out / "16/melanomas/reals.png") as picture:
        first = np.asarray(picture)[2:18, 2:18]
    assert any((first == image).all() for image in held_out.images)
    with Image.open(run.out / "grid_16_melanomas.webp") as picture:
        assert picture.size == (110 + 12 * 18 + 2, 3 * 20)  # the reals and two rungs

    # Again nothing is trained or scored; without the pictures of a moment ago the table is the same.
    scores = run.out / "16/melanomas/best/seed_0/scores.json"
    before, run.trained[:] = scores.stat().st_mtime_ns, []
    assert run() == 0
    (run.out / "small_data.md").unlink()
    assert run("--table_only") == 0
    assert (run.out / "small_data.md").read_text() == markdown
    assert run.trained == [] and scores.stat().st_mtime_ns == before


def test_what_is_missing_is_trained_and_what_changed_is_refused(run, monkeypatch):
    assert run("--only=slower", "--parts=16/melanomas", "--train_only") == 0
    assert run("--only=slower", "--parts=16/melanomas", "--train_only", "--seeds=2") == 0
    assert run.trained == ["16/melanomas/slower/seed_0", "16/melanomas/slower/seed_1"]
    assert not list(run.out.glob("**/scores.json"))
    monkeypatch.setitem(RUNGS, "slower", Rung("published", "slower still", {"lr_gen": 1e-5}))
    with pytest.raises(UserError, match="seed_0: the training there differs in lr_gen: 0.0001 -> 1e-05; undo that"):
        run("--only=slower", "--parts=16/melanomas")


def test_a_training_that_diverges_is_a_result(run, monkeypatch):
    def diverging(config, workdir):
        run.trained.append(workdir.name)
        files = Workdir(workdir)
        files.record(config, {})
        files.append(files.alarms, {"step": 3, "alarm": "divergence", "action": "stopped"})
        raise UserError("training diverged at step 3")

    monkeypatch.setattr(loop, "train", diverging)
    for _ in range(2):
        assert run("--only=slower", "--parts=16/melanomas", "--seeds=2") == 0
    assert run.trained == ["seed_0", "seed_1"]
    remarks = "2 seeds; seed 0 diverged at step 3; seed 1 diverged at step 3"
    assert [r["problem"] for r in json.loads((run.out / "results.json").read_text())["generators"]] == [
        "diverged at step 3"
    ] * 2
    assert "Nothing was scored" in (run.out / "small_data.md").read_text()
    assert remarks in (run.out / "small_data.md").read_text()


def test_another_error_is_no_result(run, monkeypatch):
    def refusing(config, workdir):
        raise UserError("no room")

    monkeypatch.setattr(loop, "train", refusing)
    with pytest.raises(UserError, match="no room"):
        run("--only=slower")


def test_seeds_at_once_are_asked_for_together(run, monkeypatch):
    calls = []

    def together(config, workdir, *, seeds):
        calls.append((workdir.name, config.seed, seeds))
        return 130  # asked to stop

    monkeypatch.setattr(loop, "train", together)
    assert run("--only=slower", "--parts=16/melanomas", "--seeds=2", "--at_once") == 130
    assert calls == [("slower", 0, 2)]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--only=slowr"], "--only=slowr: there is none of this name; did you mean slower?"),
        (["--parts=64/all"], "--parts=64/all: there is none of this name"),
        (["--seeds=0"], "--seeds=0: must be at least 1"),
        (["--label=nevus"], "--label=nevus: .* has benign, malignant"),
        (["--data=nowhere"], "--data=nowhere"),
        (["--protocol=large"], "--protocol.*large"),
    ],
)
def test_bad_input_is_one_line(run, arguments, complaint):
    with pytest.raises(UserError, match=complaint):
        run(*arguments)
    assert run.trained == []


def test_one_folder_holds_one_ladder(run):
    assert run("--table_only") == 0
    with pytest.raises(UserError, match="holds a ladder with --protocol=tiny; give that"):
        run("--table_only", "--protocol=other")
