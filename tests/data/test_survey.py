"""What is said of a folder before its images are decoded, what is refused, and how the files are then read."""

import dataclasses
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medgan_jax.data.batches import load_dataset
from medgan_jax.errors import UserError

Y, X = np.mgrid[:32, :32]
GREY = (X * 4 + Y * 4).astype(np.uint8)  # from 0 to 248


def write(folder, name, image=GREY, **options):
    path = Path(folder, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, **options)


@pytest.fixture
def load(tiny_config, tmp_path, caplog):
    caplog.set_level(logging.INFO, "medgan_jax")

    def load_it(folder=tmp_path, size=32, **fields):
        fields = {"source": "folder", "path": str(folder), "cache_dir": str(tmp_path / ".cache"), **fields}
        data = dataclasses.replace(tiny_config().data, **fields)
        return load_dataset(data, image_size=size, channels=1)

    return load_it


def test_one_line_says_what_there_is(load, tmp_path, caplog):
    for name in ("train/ill/1.png", "train/ill/2.png", "train/well/3.png", "test/ill/4.png"):
        write(tmp_path, name)
    write(tmp_path, "train/well/5.png", np.zeros((40, 64, 3), np.uint8))
    (tmp_path / "readme.txt").write_text("hello")
    load(exclude="*2.png")
    assert caplog.messages[0] == (
        f"3 images in {tmp_path}; classes ill 1, well 2; 32 x 32 to 64 x 40 px; grey 2, RGB 1; left out: "
        "1 by data.exclude=*2.png, 1 .txt, 1 in test (data.split=train)"
    )


@pytest.mark.parametrize(
    ("scale", "window", "expected", "says"),
    [
        (4, "auto", GREY, "the largest value of 20 images of 16 bits is 992, so 0 to 1023 (10 bits)"),
        (16, "auto", GREY, "is 3968, so 0 to 4095 (12 bits) become black to white"),
        (64, "auto", GREY, "is 15872, so 0 to 16383 (14 bits)"),
        (256, "auto", GREY, "is 63488, so 0 to 65535 (16 bits)"),
        (1, "auto", GREY, "is 248, so 0 to 255 (8 bits)"),
        (16, "full", GREY // 16, ""),
        (16, "0,4080", GREY, ""),
    ],
)
def test_the_window_is_that_of_the_whole_data_set(load, tmp_path, caplog, scale, window, expected, says):
    """Of dark images too, and of those held out."""
    for i in range(20):
        write(tmp_path, f"{i}.png", (GREY.astype(np.uint16) * scale) // (1 if i == 7 else 2))
    for part in load(window=window, holdout_fraction=0.3):
        for name, image in zip(part.names, part.images, strict=True):
            of_image = expected if name == "7.png" else expected // 2
            assert np.abs(image[:, :, 0].astype(int) - of_image).max() <= 1
    assert [line for line in caplog.messages if line.startswith("data.window")] == (
        [line for line in caplog.messages if says in line][:1] if says else []
    )


@pytest.mark.parametrize(
    ("window", "expected", "says"),
    [
        ("auto", (GREY, GREY, GREY),
            "a tag of 1 images of 16 bits declares 10 bits, so 0 to 1023 become black to white in them; the largest "
            "value of 2 other images of 16 bits is 63488, though a tag declares 12 bits, so 0 to 65535 (16 bits)"),
        ("full", (GREY // 64, GREY, GREY), ""),
    ],
)  # fmt: skip
@pytest.mark.parametrize("frames", ["", "all"])
def test_a_file_is_read_by_its_own_tag(load, tmp_path, caplog, window, expected, says, frames):
    """But where its values are above what the tag declares."""
    write(tmp_path, "a.tif", GREY.astype(np.uint16) * 4, tiffinfo={281: 1023})
    write(tmp_path, "b.tif", GREY.astype(np.uint16) * 256)
    write(tmp_path, "c.tif", GREY.astype(np.uint16) * 256, tiffinfo={281: 4095})
    for image, of_image in zip(load(window=window, frames=frames)[0].images, expected, strict=True):
        np.testing.assert_array_equal(image[:, :, 0], of_image)
    assert says in caplog.text and ("data.window" in caplog.text) == bool(says)


def test_eight_bits_are_read_as_ever(load, tmp_path, caplog):
    write(tmp_path, "a.png")
    write(tmp_path, "b.png", GREY.astype(np.uint16) * 16)
    for image in load()[0].images:
        np.testing.assert_array_equal(image[:, :, 0], GREY)


def test_dark_colour_of_16_bits_is_refused(load, tmp_path):
    np.repeat(GREY.astype(">u2")[:, :, None], 3, 2).tofile(tmp_path / "raw")
    (tmp_path / "a.ppm").write_bytes(b"P6 32 32 65535\n" + (tmp_path / "raw").read_bytes())
    with pytest.raises(UserError, match="a.ppm .16-bit colour that does not use all bits"):
        load()
    load(window="full")


@pytest.fixture
def stack(tmp_path):
    for name, number in (("ill/a.tif", 3), ("ill/b.tif", 2), ("well/c.png", 1), ("well/d.png", 1)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pages = [Image.fromarray((GREY - (name == "well/d.png")) // divisor) for divisor in (1, 2, 4)]
        pages[0].save(tmp_path / name, save_all=number > 1, append_images=pages[1:number])


def test_files_of_several_pages(load, stack):
    with pytest.raises(
        UserError, match=r"2 of 4 images in \S+ have several pages or frames: ill/a.tif \(3\), ill/b.tif \(2\);"
    ):
        load()
    (first, _), (every, _) = load(frames="first"), load(frames="all")
    assert first.names == ("ill/a.tif", "ill/b.tif", "well/c.png", "well/d.png")
    assert [int(image.max()) for image in every.images] == [248, 124, 62, 248, 124, 248, 255]
    assert every.labels == ("ill",) * 5 + ("well",) * 2
    for part in load(frames="all", holdout_fraction=0.5):  # all of a file are on one side
        assert (part.names.count("ill/a.tif"), part.names.count("ill/b.tif")) in [(3, 0), (0, 2)]


def test_pictures_of_two_values_among_others_are_refused(load, tmp_path, caplog):
    mask = np.where(GREY > 99, 255, 0).astype(np.uint8)
    for name, image in (("a.png", GREY), ("b.png", GREY + 1), ("c.png", mask)):
        write(tmp_path / "mixed", name, image)
    with pytest.raises(UserError, match=r"1 of 3 images in \S+ have just two values, as masks have: c.png; leave"):
        load(tmp_path / "mixed")
    assert load(tmp_path / "mixed", exclude="c.png")[0].names == ("a.png", "b.png")
    assert len(load(tmp_path / "mixed", include="*")[0].images) == 3
    write(tmp_path / "masks", "c.png", mask)
    assert "just two values" not in caplog.text
    load(tmp_path / "masks")
    assert "all 1 images" in caplog.text and "just two values, as masks have" in caplog.text


def test_masks_by_name_are_refused_in_folders_and_tables(load, tmp_path):
    for name in ("a.png", "a_mask.png"):
        write(tmp_path / "images", name)
    (tmp_path / "labels.csv").write_text("a,ill\n")
    for fields in ({}, {"source": "csv", "labels_csv": str(tmp_path / "labels.csv")}):
        with pytest.raises(UserError, match="1 of 2 images are masks"):
            load(tmp_path / "images", **fields)
        assert load(tmp_path / "images", exclude="*_mask.png", **fields)[0].names == ("a.png",)


@pytest.mark.parametrize(
    ("side", "size", "others", "warned"),
    [(12, 32, 100, True), (16, 32, 100, False), (40, 16, 512, True), (70, 16, 512, False)],
)
def test_small_images_among_large_ones_are_named(load, tmp_path, caplog, side, size, others, warned):
    for name in ("a.png", "b.png", "c.png"):
        write(tmp_path, name, np.zeros((others, others), np.uint8))
    write(tmp_path, "thumb.png", np.zeros((side, 600), np.uint8))
    load(size=size)
    lines = [line for line in caplog.messages if "1 of 4 images" in line and f"thumb.png (600 x {side} px)" in line]
    assert bool(lines) == warned


def test_all_of_an_image_may_be_kept(load, tmp_path):
    write(tmp_path, "a.png", np.full((32, 96), 99, np.uint8))
    assert (load(fit="crop")[0].images == 99).all()
    padded = load(fit="pad")[0].images[0, :, :, 0]
    assert (padded[10:21] == 99).all() and not padded[:10].any() and not padded[21:].any()
