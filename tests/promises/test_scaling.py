"""docs/scaling.md: bash, YAML and the command line take its recipes, and its figures are what its formulas give."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from command_lines import fault_of_command

PAGE = (Path(__file__).parents[2] / "docs" / "scaling.md").read_text(encoding="utf-8")
RECIPES = re.findall(r"```(bash|yaml)\n(.*?)```", PAGE, re.DOTALL)


def scripts() -> list[str]:
    found = []
    for language, text in RECIPES:
        recipe = yaml.safe_load(text) if language == "yaml" else None
        found += [text] if recipe is None else [recipe["setup"], recipe["run"]]
    return found


def test_there_is_one_for_each():
    text = "\n".join(scripts())
    for launcher in ("torchrun --nnodes", "accelerate launch", "srun", "#SBATCH --array", "SKYPILOT_NODE_RANK"):
        assert launcher in text


@pytest.mark.parametrize("script", scripts(), ids=lambda text: text.split("\n")[0][:30])
def test_bash_takes_it(script):
    parsed = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, timeout=20)
    assert parsed.returncode == 0, parsed.stderr


def commands() -> list[str]:
    """What they call of ours, variables filled in."""
    lines = "\n".join(scripts()).replace("\\\n", " ")
    lines += "\n" + "\n".join(re.findall(r"`(ghosttune [a-z].*?)`", PAGE))
    found = re.findall(r"(?:^|-m |\n)(ghosttune (?!==).*)", lines) + re.findall(r"-m (ghosttune .*)", lines)
    filled = [line.replace('"${what[@]}"', "run.yaml") for line in found]
    return [re.sub(r"\$\{?\w+\}?", "1", line) for line in dict.fromkeys(filled)]


@pytest.mark.parametrize("command", commands())
def test_the_command_line_takes_it(command):
    assert fault_of_command(command) is None


def matrices(hidden: int, keys: int, inner: int) -> list[tuple[int, int]]:
    """Sides of a Llama layer's matrices."""
    return [(hidden, hidden), (hidden, keys), (hidden, keys), (hidden, hidden), *[(hidden, inner)] * 3]


LLAMAS = {"7B": (7e9, 32, matrices(4096, 4096, 11008)), "70B": (70e9, 80, matrices(8192, 1024, 28672))}


@pytest.mark.parametrize("size", LLAMAS)
def test_its_arithmetic(size):
    """Each figure of the table, from its formula."""
    numbers, layers, sides = LLAMAS[size]
    adapter = layers * sum(16 * (one + other) for one, other in sides)
    tapped = layers * 2 * len(sides)
    column = list(LLAMAS).index(size) + 2
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line.startswith("|")]
    shown = {row[0]: row[column] for row in rows if len(row) == 5}

    def first(name: str) -> float:
        found = re.match(r"[\d.]+", shown[name].replace(",", ""))
        assert found, shown[name]
        return float(found[0])

    assert first("base, bfloat16") == pytest.approx(2 * numbers / 1e9)
    assert first("base, nf4") == pytest.approx(numbers * (0.5 + 4 / 64) / 1e9, rel=0.03)
    assert first("adapter and AdamW, float32") == pytest.approx(16 * adapter / 1e9, rel=0.02)
    assert first("a row, forward and backward") == pytest.approx(4 * numbers * 512 / 1e12, rel=0.03)
    seconds = 4 * numbers * 512 / 400e12
    assert first("the same at 400 TFLOP/s") == pytest.approx(1000 * seconds if size == "7B" else seconds, rel=0.03)
    assert first("index, sketches of `standard@1`") == pytest.approx(256 * 2 * tapped / 1e6, rel=0.03)
    assert first("a query") == pytest.approx(256 * 2 * tapped / 10e9 * 1e6, rel=0.03)
