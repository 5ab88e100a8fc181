"""docs/families.json and its page: every family of Transformers holds, and a few are tried again."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"

QUICK = ("jamba", "rwkv", "bert", "t5")
"""A weight used outside its module, a state that runs through padding, an encoder, and one that rewrites."""

MORE = (
    "deberta-v2",
    "doge",
    "gemma3n_text",
    "gpt_oss",
    "hrm_text",
    "lfm2_moe",
    "llama4_text",
    "mistral4",
    "modernbert-decoder",
    "mpnet",
    "olmo_hybrid",
    "perceiver",
    "qwen3_next",
)


@pytest.fixture(scope="module")
def build():
    """scripts/build_families.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        yield import_module("build_families")
    for name in ("build_families", "family_trials"):
        sys.modules.pop(name, None)


def test_every_family_was_tried_and_holds(build: ModuleType):
    trials = build.read()
    assert trials.keys() == build.families().keys() and len(trials) >= 60
    assert {name: trial.steps for name, trial in trials.items() if not trial.holds} == {}
    tried = [trial for trial in trials.values() if "model" not in trial.steps]
    assert len(tried) >= 200 and all(trial.parameters for trial in tried)
    for trial in tried:
        merged = {"merge"} if trial.task == "causal_lm" else set()
        whole = {"check", "train", "index", "answer", "float32", "float64"} | merged
        assert set(trial.steps) == (whole if trial.steps["check"] == "ok" else {"check"}), trial


def test_every_number_is_under_its_bar(build: ModuleType):
    """Read from the file itself, so that a trial that forgets to compare is no trial."""
    entries = json.loads(build.RESULTS.read_text())
    works = [entry["steps"] for entry in entries.values() if entry["steps"].get("train") == "ok"]
    assert len(works) >= 60
    assert max(float(steps["float32"]) for steps in works) <= 1e-5
    double = [float(steps["float64"]) for steps in works if not steps["float64"].startswith("- ")]
    assert max(double) <= 1e-12 and len(double) >= 0.9 * len(works)


def test_the_page_says_what_was_found(build: ModuleType):
    assert build.PAGE.read_text(encoding="utf-8") == build.page(build.read()), "run scripts/build_families.py --page"
    page = (build.PAGE.parent / "compatibility.md").read_text(encoding="utf-8")
    assert build.short(build.read()) in page, "run scripts/build_families.py --page"


def test_what_does_not_hold_is_not_passed_over(build: ModuleType):
    trial = build.Trial("made_up", "causal_lm", steps={"check": "ok", "train": "ok", "float32": "1e-6"})
    assert trial.holds
    for step, found in {
        "train": "fault: KeyError",
        "index": "late: refused behind check",
        "float32": "2.0e-05",
        "float64": "1.1e-12",
        "model": "fault: its process crashed",
    }.items():
        assert not build.Trial("made_up", "causal_lm", steps=trial.steps | {step: found}).holds, step


def tried_again(build: ModuleType, family: str, place: Path) -> None:
    trial = build.tried(family, build.families()[family], place)
    assert trial.holds and trial.steps.keys() == build.read()[family].steps.keys(), trial.steps


@pytest.mark.parametrize("family", QUICK)
def test_a_few_families_again(build: ModuleType, family: str, tmp_path: Path):
    tried_again(build, family, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("family", MORE)
def test_more_families_again(build: ModuleType, family: str, tmp_path: Path):
    tried_again(build, family, tmp_path)
