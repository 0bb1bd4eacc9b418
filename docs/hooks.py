"""What `make docs` adds to the pages of docs/, so that nothing is written twice.

A page for each section of README.md, pages of CONTRIBUTING.md and CHANGELOG.md, a table of all config fields, and the
docstrings of public modules. Links in the files are those that GitHub follows; here they lead to the pages.
"""

import importlib.util
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from medgan_jax.config import FIELDS, field_groups

_ROOT = Path(__file__).parent.parent
_PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
_MODULES = [
    "sampling", "sample_folder", "checkpoint", "evaluation.protocol", "metrics.paired", "metrics.distribution",
    "training.trainer", "training.callback", "training.callbacks", "images", "image_files", "provenance",
]  # fmt: skip
if importlib.util.find_spec("medgan_jax.api"):
    _MODULES.insert(0, "api")


def on_config(config: MkDocsConfig) -> None:
    """Lists the pages of the reference."""
    reference = next(entry["Reference"] for entry in config.nav if "Reference" in entry)
    reference += [{"Config fields": "reference/config.md"}]
    reference += [{f"medgan_jax.{module}": f"reference/{module}.md"} for module in _MODULES]


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Adds the pages that are not in docs/."""
    intro, *sections = re.split(r"^## (.*)\n", (_ROOT / "README.md").read_text(), flags=re.MULTILINE)
    pages = {"index.md": intro, "reference/config.md": _config_fields()}
    pages |= {_guide(title): f"# {title}\n{text}" for title, text in zip(sections[::2], sections[1::2], strict=True)}
    pages |= {page: (_ROOT / name).read_text() for name, page in _PAGES.items() if page != "index.md"}
    for module in _MODULES:
        pages[f"reference/{module}.md"] = f"# medgan_jax.{module}\n\n::: medgan_jax.{module}\n"
    for page, text in pages.items():
        files.append(File.generated(config, page, content=text))


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Makes links between files of the repository links between pages; of what has no page, the text is left."""
    origin = "README.md" if page.file.src_uri.startswith("guide/") else f"docs/{page.file.src_uri}"
    origin = next((name for name, uri in _PAGES.items() if uri == page.file.src_uri), origin)
    here = posixpath.dirname(page.file.src_uri)

    def link(match: re.Match) -> str:
        text, path, anchor = match.groups(default="")
        target = posixpath.normpath(posixpath.join(posixpath.dirname(origin), path)) if path else origin
        if "://" in path or not (_ROOT / target).exists():
            return match[0]  # what is not there, the strict build refuses
        if target == "README.md" and anchor:
            uri, anchor = _guide(anchor), ""
        else:
            uri = _PAGES.get(target, target.removeprefix("docs/"))
            if not files.get_file_from_path(uri):
                return text
        return f"[{text}]({posixpath.relpath(uri, here or '.')}{anchor})"

    return re.sub(r"\[([^\[\]]*)\]\(([^()#\s]*)(#[^()\s]*)?\)", link, markdown)


def _guide(title: str) -> str:
    """The page of a section of README.md, by its title or its anchor."""
    return f"guide/{re.sub('[^a-z0-9]+', '-', title.lower()).strip('-')}.md"


def _config_fields() -> str:
    lines = ["# Config fields", "", "Set any of them with `--config.FIELD=VALUE`. *May change*: a resumed run may have"]
    lines += ["another value.", ""]
    for group, names in field_groups().items():
        lines += [f"## {group}", "", "| field | default | | may change |", "|---|---|---|---|"]
        for name in names:
            about = FIELDS[name].metadata
            help_text = about["help"].replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")
            default = repr(FIELDS[name].default).replace("'", '"')
            lines.append(f"| `{name}` | `{default}` | {help_text} | {'yes' if about['may_change'] else ''} |")
        lines.append("")
    return "\n".join(lines)
