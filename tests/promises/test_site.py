"""The documentation's navigation: every page has a place in it, and every place is a page; links are turned rightly."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
NAV = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]

spec = importlib.util.spec_from_file_location("site_pages", ROOT / "scripts" / "site_pages.py")
assert spec and spec.loader
site = importlib.util.module_from_spec(spec)
spec.loader.exec_module(site)


def named(nav) -> list[str]:
    """Every entry, folders as they stand."""
    if isinstance(nav, str):
        return [nav]
    return [name for part in (nav.values() if isinstance(nav, dict) else nav) for name in named(part)]


def pages_of(name: str) -> list[Path]:
    """The pages of an entry, in docs/ or beside it."""
    found = DOCS / name if (DOCS / name).exists() else ROOT / name
    return sorted(found.glob("*.md")) if name.endswith("/") else [found]


def test_the_site_has_five_parts():
    assert [title for part in NAV for title in part] == ["Start", "Guides", "How it works", "Reference", "Studies"]


def test_every_page_has_one_place_and_every_place_is_a_page():
    places = [page for name in named(NAV) for page in pages_of(name)]
    assert not [page for page in places if not page.is_file()]
    assert len(places) == len(set(places))
    assert not {*DOCS.rglob("*.md")} - {*places}, "pages without a place in mkdocs.yml"
    assert {ROOT / "README.md", ROOT / "examples" / "README.md", *(ROOT / "benchmarks").glob("*.md")} <= {*places}


def test_folders_are_spread_where_they_stand():
    spread = site.spread(NAV)
    assert [*site.leaves(spread)] == [site.place(page) for name in named(NAV) for page in pages_of(name)]
    (decisions,) = [entry["Decisions"] for entry in spread[2]["How it works"] if "Decisions" in entry]
    assert decisions == sorted(decisions) and decisions[0].startswith("decisions/001-")


def test_links_are_turned_to_where_files_stand_on_the_site():
    """By hand: docs/ is the top of the site, everything else keeps its path."""
    readme, study = ROOT / "README.md", DOCS / "studies" / "README.md"
    assert site.relinked("[a](docs/runs.md#resuming)", readme) == "[a](runs.md#resuming)"
    assert site.relinked("![a](docs/images/studio.png)", readme) == "![a](images/studio.png)"
    assert site.relinked("[a](../../benchmarks/removal.md)", study) == "[a](../benchmarks/removal.md)"
    assert site.relinked("[a](../docs/runs.md)", ROOT / "benchmarks" / "ledger.md") == "[a](../runs.md)"
    assert site.relinked("[a](../examples)", DOCS / "runs.md") == "[a](examples/README.md)"
    for kept in ("[a](https://example.com/docs/runs.md)", "[a](#resuming)", "[a](none.md)"):
        assert site.relinked(kept, readme) == kept


def test_pages_beside_docs_come_along_with_what_they_link_to():
    found = {site.place(path) for path in site.beside([site.source(leaf) for leaf in site.leaves(site.spread(NAV))])}
    assert {"README.md", "CHANGELOG.md", "benchmarks/ledger.md", "examples/README.md"} <= found
    assert not [place for place in found if not (ROOT / place).is_file()]
    assert "examples/measure_your_trainer.py" in found, "a file that a page links to"


def test_what_a_browser_would_fetch_from_elsewhere_is_found():
    for foreign in (
        '<script src="https://cdn.example/x.js">',
        "<link href=//fonts.example/css rel=stylesheet>",
        '<img alt="a" src="http://example/x.png">',
    ):
        assert site.FOREIGN.search(foreign)
    for own in ('<a href="https://example.com">', '<script src="../assets/x.js">', '<link href="assets/x.css">'):
        assert not site.FOREIGN.search(own)


def test_the_readme_opens_with_a_small_picture_two_commands_and_a_table_with_sources():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (picture,) = re.findall(r"!\[[^\]]{40,}\]\((\S+)\)", text)
    assert text.index(picture) < text.index("\n## "), "before anything else, and told to those who cannot see it"
    assert (ROOT / picture).stat().st_size < 200_000
    (commands,) = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert [line.split("#")[0].split() for line in commands.splitlines()] == [["make", "demo"], ["make", "studio"]]
    assert "\nstudio: " in makefile and "\ndemo: " in makefile and "\ndocs: " in makefile
    table = re.search(r"^\| \| ghosttune \|.*\n\|(?:---\|)+\n((?:\|.*\n)+)", text, re.MULTILINE)
    assert table
    for row in table[1].splitlines():
        what, own, *others = [cell.strip() for cell in row.strip("|").split("|")]
        assert what and re.fullmatch(r"\[(yes|no)\]\(docs/[\w./#-]+\)", own) and len(others) == 5
        assert all(not cell or re.fullmatch(r"\[(yes|no)\]\(https://\S+\)", cell) for cell in others), row
    assert len(text.splitlines()) < 80, "the rest is in docs/"
