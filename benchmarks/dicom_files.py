"""How pydicom's own test files are read, beside pydicom's documented pipeline.

python -m benchmarks.dicom_files [FOLDER ...]

Every file, of the installed package or below the folders given, is read as an image and compared with what pydicom's
`pixel_array`, `apply_color_lut`, `apply_modality_lut` and `apply_voi_lut` make of it; or it is refused, in one line.
Prints a table, and counts. Paths are printed: these files are public.
"""

import io
import sys
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pydicom
from pydicom.data import get_testdata_files
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut, pixel_array

from medgan_jax.data.dicom import decode_dicom
from medgan_jax.image_files import DICOM, HEAD, ImageError, recognise


def documented(data: bytes) -> np.ndarray:
    """The first frame by pydicom's pipeline, scaled to 0..255: uint8, (height, width, 3)."""
    dataset = pydicom.dcmread(io.BytesIO(data), force=True)
    stored = pixel_array(dataset, index=0)
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        colours = apply_color_lut(stored, dataset)[..., :3]
        return (colours >> 8 if colours.dtype == np.uint16 else colours).astype(np.uint8)
    bits = dataset.BitsStored
    if stored.ndim == 3:
        return np.rint(stored / (2.0**bits - 1) * 255).astype(np.uint8)
    values = apply_modality_lut(stored, dataset)
    shown = apply_voi_lut(values, dataset)
    if dataset.get("VOILUTSequence"):
        low, high = 0.0, 2.0 ** dataset.VOILUTSequence[0].LUTDescriptor[2] - 1
    elif "WindowCenter" in dataset or bits <= 8:  # then the range is that of what can be stored
        if dataset.get("ModalityLUTSequence"):
            low, high = 0.0, 2.0 ** dataset.ModalityLUTSequence[0].LUTDescriptor[2] - 1
        else:
            least = -(2 ** (bits - 1)) if dataset.PixelRepresentation else 0
            low, high = apply_modality_lut(np.array([least, least + 2**bits - 1], np.int64), dataset)
    else:
        kept = values[stored != dataset.get("PixelPaddingValue")]
        low, high = kept.min(), kept.max()
    grey = ((shown - np.float64(low)) / (float(high) - float(low))).clip(0, 1)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        grey = 1 - grey
    grey[stored == dataset.get("PixelPaddingValue")] = 0
    return np.rint(grey * 255).astype(np.uint8)[..., None].repeat(3, axis=2)


def outcome(data: bytes) -> str:
    """What becomes of a file: its difference to `documented`, or why it is refused."""
    if recognise(data[:HEAD]) != DICOM:
        return "not DICOM"
    try:
        image = decode_dicom(data, channels=3)
    except ImageError as error:
        return f"refused: {error}"
    try:
        expected = documented(data)
    except Exception as error:
        return f"read, where pydicom raises {type(error).__name__}"
    difference = int(np.abs(image.astype(int) - expected).max()) if image.shape == expected.shape else 256
    return f"read, differs by {difference} of 255" if difference > 1 else "read as documented"


def own_files(folders: list[str]) -> list[Path]:
    """All files of the installed pydicom's data, or below the folders."""
    if not folders:
        return sorted(Path(name) for name in get_testdata_files() if Path(name).is_file())
    return sorted(path for folder in folders for path in Path(folder).rglob("*") if path.is_file())


def main(folders: list[str]) -> None:
    """Prints the table."""
    warnings.filterwarnings("ignore", module="pydicom")
    counts: Counter[str] = Counter()
    for path in own_files(folders):
        what = outcome(path.read_bytes())
        counts[what] += 1
        print(f"{path.name:42} {what}")
    print()
    for what, count in sorted(counts.items()):
        print(f"{count:4} {what}")


if __name__ == "__main__":
    main(sys.argv[1:])
