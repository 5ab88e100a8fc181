"""What a newcomer is told to type works as it is written."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ghosttune.config.schema import KINDS, SECTIONS, leaf_fields

REPOSITORY = Path(__file__).parent.parent.parent
START = (REPOSITORY / "docs" / "start.md").read_text(encoding="utf-8")


def block_after(heading: str, language: str) -> str:
    found = re.search(rf"## {heading}\n.*?```{language}\n(.*?)```", START, re.DOTALL)
    assert found, f"docs/start.md has no {language} block under {heading}"
    return found[1]


def run(command: list[str], folder: Path) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=1500)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.slow(seconds=30)
def test_own_rows_from_the_command_line_and_from_python(tmp_path):
    printed = run(["bash", "-euo", "pipefail", "-c", block_after("Your own rows", "bash")], tmp_path)
    assert "The adapter is better than the untouched base." in printed
    assert printed.strip().endswith("Good evening, Clara!"), "a name it has never been asked to greet"
    again = run([sys.executable, "-c", block_after("From Python", "python")], tmp_path)
    assert "'verdict': 'better'" in again and "Good evening" in again


@pytest.mark.slow(seconds=8)
def test_the_example_of_a_trainer_of_your_own_runs(tmp_path):
    printed = run(
        [sys.executable, str(REPOSITORY / "examples" / "measure_your_trainer.py"), str(tmp_path), "6"], tmp_path
    )
    losses = re.search(r"loss of the guide rows: ([\d.]+) -> ([\d.]+)", printed)
    assert losses and float(losses[2]) < float(losses[1])
    assert re.search(r"of the 20 rows that helped least, \d+ have a wrong answer", printed)
    assert (tmp_path / "measured" / "gradient_analysis.group_norms.csv").exists()


def test_links_lead_somewhere():
    pages = [REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
    pages += [page for folder in ("docs", "examples", "benchmarks") for page in (REPOSITORY / folder).rglob("*.md")]
    broken = [
        f"{page.name}: {target}"
        for page in pages
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8"))
        if not target.startswith("http") and not (page.parent / target).exists()
    ]
    assert not broken


def test_the_parameter_guide_cites_figures_that_were_measured():
    guide = (REPOSITORY / "docs" / "parameters.md").read_text(encoding="utf-8")
    measured = [REPOSITORY / "docs" / "studies" / "README.md", *(REPOSITORY / "benchmarks").glob("*.md")]
    sources = " ".join(page.read_text(encoding="utf-8") for page in measured)
    figures = re.findall(r"\b\d+\.\d{2,}\b", guide)
    assert len(figures) > 25
    assert not [figure for figure in figures if not re.search(rf"\b{re.escape(figure)}\b", sources)]


@pytest.mark.parametrize("page", ["parameters", "tutorial", "configuration", "faq", "learning"])
def test_settings_that_pages_name_exist(page):
    kinds = [{section: entry.name} for section, of in KINDS.items() for entry in of.registry]
    known = {path for kind in kinds for path, _ in leaf_fields(kind)}
    text = (REPOSITORY / "docs" / f"{page}.md").read_text(encoding="utf-8")
    named = re.findall(rf"`((?:{'|'.join(SECTIONS)})\.[a-z_.]+)(?<!json)(?<!yaml)`", text)
    assert named
    assert not [name for name in named if not any(path == name or path.startswith(f"{name}.") for path in known)]
