"""Images: every kind of file, every way a file is broken, ranges, grids and PNG writing."""

import contextlib
import io
import itertools
import os
import resource
import struct
import zlib

import jax
import numpy as np
import pytest
from PIL import Image

from medgan_jax import images
from medgan_jax.images import ImageError, decode_image, inspect_image, resize

pytestmark = pytest.mark.filterwarnings(r"ignore:::PIL\.")  # about files that are damaged on purpose

_Y, _X = np.mgrid[:24, :40]
RGB = np.stack([_X * 6, _Y * 10, _X + _Y], -1).astype(np.uint8)  # (24, 40, 3): no symmetry
GREY = RGB[:, :, 0]


def encode(image, file_format, **options):
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, file_format, **options)
    return buffer.getvalue()


def tiff16(samples, *, order="<", photometric=1, planar=1):
    """A 16-bit TIFF of one strip a plane, which Pillow cannot write."""
    height, width = samples.shape[:2]
    depth = samples.shape[2] if samples.ndim == 3 else 1
    planes = [samples] if planar == 1 else list(np.moveaxis(samples, 2, 0))
    pixels = b"".join(plane.astype(f"{order}u2").tobytes() for plane in planes)
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
    tag(258, *[16] * depth, kind="H")
    tag(259, 1, kind="H")
    tag(262, photometric, kind="H")
    tag(273, *starts)
    tag(277, depth, kind="H")
    tag(278, height)
    tag(279, *[len(pixels) // len(planes)] * len(planes))
    tag(284, planar, kind="H")
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8 + len(pixels) + len(lists))
    return head + pixels + lists + struct.pack(f"{order}H", len(directory)) + b"".join(directory) + bytes(4)


def png_header(width, height):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

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
}


def test_lossless_files_decode_exactly():
    for name in ("png", "bmp", "tiff", "tiff-lzw", "webp", "16-bit-tiff"):
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
    np.testing.assert_array_equal(images.convert_channels(RGB, 1), grey)
    np.testing.assert_array_equal(images.convert_channels(grey, 3), np.repeat(grey, 3, 2))


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


def test_resize_crop_takes_the_centre():
    image = np.zeros((10, 30, 3), np.uint8)
    image[:, 10:20] = (1, 2, 3)
    np.testing.assert_array_equal(resize(image, 10), image[:, 10:20])
    np.testing.assert_array_equal(resize(image.swapaxes(0, 1), 10), image[:, 10:20])
    np.testing.assert_array_equal(resize(image[:, :, :1], 10), image[:, 10:20, :1])
    once = resize(RGB, 12)  # as a resize and then a crop
    twice = np.asarray(Image.fromarray(RGB).resize((20, 12), Image.Resampling.BICUBIC))[:, 4:16]
    assert np.abs(once.astype(int) - twice).max() <= 1


def test_resize_crop_keeps_a_plain_colour_at_any_size_and_antialiases():
    for shape in [(7, 9, 1), (100, 31, 3), (1, 5, 3)]:
        resized = resize(np.full(shape, 77, np.uint8), 16)
        assert resized.shape == (16, 16, shape[2]) and resized.dtype == np.uint8
        assert (resized == 77).all()
    checks = ((np.indices((128, 128)).sum(0) % 2) * 255).astype(np.uint8)[:, :, None]
    assert np.abs(resize(checks, 16)[2:-2, 2:-2].astype(int) - 127).max() <= 2


def test_every_grey_level_survives_the_round_trips():
    for levels in (np.arange(256, dtype=np.uint8), jax.numpy.arange(256, dtype=np.uint8)):
        for floats in (images.uint8_to_signed(levels), images.unit_to_signed(images.uint8_to_unit(levels))):
            returned = images.signed_to_uint8(floats)
            assert floats.dtype == np.float32 and returned.dtype == np.uint8
            np.testing.assert_array_equal(returned, levels)


def test_ranges():
    ends = np.array([0, 255], np.uint8)
    np.testing.assert_array_equal(images.uint8_to_signed(ends), [-1, 1])
    np.testing.assert_array_equal(images.uint8_to_unit(ends), [0, 1])
    np.testing.assert_array_equal(images.unit_to_signed(np.array([0.0, 0.5, 1.0])), [-1, 0, 1])
    clipped = images.signed_to_uint8(np.array([-9.0, -1.0, 0.001, 1.0, 9.0]))
    np.testing.assert_array_equal(clipped, [0, 0, 128, 255, 255])
    assert images.signed_to_uint8(jax.numpy.ones(3, jax.numpy.bfloat16)).tolist() == [255] * 3


def test_image_grid():
    batch = np.arange(1, 6, dtype=np.uint8)[:, None, None, None] * np.ones((5, 2, 3, 1), np.uint8)
    expected = [
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        [0, 1, 1, 1, 0, 2, 2, 2, 0, 3, 3, 3, 0],
        [0, 1, 1, 1, 0, 2, 2, 2, 0, 3, 3, 3, 0],
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        [0, 4, 4, 4, 0, 5, 5, 5, 0, 0, 0, 0, 0],
        [0, 4, 4, 4, 0, 5, 5, 5, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    ]
    np.testing.assert_array_equal(images.image_grid(batch, padding=1)[:, :, 0], expected)
    assert images.image_grid(batch, columns=5, padding=0).shape == (2, 15, 1)
    assert images.image_grid(np.zeros((64, 8, 8, 3), np.uint8)).shape == (82, 82, 3)


def test_write_png(tmp_path):
    for image in (RGB, GREY[:, :, None]):
        images.write_png(tmp_path / "a.png", image)
        data = (tmp_path / "a.png").read_bytes()
        np.testing.assert_array_equal(decode_image(data, channels=image.shape[2]), image)
        assert data == images.encode_png(image)  # the same bytes each time
    assert os.listdir(tmp_path) == ["a.png"]


def test_a_failed_write_leaves_what_was_there(tmp_path):
    images.write_png(tmp_path / "a.png", RGB)
    before = (tmp_path / "a.png").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))  # larger files fail as on a full disk
    try:
        for name in ("a.png", "b.png"):
            with pytest.raises(OSError, match="File too large"):
                images.write_png(tmp_path / name, RGB[::-1])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.listdir(tmp_path) == ["a.png"]
    assert (tmp_path / "a.png").read_bytes() == before


def test_writing_into_a_missing_folder_fails(tmp_path):
    with pytest.raises(FileNotFoundError) as raised:
        images.write_png(tmp_path / "missing" / "a.png", RGB)
    assert raised.value.filename == str(tmp_path / "missing" / "a.png")  # and not a name that the user does not know
