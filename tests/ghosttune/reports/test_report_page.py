"""The page opens from disk, needs nothing but itself, says what the run says, and shows rows as text."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hostile_rows import HOSTILE
from typer.testing import CliRunner

from ghosttune import report
from ghosttune.choosing.opened import OpenedRun
from ghosttune.choosing.tokens import guide_shares
from ghosttune.cli.main import app
from ghosttune.data.records import Record, Records, Turn
from ghosttune.data.sources import Source
from ghosttune.errors import InputError, RunError
from ghosttune.registry import FIGURES
from ghosttune.reports.examples import extremes
from ghosttune.reports.page import figures_of
from ghosttune.reports.page import page as page_of
from ghosttune.reports.reading import RunNumbers
from ghosttune.run.directory import RunDir
from ghosttune.workflows.report import every_text, shades_of, texts_of


class Page(HTMLParser):
    """Elements with their attributes, and all text."""

    def __init__(self, path: Path):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.text = " ".join(self.texts)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data)

    def attributes(self, name: str) -> list[str]:
        return [found[name] or "" for _, found in self.elements if name in found]


@pytest.fixture(scope="module")
def page(full_run) -> Page:
    return Page(full_run / "report" / "index.html")


@pytest.fixture
def copied(full_run, tmp_path) -> Path:
    """The run without its report, to change."""
    return shutil.copytree(full_run, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints", "report"))


def test_the_page_needs_nothing_but_itself(page, full_run):
    used = [*page.attributes("src"), *page.attributes("href"), *page.attributes("xlink:href")]
    for target in used:
        inside = target.startswith(("#", "data:image/png;base64,"))
        assert inside or (full_run / "report" / target).is_file(), target
    named = {tag for tag, _ in page.elements}
    assert not named & {"script", "link", "iframe", "object", "embed", "img", "base", "form"}
    assert not re.findall(r"@import|url\((?!#)", page.source)
    assert "http" not in page.source.replace(HOSTILE, "")


def test_what_is_referred_to_is_there_once(page):
    ids = page.attributes("id")
    assert len(ids) == len(set(ids))
    targets = [target[1:] for target in [*page.attributes("href"), *page.attributes("xlink:href")] if target[0] == "#"]
    assert set(targets) | set(re.findall(r"url\(#([^)]+)\)", page.source)) <= set(ids)


def test_rows_are_shown_as_text(page):
    assert HOSTILE in page.text
    assert not [found for _, found in page.elements if set(found) & {"onerror", "onclick", "onload"}]


def test_it_says_what_the_run_says(page, full_run):
    record = json.loads((full_run / "run.json").read_text())
    change = record["verdict"]["change"]
    assert f"{change['value']:.4g} ({change['low']:.4g} to {change['high']:.4g})" in page.text
    assert "untouched base" in page.text and "One run, one seed" in page.text
    for origin in ("--set", "default"):
        assert origin in page.texts
    for name in ("train.learning_rate", "both", "attention", "tokens per second", "rows.jsonl, sha256"):
        assert name in page.text, name
    assert f"{record['ledger']['columns']['planted']['rows']} planted rows" in page.text
    assert (
        "of the drop unexplained" in page.text and f"alike with r {record['ledger']['values_steady']:.2f}" in page.text
    )


def test_both_themes_and_both_widths(page):
    assert "prefers-color-scheme: dark" in page.source
    widths = [found["class"] for tag, found in page.elements if found.get("class") in ("wide", "narrow")]
    assert widths.count("wide") == widths.count("narrow") == page.source.count("<svg ") / 2
    assert all("viewbox" in found and found["role"] == "img" for tag, found in page.elements if tag == "svg")


def test_texts_of_changed_rows_are_not_shown(copied, full_run, tmp_path):
    config, rows = copied / "config.yaml", tmp_path / "rows.jsonl"
    rows.write_text((full_run.parent / "rows.jsonl").read_text().replace("red", "blue"))
    config.write_text(config.read_text().replace(str(full_run.parent), str(tmp_path)))
    texts, why_none = texts_of(RunDir(copied))
    assert not texts and why_none.endswith(f"because these files changed since: {rows}")
    assert escape(why_none) in page_of(RunNumbers(RunDir(copied)), {}, {}, texts, why_none, {})


def test_texts_of_lost_rows_are_not_shown(copied, full_run):
    config = copied / "config.yaml"
    config.write_text(config.read_text().replace(str(full_run.parent), "/nowhere"))
    texts, why_none = texts_of(RunDir(copied))
    assert not texts and "cannot be read any more" in why_none and "/nowhere/rows.jsonl" in why_none


def test_targets_are_shaded_by_what_they_do_to_the_guide_loss(full_run, full, tmp_path):
    (tmp_path / "page.html").write_text(page_of(full, {}, {}, {}, "", shades_of(RunDir(full_run), 1)), encoding="utf-8")
    page = Page(tmp_path / "page.html")
    ids = [rows[0]["example_id"] for rows in extremes(full).values()]
    shares = guide_shares(OpenedRun(full_run), ids)
    expected = [share for name in ids for share in shares[name]]
    found = [found for tag, found in page.elements if found.get("class") in ("lowers", "raises")]
    assert [shade["title"] for shade in found] == [f"{share.share:+.3g}" for share in expected]
    assert [shade["class"] == "lowers" for shade in found] == [share.share > 0 for share in expected]
    assert page.source.count("--strength: 60%") >= 2
    assert not [shade for _, shade in page.elements if set(shade) & {"onerror", "onclick", "onload"}]
    assert "Targets are shaded" in page.text
    said = "".join(share.text for share in shares[ids[0]])
    assert said.startswith("red ") and said in "".join(page.texts)


def test_what_cannot_be_shaded_is_refused(bare_run):
    with pytest.raises(InputError, match="has no values of rows, so that there is nothing to shade"):
        shades_of(RunDir(bare_run), 1)


def test_rows_of_every_task_have_a_text():
    turns = Record("a", (Turn("user", "Who?"), Turn("assistant", "I.")), "g")
    labelled = Record("b", (), "g", columns={"text": "fine", "label": 3, "note": None})
    tagged = Record("c", (), "g", columns={"tokens": ["Anna", "left"], "tags": ["B-PER", "O"]})
    config: Any = None  # of no concern to rows that are not in blocks
    found = dict(every_text(Source(Records.of([turns, labelled, tagged]), "any", {}), config))
    assert found["a"] == [("user", "Who?"), ("assistant", "I.")]
    assert found["b"] == [("text", "fine"), ("label", "3")]
    assert found["c"] == [("tokens", "Anna left"), ("tags", "B-PER O")]


def test_a_damaged_file_is_named(copied):
    (copied / "evaluation.json").write_text('{"dev": ')
    with pytest.raises(RunError, match=r"evaluation\.json is damaged"):
        figures_of(RunNumbers(RunDir(copied)))


@pytest.mark.parametrize("status", ["running", "stopped", "failed"])
def test_a_run_that_did_not_finish(copied, status):
    """As it lies there when it ends early: no verdict, no account, no exports, only the tables' parts."""
    record = json.loads((copied / "run.json").read_text())
    kept = {name: value for name, value in record.items() if name not in ("verdict", "ledger", "phases", "ended")}
    (copied / "run.json").write_text(json.dumps(kept | {"status": status, "error": "out of <memory>"}))
    for gone in ("tables/values.parquet", "predictions"):
        shutil.rmtree(copied / gone)
    for gone in ("evaluation.json", *(f"tables/{name}.csv" for name in ("values", "modules", "phases"))):
        (copied / gone).unlink()
    numbers = RunNumbers(RunDir(copied))
    figures = figures_of(numbers)
    assert set(FIGURES.names()) - set(figures) == {
        "rewards",
        "forgetting",
        "ledger_account",
        "value_distribution",
        "values_by_column",
        "kept_by_column",
        "evaluation",
        "dev_loss_by_set",
        "mixture_weights",
    }
    said = {"running": "has not finished", "stopped": "was stopped", "failed": "failed: out of &lt;memory&gt;"}
    assert said[status] in page_of(numbers, {}, {}, {}, "", {})


def test_a_report_replaces_the_one_before(bare_run, tmp_path):
    run = shutil.copytree(bare_run, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    (run / "report" / "old.png").touch()
    report(run)
    left = {path.name for path in (run / "report").iterdir()}
    assert "old.png" not in left and {"index.html", "training_loss.csv", "training_loss.png"} <= left


def test_from_the_command_line(bare_run, tmp_path):
    result = CliRunner().invoke(app, ["report", str(bare_run), "--json"])
    assert json.loads(result.stdout) == {str(bare_run): str(bare_run / "report" / "index.html")}
    with pytest.raises(RunError, match="holds no run"):
        report(tmp_path)


def test_reports_need_neither_torch_nor_matplotlib_to_be_imported():
    code = (
        "import sys, ghosttune.reports.page, ghosttune.reports.plots\n"
        "print([name for name in ('torch', 'transformers', 'matplotlib', 'pyarrow') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=1500)
    assert found.stdout == "[]\n", found.stderr
