"""DICOM files as images, by pydicom: pixels alone, none of a header's values.

From stored values to grey levels as PS3.3 has it: modality LUT or rescale (C.11.1), VOI LUT or window (C.11.2), then
MONOCHROME1 or Presentation LUT Shape INVERSE, which both turn black into white. Of frames with values of their own
(enhanced CT and MR), those of the frame. Colour (palette, YBR, planar) becomes RGB. Overlays are left alone.

Headers hold names, and so may names of files: no message here quotes either, and what pydicom itself would log or warn
of is silenced. `public_name` is what a file is called instead; to find the file of such a name:

python -m medgan_jax.data.dicom FOLDER NAME ...
"""

import contextlib
import hashlib
import io
import logging
import math
import re
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from medgan_jax.data.classes import composed
from medgan_jax.errors import UserError
from medgan_jax.image_files import MAX_PIXELS, ImageError, ImageInfo, between_8_bits, check_frames
from medgan_jax.images import convert_channels

VERSION = 2  # raise when decode_dicom gives other pixels: caches are keyed by it

_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_GREYS = ("MONOCHROME1", "MONOCHROME2")
_MASKS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")  # Segmentation and Label Map Storage
_DECODERS = {  # of transfer syntaxes that the extra brings no decoder for
    "1.2.840.10008.1.2.4.51": "pylibjpeg-libjpeg (GPL-3)",
    "1.2.840.10008.1.2.4.57": "python-gdcm, or pylibjpeg-libjpeg (GPL-3)",
    "1.2.840.10008.1.2.4.70": "python-gdcm, or pylibjpeg-libjpeg (GPL-3)",
}
_EXTENDED_12_BIT = "1.2.840.10008.1.2.4.51"
_JPEG_LS = ("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81")
_SHORTEST_WORD, _LONG_WORD = 3, 6  # letters
_MAX_INFLATED = 2**28  # bytes of a deflated file


class Identity(NamedTuple):
    """Which image a file holds, and of whom: header values, for comparing only.

    Attributes:
      instance: its SOP Instance UID; "" where there is none.
      patient: its Patient ID; "" where there is none.
      words: those of the Patient ID and the Patient's Name.
      identifiers: each spelling of the Patient's Name, and the Patient ID, Accession Number and Study ID.
    """

    instance: str
    patient: str
    words: frozenset[str]
    identifiers: tuple[str, ...] = ()

    def is_named_by(self, text: str) -> bool:
        """Whether a text names the patient, or the study of the image.

        It is an identifier; or all its words are those of the patient, and not just initials; or among others, in any
        order or joined, it has all words of at least three letters of an identifier. One word may be part of another by
        chance: it must stand apart, or be longer.
        """
        called, joined = words(text), _joined(text)
        if joined and joined in map(_joined, self.identifiers):
            return True
        if called <= self.words and any(len(word) >= _SHORTEST_WORD for word in called):
            return True
        for identifier in self.identifiers:
            parts = [word for word in words(identifier) if len(word) >= _SHORTEST_WORD]
            if len(parts) < 2:
                parts = [_joined(identifier)]
                if len(parts[0]) < _SHORTEST_WORD or (len(parts[0]) < _LONG_WORD and parts[0] not in called):
                    continue
            if all(part in joined for part in parts):
                return True
        return False


def public_name(private: str) -> str:
    """A digest: what a file is called by its path below the folder of images, or a patient by the Patient ID."""
    return hashlib.blake2b(private.encode(errors="surrogateescape"), digest_size=8).hexdigest()


def read_identity(path: Path) -> Identity:
    """Reads the identifiers of a DICOM file; where that cannot be read, they are empty.

    Raises:
      UserError: pydicom is not installed.
    """
    keywords = ["SOPInstanceUID", "PatientID", "PatientName", "AccessionNumber", "StudyID"]
    with contextlib.suppress(ImageError, OSError), open(path, "rb") as file, _anonymous("header"):
        dataset = _read(file, stop_before_pixels=True, specific_tags=keywords)
        instance, patient, name, *studies = (str(dataset.get(keyword) or "").strip() for keyword in keywords)
        return Identity(instance, patient, words(f"{patient} {name}"), (*name.split("="), patient, *studies))
    return Identity("", "", frozenset())


def words(text: str) -> frozenset[str]:
    """The words of a text, in lower case, without the signs between them."""
    return frozenset(re.findall(r"[^\W_]+", composed(text).lower()))


def _joined(text: str) -> str:
    """A text in lower case, without the signs between its words."""
    return re.sub(r"[\W_]+", "", composed(text).lower())


def inspect_dicom(data: bytes) -> ImageInfo:
    """What the header of a DICOM file says of its pixels, and where `decode_dicom` needs a range of values, that.

    Raises:
      ImageError: it holds no image, or is damaged, or no decoder for its transfer syntax is installed.
      UserError: pydicom is not installed.
    """
    dataset = _open(data)
    with _anonymous("header"):
        frames = _frames(dataset)
        bits = int(dataset.get("BitsStored") or dataset.BitsAllocated)
        is_grey = dataset.PhotometricInterpretation in _GREYS
        kind = f"DICOM of {bits}-bit grey" if is_grey else "DICOM in colour"
        ranges, two_values = [], False
        if is_grey and _lacks_window(_macro(dataset, 0, "FrameVOILUTSequence"), bits):
            for frame in range(frames):
                stored = _decode(dataset, frame)[0]
                ranges.append(_Grey(dataset, stored, frame, bits).value_range())
                two_values = _has_two_values(stored)
        elif bits <= 8 and not _syntax(dataset).is_encapsulated:  # of others, a look takes long
            two_values = _has_two_values(_decode(dataset, 0)[0])
        values = (min(low for low, _ in ranges), max(high for _, high in ranges)) if ranges else None
        synthetic = dataset.get("SyntheticData") == "YES"
        return ImageInfo(
            int(dataset.Rows),
            int(dataset.Columns),
            1 if is_grey else 3,
            kind,
            frames,
            two_values=two_values,
            values=values,
            synthetic=synthetic,
        )


def decode_dicom(
    data: bytes,
    *,
    channels: int,
    window: str | tuple[float, float] = "auto",
    otherwise: tuple[float, float] | None = None,
    frame: int = 0,
) -> np.ndarray:
    """Decodes one frame of a DICOM file.

    Args:
      data: the file.
      channels: 1 (grey) or 3 (RGB).
      window: the values that become black and white, of grey images in units after the modality LUT, such as
        Hounsfield units; or "full": all that Bits Stored can hold; or "auto": of grey images the first VOI LUT or else
        the first window of the file; where it has none, all that 8 bits can hold, and of more bits `otherwise`.
      otherwise: by default from the frame's least to its greatest value, so that frames cannot be compared.
      frame: its number, from 0.

    Returns:
      uint8, of shape (height, width, channels). Pixels of the file's padding value are 0.

    Raises:
      ImageError: it holds no image, or is damaged, or no decoder for its transfer syntax is installed.
      UserError: pydicom is not installed.
    """
    dataset = _open(data)
    stored, photometric, bits = _decode(dataset, frame)
    with _anonymous("values"):
        if photometric in _GREYS:
            image = _Grey(dataset, stored, frame, bits).shown(window, otherwise)[:, :, None]
        elif photometric == "PALETTE COLOR":
            image = _coloured(dataset, stored)
        elif photometric == "RGB":
            image = stored
            if bits != 8:
                low, high = (0.0, 2.0**bits - 1) if isinstance(window, str) else window
                image = _mapped(lambda values: _to_uint8((values - low) / (high - low)), stored)
        else:
            raise ImageError("a colour space that is not read")
        image = convert_channels(np.ascontiguousarray(image), channels)
        is_shown = isinstance(window, str) or photometric in _GREYS or (photometric == "RGB" and bits != 8)
        return image if is_shown else between_8_bits(image, *window)


def _has_two_values(stored: np.ndarray) -> bool:
    """Whether all of (height, width[, 3]) stored values are one of just two."""
    pixels = stored.reshape(stored.shape[0] * stored.shape[1], -1)
    others = pixels[(pixels != pixels[0]).any(axis=1)]
    return len(others) > 0 and bool((others == others[0]).all())


def _to_uint8(x: np.ndarray) -> np.ndarray:
    """From [0, 1] to the nearest of 0..255; values outside are clipped, and those that are no number become 0."""
    return np.rint(np.nan_to_num(x).clip(0, 1) * 255).astype(np.uint8)


def _mapped(function: Callable[[np.ndarray], np.ndarray], stored: np.ndarray) -> np.ndarray:
    """An elementwise function of stored values, in little memory."""
    if stored.dtype.itemsize > 2:
        return np.concatenate([function(part) for part in np.array_split(stored, 1 + stored.size // 2**20)])
    unsigned = np.dtype(f"u{stored.dtype.itemsize}")
    table = function(np.arange(2 ** (8 * unsigned.itemsize), dtype=unsigned).view(stored.dtype))
    return table[np.ascontiguousarray(stored).view(unsigned)]


@contextlib.contextmanager
def _anonymous(part: str) -> Iterator[None]:
    """Replaces errors, whose text quotes what is in the file, by an ImageError that names the part of it."""
    try:
        yield
    except (ImageError, UserError):
        raise
    except Exception:  # on damaged bytes pydicom and the decoders raise nearly anything
        raise ImageError(f"damaged DICOM {part}") from None


def import_pydicom() -> Any:
    """The module pydicom, kept from saying anything: its warnings and log lines quote values of headers.

    Raises:
      UserError: it is not installed.
    """
    try:
        import pydicom
    except ImportError as error:
        raise UserError("DICOM files need pydicom: run pip install 'medgan-jax[dicom]'") from error
    logging.getLogger("pydicom").propagate = False
    warnings.filterwarnings("ignore", module=r"pydicom\.")
    return pydicom


def _read(file: BinaryIO, **options: Any) -> Any:
    """The pydicom Dataset of a file."""
    pydicom = import_pydicom()
    pydicom.filereader.read_preamble(file, force=True)
    meta = pydicom.filereader.read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
    if meta.get("TransferSyntaxUID") == pydicom.uid.DeflatedExplicitVRLittleEndian:  # pydicom inflates without limit
        inflater, rest, size = zlib.decompressobj(-zlib.MAX_WBITS), file.read(), 0
        while rest and not inflater.eof:
            size += len(inflater.decompress(rest, 2**20))
            rest = inflater.unconsumed_tail
            if size > _MAX_INFLATED:
                raise ImageError(f"too large: inflates to more than {_MAX_INFLATED // 2**20} MiB")
    file.seek(0)
    return pydicom.dcmread(file, force=True, **options)


def _frames(dataset: Any) -> int:
    """How many frames there are: what the header says, where the pixel data can be so many.

    Raises:
      ImageError: they cannot.
    """
    from pydicom.encaps import parse_fragments
    from pydicom.pixels.utils import get_expected_length

    frames = max(1, int(dataset.get("NumberOfFrames") or 1))
    pixels = next(dataset[keyword].value for keyword in _PIXELS if keyword in dataset)
    if _syntax(dataset).is_encapsulated:
        is_whole = frames == 1 or frames < parse_fragments(pixels)[0]  # the first item is a table of offsets
    else:
        is_whole = len(pixels) >= get_expected_length(dataset)
    if not is_whole:
        raise ImageError("truncated")
    return check_frames(frames)


def _open(data: bytes) -> Any:
    """The data set of a file that holds an image."""
    if not data:
        raise ImageError("empty file")
    with _anonymous("header"):
        dataset = _read(io.BytesIO(data))
        kind = _kind(dataset)
        if not any(keyword in dataset for keyword in _PIXELS):
            raise ImageError(f"no pixel data: {kind}" if kind else "damaged DICOM: no pixel data")
        if dataset.get("SOPClassUID") in _MASKS:
            raise ImageError(f"a mask, not an image: {kind}")
        rows, columns = int(dataset.Rows), int(dataset.Columns)
        if rows * columns > MAX_PIXELS:
            raise ImageError(f"too large: {columns} x {rows} pixels, limit {MAX_PIXELS // 1_000_000} megapixels")
        return dataset


def _decode(dataset: Any, frame: int) -> tuple[np.ndarray, str, int]:
    """The stored values (height, width[, 3]) of a frame, their Photometric Interpretation and bits; YBR becomes RGB."""
    with _anonymous("header"):
        decoder, syntax = _decoder(dataset)
        frames = _frames(dataset)
        if frame >= frames:
            raise ImageError(f"has {frames} frames")
    with _anonymous("pixel data"):
        if syntax in _JPEG_LS:  # without an end marker, CharLS may look for one for a quarter of a minute
            from pydicom.encaps import get_frame

            if get_frame(dataset.PixelData, frame, number_of_frames=frames).rstrip(b"\0")[-2:] != b"\xff\xd9":
                raise ImageError("truncated")
        stored, properties = decoder.as_array(dataset, index=frame)
        bits = properties.get("bits_stored") or properties["bits_allocated"]  # of floats
        return stored, properties["photometric_interpretation"], bits


def _kind(dataset: Any) -> str:
    """What the file holds by the standard's name of its SOP class, such as "CT Image Storage"; empty if unknown."""
    uid = dataset.get("SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID")
    return uid.name if uid and uid.name != uid else ""  # of a UID that it does not know, the name is the UID


def _syntax(dataset: Any) -> Any:
    """The transfer syntax, the one that the file was read by where it names none."""
    from pydicom import uid

    if syntax := dataset.file_meta.get("TransferSyntaxUID"):
        return syntax
    implicit, little = dataset.original_encoding
    syntax = uid.ImplicitVRLittleEndian if implicit else uid.ExplicitVRLittleEndian
    return syntax if little else uid.ExplicitVRBigEndian


def _decoder(dataset: Any) -> tuple[Any, Any]:
    """The decoder of the transfer syntax, and the syntax."""
    from pydicom.pixels import get_decoder

    syntax = _syntax(dataset)
    name = syntax.name if syntax.name != syntax else "of its own"
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:  # pydicom's word for syntaxes that hold no images, such as video
        raise ImageError(f"transfer syntax {name}: not read") from None
    plugins = decoder.available_plugins if syntax.is_encapsulated else ("none needed",)
    if syntax == _EXTENDED_12_BIT and dataset.BitsStored > 8:
        plugins = tuple(plugin for plugin in plugins if plugin == "pylibjpeg")  # the others read 8 bits
    if not plugins:
        package = _DECODERS.get(syntax, "'medgan-jax[dicom]'")
        raise ImageError(f"transfer syntax {name}: no decoder is installed; pip install {package}")
    return decoder, syntax


def _coloured(dataset: Any, stored: np.ndarray) -> np.ndarray:
    """Values through the palette (C.7.6.3.1.5): uint8, (height, width, 3), the high bytes of 16-bit colours."""
    from pydicom.pixels import apply_color_lut

    if dataset.original_encoding[1] is False:  # pydicom reads such tables as if they were little-endian
        for colour in ("Red", "Green", "Blue"):
            table = dataset.get(f"{colour}PaletteColorLookupTableData")
            if table is not None:
                setattr(
                    dataset, f"{colour}PaletteColorLookupTableData", np.frombuffer(table, "u2").byteswap().tobytes()
                )
    colours = apply_color_lut(stored, dataset)[:, :, :3]
    return colours if colours.dtype == np.uint8 else (colours >> 8).astype(np.uint8)


class _Grey:
    """The values of a grey frame, from stored to shown."""

    def __init__(self, dataset: Any, stored: np.ndarray, frame: int, bits_stored: int) -> None:
        """Takes the data set, the stored values (height, width), and the number of the frame."""
        self.stored = stored
        self.bits_stored = bits_stored
        self.dataset = dataset
        self.modality = _macro(dataset, frame, "PixelValueTransformationSequence")
        self.voi = _macro(dataset, frame, "FrameVOILUTSequence")

    def rescaled(self, stored: np.ndarray) -> np.ndarray:
        """The modality LUT or rescale (PS3.3 C.11.1), in float64; of doses, their scaling (C.8.8.3)."""
        if self.modality.get("ModalityLUTSequence"):
            return _look_up(stored, self.modality.ModalityLUTSequence[0], self.dataset)
        slope = self.modality.get("RescaleSlope") or self.dataset.get("DoseGridScaling") or 1
        with np.errstate(over="ignore", invalid="ignore"):
            values = stored * float(slope) + float(self.modality.get("RescaleIntercept") or 0)
        if not np.isfinite(values[np.isfinite(stored)]).all():
            raise ImageError("its rescale slope or intercept is not finite")
        return values

    def padding(self, stored: np.ndarray) -> np.ndarray:
        """Where values are padding (C.7.5.1.1.2) or no number."""
        ends = [self.dataset.get(name) for name in ("PixelPaddingValue", "PixelPaddingRangeLimit")]
        if stored.dtype.kind == "f" or ends[0] is None:
            return ~np.isfinite(stored)
        # A value of the wrong sign is one of a wrong VR, and wraps.
        low, high = sorted(np.array([ends[0], ends[0] if ends[1] is None else ends[1]]).astype(stored.dtype))
        return (stored >= low) & (stored <= high)

    def value_range(self) -> tuple[float, float]:
        """The least and greatest value after `rescaled`, without padding."""
        kept = self.stored[~self.padding(self.stored)]
        if not kept.size:
            return 0.0, 1.0
        if not self.modality.get("ModalityLUTSequence"):
            kept = np.array([kept.min(), kept.max()])
        values = self.rescaled(kept)
        return float(values.min()), float(values.max())

    def full_range(self) -> tuple[float, float]:
        """The least and greatest value that Bits Stored can hold, after `rescaled`."""
        if self.stored.dtype.kind == "f":
            raise ImageError("floating-point values have no full range; set data.window=LOW,HIGH")
        if self.modality.get("ModalityLUTSequence"):
            return 0.0, 2.0 ** self.modality.ModalityLUTSequence[0].LUTDescriptor[2] - 1
        signed = self.stored.dtype.kind == "i"
        low = -(2.0 ** (self.bits_stored - 1)) if signed else 0.0
        low, high = sorted(self.rescaled(np.array([low, low + 2.0**self.bits_stored - 1])))
        return float(low), float(high)

    def of_interest(
        self, window: str | tuple[float, float], otherwise: tuple[float, float] | None
    ) -> Callable[[np.ndarray], np.ndarray]:
        """From values after `rescaled` to [0, 1], or beyond where they are to be clipped."""
        if window == "auto" and self.voi.get("VOILUTSequence"):
            item = self.voi.VOILUTSequence[0]
            return lambda values: _look_up(values, item, self.dataset) / (2.0 ** item.LUTDescriptor[2] - 1)
        if window == "auto" and (given := _file_window(self.voi)):
            center, width = given
            function = str(self.voi.get("VOILUTFunction") or "LINEAR").upper()
            if not math.isfinite(center + width):
                raise ImageError("its window is not finite; set data.window=LOW,HIGH")
            if width <= 0 or (function == "LINEAR" and width < 1):
                raise ImageError("its window has no width; set data.window=LOW,HIGH")
            if function == "SIGMOID":
                return lambda values: 1 / (1 + np.exp(-4 * (values - center) / width))
            if function == "LINEAR":  # C.11.2.1.2.1
                center, width = center - 0.5, width - 1
            low, high = center - width / 2, center + width / 2
        elif window == "auto" and _lacks_window(self.voi, self.bits_stored):
            low, high = otherwise or self.value_range()
        else:
            low, high = self.full_range() if isinstance(window, str) else window
        return lambda values: (values - low) / max(high - low, 1e-9)

    def shown(self, window: str | tuple[float, float], otherwise: tuple[float, float] | None) -> np.ndarray:
        """uint8, (height, width)."""
        of_interest = self.of_interest(window, otherwise)
        inverted = (
            self.dataset.PhotometricInterpretation == "MONOCHROME1"
            or self.dataset.get("PresentationLUTShape") == "INVERSE"
        )

        def show(stored: np.ndarray) -> np.ndarray:
            with np.errstate(over="ignore"):  # far from a narrow window
                shares = of_interest(self.rescaled(stored))
            grey = _to_uint8(1 - shares if inverted else shares)
            grey[self.padding(stored)] = 0
            return grey

        return _mapped(show, self.stored)


def _macro(dataset: Any, frame: int, sequence: str) -> Any:
    """Where the values of a frame are: in a functional group of the frame, of all frames (C.7.6.16), or on top."""
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
    for group in (*per_frame[frame : frame + 1], *(dataset.get("SharedFunctionalGroupsSequence") or [])):
        if items := group.get(sequence):
            return items[0]
    return dataset


def _lacks_window(voi: Any, bits_stored: int) -> bool:
    """Whether a file leaves open which values to show: no window, no VOI LUT, and more than 8 bits."""
    return bits_stored > 8 and not voi.get("VOILUTSequence") and _file_window(voi) is None


def _file_window(voi: Any) -> tuple[float, float] | None:
    """Center and width of a file's first window."""
    center, width = voi.get("WindowCenter"), voi.get("WindowWidth")
    return None if center is None or width is None else (float(np.ravel(center)[0]), float(np.ravel(width)[0]))


def _look_up(values: np.ndarray, item: Any, dataset: Any) -> np.ndarray:
    """Values through a modality or VOI LUT, in float64; those outside take its first or last entry.

    pydicom's `apply_voi` gets 8-bit tables of more than 256 entries wrong, and `apply_modality_lut` raises on tables
    of 10 to 15 bits.
    """
    number, first, bits = item.LUTDescriptor
    if not bits:
        raise ImageError("its look-up table has entries of 0 bits")
    entries = item.LUTData
    if isinstance(entries, bytes):
        order = ">" if dataset.original_encoding[1] is False else "<"
        entries = np.frombuffer(entries, "u1" if len(entries) < 2 * (number or 2**16) else f"{order}u2")
    table = np.ravel(entries).astype(np.float64)[: number or 2**16]
    return table[(np.rint(values) - first).clip(0, len(table) - 1).astype(np.int64)]


def main(argv: list[str]) -> None:
    """Prints the path of each file that `public_name` calls so; without names, of all."""
    from medgan_jax.data.sources import list_images

    folder, *names = argv[1:]
    for path in list_images(folder):
        if not names or public_name(path) in names:
            print(public_name(path), path)


if __name__ == "__main__":
    main(sys.argv)
