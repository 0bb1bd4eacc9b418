"""DICOM: stored values to grey levels by closed forms, pydicom's own files by its pipeline, and what is refused."""

import dataclasses
import io
import logging
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.pixels import get_decoder

from benchmarks.dicom_files import outcome, own_files
from medgan_jax.data.dicom import decode_dicom, inspect_dicom, main, public_name, read_identity
from medgan_jax.data.dicom_writer import encode_dicom
from medgan_jax.data.sources import open_source
from medgan_jax.data.survey import survey
from medgan_jax.errors import UserError
from medgan_jax.image_files import DICOM, ImageError, recognise
from medgan_jax.provenance import Provenance, from_json

PLANTED = "Plantagenet"


def dataset(**attributes):
    """A Dataset of some attributes."""
    item = pydicom.Dataset()
    for name, value in attributes.items():
        setattr(item, name, value)
    return item


def dicom(stored, *, syntax=pydicom.uid.ExplicitVRLittleEndian, **attributes):
    """A file of stored values, (height, width), (frames, height, width) or (height, width, 3); of one row if flat."""
    stored = np.atleast_2d(stored)
    colours = stored.shape[-1] == 3 and stored.ndim == 3
    little = syntax != pydicom.uid.ExplicitVRBigEndian
    shape = stored.shape[:-1] if colours else stored.shape
    bits = 8 * stored.itemsize
    made = dataset(
        SOPClassUID=pydicom.uid.CTImageStorage, SOPInstanceUID="2.25.1", PatientName=PLANTED, PatientID=PLANTED + "1",
        Rows=shape[-2], Columns=shape[-1], SamplesPerPixel=3 if colours else 1,
        PhotometricInterpretation="RGB" if colours else "MONOCHROME2",
        BitsAllocated=bits, BitsStored=bits, HighBit=bits - 1, PixelRepresentation=int(stored.dtype.kind == "i"),
    )  # fmt: skip
    if colours:
        made.PlanarConfiguration = 0
    elif stored.ndim == 3:
        made.NumberOfFrames = len(stored)
    if stored.dtype.kind == "f":
        made.FloatPixelData = stored.astype("<f4").tobytes()
        del made.BitsStored, made.HighBit, made.PixelRepresentation
    else:
        made.PixelData = stored.astype(stored.dtype.newbyteorder("<" if little else ">")).tobytes()
        made["PixelData"].VR = "OB" if bits == 8 else "OW"
    for name, value in attributes.items():
        setattr(made, name, value)
    made.file_meta = pydicom.dataset.FileMetaDataset()
    made.file_meta.TransferSyntaxUID = syntax
    buffer = io.BytesIO()
    made.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def grey(data, **options):
    return decode_dicom(data, channels=1, **options)[:, :, 0].tolist()


HOUNSFIELD = {"RescaleSlope": 2, "RescaleIntercept": -1000}
STORED = np.array([0, 400, 500, 600, 1023], np.uint16)  # after HOUNSFIELD: -1000, -200, 0, 200, 1046


@pytest.mark.parametrize(
    ("attributes", "options", "expected"),
    [
        (HOUNSFIELD, {"window": (-200.0, 200.0)}, [0, 0, 128, 255, 255]),
        # C.11.2.1.2.1: ((x - (c - 0.5)) / (w - 1) + 0.5)
        (HOUNSFIELD | {"WindowCenter": 0, "WindowWidth": 401}, {}, [0, 0, 128, 255, 255]),
        (HOUNSFIELD | {"WindowCenter": [0, 9], "WindowWidth": [401, 9]}, {}, [0, 0, 128, 255, 255]),
        (HOUNSFIELD | {"WindowCenter": 0, "WindowWidth": 1}, {}, [0, 0, 255, 255, 255]),
        (
            HOUNSFIELD | {"WindowCenter": 0, "WindowWidth": 800, "VOILUTFunction": "LINEAR_EXACT"},
            {},
            [0, 64, 128, 191, 255],
        ),
        (
            HOUNSFIELD | {"WindowCenter": 0, "WindowWidth": 800, "VOILUTFunction": "SIGMOID"},
            {},
            [round(255 / (1 + math.exp(-4 * x / 800))) for x in (-1000, -200, 0, 200, 1046)],
        ),
        (HOUNSFIELD | {"WindowCenter": 0, "WindowWidth": 401}, {"window": "full"}, [0, 2, 2, 2, 4]),
        (HOUNSFIELD | {"BitsStored": 10, "HighBit": 9}, {"window": "full"}, [0, 100, 125, 150, 255]),
        (HOUNSFIELD, {}, [0, 100, 125, 150, 255]),  # without a window, from the least to the greatest
        (HOUNSFIELD, {"otherwise": (-1000.0, 2000.0)}, [0, 68, 85, 102, 174]),
        ({"PhotometricInterpretation": "MONOCHROME1"}, {}, [255, 155, 130, 105, 0]),
        ({"PresentationLUTShape": "INVERSE"}, {}, [255, 155, 130, 105, 0]),
        ({"PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "INVERSE"}, {}, [255, 155, 130, 105, 0]),
        ({"PixelPaddingValue": 0, "PhotometricInterpretation": "MONOCHROME1"}, {}, [0, 255, 214, 173, 0]),
        ({"PixelPaddingValue": 0, "PixelPaddingRangeLimit": 400}, {}, [0, 0, 0, 49, 255]),
        (
            {"ModalityLUTSequence": [dataset(LUTDescriptor=[2, 499, 12], LUTData=b"\0\0\xff\x0f")]},
            {"window": "full"},
            [0, 0, 255, 255, 255],
        ),
        (  # of 8 bits, with more entries than 8 bits can count
            {"VOILUTSequence": [dataset(LUTDescriptor=[1024, 0, 8], LUTData=bytes(i // 4 for i in range(1024)))]},
            {},
            [0, 100, 125, 150, 255],
        ),
        (
            {
                "SharedFunctionalGroupsSequence": [
                    dataset(
                        PixelValueTransformationSequence=[dataset(**HOUNSFIELD)],
                        FrameVOILUTSequence=[dataset(WindowCenter=0, WindowWidth=401)],
                    )
                ]
            },
            {},
            [0, 0, 128, 255, 255],
        ),
    ],
)
def test_stored_values_become_grey_levels(attributes, options, expected):
    assert grey(dicom(STORED, **attributes), **options) == [expected]


def test_without_a_window_8_bits_are_as_they_are():
    assert grey(dicom(np.array([10, 20, 200, 201], np.uint8))) == [[10, 20, 200, 201]]


def test_values_may_be_signed_and_float():
    signed = np.array([-1024, -512, 0, 511], np.int16)
    assert grey(dicom(signed, PixelPaddingValue=-1024)) == [[0, 0, 128, 255]]
    assert grey(dicom(signed, BitsStored=11, HighBit=10), window="full") == [[0, 64, 128, 191]]
    floats = dicom(np.array([0.5, 1.0, 1.5, np.nan], np.float32))
    assert grey(floats) == [[0, 128, 255, 0]]
    with pytest.raises(ImageError, match=r"no full range; set data.window=LOW,HIGH"):
        grey(floats, window="full")


def test_the_header_tells_size_frames_and_a_range_of_values_where_there_is_no_window():
    info = inspect_dicom(dicom(np.stack([STORED, STORED + 1])[:, None], PixelPaddingValue=0, **HOUNSFIELD))
    assert info == (1, 5, 1, "DICOM of 16-bit grey", 2, 0, 0, False, (-998.0, 1048.0), False)
    assert inspect_dicom(dicom(STORED, WindowCenter=1, WindowWidth=2)).values is None
    assert inspect_dicom(dicom(STORED.astype(np.uint8))).values is None
    assert inspect_dicom(dicom(np.zeros((4, 2, 3), np.uint16)))[:5] == (4, 2, 3, "DICOM in colour", 1)


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (np.array([0, 255, 0], np.uint8), True),
        (np.array([0, 255, 1], np.uint8), False),
        (np.array([7, 7], np.uint8), False),
        (np.array([[[0, 0, 0], [9, 8, 7]]], np.uint8), True),
        (np.array([[[0, 0, 0], [9, 8, 7], [9, 8, 8]]], np.uint8), False),
        (np.array([0, 4095, 0], np.uint16), True),
    ],
)
def test_two_values_are_found(stored, expected):
    assert inspect_dicom(dicom(stored)).two_values is expected


def test_frames_are_numbered_and_may_have_windows_of_their_own():
    groups = [dataset(FrameVOILUTSequence=[dataset(WindowCenter=c, WindowWidth=101)]) for c in (0, 1023)]
    data = dicom(np.stack([STORED, STORED])[:, None], PerFrameFunctionalGroupsSequence=groups)
    assert [grey(data, frame=frame) for frame in (0, 1)] == [[[129, 255, 255, 255, 255]], [[0, 0, 0, 0, 129]]]
    with pytest.raises(ImageError, match="has 2 frames"):
        grey(data, frame=2)


def test_colours_of_16_bits_and_grey_become_what_is_asked_for():
    colours = np.array([[[0, 0, 65535], [257, 514, 65535]]], np.uint16)
    assert decode_dicom(dicom(colours), channels=3).tolist() == [[[0, 0, 255], [1, 2, 255]]]
    assert decode_dicom(dicom(colours), channels=1).shape == (1, 2, 1)
    assert decode_dicom(dicom(np.array([7], np.uint8)), channels=3).tolist() == [[[7, 7, 7]]]


def test_a_window_is_for_colours_too():
    colours = np.array([[[0, 50, 100], [75, 200, 100]]])
    shown = [[[0, 0, 255], [128, 255, 255]]]
    for bits in (8, 16):
        data = dicom(colours.astype(f"u{bits // 8}"))
        assert decode_dicom(data, channels=3, window=(50.0, 100.0)).tolist() == shown
    with pytest.raises(ImageError, match=r"8 bits a sample, which data.window=-160,256 is not for"):
        decode_dicom(dicom(colours.astype(np.uint8)), channels=3, window=(-160.0, 256.0))


@pytest.mark.parametrize("value", ["nan ", "inf ", "-inf", "1e999"])
@pytest.mark.parametrize("name", ["RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth"])
@pytest.mark.parametrize("function", ["LINEAR", "SIGMOID"])
def test_values_that_are_not_finite_are_refused(name, value, function, recwarn):
    attributes = {"RescaleSlope": 1, "RescaleIntercept": 0, "WindowCenter": 0, "WindowWidth": 9, name: "12345 "}
    data = dicom(STORED, **attributes, VOILUTFunction=function).replace(b"12345", value.ljust(5).encode())
    with pytest.raises(ImageError, match="^its (rescale slope or intercept|window) is not finite"):
        decode_dicom(data, channels=1)
    assert not recwarn.list


def test_a_narrow_window_and_a_table_of_no_bits(recwarn):
    narrow = {"WindowCenter": 450, "WindowWidth": 0.01, "VOILUTFunction": "SIGMOID"}
    assert grey(dicom(STORED, **narrow)) == [[0, 0, 255, 255, 255]]
    with pytest.raises(ImageError, match="entries of 0 bits"):
        grey(dicom(STORED, VOILUTSequence=[dataset(LUTDescriptor=[2, 0, 0], LUTData=bytes(4))]))
    assert not recwarn.list


@pytest.mark.parametrize("syntax", [pydicom.uid.ExplicitVRLittleEndian, pydicom.uid.RLELossless])
@pytest.mark.parametrize("frames", [2, 2_000_000_000])
def test_frames_that_a_file_only_claims_are_refused(syntax, frames):
    read = pydicom.dcmread(io.BytesIO(dicom(STORED, WindowCenter=1, WindowWidth=9)))
    if syntax.is_encapsulated:
        read.compress(syntax)
    read.NumberOfFrames = frames
    buffer = io.BytesIO()
    read.save_as(buffer)
    for look in (inspect_dicom, grey):
        with pytest.raises(ImageError, match="^truncated$"):
            look(buffer.getvalue())


def test_more_frames_than_anyone_has_are_refused():
    data = dicom(np.zeros((100_001, 1, 1), np.uint8))
    with pytest.raises(ImageError, match="^too many frames: limit 100000$"):
        inspect_dicom(data)


def test_a_deflated_file_is_inflated_up_to_a_limit(monkeypatch):
    data = dicom(np.zeros((64, 64), np.uint8), syntax=pydicom.uid.DeflatedExplicitVRLittleEndian)
    assert grey(data) == [[0] * 64] * 64
    big = dicom(np.zeros((2048, 2048), np.uint8), syntax=pydicom.uid.DeflatedExplicitVRLittleEndian)
    assert inspect_dicom(big + b"what follows").height == 2048
    monkeypatch.setattr("medgan_jax.data.dicom._MAX_INFLATED", 2**12)  # a file beyond the real limit has 400 MB
    for read in (inspect_dicom, grey):
        with pytest.raises(ImageError, match="^too large: inflates to more than 0 MiB$"):
            read(data)


@pytest.mark.parametrize("order", ["<", ">"])
def test_palettes_of_either_byte_order(order):
    syntax = pydicom.uid.ExplicitVRLittleEndian if order == "<" else pydicom.uid.ExplicitVRBigEndian
    palette = {"PhotometricInterpretation": "PALETTE COLOR"}
    for scale, colour in enumerate(("Red", "Green", "Blue"), 1):
        palette[f"{colour}PaletteColorLookupTableDescriptor"] = [3, 0, 16]
        table = np.array([0, 256, 20 * 256]) * scale
        palette[f"{colour}PaletteColorLookupTableData"] = table.astype(f"{order}u2").tobytes()
    image = decode_dicom(dicom(np.array([0, 1, 2, 2], np.uint8), syntax=syntax, **palette), channels=3)
    assert image.tolist() == [[[0, 0, 0], [1, 2, 3], [20, 40, 60], [20, 40, 60]]]


def test_pydicoms_own_files_are_read_as_documented_or_refused():
    outcomes = {path.name: outcome(path.read_bytes()) for path in own_files([])}
    undecoded = {name for name, what in outcomes.items() if "no decoder is installed" in what}
    assert undecoded <= {"JPEG-lossy.dcm", "JPGExtended.dcm", "SC_rgb_jpeg_gdcm.dcm"}
    assert not [what for what in outcomes.values() if "differs" in what or "raises" in what]
    assert sum(what == "read as documented" for what in outcomes.values()) >= 85
    for name, reason in {
        "DICOMDIR": "no pixel data: Media Storage Directory Storage",
        "rtstruct.dcm": "no pixel data: RT Structure Set Storage",
        "test-SR.dcm": "no pixel data: Comprehensive SR Storage",
        "liver_1frame.dcm": "a mask, not an image: Segmentation Storage",
        "MR_truncated.dcm": "truncated",
        "badVR.dcm": "damaged DICOM header",
    }.items():
        assert outcomes[name] == f"refused: {reason}"


def test_jpeg_lossless_is_read_or_the_package_that_reads_it_is_named():
    """The decoders that the extra brings do not read it; one that does may be installed."""
    data = Path(get_testdata_file("SC_rgb_jpeg_gdcm.dcm")).read_bytes()
    if get_decoder(pydicom.uid.JPEGLosslessSV1).available_plugins:
        assert decode_dicom(data, channels=3).shape == (100, 100, 3)
        return
    with pytest.raises(ImageError, match=r"transfer syntax JPEG Lossless.*pip install python-gdcm"):
        decode_dicom(data, channels=1)


def test_a_jpeg_ls_frame_without_its_end_is_not_decoded():
    """It may take its decoder a quarter of a minute."""
    data = Path(get_testdata_file("JPEGLSNearLossless_08.dcm")).read_bytes()
    with pytest.raises(ImageError, match="^truncated$"):
        decode_dicom(data.replace(b"\xff\xd9", b"\xff\x00"), channels=1)


@pytest.mark.parametrize(
    ("name", "start", "expected"),
    [
        ("CT_small.dcm", 0, True),
        ("CT_small.dcm", 132, True),
        ("ExplVR_BigEndNoMeta.dcm", 0, True),
        ("rtstruct.dcm", 0, True),  # implicit, without preamble
        ("zipMR.gz", 0, False),
        ("test1.json", 0, False),
    ],
)
def test_dicom_is_recognised_with_and_without_preamble(name, start, expected):
    assert (recognise(Path(get_testdata_file(name)).read_bytes()[start:]) == DICOM) is expected


def test_identity_is_read_without_pixels(tmp_path):
    (tmp_path / "a").write_bytes(dicom(STORED)[:-4])
    words = frozenset({PLANTED.lower(), PLANTED.lower() + "1"})
    assert read_identity(tmp_path / "a") == ("2.25.1", PLANTED + "1", words, (PLANTED, PLANTED + "1", "", ""))
    assert read_identity(tmp_path / "none") == ("", "", frozenset(), ())


@pytest.mark.parametrize(
    "attributes",
    [
        {"RescaleSlope": 1, "RescaleIntercept": 0, "WindowCenter": 1, "WindowWidth": 0},
        {"NumberOfFrames": 3},
        {"PhotometricInterpretation": PLANTED.upper()},
        {"PhotometricInterpretation": "PALETTE COLOR"},
        {"SamplesPerPixel": 2},
    ],
)
def test_no_header_value_is_said(attributes, caplog, recwarn):
    data = dicom(STORED, **attributes)
    # A number that is a name: what pydicom says about it quotes it.
    for broken in (data, dicom(STORED, RescaleSlope=17).replace(b"17", PLANTED[:2].encode(), 1), data[:-4]):
        with pytest.raises(ImageError) as raised:
            decode_dicom(broken, channels=1)
        assert PLANTED.lower()[:2] not in str(raised.value).lower()
        assert raised.value.__suppress_context__ or raised.value.__context__ is None
    assert not caplog.records
    assert not recwarn.list
    assert logging.getLogger("pydicom").propagate is False


ORIGIN = Provenance("abc", step=40, seed=5, index=3)


@pytest.mark.parametrize("kind", ["dicom", "dicom-dermoscopic"])
@pytest.mark.parametrize("channels", [1, 3])
def test_generated_images_are_valid_anonymous_and_marked_as_synthetic(kind, channels, tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (16, 16, channels)).astype(np.uint8)
    data = encode_dicom(image, kind=kind, provenance=ORIGIN)
    assert np.array_equal(decode_dicom(data, channels=channels), image)
    read = pydicom.dcmread(io.BytesIO(data))
    sop_class = {"dicom": "1.2.840.10008.5.1.4.1.1.7", "dicom-dermoscopic": "1.2.840.10008.5.1.4.1.1.77.1.7"}[kind]
    assert read.SOPClassUID == read.file_meta.MediaStorageSOPClassUID == sop_class
    assert read[0x0008001C].value == "YES"
    assert read.PatientIdentityRemoved == "YES"
    assert not read.PatientName and not read.PatientID and not read.StudyDate
    assert list(read.ImageType) == ["DERIVED", "SECONDARY"]
    software = read.ContributingEquipmentSequence[0]
    assert software.Manufacturer == "medgan_jax"
    assert from_json(software.ContributionDescription) == ORIGIN

    (tmp_path / "a.dcm").write_bytes(data)
    if shutil.which("dciodvfy"):  # of dicom3tools
        run = subprocess.run(["dciodvfy", str(tmp_path / "a.dcm")], capture_output=True, text=True)
        assert "Error" not in run.stderr + run.stdout


def test_identifiers_follow_from_the_image_and_its_origin():
    image = np.zeros((16, 16, 1), np.uint8)

    def uids(image=image, **changes):
        provenance = dataclasses.replace(ORIGIN, **changes)
        read = pydicom.dcmread(io.BytesIO(encode_dicom(image, kind="dicom", provenance=provenance)))
        return read.StudyInstanceUID, read.SeriesInstanceUID, read.SOPInstanceUID

    first = uids()
    assert uids() == first
    assert all(uid.startswith("2.25.") and len(uid) <= 64 for uid in first)
    assert [a == b for a, b in zip(first, uids(index=4), strict=True)] == [True, True, False]
    assert [a == b for a, b in zip(first, uids(image=image + 1), strict=True)] == [True, True, False]
    assert [a == b for a, b in zip(first, uids(seed=6), strict=True)] == [True, False, False]


@pytest.fixture
def open_dicom(tiny_config, tmp_path):
    """Lays files down, some attributes each, and opens them, with a table if there is one."""

    def open_it(files, table=None, **fields):
        for name, attributes in files.items():
            path = tmp_path / "set" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(dicom(attributes.pop("stored", STORED), **attributes))
        if table is not None:
            (tmp_path / "labels.csv").write_text(table)
            fields |= {"source": "csv", "labels_csv": str(tmp_path / "labels.csv")}
        data = {"source": "folder", "path": str(tmp_path / "set"), "cache_dir": str(tmp_path / "cache")}
        data = dataclasses.replace(tiny_config().data, **data | fields)
        return survey(open_source(data), data, image_size=4)

    return open_it


def test_files_are_called_by_digests_and_patients_are_groups(open_dicom, tmp_path):
    patients = {"ct/b.dcm": "one", "ct/a": "two", "mr/c": "one", "mr/d": ""}
    source = open_dicom({name: {"PatientID": patient, "PatientName": ""} for name, patient in patients.items()})
    assert source.files == ("ct/a", "ct/b.dcm", "mr/c", "mr/d")
    assert source.names == tuple(map(public_name, source.files))
    assert source.labels == ("ct", "ct", "mr", "mr")
    assert source.groups == (public_name("two"), public_name("one"), public_name("one"), source.names[3])
    assert source.select([2]).path(0) == tmp_path / "set/mr/c"


def test_an_extension_of_images_hides_no_dicom_file(open_dicom):
    source = open_dicom({"a.png": {"PatientID": "one"}, "b.jpg": {"PatientID": "one"}})
    assert source.names == (public_name("a.png"), public_name("b.jpg"))
    assert source.groups == (public_name("one"),) * 2


def test_a_file_named_as_dicom_that_is_none_cannot_be_read(open_dicom, tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    files = {
        "a.dcm": (b"", "empty file"),
        "b.DCM": (bytes(5000), "not a DICOM image"),
        "c.dicom": (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer, run git lfs pull"),
        "d.dcm": (b"<html>", "web page saved as an image"),
        "e.dcm": (dicom(STORED)[:131], "not a DICOM image"),
    }
    for name, (content, _) in files.items():
        (folder / name).write_bytes(content)
    (folder / "f.dcm").symlink_to(PLANTED)
    table = "image,label\n" + "".join(f"{name},x\n" for name in [*files, "f.dcm", "good"])
    source = open_dicom({"good": {}}, table)
    assert source.names == tuple(map(public_name, [*files, "f.dcm", "good"]))
    for index, (_, reason) in enumerate(files.values()):
        with pytest.raises(ImageError, match=f"^{reason}$"):
            source.read(index, 4, 1)


def test_what_looks_like_an_extension_but_is_a_name_is_not_said(open_dicom, tmp_path):
    (tmp_path / "set").mkdir()
    for name in (f"letter.{PLANTED}", "report.Smith", "x.txt"):
        (tmp_path / "set" / name).write_text("text")
    assert open_dicom({"a.dcm": {}}, exclude="*.jpg").left_out == "2 other, 1 .txt, 0 by data.exclude=*.jpg"


@pytest.mark.parametrize(
    ("folder", "is_named"),
    [
        ("LIDC-IDRI-0001", True),
        ("lidc_idri_0001 nodules", True),
        ("Zyxwvut_Qrspon_CT1", True),
        ("ct-qrspon, zyxwvut a.", True),
        ("QrsponZyxwvut", True),
        ("ZyxwvutQrsponCT", True),
        ("Qrspon", True),
        ("山田太郎", True),
        ("A-77123", True),
        ("CTA77123", True),
        ("visit S04", True),
        ("LIDC", True),
        ("lidc nodules", False),
        ("Zyxwvut_CT", False),
        ("benign", False),
        ("a", False),
        ("ct_a", False),
        ("classs04b", False),
    ],
)
def test_folders_called_as_patients_or_studies_are_no_classes(open_dicom, caplog, folder, is_named):
    name = "Zyxwvut^Qrspon^A=山田^太郎"
    ids = {"PatientID": "LIDC-IDRI-0001", "AccessionNumber": "A77123", "StudyID": "S04"}
    source = open_dicom({f"{folder}/a": {**ids, "PatientName": name, "SpecificCharacterSet": "ISO_IR 192"}, "b/c": {}})
    assert (source.labels is None) is is_named
    assert ("are called as patients or studies" in caplog.text) is is_named


def test_a_table_names_files_by_sop_instance_uid_or_name(open_dicom):
    files = {name: {"SOPInstanceUID": f"2.25.{i}"} for i, name in enumerate(["x/a.dcm", "x/b", "x/c", "x/d.dcm"])}
    table = "image,label,patient\n2.25.0,benign,p\nb,benign,q\nx/c,malignant,q\nd,malignant,r\n"
    source = open_dicom(files, table, group_column="patient")
    assert source.labels == ("benign", "benign", "malignant", "malignant")
    assert source.groups == tuple(map(public_name, "pqqr"))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (f"a,x\n{PLANTED},y\n", "names 1 of 2 images that are not in .*image 2 of the table"),
        ("a,x\n", f"1 of 2 images .* have no label .*{public_name(PLANTED + '.dcm')}"),
        (f"a,x\n{PLANTED},y\n{PLANTED},z\n", "gives two labels to one image, the second in row 3"),
        (f"a,x\n{PLANTED},y\n2.25.9,z\n", f"says two things about the file {public_name(PLANTED + '.dcm')}"),
        (f"image,label\na,x\n{PLANTED}\n", "row 3 should have 2 columns"),
    ],
)
def test_messages_about_a_table_quote_no_name(open_dicom, table, message):
    names = {"a": {}} if "not in" in message else {"a": {}, f"{PLANTED}.dcm": {"SOPInstanceUID": "2.25.9"}}
    with pytest.raises(UserError, match=message) as raised:
        open_dicom(names, table)
    assert PLANTED.lower() not in str(raised.value).lower()


def test_the_range_without_a_window_is_that_of_all_files_and_of_the_cache(open_dicom, caplog):
    caplog.set_level(logging.INFO)
    flat = {value: np.full((4, 4), value, np.int16) for value in (-1000, 0, 1000)}
    source = open_dicom({str(value): {"stored": stored} for value, stored in flat.items()})
    assert "3 DICOM files have no window; their values, -1000 to 1000," in caplog.text
    assert [int(source.read(i, 4, 1).mean()) for i in range(3)] == [0, 128, 255]
    other = open_dicom({}, window="-1000,3000")
    assert [int(other.read(i, 4, 1).mean()) for i in range(3)] == [0, 64, 128]
    full = open_dicom({}, window="full")
    assert len({tuple(each.recipe()) for each in (source, other, full)}) == 3


def test_frames_are_refused_or_images(open_dicom):
    with pytest.raises(UserError, match=rf"{public_name('a')} \(3\); set data.frames=first, or all"):
        open_dicom({"a": {"stored": np.arange(48, dtype=np.uint8).reshape(3, 4, 4)}})
    source = open_dicom({}, frames="all")
    assert [int(source.read(i, 4, 1)[0, 0, 0]) for i in range(3)] == [0, 16, 32]
    assert source.groups == (public_name(PLANTED + "1"),) * 3


def test_directories_of_media_are_left_out_and_annotations_named_by_digests(open_dicom):
    source = open_dicom({"DICOMDIR": {}, "a": {}})
    assert source.files == ("a",)
    with pytest.raises(UserError, match=rf"\({public_name('b_mask.dcm')}\)"):
        open_dicom({"b.dcm": {}, "b_mask.dcm": {}})


def test_without_pydicom_the_extra_is_named(open_dicom, monkeypatch):
    open_dicom({"a": {}})
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(UserError, match=r"pip install 'medgan-jax\[dicom\]'"):
        open_dicom({})


def test_a_file_is_found_by_its_public_name(open_dicom, tmp_path, capsys):
    open_dicom({"a": {}, "b": {}})
    main(["", str(tmp_path / "set"), public_name("b")])
    assert capsys.readouterr().out == f"{public_name('b')} b\n"
