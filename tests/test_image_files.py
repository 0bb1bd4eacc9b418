"""Reading image files: every kind of file, and every way a file is broken."""

import contextlib
import io
import itertools
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from medgan_jax.image_files import ImageError, decode_image, inspect_image
from medgan_jax.images import convert_channels, resize

pytestmark = pytest.mark.filterwarnings(r"ignore:::PIL\.")  # about files that are damaged on purpose

_Y, _X = np.mgrid[:24, :40]
RGB = np.stack([_X * 6, _Y * 10, _X + _Y], -1).astype(np.uint8)  # (24, 40, 3): no symmetry
GREY = RGB[:, :, 0]


def encode(image, file_format, **options):
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, file_format, **options)
    return buffer.getvalue()


def tiff16(samples, *, order="<", photometric=1, planar=1, bits=16, tags=()):
    """A TIFF of one strip a plane, which Pillow cannot write; of 12 bits, samples are packed; `tags` are more tags."""
    height, width = samples.shape[:2]
    depth = samples.shape[2] if samples.ndim == 3 else 1
    planes = [samples] if planar == 1 else list(np.moveaxis(samples, 2, 0))
    pixels = b"".join(plane.astype(f"{order}u2").tobytes() for plane in planes)
    if bits == 12:
        pairs = samples.reshape(-1, 2).astype(np.uint32)
        packed = pairs[:, 0] << 12 | pairs[:, 1]
        pixels = np.stack([packed >> 16, packed >> 8, packed], 1).astype(np.uint8).tobytes()
    starts = [8 + i * (len(pixels) // len(planes)) for i in range(len(planes))]
    lists, directory = b"", []

    def tag(number, *values, kind="I"):
        nonlocal lists
        packed = struct.pack(f"{order}{len(values)}{kind}", *values)
        if len(packed) > 4:
            packed, lists = struct.pack(f"{order}I", 8 + len(pixels) + len(lists)), lists + packed
        directory.append(
            struct.pack(f"{order}HHI", number, {"H": 3, "I": 4}[kind], len(values)) + packed.ljust(4, b"\0")
        )

    tag(256, width)
    tag(257, height)
    tag(258, *[bits] * depth, kind="H")
    tag(259, 1, kind="H")
    tag(262, photometric, kind="H")
    tag(273, *starts)
    tag(277, depth, kind="H")
    tag(278, height)
    tag(279, *[len(pixels) // len(planes)] * len(planes))
    tag(284, planar, kind="H")
    for number, value in tags:
        tag(number, value, kind="H")
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8 + len(pixels) + len(lists))
    return head + pixels + lists + struct.pack(f"{order}H", len(directory)) + b"".join(directory) + bytes(4)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width, height):
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"")


FILES = {
    "jpeg": encode(RGB, "JPEG", quality=95, subsampling=0),
    "png": encode(RGB, "PNG"),
    "bmp": encode(RGB, "BMP"),
    "tiff": encode(RGB, "TIFF"),
    "tiff-lzw": encode(RGB, "TIFF", compression="tiff_lzw"),
    "webp": encode(RGB, "WEBP", lossless=True),
    "gif": encode(GREY, "GIF", save_all=True, append_images=[Image.fromarray(255 - GREY)]),  # an animation
    "16-bit-png": encode(GREY.astype(np.uint16) * 257, "PNG"),
    "16-bit-tiff": tiff16(RGB.astype(np.uint16) * 257, photometric=2),
    "ppm": encode(RGB, "PPM"),
    "jpeg2000": encode(RGB, "JPEG2000"),
}


def test_lossless_files_decode_exactly():
    for name in ("png", "bmp", "tiff", "tiff-lzw", "webp", "16-bit-tiff", "ppm", "jpeg2000"):
        np.testing.assert_array_equal(decode_image(FILES[name], channels=3), RGB, name)


def test_lossy_files_decode_closely():
    for data in (FILES["jpeg"], encode(RGB, "WEBP", quality=95), encode(Image.fromarray(RGB).convert("CMYK"), "JPEG")):
        decoded = decode_image(data, channels=3)
        assert decoded.shape == RGB.shape and decoded.dtype == np.uint8
        assert np.abs(decoded.astype(int) - RGB).mean() < 3


def test_grey_files_decode_to_one_or_three_equal_channels():
    for data in (*(encode(GREY, file_format) for file_format in ("PNG", "BMP", "TIFF")), FILES["gif"]):
        np.testing.assert_array_equal(decode_image(data, channels=1), GREY[:, :, None])
        np.testing.assert_array_equal(decode_image(data, channels=3), np.repeat(GREY[:, :, None], 3, 2))


def test_grey_is_luma():
    luma = RGB @ np.array([0.299, 0.587, 0.114])
    grey = decode_image(FILES["png"], channels=1)
    assert grey.shape == (24, 40, 1)
    assert np.abs(grey[:, :, 0] - luma).max() <= 1
    np.testing.assert_array_equal(convert_channels(RGB, 1), grey)
    np.testing.assert_array_equal(convert_channels(grey, 3), np.repeat(grey, 3, 2))


def test_transparency_is_laid_over_black():
    alpha = np.full((24, 40), 128, np.uint8)
    alpha[:, :10], alpha[:, 30:] = 0, 255
    expected = np.rint(RGB * (alpha[:, :, None] / 255))
    decoded = decode_image(encode(np.dstack([RGB, alpha]), "PNG"), channels=3)
    assert np.abs(decoded - expected).max() <= 1
    assert not decoded[:, :10].any()
    np.testing.assert_array_equal(decoded[:, 30:], RGB[:, 30:])

    grey = decode_image(encode(np.dstack([GREY, alpha]), "PNG"), channels=1)[:, :, 0]
    assert np.abs(grey - np.rint(GREY * (alpha / 255))).max() <= 1


def test_palette_with_and_without_transparency():
    indices = (_X % 3).astype(np.uint8)
    palette = np.array([[200, 10, 20], [30, 180, 40], [50, 60, 220]], np.uint8)
    image = Image.fromarray(indices)
    image.putpalette(palette.tobytes())
    np.testing.assert_array_equal(decode_image(encode(image, "PNG"), channels=3), palette[indices])

    seen = palette[indices] * (indices != 1)[:, :, None]
    np.testing.assert_array_equal(decode_image(encode(image, "PNG", transparency=1), channels=3), seen)
    half = decode_image(encode(image, "PNG", transparency=bytes([255, 0, 128])), channels=3)
    assert np.abs(half - seen * np.where(indices == 2, 128 / 255, 1)[:, :, None]).max() <= 1


def test_16_bit_grey_is_scaled_not_clipped():
    samples = GREY.astype(np.uint16) * 256 + 255
    for data in (encode(samples, "PNG"), tiff16(samples), tiff16(samples, order=">"), tiff16(~samples, photometric=0)):
        np.testing.assert_array_equal(decode_image(data, channels=1)[:, :, 0], GREY)


def png16(samples, *, significant_bits=0):
    """A PNG of 16-bit grey or colour, with a tag of how many are used."""
    height, width = samples.shape[:2]
    colour = 2 if samples.ndim == 3 else 0
    rows = samples.astype(">u2").reshape(height, -1).view(np.uint8)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0))
        + (chunk(b"sBIT", bytes([significant_bits] * (colour + 1))) if significant_bits else b"")
        + chunk(b"IDAT", zlib.compress(np.pad(rows, ((0, 0), (1, 0))).tobytes()))
        + chunk(b"IEND", b"")
    )


TWELVE = GREY.astype(np.uint16) * 16 + 15  # from 15 to 3759; GREY is the upper 8 of 12 bits
PGM = {top: b"P5 40 24 %d\n" % top + TWELVE.astype(">u2").tobytes() for top in (4095, 65535)}


@pytest.mark.parametrize(
    "data",
    [
        encode(TWELVE, "PNG"),
        encode(TWELVE, "JPEG2000"),
        tiff16(TWELVE, order=">"),
        tiff16(TWELVE, bits=12),
        PGM[4095],
        PGM[65535],
        tiff16(4095 - TWELVE, photometric=0),
    ],
    ids=["png", "jpeg2000", "tiff", "tiff-packed", "pgm", "pgm-16", "white-is-zero"],
)
def test_twelve_bits_of_sixteen(data):
    np.testing.assert_array_equal(decode_image(data, channels=1, window=12)[:, :, 0], GREY)


SIGNED = GREY.astype(np.int16) * 10 - 1200


@pytest.mark.parametrize(
    ("data", "low", "high", "samples"),
    [
        (encode(TWELVE, "PNG"), 1000, 2000, TWELVE),
        (PGM[4095], 0, 4095, TWELVE),
        (PGM[65535], 0, 4095, TWELVE),
        (tiff16(TWELVE, bits=12), 100, 4000, TWELVE),
        (tiff16(SIGNED, tags=[(339, 2)]), -1000, 1000, SIGNED),
        (encode(SIGNED.astype(np.int32), "TIFF"), -1000, 1000, SIGNED),
        (encode(SIGNED / np.float32(7), "TIFF"), -100.5, 60, SIGNED / np.float32(7)),
        (encode(GREY, "PNG"), 20, 200, GREY),
    ],
    ids=["png", "pgm", "pgm-16", "tiff-packed", "signed", "32-bit", "float", "8-bit"],
)
def test_a_window_of_values_becomes_black_to_white(data, low, high, samples):
    expected = np.rint(255 * np.clip((samples.astype(float) - low) / (high - low), 0, 1))
    np.testing.assert_array_equal(decode_image(data, channels=1, window=(low, high))[:, :, 0], expected)


def test_what_is_no_number_is_black():
    samples = np.full((24, 40), np.nan, np.float32)
    assert not decode_image(encode(samples, "TIFF"), channels=1, window=(-1, 1)).any()


@pytest.mark.parametrize(
    ("data", "window", "reason"),
    [
        (encode(GREY, "PNG"), (0, 4095), "^8 bits a sample, which data.window=0,4095 is not for$"),
        (png16(RGB.astype(np.uint16)), 12, "16-bit colour that does not use all bits"),
        (png16(RGB.astype(np.uint16)), (0, 4095), "16-bit colour, of which only the upper 8"),
        (encode(TWELVE, "PNG"), None, "16 bits a sample: set data.window=full, or LOW,HIGH"),
    ],
)
def test_samples_that_a_window_does_not_fit_are_refused(data, window, reason):
    with pytest.raises(ImageError, match=reason):
        decode_image(data, channels=1, window=window)


@pytest.mark.parametrize(
    ("data", "brightest", "declared"),
    [
        (encode(TWELVE, "PNG"), 3759, 0),
        (png16(TWELVE // 4, significant_bits=12), 939, 12),
        (png16(TWELVE, significant_bits=16), 3759, 0),
        (tiff16(TWELVE // 4, tags=[(281, 4095)]), 939, 12),
        (png16(np.repeat(TWELVE[:, :, None], 3, 2)), 3839, 0),  # of which the upper 8 bits are read
        (PGM[65535], 3759, 0),
        (PGM[4095], 0, 0),  # which says what is white
        (tiff16(TWELVE, bits=12), 0, 0),
        (encode(GREY, "PNG"), 0, 0),
    ],
)
def test_the_range_of_16_bits_is_looked_for(tmp_path, data, brightest, declared):
    (tmp_path / "image").write_bytes(data)
    info = inspect_image(tmp_path / "image")
    assert (info.brightest, info.declared_bits) == (brightest, declared)


@pytest.mark.parametrize("file_format", ["TIFF", "GIF", "WEBP", "PNG"])
def test_frames(tmp_path, file_format):
    pages = [Image.fromarray(page) for page in (GREY, 255 - GREY, GREY // 2)]
    data = encode(
        pages[0],
        file_format,
        save_all=True,
        append_images=pages[1:],
        **({"lossless": True} if file_format == "WEBP" else {}),
    )
    (tmp_path / "image").write_bytes(data)
    assert inspect_image(tmp_path / "image").frames == 3
    for number, page in enumerate(pages):
        decoded = decode_image(data, channels=1, frame=number)[:, :, 0]
        assert np.abs(decoded.astype(int) - np.asarray(page)).max() <= 2
    with pytest.raises(ImageError, match="^3 frames: set data.frames=first$"):
        decode_image(data, channels=1, frame=None)


def test_frames_that_a_png_only_claims_are_refused(tmp_path):
    data = encode(GREY, "PNG", save_all=True, append_images=[Image.fromarray(255 - GREY)])
    start = data.index(b"acTL")
    chunk = b"acTL" + struct.pack(">II", 0x7F000003, 0)
    (tmp_path / "image").write_bytes(
        claims := data[:start] + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[start + 16 :]
    )
    with pytest.raises(ImageError, match="^truncated$"):
        inspect_image(tmp_path / "image")
    with pytest.raises(ImageError, match="^truncated$"):
        decode_image(claims, channels=1)


def test_pictures_of_two_values_are_found(tmp_path):
    mask = np.where(GREY > 100, 255, 0).astype(np.uint8)
    pictures = {file_format: encode(mask, file_format) for file_format in ("PNG", "BMP", "TIFF", "GIF", "PPM")}
    pictures |= {"black and white": encode(Image.fromarray(mask).convert("1"), "PNG"), "16-bit": png16(mask)}
    pictures["rgb"] = encode(np.repeat(mask[:, :, None], 3, 2), "PNG")
    large = Image.fromarray(np.tile(mask, (8, 8)))
    for mode in ("L", "RGB", "P"):
        pictures[f"stored {mode}"] = encode(large.convert(mode), "PNG", compress_level=0)
    pictures["stored in 4 bits"] = encode(large.convert("P"), "PNG", compress_level=0, bits=4)
    one_value = encode(np.zeros_like(mask), "PNG")
    for name, data in {**pictures, "three": encode(np.where(GREY > 200, 9, mask), "PNG"), "one": one_value}.items():
        (tmp_path / "image").write_bytes(data)
        assert inspect_image(tmp_path / "image").two_values == (name in pictures), name


UPRIGHT = {
    1: RGB,
    2: RGB[:, ::-1],
    3: RGB[::-1, ::-1],
    4: RGB[::-1],
    5: RGB.swapaxes(0, 1),
    6: np.rot90(RGB, -1),
    7: RGB[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90(RGB),
}


def test_exif_orientation(tmp_path):
    for file_format, (orientation, upright) in itertools.product(("PNG", "TIFF"), UPRIGHT.items()):
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = encode(RGB, file_format, exif=exif)
        np.testing.assert_array_equal(decode_image(data, channels=3), upright)
        (tmp_path / "image").write_bytes(data)
        assert inspect_image(tmp_path / "image")[:3] == upright.shape


def test_the_shape_of_a_file_is_that_of_the_decoded_image(tmp_path):
    for name, data in FILES.items():
        (tmp_path / name).write_bytes(data)
        assert inspect_image(tmp_path / name)[:3] == (24, 40, 1 if name == "16-bit-png" else 3)
    (tmp_path / "text").write_text("no image")
    with pytest.raises(ImageError, match="not an image"):
        inspect_image(tmp_path / "text")


def test_damaged_exif_is_no_damaged_image():
    exif = b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + bytes(range(64))
    np.testing.assert_array_equal(
        decode_image(encode(RGB, "JPEG", quality=95, subsampling=0, exif=exif), channels=3),
        decode_image(FILES["jpeg"], channels=3),
    )


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "^empty file$"),
        (b"hello, I am a text file", "^not an image$"),
        (b"%PDF-1.7" + bytes(100), "^PDF document$"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0a\n", "^Git LFS pointer, run git lfs pull$"),
        (b"\xef\xbb\xbfversion https://git-lfs.github.com/spec/v1\n", "^Git LFS pointer, run git lfs pull$"),
        (b"/annex/objects/SHA256E-s1--00.jpg\n", "^git-annex pointer, run git annex get$"),
        (b"../../.git/annex/objects/0a/SHA256E-s1--00.jpg", "^git-annex pointer, run git annex get$"),
        (b"\n<!DOCTYPE html><html>", "^web page saved as an image$"),
        (b'<?xml version="1.0"?>\n<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML">', "^web page saved as an image$"),
        (b"<!-- a proxy's -->\n<html>", "^web page saved as an image$"),
        (b"<title>Sign in</title>", "^web page saved as an image$"),
        (b"PK\x03\x04" + bytes(40), "^zip archive$"),
        (bytes(4) + b"ftypisom" + bytes(40), "^video$"),
        (FILES["jpeg"][:400], "^truncated$"),
        (FILES["bmp"][:1000], "^truncated$"),
        (png_header(12000, 9000), "^too large: 12000 x 9000 pixels, limit 100 megapixels$"),
        (png_header(30000, 30000), "^too large: limit 100 megapixels$"),
        (encode(GREY.astype(np.float32), "TIFF"), "range is unknown: set data.window=LOW,HIGH"),
        (tiff16(RGB.astype(np.uint16), photometric=2, planar=2), "separate colour planes$"),
    ],
)
def test_unusable_bytes_are_refused_with_a_reason(data, reason):
    with pytest.raises(ImageError, match=reason):
        decode_image(data, channels=3)


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_raises_nothing_but_image_errors(name):
    """Cut short, a file is refused or whole."""
    data = FILES[name]
    whole = decode_image(data, channels=3)
    for length in np.linspace(1, len(data) - 1, 20).astype(int):
        with contextlib.suppress(ImageError):
            np.testing.assert_array_equal(decode_image(data[:length], channels=3), whole)
    with pytest.raises(ImageError):
        decode_image(data[: len(data) // 2], channels=3)

    rng = np.random.default_rng(0)
    for trial in range(60):  # bits are flipped
        data = bytearray(FILES[name])
        for position in rng.integers(0, min(len(data), 100 if trial % 2 else len(data)), 3):
            data[position] ^= 1 << rng.integers(0, 8)
        try:
            decoded = decode_image(bytes(data), channels=3, min_side=8)
        except ImageError as error:
            assert "\n" not in str(error) and len(str(error)) < 100
        else:
            assert decoded.dtype == np.uint8 and decoded.ndim == 3 and decoded.shape[2] == 3


def test_a_jpeg_decodes_small_for_a_small_size():
    y, x = np.mgrid[:512, :640]
    smooth = np.stack([x / 3, y / 3, 128 + 60 * np.sin(x / 20) * np.cos(y / 30)], -1).astype(np.uint8)
    data = encode(smooth, "JPEG", quality=95, subsampling=0)
    assert decode_image(data, channels=3, min_side=64).shape == (128, 160, 3)
    assert decode_image(data, channels=3, min_side=300).shape == (512, 640, 3)
    small = resize(decode_image(data, channels=3, min_side=64), 64)
    full = resize(decode_image(data, channels=3), 64)
    assert np.abs(small.astype(int) - full).mean() < 1
