"""Every family that sees, in float64: rows of a batch and of a run's ledger are those of one backward pass per row."""

from __future__ import annotations

from pathlib import Path

import pytest
from families import FAMILIES
from rowwise_families import TARGETS, errors

BAR = 1e-10
QUICK = {("qwen2_5_vl", "all_linear"), ("gemma3", "attention")}
PAGE = Path(__file__).parents[3] / "docs" / "data.md"

CASES = [
    pytest.param(family, name, marks=[] if (family, name) in QUICK else pytest.mark.slow(seconds=8))
    for family in FAMILIES
    for name in TARGETS
]


@pytest.mark.parametrize(("family", "name"), CASES)
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
def test_rows_are_those_of_one_backward_pass_each(family, name, tmp_path):
    engine, ledger = errors(family, TARGETS[name], tmp_path)
    assert 0 < engine <= BAR and 0 < ledger <= BAR


def test_the_page_lists_what_is_tried():
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in PAGE.read_text().splitlines()]
    listed = {(row[0], row[1]): row[2:] for row in rows if len(row) == 4 and row[0] in FAMILIES}
    assert listed.keys() == {(family, name) for family in FAMILIES for name in TARGETS}
    assert all(float(number) <= BAR for numbers in listed.values() for number in numbers)
