"""mkdocs: pages link to files of the repository as on GitHub (`../benchmarks/coverage.csv`); the site takes them along.

ARCHITECTURE.md, CONTRIBUTING.md and CHANGELOG.md become pages; other files lie under `repository/`, as they are.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md")
LINK = re.compile(r"(\]\()([^)\s#]+)((?:#[^)\s]*)?\))")
CODE = re.compile(r"(^```.*?^```)", re.MULTILINE | re.DOTALL)


def on_files(files, config):
    for name in PAGES:
        files.append(File.generated(config, name, content=(ROOT / name).read_text(encoding="utf-8")))
    pages = [file for file in files if file.src_uri.endswith(".md")]
    wanted = {place for page in pages for place in _linked(page) if place not in PAGES and not _in_docs(place)}
    for place in sorted(wanted):
        if (ROOT / place).is_file():
            files.append(File.generated(config, f"repository/{place}", abs_src_path=str(ROOT / place)))
    return files


def on_page_markdown(markdown, page, config, files):
    def turn(found):
        before, target, after = found.groups()
        if "://" in target:
            return found[0]
        place = _place(page.file.src_uri, target)
        if _in_docs(place):
            place = place.removeprefix("docs/")
        elif place not in PAGES:
            place = f"repository/{place}"
        return f"{before}{posixpath.relpath(place, posixpath.dirname(page.file.src_uri) or '.')}{after}"

    parts = CODE.split(markdown)
    return "".join(part if i % 2 else LINK.sub(turn, part) for i, part in enumerate(parts))


def _linked(file):
    text = CODE.sub("", file.content_string)
    return {_place(file.src_uri, target) for _, target, _ in LINK.findall(text) if "://" not in target}


def _place(source, target):
    """A link's target, from the repository's root."""
    folder = "" if source in PAGES else posixpath.dirname(f"docs/{source}")
    return posixpath.normpath(posixpath.join(folder, target))


def _in_docs(place):
    return place.startswith("docs/")
