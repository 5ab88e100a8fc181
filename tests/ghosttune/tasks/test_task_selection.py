"""Online selection on every task: what is scored is what the ledger credits when the row trains."""

from __future__ import annotations

from collections import Counter, defaultdict

import pytest
from measured import MEASURED
from task_cases import CASES

from ghosttune.run.tables import read_table
from ghosttune.stages.prepare import prepare
from ghosttune.workflows.train import train

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")


@pytest.mark.parametrize("case", CASES)
def test_the_score_is_what_the_ledger_credits(case, task_config, tmp_path):
    """Windows of one text are candidates of their own; their entries are compared together."""
    changes = {
        "data__online_selection__by": "value",
        "data__online_selection__candidates": 2,
        "train__max_grad_norm": 0,
    }
    run = train(task_config(case, CASES[case].families[0], 24, **MEASURED | changes), tmp_path / "run")
    targets = {row.example_id: row.targets for row in prepare(run.config).train.features}
    kept = [row for row in read_table(run.folder, "selection").to_pylist() if row["kept"]]
    divisors = Counter()
    scores, credited = defaultdict(float), defaultdict(float)
    for row in kept:
        divisors[row["step"]] += targets[row["example_id"]]
        scores[row["step"], row["example_id"]] += row["score"]
    for row in read_table(run.folder, "ledger").to_pylist():
        credited[row["step"], row["example_id"]] += row["value"]
    assert Counter(row["step"] for row in kept) == {1: 4, 2: 4, 3: 4}
    assert credited.keys() == scores.keys()
    largest = max(map(abs, credited.values()))
    for (step, example_id), score in scores.items():
        found = credited[step, example_id]
        assert found == pytest.approx(score / divisors[step], rel=1e-3, abs=1e-4 * largest), (step, example_id)
