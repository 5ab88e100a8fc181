"""The path of four weeks and the questions: what they tell the reader to type and to open is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from command_lines import fault_of_command
from ghosttune.config.loading import read_config
from ghosttune.config.sweeps import read_sweep

REPOSITORY = Path(__file__).parents[2]
PAGES = {name: (REPOSITORY / "docs" / f"{name}.md").read_text(encoding="utf-8") for name in ("learning", "faq")}
WEEKS = re.findall(r"^## (Week \d.*?)(?=^## )", PAGES["learning"], re.MULTILINE | re.DOTALL)


def commands(page: str) -> list[str]:
    """Every `ghosttune …` of its blocks and of its sentences."""
    blocks = re.findall(r"```bash\n(.*?)```", page, re.DOTALL)
    in_blocks = [line for block in blocks for line in block.splitlines()]
    text = re.sub(r"```bash\n.*?```", "", page, flags=re.DOTALL)
    return [
        line.partition(" > ")[0] for line in (*in_blocks, *re.findall(r"`(ghosttune [^`]+)`", text.replace("\n", " ")))
    ]


@pytest.mark.parametrize("page", PAGES)
def test_every_command_is_taken(page):
    found = commands(PAGES[page])
    assert len(found) > 5
    assert not {command: why for command in found if (why := fault_of_command(command))}


def test_every_week_says_what_to_read_run_see_and_ask():
    assert len(WEEKS) == 4
    for week in WEEKS:
        assert "| read | for |" in week and "```bash" in week and "\nSee: " in week
        assert len(re.findall(r"^\* .*\?$", week, re.MULTILINE)) == 2, week[:10]


def test_what_a_week_uses_was_made_before():
    """A run, a file or a folder that a command reads stands behind --out or > of one before it."""
    made: set[str] = set()
    for command in commands(PAGES["learning"]):
        needed = re.findall(r"(?<!--out )(?<![/\w])(?:runs/\w+|run\.yaml|kept\.jsonl|drawn\.jsonl)", command)
        assert set(needed) <= made or "init" in command, (command, made)
        made |= set(re.findall(r"--out (\S+)", command)) | ({"run.yaml"} if command == "ghosttune init" else set())
    assert all(read_sweep(REPOSITORY / path) for path in re.findall(r"ghosttune sweep (\S+)", PAGES["learning"]))


def test_settings_given_on_the_line_are_accepted():
    for command in commands(PAGES["learning"]):
        given = re.findall(r"--set (?:'([^']+)'|(\S+))", command)
        overrides = [one or other for one, other in given if "data.train.keep" not in (one or other)]
        assert read_config({"data": {"train": {"path": "builtin:rows"}}}, overrides=overrides)[1] == [], command


def test_every_question_of_the_path_has_its_page():
    targets = re.findall(r"\]\(([\w./-]+)\)", PAGES["learning"])
    assert len(set(targets)) > 20
    assert not [target for target in targets if not (REPOSITORY / "docs" / target).exists()]
