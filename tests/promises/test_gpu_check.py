"""The script for the day there is a GPU runs to its end here, in miniature, and says that this was none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).parents[2]
CHECK = REPOSITORY / "scripts" / "gpu_check.sh"


@pytest.mark.slow(seconds=60)
def test_every_part_in_miniature(tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    environment = os.environ | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [str(CHECK), str(out), "--tiny"], capture_output=True, text=True, timeout=2000, cwd=tmp_path, env=environment
    )
    assert ended.returncode == 0, ended.stdout[-4000:] + ended.stderr[-2000:]
    results = json.loads(out.read_text())
    parts = results["parts"]
    assert {name: part for name, part in parts.items() if "error" in part} == {}
    assert set(parts) == {"make", "tests", "train", "trl", "nf4", "resume", "store"}
    assert [name for name in ("trl", "nf4") if "skipped" in parts[name]] == [
        name for name, package in (("trl", "trl"), ("nf4", "bitsandbytes")) if not find_spec(package)
    ]
    assert parts["train"]["time_on_over_off"] > 0 and parts["store"]["rows_per_second"] > 0
    page = subprocess.run(
        [sys.executable, str(REPOSITORY / "scripts" / "gpu_check.py"), "--page", str(out)],
        capture_output=True, text=True, timeout=300, check=True,
    ).stdout  # fmt: skip
    assert "In miniature" in page and "| ghosttune, measuring on |" in page
    if not torch.cuda.is_available():
        assert results["gpu"] is None and "NOT a GPU" in results["note"] and "NOT a GPU" in page
        assert parts["tests"]["left_out"] == parts["tests"]["tests"] > 0
        assert parts["resume"]["stopped_and_resumed"]["identical"] and parts["resume"]["repeated"]["identical"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_refuses(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, str(REPOSITORY / "scripts" / "gpu_check.py"), "--out", str(tmp_path / "r.json")],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert ended.returncode == 2 and "no CUDA device here; --tiny" in ended.stderr
    assert not list(tmp_path.iterdir())
