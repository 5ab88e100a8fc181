"""One site of the pages that lie in several folders: those of docs/, and what they link to beside it.

MkDocs calls the functions named `on_…` (`hooks` in mkdocs.yml); nothing is copied or moved, so that every page
is read in the repository as well. On the site, files of docs/ stand at the top and all others at their own path.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)\s#]+)")
FOREIGN = re.compile(
    r"<(?:script|img|iframe|source)\b[^>]*\bsrc=[\"']?(?:https?:)?//|<link\b[^>]*\bhref=[\"']?(?:https?:)?//"
)
"""What a browser would fetch from elsewhere: the site is read without a network too."""


def place(path: Path) -> str:
    """Where a file of the repository stands on the site."""
    return path.relative_to(DOCS if path.is_relative_to(DOCS) else ROOT).as_posix()


def source(place: str) -> Path:
    """The file of the repository that stands there."""
    return DOCS / place if (DOCS / place).exists() else ROOT / place


def target(page: Path, link: str) -> Path | None:
    """The file that a link is about: of a folder its README, else its first page; None where there is none."""
    found = Path(os.path.normpath(page.parent / link))
    if found.is_dir():
        pages = sorted(found.glob("*.md"), key=lambda page: (page.name != "README.md", page.name))
        return pages[0] if pages else None
    return found if found.exists() else None


def relinked(text: str, page: Path) -> str:
    """A page's text with its links as they are on the site."""

    def moved(match: re.Match[str]) -> str:
        found = target(page, match[1])
        return f"]({os.path.relpath(place(found), os.path.dirname(place(page)) or '.')}" if found else match[0]

    return LINK.sub(moved, text)


def spread(nav: list[Any]) -> list[Any]:
    """The navigation with every folder (`benchmarks/`) replaced by its pages."""
    spread_out: list[Any] = []
    for entry in nav:
        if isinstance(entry, dict):
            ((title, inside),) = entry.items()
            entry = {title: spread(inside if isinstance(inside, list) else [inside])} if _has_pages(inside) else entry
            spread_out.append(entry)
        elif entry.endswith("/"):
            spread_out += [place(page) for page in sorted(source(entry).glob("*.md"))]
        else:
            spread_out.append(entry)
    return spread_out


def leaves(nav: list[Any]) -> Iterator[str]:
    """The places of all pages of a navigation without folders."""
    for entry in nav:
        inside = next(iter(entry.values())) if isinstance(entry, dict) else entry
        yield from leaves(inside) if isinstance(inside, list) else [inside]


def beside(pages: list[Path]) -> list[Path]:
    """Files outside docs/ that these pages are or link to, and what those link to in turn."""
    found, left = {}, list(pages)
    while left:
        page = left.pop()
        if page in found:
            continue
        found[page] = not page.is_relative_to(DOCS)
        if page.suffix == ".md":
            links = LINK.findall(page.read_text(encoding="utf-8"))
            left += [linked for link in links if (linked := target(page, link)) is not None]
    return [path for path, outside in found.items() if outside]


def _has_pages(inside: Any) -> bool:
    return isinstance(inside, list) or inside.endswith("/")


def on_config(config: Any) -> Any:
    from pymdownx.slugs import slugify

    config.nav = spread(config.nav)
    config.mdx_configs.setdefault("toc", {})["slugify"] = slugify(case="lower")  # anchors as the repository's own
    return config


def on_files(files: Any, *, config: Any) -> Any:
    from mkdocs.structure.files import File

    for path in beside([source(place) for place in leaves(config.nav)]):
        files.append(File.generated(config, place(path), abs_src_path=str(path)))
    return files


def on_page_markdown(text: str, *, page: Any, **_: Any) -> str:
    return relinked(text, source(page.file.src_uri))


def on_post_page(output: str, *, page: Any, **_: Any) -> str:
    from mkdocs.exceptions import PluginError

    if found := FOREIGN.search(output):
        raise PluginError(f"{page.file.src_uri} fetches from elsewhere: {output[found.start() : found.end() + 60]}")
    return output
