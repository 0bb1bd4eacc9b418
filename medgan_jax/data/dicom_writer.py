"""Generated images as DICOM files: Secondary Capture or Dermoscopic Photography, marked as synthetic, of no patient."""

import hashlib
import io
import uuid
from typing import Any

import numpy as np

from medgan_jax import __version__
from medgan_jax.data.dicom import import_pydicom
from medgan_jax.provenance import SENTENCE, Provenance

SOP_CLASSES = {
    "dicom": "SecondaryCaptureImageStorage",
    "dicom-dermoscopic": "DermoscopicPhotographyImageStorage",
}
_SOFTWARE = "medgan_jax"


def encode_dicom(image: np.ndarray, *, kind: str, provenance: Provenance) -> bytes:
    """A DICOM file (PS3.10, explicit VR, little-endian, not compressed) of a generated image.

    Synthetic Data (0008,001C) is YES, Patient Identity Removed too; what the standard lets be empty is empty, dates
    and times among it. Contributing Equipment names this software, and its Contribution Description (0018,A003) is the
    provenance, as JSON. The UIDs follow from the arguments (2.25, PS3.5 B.2), so the same image gives the same bytes,
    and another one another UID: a study for a generator, a series for the images of one class and seed.

    Args:
      image: uint8, (height, width, 1 or 3).
      kind: a key of `SOP_CLASSES`.
      provenance: of the image.

    Returns:
      The bytes of the file.

    Raises:
      UserError: pydicom is not installed.
    """
    pydicom = import_pydicom()
    height, width, channels = image.shape
    pixels = np.ascontiguousarray(image).tobytes()

    def code(value: str, scheme: str, meaning: str) -> Any:
        item = pydicom.Dataset()
        item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
        return item

    origin = provenance.generator, provenance.seed, provenance.label, provenance.truncation
    dataset = pydicom.Dataset()
    dataset.SOPClassUID = getattr(pydicom.uid, SOP_CLASSES[kind])
    dataset.SOPInstanceUID = _uid("image", kind, *origin, provenance.index, hashlib.blake2b(pixels).hexdigest())
    dataset.StudyInstanceUID = _uid("study", origin[0])
    dataset.SeriesInstanceUID = _uid("series", kind, *origin)
    for empty in (
        "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
        "AccessionNumber", "ReferringPhysicianName", "SeriesNumber", "PatientOrientation", "Laterality",
    ):  # fmt: skip
        setattr(dataset, empty, None)
    dataset.PatientIdentityRemoved = "YES"
    dataset.DeidentificationMethod = SENTENCE
    dataset.SyntheticData = "YES"
    dataset.ImageType = ["DERIVED", "SECONDARY"]
    dataset.InstanceNumber = provenance.index + 1
    dataset.BurnedInAnnotation = "NO"
    dataset.Manufacturer, dataset.ManufacturerModelName = _SOFTWARE, "Generator"
    dataset.DeviceSerialNumber, dataset.SoftwareVersions = origin[0], __version__
    software = pydicom.Dataset()
    software.PurposeOfReferenceCodeSequence = [code("109102", "DCM", "Processing Equipment")]
    software.Manufacturer = _SOFTWARE
    software.SoftwareVersions = __version__
    software.ContributionDescription = provenance.as_json()
    dataset.ContributingEquipmentSequence = [software]
    if kind == "dicom":
        dataset.Modality, dataset.ConversionType = "OT", "SYN"
    else:
        dataset.Modality = "DMS"
        dataset.FrameOfReferenceUID = _uid("frame", dataset.SOPInstanceUID)
        dataset.RecognizableVisualFeatures = "NO"
        dataset.AcquisitionContextSequence = []
        for empty in (
            "PositionReferenceIndicator", "LightSourcePolarization", "EmitterColorTemperature", "ContactMethod",
            "OpticalMagnificationFactor",
        ):  # fmt: skip
            setattr(dataset, empty, None)
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = height, width, channels
    dataset.PhotometricInterpretation = {1: "MONOCHROME2", 3: "RGB"}[channels]
    if channels == 3:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
    dataset.LossyImageCompression = "00"
    dataset.PixelData = pixels
    dataset["PixelData"].VR = "OB"
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _uid(*parts: object) -> str:
    """The UID of a UUID that is a digest of the parts."""
    digest = hashlib.blake2b("\0".join(map(str, parts)).encode(errors="surrogateescape"), digest_size=16).digest()
    return f"2.25.{uuid.UUID(bytes=digest, version=5).int}"
