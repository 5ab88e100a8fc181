"""The table of the reference projects' commands and flags: what it names on our side exists and is accepted."""

from __future__ import annotations

import pkgutil
import re
from pathlib import Path

import pytest

from command_lines import fault_of_command
from ghosttune.config.loading import read_config
from ghosttune.config.schema import KINDS, SECTIONS, SWITCHES, leaf_fields

REPOSITORY = Path(__file__).parent.parent.parent
PAGE = (REPOSITORY / "docs" / "reference-projects.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("| ").split(" | ")]
    for line in PAGE.splitlines()
    if line.startswith("| ") and not line.startswith("| theirs")
]


def settings() -> set[str]:
    """Every setting of every method, task and strategy, and the groups that one value can stand for."""
    found = {path for path, _ in leaf_fields()} | set(SWITCHES)
    for section, kinds in KINDS.items():
        for entry in kinds.registry:
            found |= {path for path, _ in leaf_fields({section: entry.name})}
    return found


SETTINGS = settings()


def fault_of_setting(text: str) -> str | None:
    """Why the setting, or the value given with it, is not accepted."""
    key, colon, value = text.partition(": ")
    if key not in SETTINGS:
        return "no such setting"
    given = [f"{key}={value}"] if colon else []
    problems = read_config({"data": {"train": {"path": "builtin:rows"}}}, overrides=given)[1]
    return "; ".join(problem.message for problem in problems) or None


def fault(text: str) -> str | None:
    """What is wrong with one thing that the middle column names."""
    if text.startswith("ghosttune "):
        return fault_of_command(text)
    if re.match(r"ghost(tune|grad)\.", text):
        try:
            pkgutil.resolve_name(text)
        except (ImportError, AttributeError) as error:
            return str(error)
        return None
    return fault_of_setting(text)


def test_what_stands_on_our_side_exists_and_is_accepted():
    assert len(ROWS) > 150
    wrong = {
        (theirs, text): why
        for theirs, ours, *_ in ROWS
        for text in re.findall(r"`([^`]+)`", ours)
        if (why := fault(text))
    }
    assert not wrong


@pytest.mark.parametrize(
    "text",
    ["ghosttune trian run.yaml", "ghosttune train --rank 8", "ghosttune train --preset e2e", "ghosttune evaluate",
     "method.rank", "method.target_modules: both", "train.max_steps: 0", "ghosttune.reports.plots.plot_all"],
)  # fmt: skip
def test_the_check_finds_what_does_not_exist(text):
    assert fault(text)


def test_what_has_no_counterpart_says_why():
    for theirs, ours, *why in ROWS:
        assert re.search("`", ours) or (ours == "—" and len(" ".join(why).split()) >= 1), (theirs, ours)


def test_settings_and_commands_of_the_reasons_exist():
    reasons = [text for _, _, *whys in ROWS for why in whys for text in re.findall(r"`([^`]+)`", why)]
    ours = re.compile(r"ghosttune \w|ghost(tune|grad)\.|(" + "|".join(SECTIONS) + r")\.[a-z_]+")
    named = [text for text in reasons if ours.match(text)]
    assert len(named) > 10
    assert not {text: why for text in named if (why := fault(text))}


def test_no_flag_of_the_documents_is_left_out(shared):
    mission = shared / "mission"
    if not mission.is_dir():
        pytest.skip("the reference projects' documents are not beside the real data")
    texts = [file.read_text(encoding="utf-8") for file in mission.glob("00*.txt")]
    requirements = (mission / "requirements.md").read_text(encoding="utf-8")
    texts += [requirements[requirements.index("\n## V.") :]]
    texts += [line for line in requirements.splitlines() if line.startswith(("| CLI-04", "| GPJ-01", "| GPJ-04"))]
    flags = {flag for text in texts for flag in re.findall(r"--[A-Za-z][\w-]*", text)}
    options = set(re.findall(r"proj_\w+|include_\w+", " ".join(texts[-3:])))
    assert len(flags) > 60
    theirs = " ".join(row[0] for row in ROWS)
    assert not {name for name in flags | options if not re.search(rf"{re.escape(name)}\b", theirs)}
