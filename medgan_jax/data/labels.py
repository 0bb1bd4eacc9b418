"""Tables of labels: reading them as they are published, and matching them to image files one to one."""

import contextlib
import csv
import io
import logging
import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from medgan_jax.errors import UserError, abbreviate, placeholder, quoted, reason_of

# What these columns are called where image_column and label_column, the first of each, are left as they are.
_IMAGE_COLUMNS = (
    "image", "image_id", "image_name", "image_path", "image_file", "image_index", "img", "img_id", "img_name",
    "img_path", "isic_id", "id_code", "file", "file_name", "file_path", "filename", "filepath",
)  # fmt: skip
_LABEL_COLUMNS = ("label", "labels", "class", "dx", "diagnosis", "target", "benign_malignant")
_ARCHIVE_LABEL = "benign_malignant"  # what ISIC 2020 asked for; its `diagnosis` is often unknown
_WEIGHT_COLUMNS = ("score_weight", "validation_weight")  # of ISIC 2019's test set, beside a column for each class
# ISIC 2017 has columns for two classes of three.
_CLASS_WITHOUT_COLUMN = {"melanoma,seborrheic_keratosis": "nevus"}

_SHOWN_COLUMNS = 12  # in a message
_SHOWN_SKIPPED = 20  # as of damaged images
# How files begin that are given by mistake, and what to do about it.
_NOT_TABLES = {
    b"PK\x03\x04": "is an Excel workbook, or another ZIP file: save the table as CSV, UTF-8",
    b"\xd0\xcf\x11\xe0": "is an Excel workbook: save the table as CSV, UTF-8",
    b"\x1f\x8b": "is a gzip file: unpack it",
    b"%PDF": "is a PDF: give the table as CSV, UTF-8",
}


class Row(NamedTuple):
    """What a table says of an image: its class, and its patient or lesion, "" where that is unknown."""

    label: str
    group: str


def read_labels(
    path: str,
    *,
    image_column: str,
    label_column: str,
    group_column: str = "",
    prefix: str = "data.",
    quote: bool = True,
) -> dict[str, Row]:
    """The rows of a table by image name, in its order: comma, semicolon or tab separated, UTF-8 or UTF-16.

    Its first row is a header if it names the column of images: `image_column`, case aside, or where that is "image",
    one that is usually called so, such as image_id. The labels are

    - in `label_column`, or where that is "label", in a column that is usually called so, such as dx, or in the only
      other column there is;
    - else, where each of the others is a class and has a 1 in its images' rows and 0 elsewhere (ISIC 2018 and 2019),
      the names of those columns. Columns without any 0 or 1, such as an age, are no classes.

    What was not asked for by name is logged. Without a header the table has two columns, as the ISIC 2016 ground truth
    (`ISIC_0000000,benign`). Labels are text, 0.0 and 1.0 too. Rows without a label are left out.

    Args:
      path: the table.
      image_column: the column of image names, where there is a header.
      label_column: the column of labels, where there is a header.
      group_column: the column of patients or lesions; "" for none.
      prefix: for messages: "data." for fields of the config, "--" for the flags of a command.
      quote: whether messages may quote rows: those about DICOM files may name patients.

    Raises:
      UserError: the table is missing or malformed, lacks a column or a header that it needs, or gives an image two
        labels or groups.
    """
    setting = "data.labels_csv" if prefix == "data." else f"{prefix}labels"
    place = f"{setting}={path}"
    if not path:
        raise UserError(f"{setting} is empty: give the table of labels")
    (_, header), *rows = cells = _read_cells(path, place)
    table = _Table(place, prefix, header, rows, quote)
    image_at = table.find("image_column", image_column, _IMAGE_COLUMNS)
    if image_at is None:
        if group_column:
            raise UserError(
                f"{place} has no header with a column {image_column!r}: {prefix}group_column={group_column!r} needs a "
                f"first row that names the columns; add it, or set {prefix}image_column if there is one"
            )
        if len(header) != 2:
            raise UserError(
                f"{place} has neither a column {image_column!r} nor just two columns, image and label: set "
                f"{prefix}image_column and {prefix}label_column to two of {table.columns}"
            )
        table = _Table(place, prefix, ["image", "label"], cells, quote)
        image_at, image_column, label_column = 0, "image", "label"
    table.check_filled(image_at)
    group_at = table.find("group_column", group_column) if group_column else None
    if group_column and group_at is None:
        raise UserError(f"{place} has no column {group_column!r}: set {prefix}group_column to one of {table.columns}")
    groups = [""] * len(table.rows) if group_at is None else table.column(group_at)
    labels, origin = table.labels(label_column, {image_at, group_at})
    if (table.header[image_at].lower(), origin.lower()) != (image_column.lower(), label_column.lower()):
        by = (abbreviate([table.header[image_at]]), abbreviate([origin]))
        logging.getLogger(__name__).warning("%s: images by %s, labels by %s", place, *by)

    found: dict[str, Row] = {}
    for (number, row), label, group in zip(table.rows, labels, groups, strict=True):
        if not label:
            continue
        if "\n" in label:
            shown = f", {quoted(label)}" if quote else ""
            raise UserError(f"{place}: row {number} has a label of several lines{shown}; close its quotes")
        if difference := _differ(found.setdefault(row[image_at], Row(label, group)), Row(label, group)):
            image = abbreviate([row[image_at]]) if quote else "one image"
            raise UserError(f"{place} gives two {difference} to {image}, the second in row {number}; keep one")
    return found


def _differ(one: Row, other: Row) -> str:
    """What two rows of an image contradict each other in; "" where they are equal."""
    return "" if one == other else "groups" if one.label == other.label else "labels"


class _Table(NamedTuple):
    """Names of columns and numbered rows; for messages a table's place, the prefix of settings, whether to quote."""

    place: str
    prefix: str
    header: list[str]
    rows: list[tuple[int, list[str]]]
    quote: bool

    @property
    def columns(self) -> str:
        return abbreviate(self.header, _SHOWN_COLUMNS)

    def column(self, index: int) -> list[str]:
        return [row[index] for _, row in self.rows]

    def find(self, field: str, name: str, usual: Sequence[str] = ()) -> int | None:
        """The column `name`, or where that is the first of `usual`, the one column that is called by any of them."""
        found = [index for index, cell in enumerate(self.header) if cell.lower() == name.lower()]
        if not found and name in usual[:1]:
            spelled = ["_".join(cell.lower().replace("-", " ").split()) for cell in self.header]
            found = [index for index, cell in enumerate(spelled) if cell in usual]
            found = [index for index in found if spelled[index] == _ARCHIVE_LABEL] or found
        if len(found) > 1:
            names = abbreviate([self.header[index] for index in found], _SHOWN_COLUMNS)
            raise UserError(f"{self.place} has several columns of this kind: {names}; set {self.prefix}{field} to one")
        return found[0] if found else None

    def check_filled(self, image_at: int) -> None:
        """Raises UserError where a row has too few or too many cells, or names no image."""
        for number, row in self.rows:
            if len(row) != len(self.header) or not row[image_at]:
                raise UserError(
                    f"{self.place}: row {number} should have {len(self.header)} columns, that of the image filled in"
                    + (f", but is {quoted(','.join(row))}" if self.quote else "")
                )

    def labels(self, label_column: str, taken: set[int | None]) -> tuple[list[str], str]:
        """The label of each row, "" where it has none, and for people where they are from."""
        index = self.find("label_column", label_column, _LABEL_COLUMNS)
        if index is None and label_column == _LABEL_COLUMNS[0]:
            # Columns without a name are the row numbers of pandas.
            others = [i for i, name in enumerate(self.header) if i not in taken and name and name[:8] != "Unnamed:"]
            classes = [i for i in others if self.header[i].lower() not in _WEIGHT_COLUMNS]
            classes = [i for i in classes if any(_flag(cell) is not None for cell in self.column(i))]
            if len(others) == 1:
                (index,) = others
            elif len(classes) > 1:
                return self._labels_by_column(classes)
        if index is None:
            raise UserError(
                f"{self.place} has no column {label_column!r}: set {self.prefix}label_column to one of {self.columns}"
            )
        return self.column(index), self.header[index]

    def _labels_by_column(self, classes: Sequence[int]) -> tuple[list[str], str]:
        """The labels of rows with a 1 in the column of their class."""
        names = [self.header[index] for index in classes]
        rest = _CLASS_WITHOUT_COLUMN.get(",".join(names).lower(), "")
        shown = f"the columns {abbreviate(names, _SHOWN_COLUMNS)}"
        labels, wrong = [], []
        for number, row in self.rows:
            flags = [_flag(row[index]) for index in classes]
            if None in flags or flags.count(True) > 1 or not (any(flags) or rest):
                wrong.append(number)
            labels.append(names[flags.index(True)] if any(flags) else rest)
        if wrong:
            raise UserError(
                f"{self.place}: to be a class each, {shown} need one 1 in each row and 0 elsewhere; not so in "
                f"{len(wrong)} of {len(self.rows)} rows: {abbreviate(wrong)}; mend them, take columns that are no "
                f"classes, such as an age, out of the table, or set {self.prefix}label_column to the column of labels"
            )
        return labels, f"the 1 in {shown}" + (f", {rest} where there is none" if rest else "")


def _read_cells(path: str, place: str) -> list[tuple[int, list[str]]]:
    """The rows that are not empty, with their numbers from 1; one or more."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{place}: {reason_of(error)}; give the table of labels") from error
    start = data[:64].lstrip().lower()
    for beginning, remedy in _NOT_TABLES.items():
        if start.startswith(beginning.lower()):
            raise UserError(f"{place} {remedy}")
    if found := placeholder(data):
        raise UserError(f"{place} is {found}")
    try:
        text = data.decode("utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{place} is not UTF-8 text, first in line {line}: save it as CSV, UTF-8") from error
    if "\0" in text:
        raise UserError(f"{place} is not text: save it as CSV, UTF-8")
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    first = next((line for line in text.split("\n") if line.strip()), "")
    try:
        delimiter = max(",;\t", key=lambda delimiter: len(next(csv.reader([first], delimiter=delimiter))))
        cells = [
            [cell.strip() for cell in row]
            for row in csv.reader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True)
        ]
    except csv.Error as error:
        raise UserError(f"{place} is not a table: {error}") from error
    rows = [(number, row) for number, row in enumerate(cells, 1) if any(row)]
    if not rows:
        raise UserError(f"{place} is an empty table")
    return rows


def _flag(cell: str) -> bool | None:
    """What a cell of a class's column says; None where it is neither 0 nor 1, however written."""
    with contextlib.suppress(ValueError):
        return {0.0: False, 1.0: True}.get(float(cell.replace(",", ".")))
    return {"false": False, "true": True}.get(cell.lower())


def match_labels(
    names: Sequence[str],
    table: dict[str, Row],
    *,
    folder: str,
    table_path: str,
    on_missing: str = "refuse",
    prefix: str = "data.",
) -> dict[str, Row]:
    """The row of each file of `list_images`, in the order of the files, from the table of `read_labels`.

    The table may name files with or without extension, or with that of another image format; case aside, and in
    composed or decomposed Unicode; and with more or fewer folders than `names` have, those of Windows too. The closest
    of these counts.

    Args:
      names: paths below `folder`, separated by /.
      table: rows by image name.
      folder: for messages.
      table_path: for messages.
      on_missing: what to do about rows without a file and files without a row: "refuse", or "skip" and log them.
      prefix: for messages, as `read_labels` has it.

    Raises:
      UserError: table and folder do not match one to one, or where that is skipped, not at all; or a row fits several
        files, or rows of different labels the same file.
    """
    files = spellings(names)
    logger = logging.getLogger(__name__)
    skipping = f", or set {prefix}on_missing=skip" if on_missing == "refuse" else ""
    found: dict[str, Row] = {}
    missing = []
    for image, row in table.items():
        candidates = fitting(image, files)
        if not candidates:
            missing.append(image)
            continue
        if len(candidates) > 1:
            raise UserError(
                f"{table_path}: {abbreviate([image])} fits several files in {folder}: "
                f"{abbreviate(sorted(candidates))}; name files by path and extension"
            )
        (name,) = candidates
        if difference := _differ(found.setdefault(name, row), row):
            raise UserError(f"{table_path} gives two {difference} to {name} in {folder}; keep one")
    if missing:
        what = f"{table_path} names {len(missing)} of {len(table)} images that are not in {folder}"
        if on_missing == "refuse" or not found:
            hint = "; if its first row is a header, set image_column and label_column to names in it"
            raise UserError(
                f"{what}: {abbreviate(missing)}; add those images, remove their rows{skipping}"
                + (hint if missing[0] == next(iter(table)) else "")
            )
        logger.warning("%s: %s; their rows are left out", what, abbreviate(missing, _SHOWN_SKIPPED))
    if unlabelled := [name for name in names if name not in found]:
        what = f"{len(unlabelled)} of {len(names)} images in {folder} have no label in {table_path}"
        if on_missing == "refuse" or not found:
            raise UserError(
                f"{what}: {abbreviate(unlabelled)}; add them to the table, move them out of the folder{skipping}"
            )
        logger.warning("%s: %s; they are left out", what, abbreviate(unlabelled, _SHOWN_SKIPPED))
    return {name: found[name] for name in names if name in found}


def spellings(names: Sequence[str]) -> dict[tuple[str, str], set[str]]:
    """Files by what a table may call them, and by how close that is."""
    files = defaultdict(set)
    for name in names:
        folded = _folded(name)
        files["path", name].add(name)
        files["whole", folded].add(name)
        files["whole", os.path.splitext(folded)[0]].add(name)
        for end in _ends(name):
            files["end", end].add(name)
            files["end", os.path.splitext(end)[0]].add(name)
        for end in _ends(folded):
            files["folded end", end].add(name)
            files["folded end", os.path.splitext(end)[0]].add(name)
    return files


def fitting(image: str, files: dict[tuple[str, str], set[str]]) -> set[str]:
    """The files that a table may mean by `image`: those of the closest spelling that there is."""
    folded = _folded(image)
    stem, extension = os.path.splitext(folded)
    if extension not in Image.registered_extensions() and extension != ".dcm":  # a name may have points in it
        stem = folded
    spellings = [("path", image), ("end", image), ("folded end", folded), ("folded end", stem)]
    spellings += [("whole", end) for path in (folded, stem) for end in _ends(path)]
    return next((files[spelling] for spelling in spellings if spelling in files), set())


def _ends(path: str) -> Iterator[str]:
    """The path, and what is left of it without its first folders."""
    parts = path.split("/")
    return ("/".join(parts[start:]) for start in range(len(parts)))


def _folded(path: str) -> str:
    """The spelling in which names are equal that differ in case, Unicode form, or the separator of folders."""
    composed = unicodedata.normalize("NFC", path).casefold().replace("\\", "/")
    return unicodedata.normalize("NFC", composed).removeprefix("./")
