"""Generated images say in their files what drew them, are refused as reals, and are told from altered ones."""

import dataclasses
import zlib
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from medgan_jax import __version__
from medgan_jax.commands import verify as command
from medgan_jax.errors import UserError
from medgan_jax.image_files import inspect_image
from medgan_jax.provenance import XMP, Provenance, from_json, is_synthetic
from medgan_jax.sample_folder import sample_to_folder
from medgan_jax.sharding import data_mesh
from medgan_jax.verification import ALTERED, DAMAGED, ENCODED, OTHER, SAME, UNKNOWN, verify
from tests.test_sampling import NAMES, Painter, Picky, TrainedGenerator

IPTC = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}"
RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"


@pytest.fixture(scope="module")
def generator():
    colours = {"colours": 0.5 * np.eye(3, dtype=np.float32)}
    about = {"data_digest": "0123"}
    return TrainedGenerator(Painter(), colours, latent_dim=8, step=40, about=about, digest="abc", classes=NAMES)


@pytest.fixture(scope="module")
def folder(generator, tmp_path_factory):
    out = tmp_path_factory.mktemp("images")
    sample_to_folder(generator, out, num_images=20, seed=5, batch_size=4, mesh=data_mesh(), truncation=1.0, grid=True)
    return out


def verdicts(path, generator, **options):
    return {finding.path.name: finding.verdict for finding in verify(path, generator, data_mesh(), **options)}


def test_each_file_names_its_origin(folder):
    with Image.open(folder / "000007.png") as image:
        assert from_json(image.info["medgan_jax"]) == Provenance(
            "abc", step=40, seed=5, index=7, label="malignant", truncation=1.0, training_set="0123",
            software=f"medgan_jax {__version__}",
        )  # fmt: skip
        (description,) = ElementTree.fromstring(image.info[XMP].encode()).iter(RDF + "Description")
    assert description.get(IPTC + "DigitalSourceType").endswith("/digitalsourcetype/trainedAlgorithmicMedia")
    assert all(inspect_image(path).synthetic for path in folder.glob("*.png"))  # the grid too
    (claim,) = verify(folder / "000007.png")
    assert claim.verdict == "" and "image 7 of seed 5, class malignant, by generator abc" in claim.detail


def test_images_that_a_guard_had_drawn_again_are_the_same(generator, tmp_path):
    sample_to_folder(
        generator, tmp_path, num_images=8, seed=5, batch_size=4, mesh=data_mesh(), guard=Picky(), truncation=1.0
    )
    assert set(verdicts(tmp_path, generator).values()) == {SAME}
    texts = [path.read_bytes() for path in sorted(tmp_path.glob("*.png"))]
    assert 0 < sum(b'"attempt"' in text for text in texts) < 8  # first draws are marked as before there were guards
    redrawn = next(path for path in sorted(tmp_path.glob("*.png")) if b'"attempt": 1}' in path.read_bytes())
    with Image.open(redrawn) as opened:
        info = PngInfo()
        for name, text in opened.text.items():
            info.add_itxt(name, text.replace('"attempt": 1', '"attempt": 2'))
        opened.save(redrawn, pnginfo=info)
    assert verdicts(redrawn, generator) == {redrawn.name: ALTERED}


def test_untouched_files_are_the_same_whatever_they_are_called(folder, generator, tmp_path):
    assert verdicts(folder, generator) == {f"{i:06d}.png": SAME for i in range(20)}
    assert verdicts(folder / "grid.png", generator) == {"grid.png": UNKNOWN}
    (tmp_path / "lesion.png").write_bytes((folder / "000003.png").read_bytes())
    assert verdicts(tmp_path / "lesion.png", generator) == {"lesion.png": SAME}


@pytest.mark.parametrize("kind", ["dicom", "dicom-dermoscopic"])
def test_so_are_dicom_files(kind, generator, tmp_path):
    sample_to_folder(generator, tmp_path, num_images=4, seed=1, batch_size=4, mesh=data_mesh(), format=kind)
    assert set(verdicts(tmp_path, generator).values()) == {SAME}
    for path in tmp_path.glob("*.dcm"):
        assert path.read_bytes().count(b"Generator") == 1
        path.write_bytes(path.read_bytes().replace(b"Generator", b"generator"))
    assert set(verdicts(tmp_path, generator).values()) == {ALTERED}


def _pixel(image, texts):
    image[3, 4, 1] ^= 1
    return image, texts


def _said(old, new):
    return lambda image, texts: (image, texts | {"medgan_jax": texts["medgan_jax"].replace(old, new)})


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        (lambda image, texts: (image, texts), SAME),  # compressed by other software
        (_pixel, ALTERED),
        (lambda image, texts: (image[::2, ::2], texts), ALTERED),
        (lambda image, texts: (image, texts | {XMP: texts[XMP].replace("trained", "Trained")}), ALTERED),
        (lambda image, texts: (image, texts | {"Comment": "my lesion"}), ALTERED),
        (_said('"step": 40', '"step": 41'), ALTERED),
        (_said("0123", "0124"), ALTERED),
        (_said('"index": 7', '"index": 8'), ALTERED),
        (_said('"index": 7', '"index": 99999999999'), ALTERED),
        (_said('"seed": 5', '"seed": -5'), ALTERED),
        (_said('"label": "malignant"', '"label": "none"'), ALTERED),
        (_said('"truncation": 1.0', '"truncation": 9.0'), ALTERED),
        (_said("abc", "abd"), OTHER),
        (_said('"seed": 5', '"seed": null'), UNKNOWN),
        (_said('"seed": 5', '"seed": {}'), ALTERED),
        (lambda image, texts: (image, {name.replace("jax", "jay"): text for name, text in texts.items()}), ALTERED),
    ],
)
def test_whatever_is_changed_is_seen(folder, generator, tmp_path, change, verdict):
    with Image.open(folder / "000007.png") as opened:
        image, texts = change(np.array(opened), dict(opened.text))
    info = PngInfo()
    for name, text in texts.items():
        info.add_itxt(name, text)
    Image.fromarray(image).save(tmp_path / "a.png", pnginfo=info)
    assert verdicts(tmp_path, generator, search=4) == {"a.png": verdict}


def test_no_byte_of_a_file_can_be_changed_unseen(folder, generator, tmp_path):
    data = (folder / "000002.png").read_bytes()
    places = range(8, len(data), 7)
    for i in places:
        (tmp_path / f"{i}.png").write_bytes(data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :])
    found = verdicts(tmp_path, generator, search=1)
    assert len(found) == len(places)
    (tmp_path / "more.png").write_bytes(data + b"more")
    assert verdicts(tmp_path / "more.png", generator) == {"more.png": DAMAGED}
    assert set(found.values()) <= {ALTERED, DAMAGED, OTHER}, [i for i in found if found[i] == SAME]


def test_parts_that_are_not_ours_are_seen(folder, generator, tmp_path):
    """A chunk that changes how the image is shown; a second frame, which is what a browser shows."""
    data = (folder / "000002.png").read_bytes()
    for kind, size in ((b"gAMA", 4), (b"tIME", 7)):
        body = kind + bytes(size)
        chunk = size.to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
        (tmp_path / f"{kind.decode()}.png").write_bytes(data[:33] + chunk + data[33:])
    with Image.open(folder / "000002.png") as first, Image.open(folder / "000003.png") as second:
        first.save(tmp_path / "two.png", save_all=True, append_images=[second.copy()])
    expected = {"gAMA.png": ALTERED, "tIME.png": ENCODED, "two.png": UNKNOWN}
    assert verdicts(tmp_path, generator, search=1) == expected


def test_a_folder_lacks_no_image_unseen(generator, tmp_path, capsys):
    """Missing, emptied, with another signature, or with more behind it."""
    sample_to_folder(generator, tmp_path, num_images=5, seed=1, batch_size=4, mesh=data_mesh())
    data = (tmp_path / "000003.png").read_bytes()
    (tmp_path / "000001.png").unlink()
    (tmp_path / "000002.png").write_bytes(b"")
    (tmp_path / "000003.png").write_bytes(b"\x88" + data[1:])
    (tmp_path / "000004.png").write_bytes(data + b"more")
    found = verdicts(tmp_path, generator)
    assert found == {f"00000{i}.png": verdict for i, verdict in enumerate((SAME, DAMAGED, DAMAGED, DAMAGED, DAMAGED))}
    assert command.main([str(tmp_path)]) == 0
    assert "000001.png: is missing, and manifest.csv names it" in capsys.readouterr().out


def test_what_a_file_says_is_no_line_of_its_own(folder, tmp_path, capsys):
    info = PngInfo()
    with Image.open(folder / "000002.png") as opened:
        for name, text in opened.text.items():
            info.add_itxt(name, text.replace('"abc"', '"\\nsame 1"'))
        opened.save(tmp_path / "a.png", pnginfo=info)
    assert command.main([str(tmp_path)]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert "by generator \\nsame 1 of step 40" in line


def test_images_without_a_word_are_looked_for(folder, generator, tmp_path):
    with Image.open(folder / "000010.png") as image:
        image.resize((32, 32)).save(tmp_path / "resized.jpg", quality=90)
    plain = tmp_path / "plain"
    sample_to_folder(generator, plain, num_images=8, seed=3, batch_size=4, mesh=data_mesh(), label="benign")
    with Image.open(plain / "000006.png") as image:
        image.save(tmp_path / "encoded.jpg", quality=75)
        image.resize((32, 32)).save(tmp_path / "larger.webp")
    Image.effect_noise((16, 16), 90).convert("RGB").save(tmp_path / "noise.png")
    expected = {"encoded.jpg": ENCODED, "larger.webp": ENCODED, "noise.png": OTHER, "resized.jpg": OTHER}
    for path in plain.iterdir():
        path.unlink()
    assert verdicts(tmp_path, generator, seed=3, search=8) == expected  # the third is of a truncated latent
    findings = {finding.path.name: finding.detail for finding in verify(tmp_path, generator, data_mesh(), seed=3)}
    assert "image 6 of seed 3, class benign" in findings["encoded.jpg"]


def test_marks_of_other_software_count(folder, tmp_path):
    with Image.open(folder / "000007.png") as image:
        packet = image.info[XMP].encode()
        for name in ("a.jpg", "a.webp", "a.tif"):
            options = {"tiffinfo": {700: packet}} if name == "a.tif" else {"xmp": packet}
            image.copy().save(tmp_path / name, **options)
            assert inspect_image(tmp_path / name).synthetic, name
        image.copy().save(tmp_path / "b.jpg")
    assert not inspect_image(tmp_path / "b.jpg").synthetic
    assert not is_synthetic({"comment": "a photograph"})


def test_synthetic_images_are_refused_as_reals(folder, tiny_config, tmp_path):
    from medgan_jax.data.batches import load_dataset

    data = dataclasses.replace(tiny_config().data, source="folder", path=str(folder), cache_dir=str(tmp_path))
    with pytest.raises(UserError, match=r"21 of 21 images .* are marked as synthetic: .*data.allow_synthetic=True$"):
        load_dataset(data, image_size=16, channels=3)
    allowed = dataclasses.replace(data, allow_synthetic=True, exclude="grid.png")
    assert len(load_dataset(allowed, image_size=16, channels=3)[0].images) == 20


def test_what_is_no_image_is_refused(generator, tmp_path):
    Path(tmp_path, "a.txt").write_text("hello")
    with pytest.raises(UserError, match="holds no image files"):
        list(verify(tmp_path, generator, data_mesh()))
    with pytest.raises(UserError, match="there is no such file"):
        list(verify(tmp_path / "none", generator, data_mesh()))
