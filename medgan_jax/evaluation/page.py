"""The files of an evaluation: evaluation.json, and evaluation.html with its pictures."""

import json
import tempfile
from pathlib import Path

from medgan_jax.errors import UserError
from medgan_jax.evaluation.report import Report
from medgan_jax.files import replace_file

JSON = "evaluation.json"
PAGE = "evaluation.html"


def prepare(out: Path) -> None:
    """Makes the folder for the results, before they cost minutes. Raises UserError when it cannot be written to."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=out):
            pass
    except OSError as error:
        raise UserError(f"--out={out}: cannot be written ({error.strerror}); give another folder") from error


def write(report: Report, out: Path) -> None:
    """Writes both into a prepared folder.

    Raises:
      OSError: a file cannot be written.
    """
    replace_file(out / JSON, (json.dumps(report.to_dict(), indent=1, allow_nan=False) + "\n").encode())
    replace_file(out / PAGE, report.to_html().encode(errors="replace"))  # titles may hold bytes that are no text
