"""Tables of labels: reading them, and matching them to image files one to one."""

import csv
import io
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from medgan_jax.errors import UserError, abbreviate, reason_of


def read_labels(
    path: str,
    *,
    image_column: str,
    label_column: str,
    prefix: str = "data.",
    field: str = "label_column",
    needs_header: bool = False,
    quote: bool = True,
) -> dict[str, str]:
    """Labels by image name, in the order of a table: comma, semicolon or tab separated text.

    Its first row is a header if one of its cells is `image_column` (case aside). Without a header the table has
    two columns, as the ISIC 2016 ground truth (`ISIC_0000000,benign`). Labels are text, 0.0 and 1.0 too.

    Args:
      path: the table.
      image_column: the column of image names, where there is a header.
      label_column: the column of labels, where there is a header.
      prefix: for messages: "data." for fields of the config, "--" for the flags of a command.
      field: for messages: the setting that `label_column` comes from.
      needs_header: whether to refuse a table without a header.
      quote: whether messages may quote rows: those about DICOM files may name patients.

    Raises:
      UserError: the table is missing or malformed, lacks a column or a header that it needs, or gives an image two
        labels.
    """
    setting = "data.labels_csv" if prefix == "data." else f"{prefix}labels"
    place = f"{setting}={path}"
    if not path:
        raise UserError(f"{setting} is empty: give the table of labels")
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{place}: {reason_of(error)}; give the table of labels") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{place} is not UTF-8 text: save it as CSV, UTF-8") from error
    first = next((line for line in text.split("\n") if line.strip()), "")
    delimiter = max(",;\t", key=first.count)
    try:
        table = csv.reader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True)
        cells = [[cell.strip() for cell in row] for row in table]
    except csv.Error as error:
        raise UserError(f"{place} is not a table: {error}") from error
    rows = [(number, row) for number, row in enumerate(cells, 1) if any(row)]
    if not rows:
        raise UserError(f"{place} is an empty table")

    header = rows[0][1]
    columns = [name.lower() for name in header]
    image_at, label_at = 0, 1
    if image_column.lower() in columns:
        if label_column.lower() not in columns:
            raise UserError(
                f"{place} has no column {label_column!r}: set {prefix}{field} to one of {', '.join(header)}"
            )
        image_at, label_at = columns.index(image_column.lower()), columns.index(label_column.lower())
        rows = rows[1:]
    elif needs_header:
        raise UserError(
            f"{place} has no header with a column {image_column!r}: {prefix}{field}={label_column!r} needs a first row "
            f"that names the columns; add it, or set {prefix}image_column if there is one"
        )
    elif len(header) != 2:
        raise UserError(
            f"{place} has neither a column {image_column!r} nor just two columns, image and label: set "
            f"{prefix}image_column and {prefix}label_column to two of {', '.join(header)}"
        )

    labels: dict[str, str] = {}
    for number, row in rows:
        if len(row) != len(header) or not row[image_at] or not row[label_at]:
            raise UserError(
                f"{place}: row {number} should have {len(header)} columns, image and label filled in"
                + (f", but is {delimiter.join(row)!r}" if quote else "")
            )
        if labels.setdefault(row[image_at], row[label_at]) != row[label_at]:
            image = row[image_at] if quote else "one image"
            raise UserError(f"{place} gives two labels to {image}, the second in row {number}; keep one")
    return labels


def match_labels(names: Sequence[str], table: dict[str, str], *, folder: str, table_path: str) -> list[str]:
    """The label of each file of `list_images`, from the table of `read_labels`; the paths are for messages.

    The table may name files with or without folder and extension.

    Raises:
      UserError: table and folder do not match one to one.
    """
    files = defaultdict(set)
    for name in names:
        for path in (name, os.path.splitext(name)[0]):
            files[path].add(name)
            files[os.path.basename(path)].add(name)

    missing = [image for image in table if image not in files]
    if missing:
        hint = "; if its first row is a header, set image_column and label_column to names in it"
        raise UserError(
            f"{table_path} names {len(missing)} of {len(table)} images that are not in {folder}: "
            f"{abbreviate(missing)}; add those images, or remove their rows"
            + (hint if missing[0] == next(iter(table)) else "")
        )
    found: dict[str, str] = {}
    for image, label in table.items():
        if len(files[image]) > 1:
            raise UserError(
                f"{table_path}: {image} fits several files in {folder}: {abbreviate(sorted(files[image]))}; name files "
                "by path and extension"
            )
        (name,) = files[image]
        if found.setdefault(name, label) != label:
            raise UserError(f"{table_path} gives two labels to {name} in {folder}; keep one")
    unlabelled = [name for name in names if name not in found]
    if unlabelled:
        raise UserError(
            f"{len(unlabelled)} of {len(names)} images in {folder} have no label in {table_path}: "
            f"{abbreviate(unlabelled)}; add them to the table, or move them out of the folder"
        )
    return [found[name] for name in names]
